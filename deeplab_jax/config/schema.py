"""The config schema: every field with its default, its legal values and its help text.

`base_config()`, `check_fields` and the tables of the documentation all read `FIELDS`.
"""

import functools
import operator
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from deeplab_jax.config import ranges
from deeplab_jax.config.data_fields import DATA
from deeplab_jax.config.field import Field
from deeplab_jax.config.model_fields import MODEL

_TRAIN = {
    "duration": Field(
        None, "length of the training in steps, epochs or examples, such as '30000 steps'", value_type=str
    ),
    "patience": Field(
        None,
        "end the training after this many evaluations without a better mean IoU (default: never)",
        value_type=int,
        range=ranges.COUNT,
    ),
    "seed": Field(0, "seed of initialization, data order, augmentation and dropout", range=ranges.SEED),
    "accumulate_steps": Field(
        1, "split each batch into this many micro-batches; BatchNorm sees one micro-batch at a time", range=ranges.COUNT
    ),
    "compute_dtype": Field(
        "float32",
        "dtype of the convolutions; parameters, statistics, logits and loss stay float32",
        ("float32", "bfloat16"),
    ),
    "remat": Field(
        "none",
        "recomputation in the backward pass to save memory on accelerators",
        {
            "none": "keep all activations",
            "activations": "recompute BatchNorm and ReLU after stored convolutions",
            "units": "recompute everything inside residual units and convolution blocks",
        },
    ),
    "ema_decay": Field(
        None,
        "decay per step of the averaged variables that evaluation and prediction use",
        value_type=float,
        range=ranges.Range(above=0, below=1),
    ),
    "precise_norm_batches": Field(
        0,
        "compute BatchNorm's statistics for the trained network over this many training batches; 0 keeps the averages "
        "over the steps",
        range=ranges.COUNT_OR_ZERO,
    ),
    "nonfinite": Field(
        "stop",
        "how to treat a loss or gradient that is NaN or infinite",
        {"stop": "end the training", "skip": "do not update the parameters in this step"},
    ),
    "init_from": Field(
        None,
        "preset, folder of a pretrained network, workdir such as 'runs/photos' or 'runs/photos@best', or "
        "`hf://owner/name` to start from",
        value_type=str,
    ),
}

_OPTIMIZER = {
    "name": Field(
        "sgd",
        "update rule",
        {"sgd": "SGD with momentum", "adam": "Adam; AdamW with a `weight_decay_rule` that is decoupled"},
    ),
    "learning_rate": Field(None, "peak learning rate", value_type=float, range=ranges.AT_LEAST_ZERO),
    "schedule": Field("cosine", "learning rate schedule after the warm-up", ("constant", "cosine", "poly", "step")),
    "poly_power": Field(
        0.9, "exponent of the `poly` schedule: the rate falls with (1 - t / steps)^power", range=ranges.AT_LEAST_ZERO
    ),
    "milestones": Field(
        (0.5, 0.75),
        "fractions of the steps after the warm-up at which the `step` schedule falls",
        range=ranges.FRACTION,
    ),
    "milestone_factor": Field(0.1, "factor of each fall of the `step` schedule", range=ranges.SHARE),
    "warmup": Field(None, "duration of the warm-up, such as '500 steps' or '5%'", value_type=str),
    "warmup_rule": Field(
        "linear",
        "learning rate during the warm-up",
        {
            "linear": "rises from `warmup_learning_rate`",
            "constant": "stays at `warmup_learning_rate` (research/deeplab's slow start)",
        },
    ),
    "warmup_learning_rate": Field(
        0.0, "learning rate at the start of the warm-up (research/deeplab: 0.0001)", range=ranges.AT_LEAST_ZERO
    ),
    "momentum": Field(0.9, "momentum of SGD, or beta 1 of Adam; 0 disables SGD's momentum", range=ranges.BELOW_ONE),
    "momentum_rule": Field(
        "classic",
        "where SGD multiplies by the learning rate",
        {"classic": "outside the momentum buffer (PyTorch, optax)", "keras": "inside it (Keras)"},
    ),
    "nesterov": Field(False, "use Nesterov momentum"),
    "clip": Field(
        "none",
        "gradient clipping",
        {
            "none": "off",
            "per_variable": "by the norm of each variable's gradient (Keras' `clipnorm`)",
            "global": "by the norm of all gradients together",
        },
    ),
    "clip_norm": Field(None, "largest gradient norm that `clip` allows", value_type=float, range=ranges.ABOVE_ZERO),
    "weight_decay": Field(0.0, "weight decay factor", range=ranges.AT_LEAST_ZERO),
    "weight_decay_rule": Field(
        "coupled_kernels",
        "how weight decay is applied",
        {
            "coupled_kernels": "added to the gradients of kernels (the papers' L2 loss)",
            "decoupled_all": "applied to all parameters apart from the gradient (Keras, AdamW)",
            "decoupled_kernels": "the same for kernels only: biases and norms do not decay (SegFormer)",
        },
    ),
    "learning_rate_multipliers": {
        part: Field(1.0, f"factor on the update of the {part}", range=ranges.AT_LEAST_ZERO)
        for part in ("backbone", "aspp", "decoder", "classifier", "auxiliary")
    },
    "bias_multiplier": Field(
        1.0,
        "factor on the update of biases of convolutions, on top of that of their part (research/deeplab: 2)",
        range=ranges.AT_LEAST_ZERO,
    ),
    "frozen": Field((), "parts or modules that do not train, such as `('aspp', 'backbone/stage[1-3]*')`"),
}

_LOSS = {
    "terms": Field(
        "cross_entropy",
        "sum of terms with weights and options, such as `cross_entropy + 0.5 * dice(smooth=1)`",
    ),
    "label_smoothing": Field(
        0.0,
        "label smoothing s of softmax cross-entropies: the true class gets 1 - s + s / classes, the others s / classes",
        range=ranges.BELOW_ONE,
    ),
    "class_weights": Field(
        (),
        "one weight per class for the terms that count pixels; empty weights all classes equally",
        range=ranges.AT_LEAST_ZERO,
    ),
    "class_weight_rule": Field(
        "given",
        "how the class weights are found; training counts the labels of `data.train_split`",
        {
            "given": "they are `class_weights`",
            "inverse_frequency": "all pixels / (classes * pixels of the class)",
            "median_frequency": "median frequency / that of the class, among images that contain it",
            "effective_number": "(1 - b) / (1 - b^n) for n images that contain the class, b = 0.999, scaled to mean 1",
        },
    ),
    "auxiliary_weight": Field(0.4, "weight of the auxiliary head's loss", range=ranges.AT_LEAST_ZERO),
    "teacher": Field(
        None,
        "preset, folder, workdir or `hf://owner/name` of a network with the same classes to distill from",
        value_type=str,
    ),
    "teacher_weight": Field(
        0.5, "share of the teacher's probabilities in the target; the labels have the rest", range=ranges.SHARE
    ),
    "teacher_scales": Field(
        (1.0,), "scales at which the teacher sees each image; its probabilities are averaged", range=ranges.SCALE
    ),
    "teacher_flip": Field(False, "average the teacher's predictions with those for the horizontally flipped image"),
}

_EVAL = {
    "protocol": Field(
        "whole",
        "input of the network and the size at which its prediction is scored",
        {
            "whole": "the image at its own size, padded to `eval.image_size`; scored at its own size (the papers)",
            "squeeze": "the image resized to `data.image_size`; logits are resized back and scored at its own size",
            "guide": "image and label resized to `data.image_size` and scored there (the KerasCV guide)",
            "keep_ratio": "the image scaled to fit into `eval.scale_to`, then as `squeeze` (SegFormer on ADE20K)",
            "windows": "windows that slide over the image; scored at its own size (MMSegmentation's `slide`)",
        },
    ),
    "scale_to": Field(
        None,
        "(shorter side, longer side) that `keep_ratio`, or `windows` if set, scales each image to fit into",
        value_type=tuple,
        range=ranges.SIDE,
    ),
    "size_multiple": Field(
        1,
        "`keep_ratio`: resize each side up to a multiple of this (SegFormer's `AlignedResize`: 32)",
        range=ranges.COUNT,
    ),
    "window": Field(None, "(height, width) of `windows`", value_type=tuple, range=ranges.SIDE),
    "window_stride": Field(
        None,
        "(height, width) from one of `windows` to the next (default: two thirds of `eval.window`)",
        value_type=tuple,
        range=ranges.SIDE,
    ),
    "window_average": Field(
        "logits", "values of `windows` that are averaged where they overlap", ("logits", "probabilities")
    ),
    "image_size": Field(
        None, "padded size for `whole` (default: the size of the largest image)", value_type=tuple, range=ranges.SIDE
    ),
    "batch_size": Field(
        None, "batch size of evaluation (default: `data.batch_size`)", value_type=int, range=ranges.COUNT
    ),
    "scales": Field(
        (1.0,), "scales at which each image is predicted; their probabilities are averaged", range=ranges.SCALE
    ),
    "flip": Field(False, "also predict the horizontally flipped image at each scale"),
    "ignored_pixels": Field(
        "exclude",
        "how pixels with the ignore label count",
        {"exclude": "not at all", "background": "as class 0, as in Keras' `MeanIoU` on one-hot labels"},
    ),
    "before_training": Field(False, "evaluate the network before the first step, too"),
    "every": Field(None, "duration between evaluations during training (default: only at the end)", value_type=str),
}

_CHECKPOINT = {
    "every": Field(None, "duration between checkpoints (default: only at the end)", value_type=str),
    "keep": Field(
        2, "number of newest checkpoints to keep; the one with the best mean IoU is kept as well", range=ranges.COUNT
    ),
    "use": Field(
        "newest",
        "checkpoint that evaluation, prediction and export read unless they are told otherwise",
        {"newest": "the newest", "best": "the one with the best mean IoU"},
    ),
}

_DISTRIBUTED = {
    "heartbeat_seconds": Field(
        30, "seconds without a heartbeat before a process is considered dead", range=ranges.COUNT
    ),
    "connect_seconds": Field(
        120, "seconds to wait at the start until all processes have connected", range=ranges.COUNT
    ),
}

_MESH = {
    "data": Field(
        -1, "devices along the axis that splits the batch; -1 takes the remaining devices", range=ranges.DEVICES
    ),
    "fsdp": Field(
        1,
        "devices along the axis that splits the batch and the parameters, momentum and batch statistics",
        range=ranges.DEVICES,
    ),
    "spatial": Field(1, "devices along the axis that splits the rows of images", range=ranges.DEVICES),
    "fsdp_min_size": Field(
        2**14,
        "arrays with fewer elements are replicated: gathering them takes longer than the memory is worth",
        range=ranges.COUNT,
    ),
}

_LOG = {
    "every_steps": Field(
        10, "steps between log lines, each with the loss, scores and speed of these steps", range=ranges.COUNT
    ),
    "tensorboard": Field(True, "write TensorBoard events as well"),
    "wandb": Field(None, "Weights & Biases project to send the run to, with the extra `wandb`", value_type=str),
    "mlflow": Field(None, "MLflow experiment to send the run to, with the extra `mlflow`", value_type=str),
    "profile_steps": Field(
        0,
        "number of steps to trace into the workdir's `profile` for TensorBoard and Perfetto",
        range=ranges.COUNT_OR_ZERO,
    ),
}

#: Every field by group and name. A mapping instead of a field is a nested group.
FIELDS: Mapping[str, Mapping[str, Field | Mapping[str, Field]]] = {
    "model": MODEL,
    "data": DATA,
    "train": _TRAIN,
    "optimizer": _OPTIMIZER,
    "loss": _LOSS,
    "eval": _EVAL,
    "checkpoint": _CHECKPOINT,
    "distributed": _DISTRIBUTED,
    "mesh": _MESH,
    "log": _LOG,
}

#: Legal values of `eval.protocol`.
PROTOCOLS = tuple(_EVAL["protocol"].choices)

#: Fields that hold a duration, see `deeplab_jax.config.duration_steps`. Only the length of the training itself cannot
#: be a percentage.
DURATION_FIELDS = ("train.duration", "optimizer.warmup", "eval.every", "checkpoint.every")

# Beginnings of the paths of fields that change neither the network that a run trains nor its scores.
_INCIDENTAL = ("data.data_dir", "data.workers", "log.")


def base_config() -> ConfigDict:
    """Creates a config with every field at its default.

    Unset fields are typed placeholders. The config is locked: setting a field that does not exist raises an error.
    """
    return _with_defaults(FIELDS).lock()


def iterate_fields() -> list[tuple[str, Field]]:
    """Lists every field with its path, such as `model.backbone`, in the order of the schema."""
    return _flatten(FIELDS, "")


def get_field(config: ConfigDict, path: str) -> Any:
    """Returns the value of a whole config's field, such as `model.backbone`."""
    return functools.reduce(operator.getitem, path.split("."), config)


def result_fields(config: ConfigDict) -> dict[str, Any]:
    """Returns the fields of a whole config that change the trained network or its scores: values by path."""
    return {path: get_field(config, path) for path, _ in iterate_fields() if not path.startswith(_INCIDENTAL)}


def _with_defaults(fields: Mapping[str, Any]) -> ConfigDict:
    config = ConfigDict()
    for name, field in fields.items():
        if not isinstance(field, Field):
            config[name] = _with_defaults(field)
        elif field.default is None:
            config[name] = config_dict.placeholder(field.value_type)
        else:
            config[name] = field.default
    return config


def _flatten(fields: Mapping[str, Any], prefix: str) -> list[tuple[str, Field]]:
    pairs = []
    for name, field in fields.items():
        path = prefix + name
        pairs += [(path, field)] if isinstance(field, Field) else _flatten(field, f"{path}.")
    return pairs
