"""Counts and measures the cost of train steps: `python -m benchmarks.scaling` prints both as tables.

Multiply-adds are those of `deeplab-jax summary`, column `executed`, times three: forward pass, gradient of the images,
gradient of the kernels. Bytes are the values that the forward pass hands to the backward pass, each array once, plus
parameters, their gradients and the optimizer's buffer.
"""

import argparse
import time
from collections.abc import Sequence

import jax
import numpy as np
from jax.extend import core
from ml_collections import ConfigDict

from benchmarks.ours import CLASSES, prepare_step, random_batch
from deeplab_jax.analysis import summary
from deeplab_jax.config import load_config
from deeplab_jax.errors import UserError
from deeplab_jax.models import DeepLabV3Plus, abstract_variables, build_model
from deeplab_jax.parallel import sharding

CONFIGS = (
    "quickstart",
    "kerascv_guide",
    "deeplabv3plus_resnet50_voc",
    "deeplabv3plus_resnet101_voc",
    "deeplabv3plus_efficientnet_lite0_voc",
    "deeplabv3plus_efficientnet_lite2_distilled_voc",
)
STRIDES = (32, 16, 8)
SIZES = (128, 192, 256)
BATCH = 2


def step_multiply_adds(model: DeepLabV3Plus, size: int, batch: int) -> int:
    """Counts the multiply-adds of a train step on square images, without resizing."""
    return 3 * batch * sum(row.executed for row in summary.summarize(model, size, size) if row.name != "resizing")


def step_bytes(model: DeepLabV3Plus, size: int, batch: int) -> tuple[int, int]:
    """Counts the bytes of parameters with gradients and momentum, and of the values stored for the backward pass."""
    variables = abstract_variables(model)
    images = jax.ShapeDtypeStruct((batch, size, size, model.in_channels), np.uint8)

    def pullback(params, batch_stats, images):
        def logits(params):
            rngs = {"dropout": jax.random.key(0)}
            variables = {"params": params, "batch_stats": batch_stats}
            (logits, _), _ = model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)
            return logits

        return jax.vjp(logits, params)[1]

    jaxpr = jax.make_jaxpr(pullback)(variables["params"], variables["batch_stats"], images).jaxpr
    given = set(jaxpr.invars)
    kept = {variable for variable in jaxpr.outvars if isinstance(variable, core.Var) and variable not in given}
    parameters = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(variables["params"]))
    return 3 * parameters, sum(variable.aval.size * variable.aval.dtype.itemsize for variable in kept)


def measure(config: ConfigDict, repetitions: int) -> tuple[float, int]:
    """Returns the seconds of the fastest of some steps, and the bytes of temporaries of the compiled step."""
    program, state, mesh = prepare_step(config)
    batch = sharding.to_global(random_batch(config), mesh)
    compiled = program.lower_step().compile()
    seconds = []
    for _ in range(1 + repetitions):
        start = time.perf_counter()
        state, report = compiled(state, batch, program.hyperparams)
        jax.block_until_ready((state, report))
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:]), compiled.memory_analysis().temp_size_in_bytes


def _config(name: str, size: int) -> ConfigDict:
    config = load_config(name)
    config.data.image_size, config.data.batch_size = (size, size), BATCH
    config.mesh.data = 1
    return config


def print_counts(names: Sequence[str]) -> None:
    """Prints a row per config and possible output stride, for one 512x512 image."""
    print(
        "| config | output stride | step, 10^9 multiply-adds | parameters x 3, MB | stored, MB | `activations`, MB | "
        "`units`, MB |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in names:
        config = load_config(name)
        for stride in STRIDES:
            own = " (default)" if stride == config.model.output_stride else ""
            try:
                models = [
                    build_model(config.model, CLASSES, output_stride=stride, remat=remat)
                    for remat in ("none", "activations", "units")
                ]
            except UserError:  # its atrous rates are not integers at this stride
                continue
            parameters, *kept = step_bytes(models[0], 512, 1)
            kept += [step_bytes(model, 512, 1)[1] for model in models[1:]]
            counted = step_multiply_adds(models[0], 512, 1) / 1e9
            megabytes = " | ".join(f"{value / 1e6:.0f}" for value in (parameters, *kept))
            print(f"| {name} | {stride}{own} | {counted:.1f} | {megabytes} |", flush=True)


def print_measurements(names: Sequence[str], repetitions: int) -> None:
    """Prints a row per config and size: counted work, measured time and memory, each relative to the smallest size."""
    print(
        f"| config | size, batch {BATCH} | 10^9 multiply-adds | step, s | GFLOP/s | stored by count, MB | "
        "temporaries, MB |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in names:
        first = None
        for size in SIZES:
            config = _config(name, size)
            model = build_model(config.model, CLASSES)
            counted, (_, kept) = step_multiply_adds(model, size, BATCH), step_bytes(model, size, BATCH)
            seconds, temporaries = measure(config, repetitions)
            values = np.array([counted, seconds, kept, temporaries], float)
            first = values if first is None else first
            work, took, keeps, needs = (
                f"{value:.3g} (x{ratio:.2f})"
                for value, ratio in zip(values / (1e9, 1, 1e6, 1e6), values / first, strict=True)
            )
            rate = 2 * counted / seconds / 1e9
            print(f"| {name} | {size}x{size} | {work} | {took} | {rate:.0f} | {keeps} | {needs} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="*", default=CONFIGS)
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    print_counts(arguments.configs)
    print()
    print_measurements(arguments.configs, arguments.repetitions)
