"""The benchmark of a GPU: its time budget, its page, its networks, and the programs that it measures."""

import functools
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from benchmarks import gpu, gpu_report
from benchmarks.gpu_hlo import describe_convolutions
from benchmarks.gpu_specs import dense_bf16_peak
from benchmarks.runner import WorkerError
from deeplab_jax.parallel.jaxpr import equations
from deeplab_jax.training.step import build_program

# ---- The time budget ----


@pytest.fixture
def clock(monkeypatch):
    """A clock that only measuring moves."""
    now = [0.0]
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now[0])
    return now


def test_parts_that_do_not_fit_into_the_time_are_left_out_and_named(clock):
    given = {}

    def part(name, needed, limit, takes):
        def measure(seconds):
            given[name] = seconds
            clock[0] += takes
            return {"name": name}

        return gpu.Part(name, needed, limit, measure)

    parts = [part("a", 40, 130, 100), part("b", 45, 400, 350), part("c", 45, 130, 10), part("d", 30, 130, 10)]
    said = []
    found = gpu.run(parts, seconds=480, say=said.append)
    assert given == {"a": 130, "b": 380, "d": 30}
    assert list(found["parts"]) == ["a", "b", "d"]
    assert found["left_out"] == {"c": "30 of 480 seconds remained"}
    assert "c is left out: 30 of 480 seconds remained" in said


def test_a_part_that_fails_does_not_end_the_others(clock):
    def fail(seconds):
        raise WorkerError("out of memory")

    parts = [gpu.Part("a", 1, 10, fail), gpu.Part("b", 1, 10, lambda seconds: {"limit": seconds})]
    found = gpu.run(parts, seconds=960, say=lambda text: None)
    assert found == {
        "parts": {"b": {"limit": 20}},
        "left_out": {"a": "out of memory"},
    }  # twice the time, twice the limit


# ---- The page ----


def side(seconds, **facts):
    facts = {"device": "NVIDIA H100 80GB HBM3", "parameters": 7} | facts
    values = {"memory": 3 * 2**30, "multiply_adds": {"steps": 10 * 0.5e12}, "versions": {"jax": "0.10.2"}}
    return values | {"seconds": {"steps": seconds}, "facts": facts}


def results(**parts):
    common = {"toy": False, "seconds": 400.0, "machine": "some machine", "commit": "abc", "date": "2026-01-01"}
    return {"parts": parts, "left_out": {}} | common


def test_the_page_has_rates_and_the_share_of_the_peak():
    convolutions = {"layouts": {"b01f_o01i->b01f": 53}}
    convolutions |= {f"transposed_{kind}": {"count": 2, "bytes": 5e6} for kind in ("activations", "kernels")}
    ours = side([1.0, 2.0, 1.5], batch=[16, 512, 512, 3], steps=10, convolutions=convolutions)
    torch = side([3.0], batch=[16, 512, 512, 3], steps=10)
    page, failed = gpu_report.render(results(**{"step/guide": {"deeplab_jax": ours, "PyTorch": torch}}))
    # 10 steps of 10^12 operations in 1.5 s are 6.67 TFLOP/s, 0.7 % of 989.5.
    assert "| guide | 16x512x512 | deeplab_jax | 150.0 | 107 | 6.7 | 0.7 % | 3.00 |" in page
    assert "| guide | 16x512x512 | PyTorch | 300.0 | 53 | 3.3 | 0.3 % | 3.00 |" in page
    assert "| guide | 53 b01f_o01i->b01f | 2, 5.0 | 2, 5.0 |" in page
    assert failed == []


def test_sides_that_do_different_work_are_reported():
    convolutions = {"layouts": {}} | {
        f"transposed_{kind}": {"count": 0, "bytes": 0} for kind in ("activations", "kernels")
    }
    ours = side([1.0], batch=[16, 512, 512, 3], steps=10, convolutions=convolutions)
    torch = side([1.0], batch=[16, 512, 512, 3], steps=10, parameters=8)
    _, failed = gpu_report.render(results(**{"step/guide": {"deeplab_jax": ours, "PyTorch": torch}}))
    assert failed == ["step/guide: parameters is 7 in deeplab_jax and 8 in PyTorch"]


@pytest.mark.parametrize(("value", "count"), [(9e-5, 0), (2e-4, 1), (float("nan"), 1)])
def test_differences_above_the_tolerance_fail(value, count):
    differences = {"guide": {"logits": value, "gradient": 0.0}}
    _, failed = gpu_report.render(results(equality={"deeplab_jax": side([], differences=differences)}))
    assert len(failed) == count


@pytest.mark.parametrize(("differing", "same_log", "count"), [(0, True, 0), (1, True, 1), (0, False, 1)])
def test_a_training_that_resumes_differently_fails(differing, same_log, count):
    facts = {"killed_at_step": 40, "steps": 100, "arrays": 9, "differing_arrays": differing, "same_log": same_log}
    _, failed = gpu_report.render(results(resume={"deeplab_jax": side([], **facts)}))
    assert len(failed) == count


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.5),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA A10", 125.0),
        ("cpu", None),
    ],
)
def test_peaks_are_found_by_the_names_of_devices(device, peak):
    assert dense_bf16_peak(device) == peak


# ---- The programs ----

# jax 0.10.2 compiled this for an H100; shortened. The second half is made up.
CUDNN_TEXT = """\
HloModule jit_step, is_scheduled=true

%wrapped_transpose_computation (param_0: bf16[3,3,64,32]) -> bf16[32,3,3,64] {
  %param_0 = bf16[3,3,64,32]{3,2,1,0} parameter(0)
  ROOT %transpose.2 = bf16[32,3,3,64]{3,2,1,0} transpose(%param_0), dimensions={3,0,1,2}, metadata={op_name="k"}
}

ENTRY %main.1 (x.1: bf16[8,32,32,64], k.1: bf16[3,3,64,32]) -> bf16[8,32,32,32] {
  %x.1 = bf16[8,32,32,64]{3,2,1,0} parameter(0), sharding={replicated}
  %wrapped_transpose = bf16[32,3,3,64]{3,2,1,0} fusion(%k.1), kind=kInput, calls=%wrapped_transpose_computation
  %cudnn-conv.1 = (bf16[8,32,32,32]{3,2,1,0}, u8[0]{0}) custom-call(%x.1, %wrapped_transpose), \
window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"
  %transpose.7 = f32[8,32,32,64]{3,2,1,0} transpose(%y), dimensions={0,2,3,1}
  %y = f32[8,64,32,32]{3,2,1,0} parameter(2)
  %copy.1 = bf16[8,32,32,64]{1,3,2,0} copy(%x.1)
  %copy.2 = bf16[8,32,32,64]{3,2,1,0} copy(%x.1)
  %transpose.8 = bf16[8,1,1,64]{3,2,1,0} transpose(%pooled), dimensions={0,2,3,1}
  %pooled = bf16[8,64,1,1]{3,2,1,0} parameter(3)
}
"""


def test_convolutions_and_transposes_are_found_in_hlo():
    found = describe_convolutions(CUDNN_TEXT)
    assert found == {
        "layouts": {"b01f_o01i->b01f": 1},
        "transposed_kernels": {"count": 1, "bytes": 3 * 3 * 64 * 32 * 2},
        # Neither a copy in the same order nor a transpose of pixels that are one counts.
        "transposed_activations": {"count": 2, "bytes": 8 * 32 * 32 * 64 * (4 + 2)},
    }


@pytest.mark.slow
@pytest.mark.parametrize("network", ["guide", "resnet101", "segformer"])
def test_train_steps_for_cuda_are_plain_xla_with_nhwc_convolutions(network):
    from benchmarks.gpu_worker import network_config

    config = network_config(network, size=65 if network == "resnet101" else 64, batch=2, dtype="bfloat16")
    mesh = jax.make_mesh((1, 1, 1), ("data", "fsdp", "spatial"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPLAB_JAX_OPS", "xla")  # the mesh is one of processors
        program = build_program(config, 21, mesh, total_steps=10)
    traced = program.take_step.jitted.trace(program.shapes, program.batch_shapes, program.hyperparams)
    names = {eqn.primitive.name for _, eqn in equations(traced.jaxpr.jaxpr)}
    assert not names & {"custom_vjp_call", "custom_vjp_call_jaxpr", "platform_index"}
    lines = traced.lower(lowering_platforms=("cuda",)).as_text().splitlines()
    convolutions = [line for line in lines if "stablehlo.convolution" in line]
    assert len(convolutions) > 50
    # Also in the backward pass, features are the last axis of images and of results, except where the batch is: in the
    # gradients of kernels, it takes the place of the features, and XLA:GPU turns these into cuDNN's own.
    assert all("[b, 0, 1, f]x" in line or "[f, 0, 1, b]x" in line for line in convolutions)


# ---- The networks ----


def copy_to_torch(variables, module) -> None:
    """Copies variables of our ResNet-101 into PyTorch's, by the names of both."""
    import torch

    units = [
        f"stage{stage}_block{unit}" for stage, count in enumerate((3, 4, 23, 3), 1) for unit in range(1, count + 1)
    ]
    pairs = {f"backbone/stem_{{}}{i + 1}": layer for i, layer in enumerate(module.stem)}
    for name, unit in zip(units, module.units, strict=True):
        pairs |= {f"backbone/{name}/{{}}{i}": getattr(unit, f"conv{i}") for i in (1, 2, 3)}
        if unit.shortcut is not None:
            pairs[f"backbone/{name}/shortcut_{{}}"] = unit.shortcut
    branches = ("branch_1x1", "branch_atrous1", "branch_atrous2", "branch_atrous3")
    parts = dict(zip(branches, module.branches, strict=True)) | {"branch_pooling": module.pooling}
    pairs |= {f"aspp/{name}/{{}}": layer for name, layer in parts.items()}
    pairs |= {f"decoder/refine{i + 1}/{{}}": layer for i, layer in enumerate(module.refine)}
    pairs["decoder/low_level/{}"] = module.low_level
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): torch.from_numpy(np.array(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }
    taken = {"params/aspp/projection/kernel": module.projection[0].weight}
    taken |= norm_names("aspp/projection_norm", module.projection[1])
    taken |= {"params/classifier/kernel": module.classifier.weight, "params/classifier/bias": module.classifier.bias}
    for pattern, (convolution, norm) in pairs.items():
        taken |= {f"params/{pattern.format('conv')}/kernel": convolution.weight}
        taken |= norm_names(pattern.format("norm"), norm)
    assert taken.keys() == leaves.keys()
    with torch.no_grad():
        for name, target in taken.items():
            target.copy_(leaves[name].permute(3, 2, 0, 1) if leaves[name].ndim == 4 else leaves[name])


def norm_names(name, norm):
    params = {f"params/{name}/scale": norm.weight, f"params/{name}/bias": norm.bias}
    return params | {f"batch_stats/{name}/mean": norm.running_mean, f"batch_stats/{name}/var": norm.running_var}


@pytest.mark.slow
def test_resnet101_of_pytorch_is_ours():
    torch = pytest.importorskip("torch")
    from benchmarks.gpu_worker import network_config
    from benchmarks.peers.torch_resnet101 import DeepLab
    from deeplab_jax.models import build_model, random_variables

    config = network_config("resnet101", size=97, batch=1, dtype="float32")
    model = build_model(config.model, 21)
    variables = jax.tree.map(np.asarray, random_variables(model, seed=0))
    theirs = DeepLab(21).eval()
    copy_to_torch(variables, theirs)
    images = np.random.default_rng(0).integers(0, 256, (1, 97, 129, 3), dtype=np.uint8)
    ours, _ = jax.jit(functools.partial(model.apply, train=False))(variables, images)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images).permute(0, 3, 1, 2).float()).permute(0, 2, 3, 1).numpy()
    # float32 over a hundred layers.
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
def test_segformer_of_pytorch_is_ours(tmp_path):
    torch = pytest.importorskip("torch")
    from benchmarks.gpu_worker import network_config
    from benchmarks.peers.torch_segformer import SegFormer
    from deeplab_jax.models import build_model
    from deeplab_jax.pretrained.importers import transformers

    torch.manual_seed(0)
    theirs = SegFormer(21).eval()
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    network = transformers.load(tmp_path / "pytorch_model.bin")
    config = network_config("segformer", size=64, batch=2, dtype="float32")
    model = build_model(config.model, 21, layer_norm_epsilons=(1e-5,) * 4)
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)
    ours, _ = jax.jit(functools.partial(model.apply, train=False))(network.variables, images)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images).permute(0, 3, 1, 2).float()).permute(0, 2, 3, 1).numpy()
    # float32, and the decoder adds in another order.
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
def test_the_whole_benchmark_runs_at_tiny_sizes(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--toy", "--minutes", "30", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert list(found["parts"]) == ["equality", "step/quickstart", "resume", "infer"]
    assert found["left_out"] == {}
    assert (tmp_path / "gpu.md").read_text().strip() in done.stdout
