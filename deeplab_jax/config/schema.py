"""The config schema: every field with its default, its legal values and its help text.

`base_config()`, `check_fields` and the tables of the documentation all read `FIELDS`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, config_dict

from deeplab_jax.config import ranges


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of the schema.

    Attributes:
      default: its value until an experiment sets it. None leaves it unset, and then `value_type` is needed.
      help: one sentence for the documentation.
      choices: the legal values, or a mapping from each legal value to its meaning. Empty if they are not enumerated
        here: numbers, and names that a registry holds.
      value_type: the type of an unset field's value.
      range: the legal numbers, for a number and for each number of a tuple. None if other values are not numbers or
        are enumerated.
    """

    default: Any
    help: str
    choices: Sequence[Any] | Mapping[Any, str] = ()
    value_type: type | None = None
    range: ranges.Range | None = None


_MODEL = {
    "backbone": Field(None, "name of a registered backbone", value_type=str),
    "head": Field(
        "deeplab",
        "the part between the backbone and the classifier",
        {
            "deeplab": "ASPP, and a decoder unless `decoder` is `none` (DeepLabv3, DeepLabv3+)",
            "segformer": "projections of four stages, added up at stride 4 (SegFormer)",
            "lraspp": "a gated projection and a skip connection at stride 8 (MobileNetV3)",
        },
    ),
    "width_multiplier": Field(1.0, "factor on the channels of `mobilenet_v2`", range=ranges.WIDTH),
    "in_channels": Field(3, "channels of the input images", range=ranges.CHANNELS),
    "output_stride": Field(
        16,
        "input size divided by feature size; smaller strides use atrous convolutions",
        (8, 16, 32, 64, 128, 256),
    ),
    "multi_grid": Field(
        (),
        "rate multipliers of the units in the backbone's last stage, or of the three convolutions in Xception's last "
        "unit; empty means all ones",
        range=ranges.RATE,
    ),
    "spread_converted_units": Field(
        False, "apply a converted stage's new rate to its first unit too, as segmentation_models.pytorch does"
    ),
    "cascade_blocks": Field(
        0,
        "copies of a ResNet's last stage that follow it, each with a stride of 2 (arXiv 1706.05587, section 3.2)",
        (0, 1, 2, 3),
    ),
    "drop_path": Field(
        0.0,
        "share of examples that skip the residual branches of `mit`'s last block in training; it rises linearly from "
        "0 in the first block",
        range=ranges.BELOW_ONE,
    ),
    "layer_norm_epsilons": Field(
        (1e-6, 1e-6, 1e-5, 1e-5),
        "epsilons of `mit`'s LayerNorm: in blocks, after stages, after patch embeddings, and in reduced attention",
        range=ranges.ABOVE_ZERO,
    ),
    "gelu": Field(
        "exact", "GELU of `mit`", {"exact": "with the error function", "tanh": "the approximation that Keras uses"}
    ),
    "aspp": Field(
        "parallel",
        "the module between the backbone and the decoder",
        {
            "parallel": "atrous spatial pyramid pooling (arXiv 1706.05587, section 3.3)",
            "dpc": "the dense prediction cell of arXiv 1809.04184, which has its own rates and no image pooling",
            "none": "none: the decoder, or the classifier, takes the backbone's features (section 3.2)",
        },
    ),
    "atrous_rates": Field((6, 12, 18), "rates of ASPP's 3x3 branches at `atrous_rates_stride`", range=ranges.RATE),
    "atrous_rates_stride": Field(
        16,
        "output stride that `atrous_rates` are stated for; they scale with the actual output stride",
        range=ranges.RATE,
    ),
    "aspp_channels": Field(256, "channels of each ASPP branch and of ASPP's output", range=ranges.CHANNELS),
    "aspp_projection_size": Field(
        1, "kernel size of the convolution that joins ASPP's branches; 3 is MMSegmentation's", (1, 3)
    ),
    "aspp_separable": Field(False, "use depthwise separable convolutions in ASPP's 3x3 branches"),
    "separable_norm": Field(True, "BatchNorm and ReLU between the depthwise and the pointwise convolution"),
    "image_pooling": Field(True, "add ASPP's image-level branch"),
    "image_pooling_window": Field(
        (),
        "(height, width) of the windows of image-level pooling, in pixels of the image; empty pools the whole image",
        range=ranges.SIDE,
    ),
    "image_pooling_stride": Field(
        (1, 1), "strides of the windows of image-level pooling, in pixels of the features", range=ranges.SIDE
    ),
    "lraspp_gate": Field(
        "sigmoid",
        "the gate of the head `lraspp`",
        {"sigmoid": "without a bias (torchvision)", "hard_sigmoid": "with a bias (research/deeplab)"},
    ),
    "aspp_dropout": Field(0.0, "dropout rate after ASPP", range=ranges.BELOW_ONE),
    "decoder": Field(
        "paper",
        "decoder style, named after the paper or project it follows",
        {
            "paper": "3x3 convolutions (arXiv 1802.02611, table 2)",
            "separable": "the same, depthwise separable (research/deeplab)",
            "kerascv": "one 1x1 convolution (KerasCV)",
            "torchvision": "one 3x3 convolution, no low-level features (torchvision's DeepLabv3 head)",
            "smp": "one separable 3x3 convolution before and one after the concatenation (segmentation_models.pytorch)",
            "none": "no decoder: DeepLabv3",
        },
    ),
    "decoder_channels": Field(256, "channels of the decoder's convolutions", range=ranges.CHANNELS),
    "decoder_convs": Field(
        2, "3x3 convolutions after each concatenation in the decoders `paper` and `separable`", (1, 2, 3)
    ),
    "low_level_channels": Field(
        48, "channels to which the decoder projects each of the backbone's low-level features", range=ranges.CHANNELS
    ),
    "low_level_strides": Field(
        (4,),
        "strides of the low-level features that the decoders `paper` and `separable` join, the finest last to join",
        {(4,): "stride 4 (Conv2 in arXiv 1802.02611)", (4, 8): "stride 8, then stride 4 (Conv3 and Conv2, table 2)"},
    ),
    "classifier_bias": Field(True, "add a bias to the last convolution"),
    "classifier_dropout": Field(
        0.0, "dropout rate of whole channels before the last convolution", range=ranges.BELOW_ONE
    ),
    "auxiliary_channels": Field(
        0,
        "channels of the auxiliary head, a second classifier that only training computes; 0 for none",
        range=ranges.COUNT_OR_ZERO,
    ),
    "auxiliary_features": Field("stage3", "endpoint of the backbone that the auxiliary head classifies"),
    "auxiliary_dropout": Field(0.1, "dropout rate of the auxiliary head", range=ranges.BELOW_ONE),
    "kernel_init": Field(
        "he_normal", "initializer of convolution kernels", {"he_normal": "PyTorch", "glorot_uniform": "Keras"}
    ),
    "zero_unreached_taps": Field(
        False,
        "start kernel taps at zero if they only see padding at `data.image_size`; helps when evaluating larger images "
        "than the network trained on",
    ),
    "backbone_norm_epsilon": Field(1e-5, "epsilon of the backbone's BatchNorm", range=ranges.ABOVE_ZERO),
    "backbone_norm_decay": Field(
        0.9,
        "decay of the backbone's running statistics: `decay * running + (1 - decay) * batch`",
        range=ranges.FRACTION,
    ),
    "head_norm_epsilon": Field(1e-5, "epsilon of BatchNorm in ASPP and the decoder", range=ranges.ABOVE_ZERO),
    "head_norm_decay": Field(0.9, "decay of the running statistics in ASPP and the decoder", range=ranges.FRACTION),
    "freeze_norm_statistics": Field(False, "use BatchNorm's running statistics during training too"),
    "padding": Field(
        "symmetric",
        "padding of strided convolutions",
        {"symmetric": "PyTorch and the papers", "same_upper": "TensorFlow's SAME"},
    ),
    "align_corners": Field(False, "resize with aligned corners instead of half-pixel centers"),
    "input_mean": Field(
        (123.675, 116.28, 103.53), "mean subtracted from images of range 0-255, per channel", range=ranges.FINITE
    ),
    "input_std": Field(
        (58.395, 57.12, 57.375),
        "standard deviation that centered images are divided by, per channel",
        range=ranges.DIVISOR,
    ),
}

_DATA = {
    "name": Field(None, "name of a registered data set", value_type=str),
    "data_dir": Field(
        None, "folder of prepared data sets (default: `$DEEPLAB_JAX_DATA`, or `~/deeplab_jax_data`)", value_type=str
    ),
    "train_split": Field("train", "split to train on; join several splits of a prepared data set with `+`"),
    "eval_split": Field("val", "split to evaluate on"),
    "batch_size": Field(None, "global batch size, over all devices and processes", value_type=int, range=ranges.COUNT),
    "image_size": Field(None, "(height, width) of the training images", value_type=tuple, range=ranges.SIDE),
    "resize": Field(
        "squeeze",
        "how an image becomes `image_size`",
        {
            "squeeze": "resize it, ignoring its aspect ratio",
            "scale_crop": "scale it by a random factor, pad it, and cut a random window (the papers)",
            "resized_crop": "cut a random box and resize the box",
        },
    ),
    "antialias": Field(False, "average pixels when `squeeze` shrinks an image, as Pillow does"),
    "scale_range": Field(
        (0.5, 2.0),
        "range of `scale_crop`'s factor, or of `resized_crop`'s share of each side (at most 1)",
        range=ranges.AT_LEAST_ZERO,
    ),
    "scale_step": Field(
        0.25, "step between `scale_crop`'s factors; 0 draws from the continuous range", range=ranges.AT_LEAST_ZERO
    ),
    "random_flip": Field("horizontal", "mirror images at random", ("none", "horizontal", "horizontal_and_vertical")),
    "color_jitter": Field(
        0.0,
        "scale brightness, contrast and saturation by random factors between 1 - this and 1 + this",
        range=ranges.BELOW_ONE,
    ),
    "paste_classes": Field(
        (), "paste the pixels of these classes from one example onto another", range=ranges.COUNT_OR_ZERO
    ),
    "paste_share": Field(0.5, "fraction of examples to paste onto", range=ranges.FRACTION),
    "repeat_threshold": Field(
        0.0,
        "oversample images with classes that appear in fewer than this fraction of images; 0 disables",
        range=ranges.FRACTION,
    ),
    "workers": Field(
        0, "worker processes that read and transform; 0 uses threads of the main process", range=ranges.WORKERS
    ),
    "unreadable": Field(
        "raise",
        "how to treat an example that cannot be read",
        {"raise": "stop with an error", "skip": "count it and take the next one"},
    ),
    "num_examples": Field(
        None, "number of training examples of a generated data set", value_type=int, range=ranges.COUNT
    ),
}

_TRAIN = {
    "duration": Field(
        None, "length of the training in steps, epochs or examples, such as '30000 steps'", value_type=str
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
    "nonfinite": Field(
        "stop",
        "how to treat a loss or gradient that is NaN or infinite",
        {"stop": "end the training", "skip": "do not update the parameters in this step"},
    ),
    "init_from": Field(None, "preset, folder of a pretrained network, or workdir to start from", value_type=str),
}

_OPTIMIZER = {
    "name": Field(
        "sgd",
        "update rule",
        {"sgd": "SGD with momentum", "adam": "Adam; AdamW with `weight_decay_rule='decoupled_all'`"},
    ),
    "learning_rate": Field(None, "peak learning rate", value_type=float, range=ranges.AT_LEAST_ZERO),
    "schedule": Field("cosine", "learning rate schedule after the warm-up", ("constant", "cosine", "poly")),
    "poly_power": Field(
        0.9, "exponent of the `poly` schedule: the rate falls with (1 - t / steps)^power", range=ranges.AT_LEAST_ZERO
    ),
    "warmup": Field(None, "duration of the linear warm-up from 0, such as '500 steps' or '5%'", value_type=str),
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
        },
    ),
    "learning_rate_multipliers": {
        part: Field(1.0, f"factor on the update of the {part}", range=ranges.AT_LEAST_ZERO)
        for part in ("backbone", "aspp", "decoder", "classifier", "auxiliary")
    },
    "frozen": Field((), "parts or modules that do not train, such as `('aspp', 'backbone/stage[1-3]*')`"),
}

_LOSS = {
    "name": Field(
        "softmax_cross_entropy",
        "loss function",
        {"softmax_cross_entropy": "mean over labeled pixels", "keras": "mean over all pixels, as Keras computes it"},
    ),
    "label_smoothing": Field(
        0.0,
        "label smoothing s: the true class gets 1 - s + s / classes, the others s / classes",
        range=ranges.BELOW_ONE,
    ),
    "class_weights": Field(
        (), "one loss weight per class; empty weights all classes equally", range=ranges.AT_LEAST_ZERO
    ),
    "auxiliary_weight": Field(0.4, "weight of the auxiliary head's loss", range=ranges.AT_LEAST_ZERO),
    "teacher": Field(
        None, "preset, folder or workdir of a network with the same classes to distill from", value_type=str
    ),
    "teacher_weight": Field(
        0.5, "share of the teacher's probabilities in the target; the labels have the rest", range=ranges.SHARE
    ),
    "teacher_scales": Field(
        (1.0,), "scales at which the teacher sees each image; its probabilities are averaged", range=ranges.SCALE
    ),
    "teacher_flip": Field(False, "let the teacher see each scale mirrored as well"),
}

_EVAL = {
    "protocol": Field(
        "whole",
        "input of the network and the size at which its prediction is scored",
        {
            "whole": "the image at its own size, padded to `eval.image_size`; scored at its own size (the papers)",
            "squeeze": "the image resized to `data.image_size`; logits are resized back and scored at its own size",
            "guide": "image and label resized to `data.image_size` and scored there (the KerasCV guide)",
        },
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
    "flip": Field(False, "predict each scale mirrored as well"),
    "ignored_pixels": Field(
        "exclude",
        "how pixels with the ignore label count",
        {"exclude": "not at all", "background": "as class 0, as in Keras' `MeanIoU` on one-hot labels"},
    ),
    "every": Field(None, "duration between evaluations during training (default: only at the end)", value_type=str),
}

_CHECKPOINT = {
    "every": Field(None, "duration between checkpoints (default: only at the end)", value_type=str),
    "keep": Field(
        2, "number of newest checkpoints to keep; the one with the best mean IoU is kept as well", range=ranges.COUNT
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
    "profile_steps": Field(
        0,
        "number of steps to trace into the workdir's `profile` for TensorBoard and Perfetto",
        range=ranges.COUNT_OR_ZERO,
    ),
}

#: Every field by group and name. A mapping instead of a field is a nested group.
FIELDS: Mapping[str, Mapping[str, Field | Mapping[str, Field]]] = {
    "model": _MODEL,
    "data": _DATA,
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


def base_config() -> ConfigDict:
    """Creates a config with every field at its default.

    Unset fields are typed placeholders. The config is locked: setting a field that does not exist raises an error.
    """
    return _with_defaults(FIELDS).lock()


def iterate_fields() -> list[tuple[str, Field]]:
    """Lists every field with its path, such as `model.backbone`, in the order of the schema."""
    return _flatten(FIELDS, "")


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
