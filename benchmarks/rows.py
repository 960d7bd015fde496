"""The rows of the tables. Both sides of a row do the same work."""

import dataclasses
from collections.abc import Mapping
from typing import Any

OURS = "benchmarks.ours"
SUITES = ("step", "infer", "export", "input", "metric", "startup", "ops")


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the two processes of a pair.

    Attributes:
      name: the name in the table.
      module: the worker, run with `python -m`.
      task: the task of the worker.
      python: the environment that runs it: `ours`, or a peer of `--peer-python`.
      environment: extra environment variables.
    """

    name: str
    module: str
    task: Mapping[str, Any]
    python: str = "ours"
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
      key: `suite/work/peer`.
      work: description of the work, for the table.
      ours: our side.
      peer: the other side; None if there is none.
      repetitions: repetitions per process after the warm-up.
      quick_work: description of the work with `--quick`.
      goal: the largest ratio ours / peer that we aim at; seconds in a row without a peer.
      prepare: runs once before the first pair.
      peer_first: the peer runs before ours in each pair, which needs the files that it writes.
      ceiling: measure the limits of the processor in each pair, and report our rate as a share of them.
      claims: the kinds of machine, see `machine.KINDS`, that the goal is stated for; empty for all.
      in_turns: both processes of a pair are alive at the same time and take turns. Only for work that leaves nothing
        running between repetitions: a pipeline would fill its buffers during the other's turn.
    """

    key: str
    work: str
    ours: Side
    peer: Side | None
    repetitions: int
    quick_work: str
    goal: float | None = None
    prepare: Side | None = None
    peer_first: bool = False
    ceiling: bool = False
    claims: tuple[str, ...] = ()
    in_turns: bool = False


# The environment of `deeplab-jax train`, from `deeplab_jax.cli.malloc`, which the parent does not import.
OUR_ENVIRONMENT = {
    "GLIBC_TUNABLES": f"glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold={2**40}"
}

CEILING = Side("ceiling", OURS, {"kind": "ceiling"})

_GUIDE = {"network": "guide", "size": 512, "batch": 4}
_SMP_RESNET = {"network": "smp_resnet50", "size": 512, "batch": 4}
_SMP_MOBILENET = {"network": "smp_mobilenet_v2", "size": 256, "batch": 8}


def _ours(kind: str, task: Mapping[str, Any], **more: Any) -> Side:
    return Side("deeplab_jax", OURS, {"kind": kind} | dict(task) | more, environment=OUR_ENVIRONMENT)


def _kerascv(backend: str, task: Mapping[str, Any]) -> Side:
    environment = {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    name = {"jax": "KerasCV on JAX", "tensorflow": "KerasCV on TensorFlow"}[backend]
    return Side(name, "benchmarks.peers.kerascv", task, "keras", environment)


def _torch(name: str, kind: str, task: Mapping[str, Any]) -> Side:
    return Side(name, "benchmarks.peers.pytorch", {"kind": kind} | dict(task), "torch")


def _torch_variants(suite: str, network: str, task: Mapping[str, Any], *, repetitions: int) -> list[Row]:
    """Returns the rows of PyTorch beyond eager float32: in bfloat16, compiled, and both; ours in the same dtype."""
    what, update = {"step": ("train step", ", SGD with momentum"), "infer": ("logits", "")}[suite]
    work = f"{what} of segmentation_models.pytorch's DeepLabV3Plus: {{}}, output stride 16, separable, 21 classes, {{}}"
    work += update
    name = {"resnet50": "ResNet-50 v1", "mobilenet_v2": "MobileNetV2"}[network]
    size, batch = task["size"], task["batch"]
    rows = []
    for compiles, dtype in ((False, "bfloat16"), (True, "float32"), (True, "bfloat16")):
        variant = "-".join(["torch"] + ["compile"] * compiles + ["bfloat16"] * (dtype == "bfloat16"))
        how = ", ".join([*(["automatic mixed precision"] if dtype == "bfloat16" else []),
                         "torch.compile" if compiles else "eager"])  # fmt: skip
        peer = _torch(f"segmentation_models.pytorch, channels_last, {how}", suite,
                      {**task, "dtype": dtype, "compile": compiles})  # fmt: skip
        ours = _ours(suite, task, overrides={"train.compute_dtype": dtype})
        texts = [f"{work.format(name, where)}; both sides in {dtype}" for where in
                 (f"{size}x{size}, batch {batch}", f"64x64, batch {min(2, batch)}")]  # fmt: skip
        goal = 0.75 if dtype == "bfloat16" else 0.80
        key = f"{suite}/{network}/{variant}"
        # Without AMX, neither side computes faster in bfloat16 than in float32.
        claims = ("AMX",) if dtype == "bfloat16" else ()
        rows.append(Row(key, texts[0], ours, peer, repetitions, texts[1], goal, ceiling=True, claims=claims))
    return rows


def _steps() -> list[Row]:
    work = (
        "train step of the KerasCV guide's network: ResNet50V2 with strides last, output stride 32, 21 classes, "
        "512x512, batch 4, the guide's SGD"
    )
    quick = "train step of the KerasCV guide's network, 64x64, batch 2"
    guide_peers = {
        "kerascv-jax": (_kerascv("jax", {"kind": "step"} | _GUIDE), 0.30),
        "kerascv-tensorflow": (_kerascv("tensorflow", {"kind": "step"} | _GUIDE), 0.70),
        "torch": (_torch("PyTorch, channels_last, eager, in KerasCV's order", "step", _GUIDE), 0.75),
        "torch-logits-first": (
            _torch(
                "PyTorch, channels_last, eager, logits before the last enlargement",
                "step",
                _GUIDE | {"network": "guide_logits_first"},
            ),
            None,
        ),
    }
    rows = [
        Row(f"step/guide/{name}", work, _ours("step", _GUIDE), peer, 3, quick, goal, ceiling=True)
        for name, (peer, goal) in guide_peers.items()
    ]
    bfloat16 = _ours("step", _GUIDE, overrides={"train.compute_dtype": "bfloat16"})
    float32 = dataclasses.replace(_ours("step", _GUIDE), name="deeplab_jax in float32")
    rows.append(Row("step/guide/float32", f"{work}; ours in bfloat16", bfloat16, float32, 3, quick, 1.1))
    rows += _torch_variants("step", "resnet50", _SMP_RESNET, repetitions=3)
    rows += _torch_variants("step", "mobilenet_v2", _SMP_MOBILENET, repetitions=5)
    rows.append(
        Row(
            "step/resnet50/smp",
            "train step of segmentation_models.pytorch's DeepLabV3Plus: ResNet-50 v1, output stride 16, separable, "
            "21 classes, 512x512, batch 4, SGD with momentum",
            _ours("step", _SMP_RESNET),
            _torch("segmentation_models.pytorch, channels_last, eager", "step", _SMP_RESNET),
            3,
            "train step of segmentation_models.pytorch's DeepLabV3Plus with ResNet-50, 64x64, batch 2",
            0.80,
            ceiling=True,
        )
    )
    rows.append(
        Row(
            "step/mobilenet_v2/smp",
            "train step of segmentation_models.pytorch's DeepLabV3Plus: MobileNetV2, output stride 16, separable, "
            "21 classes, 256x256, batch 8, SGD with momentum",
            _ours("step", _SMP_MOBILENET),
            _torch("segmentation_models.pytorch, channels_last, eager", "step", _SMP_MOBILENET),
            5,
            "train step of segmentation_models.pytorch's DeepLabV3Plus with MobileNetV2, 64x64, batch 2",
            0.90,
            ceiling=True,
        )
    )
    return rows


def _inference() -> list[Row]:
    rows = []
    for network, name in {"smp_resnet50": "ResNet-50 v1", "smp_mobilenet_v2": "MobileNetV2"}.items():
        task = {"network": network, "size": 512, "batch": 1}
        text = f"logits of segmentation_models.pytorch's DeepLabV3Plus: {name}, output stride 16, separable, 21 classes"
        peer = _torch("segmentation_models.pytorch, channels_last, eager, no_grad", "infer", task)
        key = f"infer/{network.removeprefix('smp_')}/smp"
        ours = _ours("infer", task)
        rows.append(
            Row(key, f"{text}, 512x512, batch 1", ours, peer, 15, f"{text}, 64x64, batch 1", 0.80, ceiling=True)
        )
        rows += _torch_variants("infer", network.removeprefix("smp_"), task, repetitions=15)
    work = "logits of MobileNetV2 0.5 DeepLabv3 (deeplabv3_257_mv_gpu.tflite), 257x257, batch 1"
    peer = Side("LiteRT, two threads", "benchmarks.peers.litert", {"threads": 2}, "litert")
    rows.append(Row("infer/mobilenet_v2_257/litert", work, _ours("infer_tflite", {}), peer, 50, work, 1.0))
    return rows


def _exports() -> list[Row]:
    name = "deeplabv3plus_efficientnet_lite0_distilled_voc"
    task = {"config": name, "size": 257}
    text = f"labels of one uint8 image, network of {name}, {{0}}x{{0}}; the peer runs it as exported"
    runtimes = {
        "stablehlo": ("StableHLO, JAX", "ours"),
        "savedmodel": ("SavedModel, TensorFlow", "keras"),
        "tflite": ("TFLite, LiteRT, two threads", "litert"),
        "onnx": ("ONNX, onnxruntime, two threads", "onnx"),
    }
    rows = []
    for file_format, (peer, python) in runtimes.items():
        exported = task | {"format": file_format}
        rows.append(
            Row(
                f"export/lite0_257/{file_format}",
                text.format(257),
                _ours("labels", task),
                Side(peer, "benchmarks.peers.exported", exported, python, {"TF_CPP_MIN_LOG_LEVEL": "3"}),
                30,
                text.format(64),
                prepare=Side(f"{file_format} file", OURS, {"kind": "write_export"} | exported),
            )
        )
    return rows


def _input() -> list[Row]:
    text = "batches of 4 from {} JPEGs of 500x375 with masks in SBD's layout, flipped, 512x512"
    task = {"workers": 0, "size": 512, "batch": 4}  # threads, as the configs have it
    work, quick = text.format(120), text.format(16)
    prepare = Side("images", "benchmarks.images", {"count": 120})
    kerascv = dataclasses.replace(_kerascv("tensorflow", {"kind": "input", "size": 512}), name="KerasCV's tf.data")
    raw = Side(
        "cv2: decode and resize, two threads", "benchmarks.peers.opencv", {"size": 512, "threads": 2, "batch": 4}
    )
    return [
        Row(f"input/sbd/{name}", work, _ours("input", task), peer, 5, quick, goal, prepare)
        for name, peer, goal in (("kerascv", kerascv, 0.5), ("cv2", raw, 1.25))
    ]


def _metric() -> list[Row]:
    forward = _ours("infer", _GUIDE, name="confusion matrix")  # results are paired by name
    forward = dataclasses.replace(forward, name="forward pass of the guide's network")
    return [
        Row(
            "metric/confusion/forward",
            "confusion matrix of 4x512x512x21 logits, arg max included",
            _ours("confusion", _GUIDE),
            forward,
            5,
            "confusion matrix of 2x64x64x21 logits, arg max included",
            0.005,
        )
    ]


def _startup() -> list[Row]:
    second = dataclasses.replace(_ours("first_step", _GUIDE), name="second start")
    first = dataclasses.replace(_ours("first_step", _GUIDE), name="first start, empty compilation cache")
    network = Side("network", OURS, {"kind": "write_network"})
    return [
        Row(
            "startup/first_step/first_start",
            "from the start of the process to the end of the first train step, guide's network, 512x512, batch 4",
            second,
            first,
            1,
            "from the start of the process to the end of the first train step, guide's network, 64x64, batch 2",
            0.4,
            peer_first=True,
        ),
        Row(
            "startup/predict/none",
            "`deeplab-jax predict` of one image of 500x375, guide's network, whole process, warm cache",
            _ours("predict_command", {}),
            None,
            3,
            "`deeplab-jax predict` of one image of 64x64, guide's network, whole process, warm cache",
            6.0,
            prepare=network,
        ),
    ]


def _ops() -> list[Row]:
    module = "benchmarks.ours_operations"
    ours = Side("deeplab_jax", module, {"ops": "cpu"}, environment=OUR_ENVIRONMENT)
    plain = Side("plain XLA operation", module, {"ops": "xla"}, environment=OUR_ENVIRONMENT)
    torch = Side("PyTorch, channels_last", "benchmarks.peers.torch_operations", {}, "torch")
    work, quick = "single operations", "single operations, an eighth of the size in each direction"
    return [
        Row(f"ops/all/{name}", work, ours, peer, 5, quick, ceiling=True)
        for name, peer in (("plain", plain), ("torch", torch))
    ]


def all_rows() -> list[Row]:
    """Returns every row, suite by suite."""
    in_turns = [dataclasses.replace(row, in_turns=True) for row in (*_steps(), *_inference(), *_exports())]
    return [*in_turns, *_input(), *_metric(), *_startup(), *_ops()]
