"""Compiles train steps for an H100 without a GPU, and prints how their convolutions reach cuDNN.

    XLA_FLAGS=--xla_gpu_enable_triton_gemm=false python -m benchmarks.gpu_compile guide resnet101 segformer

It needs `jax-cuda13-plugin[with-cuda]` or `jax-cuda12-plugin[with-cuda]`. XLA tunes Triton's matrix products on a GPU,
so without one they must be turned off.
"""

import argparse
import json
import os
import time

os.environ["JAX_PLATFORMS"] = "cpu"  # else JAX looks for a GPU

import jax  # noqa: E402
from jax.experimental import topologies  # noqa: E402

from benchmarks.gpu_hlo import describe_convolutions  # noqa: E402
from benchmarks.gpu_worker import CONFIGS, network_config  # noqa: E402
from deeplab_jax.analysis import aot_compile  # noqa: E402

# NVIDIA's figures of the H100 SXM, as XLA's `GpuTargetConfigProto`.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048  core_count: 132  fpus_per_core: 128
  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  memory_bandwidth: 3352320000000  l2_cache_size: 52428800  clock_rate_ghz: 1.98  device_memory_size: 84942979072
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def main() -> None:
    """Compiles the networks on the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_compile", description=__doc__.partition("\n")[0])
    parser.add_argument("networks", nargs="+", choices=CONFIGS)
    parser.add_argument("--batch", type=int, default=16, help="images per step (default: 16)")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    args = parser.parse_args()
    h100 = topologies.get_topology_desc("h100", "cuda", topology="1x1x1", target_config=_H100)
    for network in args.networks:
        size = 513 if network == "resnet101" else 512
        config = network_config(network, size=size, batch=args.batch, dtype=args.dtype)
        lowered = aot_compile.lower_step(config, h100.devices, num_classes=21)
        start = time.process_time()
        compiled = lowered.compile()
        found = describe_convolutions(compiled.as_text())
        found |= {"temporaries": compiled.memory_analysis().temp_size_in_bytes}
        found |= {"jax": jax.__version__, "seconds": round(time.process_time() - start)}
        print(network, json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
