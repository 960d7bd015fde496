"""Experiment configs: the schema, typed arguments, durations, and validation before any device work.

A config file in `configs/` defines `get_config(arg=None)`, starts from `base_config()` and sets values. Fields that
the schema leaves empty are placeholders: typed, None until set, and settable from the command line.
"""

import ast
import difflib
import importlib.util
import json
import math
import pathlib
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, config_dict

from deeplab_jax.errors import UserError

_DURATION_UNITS = ("steps", "epochs", "examples", "percent")

#: Values of `eval.protocol`, see `base_config`.
PROTOCOLS = ("whole", "squeeze", "guide")

#: Axes of the device mesh, from the slowest to the fastest: devices next to each other share a picture's rows.
MESH_AXES = ("data", "fsdp", "spatial")


def base_config() -> ConfigDict:
    """Every field there is, with the value that switches the feature off or leaves it to the experiment."""
    config = ConfigDict()

    config.model = model = ConfigDict()
    model.backbone = config_dict.placeholder(str)  # a name of deeplab_jax.models.BACKBONES
    model.width_multiplier = 1.0  # of mobilenet_v2
    model.in_channels = 3  # channels of pictures
    model.output_stride = 16  # 8, 16 or 32, by atrous conversion with the same parameters
    model.multi_grid = ()  # rate multipliers of the last stage's units; () is all ones
    model.spread_converted_units = False  # units whose stride is traded run at the rate behind them, as in smp
    model.atrous_rates = (6, 12, 18)  # of the 3x3 branches of ASPP
    model.atrous_rates_stride = 16  # the output stride `atrous_rates` are stated for; they scale with the real one
    model.aspp_channels = 256  # of each branch of ASPP and of its result
    model.aspp_separable = False  # 3x3 branches are depthwise separable
    model.separable_norm = True  # BatchNorm and ReLU between the two convolutions of a separable one
    model.image_pooling = True  # a branch of ASPP for the whole picture's mean
    model.aspp_dropout = 0.0  # share of ASPP's results that training drops
    model.decoder = "paper"  # paper | separable | kerascv | torchvision | smp | none (DeepLabv3)
    model.decoder_channels = 256  # of the decoder's convolutions
    model.low_level_channels = 48  # to which the decoder projects the features of stride 4
    model.decoder_dropout = 0.0  # share of the decoder's results that training drops
    model.classifier_bias = True  # the last convolution has a bias
    model.kernel_init = "he_normal"  # he_normal | glorot_uniform (Keras)
    model.backbone_norm_epsilon = 1e-5  # of BatchNorm, added to the variance
    model.backbone_norm_decay = 0.9  # of its running statistics: decay * running + (1 - decay) * batch
    model.head_norm_epsilon = 1e-5  # the same for ASPP and decoder
    model.head_norm_decay = 0.9  # the same for ASPP and decoder
    model.freeze_norm_statistics = False  # BatchNorm uses its running statistics while training too
    model.padding = "symmetric"  # symmetric (PyTorch, the papers) | same_upper (TensorFlow)
    model.align_corners = False  # half-pixel bilinear resizing unless True
    model.input_mean = (123.675, 116.28, 103.53)  # RGB of range 0-255
    model.input_std = (58.395, 57.12, 57.375)  # inputs are (pictures - mean) / std

    config.data = data = ConfigDict()
    data.name = config_dict.placeholder(str)  # a name of deeplab_jax.data.SOURCES
    data.data_dir = config_dict.placeholder(str)  # default: $DEEPLAB_JAX_DATA or ~/deeplab_jax_data
    data.train_split = "train"  # the split to train on; several of a prepared data set as "train+val"
    data.eval_split = "val"  # the split to score on
    data.batch_size = config_dict.placeholder(int)  # global, over all devices and processes
    data.image_size = config_dict.placeholder(tuple)  # (height, width) that the network trains on
    data.resize = "squeeze"
    # squeeze:      plain resize to image_size
    # scale_crop:   scaled by a random factor, padded, a random window cut (the papers)
    # resized_crop: a random box cut and resized to image_size
    data.antialias = False  # of squeezed pictures: bilinear resizing averages what it shrinks, as Pillow does
    data.scale_range = (0.5, 2.0)  # of scale_crop; of resized_crop the box's share of each side, at most 1
    data.scale_step = 0.25  # of scale_crop; 0 draws from the whole range
    data.random_flip = "horizontal"  # none | horizontal | horizontal_and_vertical
    data.color_jitter = 0.0  # j: brightness, contrast and saturation each by a random factor of 1 - j to 1 + j
    data.paste_classes = ()  # pixels of these classes of another example, augmented like the first, are laid over it
    data.paste_share = 0.5  # of examples, for which another is drawn to paste from
    data.repeat_threshold = 0.0  # pictures of classes in a smaller share of pictures come more often; 0: all alike
    data.workers = 0  # processes that read and transform; 0 uses threads of this one
    data.unreadable = "raise"  # an example that cannot be read: raise | skip: the next one takes its place, counted
    data.num_examples = config_dict.placeholder(int)  # per split, of generated data sets only

    config.train = train = ConfigDict()
    train.steps = config_dict.placeholder(int)  # one of steps, epochs, examples
    train.epochs = config_dict.placeholder(float)  # each example that often; steps = epochs * examples / batch, rounded
    train.examples = config_dict.placeholder(int)  # so many examples, each counted as often as it is shown
    train.seed = 0  # of initialisation, order, augmentation and dropout
    train.accumulate_steps = 1  # batches are computed in so many parts, one after the other; BatchNorm sees one part
    train.compute_dtype = "float32"  # float32 | bfloat16; parameters, statistics, logits, loss stay float32
    train.remat = "none"  # none | activations | units: what accelerators compute again for the gradient, not keep
    train.ema_decay = config_dict.placeholder(float)  # a step; evaluation and prediction use variables averaged so
    train.nonfinite = "stop"  # a NaN or infinite loss or gradient: stop | skip: the step changes no parameter
    train.init_from = config_dict.placeholder(str)  # a preset, or a folder of one, or a workdir to start from

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = "sgd"  # sgd | adam; with weight_decay_rule decoupled_all, adam is AdamW
    optimizer.learning_rate = config_dict.placeholder(float)  # at its peak
    optimizer.schedule = "cosine"  # constant | cosine | poly
    optimizer.poly_power = 0.9  # of poly: the rate falls with (1 - t / steps)^power
    optimizer.end_learning_rate = 0.0  # of cosine and poly
    optimizer.warmup_steps = config_dict.placeholder(int)  # the rate rises linearly from 0; one of the four at most
    optimizer.warmup_epochs = config_dict.placeholder(float)  # the same in epochs
    optimizer.warmup_examples = config_dict.placeholder(int)  # the same in examples
    optimizer.warmup_percent = config_dict.placeholder(float)  # the same in percent of all steps
    optimizer.momentum = 0.9  # of SGD, 0 for none; beta 1 of Adam
    optimizer.adam_beta2 = 0.999  # of Adam's mean of squared gradients
    optimizer.momentum_rule = "classic"  # classic: rate outside the buffer (PyTorch, optax) | keras: inside
    optimizer.nesterov = False  # Nesterov's momentum
    optimizer.clip = "none"  # none | per_variable (Keras' clipnorm) | global
    optimizer.clip_norm = config_dict.placeholder(float)  # largest norm of a gradient, or of all together
    optimizer.weight_decay = 0.0  # factor of the decay of parameters
    optimizer.weight_decay_rule = "coupled_kernels"  # coupled_kernels: L2 as in the papers | decoupled_all: Keras
    optimizer.learning_rate_multipliers = ConfigDict({"backbone": 1.0, "aspp": 1.0, "decoder": 1.0, "classifier": 1.0})
    # factors of the whole update of each part of the network
    optimizer.frozen = ()  # parts, or modules by path, that do not learn: ("aspp", "backbone/stage[1-3]*")

    config.loss = loss = ConfigDict()
    loss.name = "softmax_cross_entropy"  # softmax_cross_entropy: mean over labelled pixels | keras: over all pixels
    loss.label_smoothing = 0.0  # s: the target of the true class is 1 - s + s / classes, of others s / classes
    loss.class_weights = ()  # one factor per class
    loss.teacher = config_dict.placeholder(str)  # a preset, folder or workdir of the same classes to learn from too
    loss.teacher_weight = 0.5  # share of the teacher's probabilities in the target; the labels have the rest
    loss.teacher_scales = (1.0,)  # at which it sees each picture; the views' probabilities are averaged
    loss.teacher_flip = False  # it sees every scale mirrored as well

    config.eval = evaluation = ConfigDict()
    evaluation.protocol = "whole"
    # whole:   the picture at its own size, padded to eval.image_size; scored at its own size (the papers)
    # squeeze: the picture resized to data.image_size, logits resized back; scored at its own size
    # guide:   picture and ground truth resized to data.image_size and scored there (the KerasCV guide)
    evaluation.image_size = config_dict.placeholder(tuple)  # of `whole`; default: what holds the largest picture
    evaluation.batch_size = config_dict.placeholder(int)  # default: data.batch_size
    evaluation.scales = (1.0,)  # factors at which a picture is seen; the views' probabilities are averaged
    evaluation.flip = False  # every scale is seen mirrored as well
    evaluation.void = "ignore"  # ignore | background (as Keras' MeanIoU on one-hot labels)
    evaluation.every_steps = config_dict.placeholder(int)  # while training, one of the four; default: at the end only
    evaluation.every_epochs = config_dict.placeholder(float)  # the same in epochs
    evaluation.every_examples = config_dict.placeholder(int)  # the same in examples
    evaluation.every_percent = config_dict.placeholder(float)  # the same in percent of all steps

    config.checkpoint = checkpoint = ConfigDict()
    checkpoint.every_steps = config_dict.placeholder(int)  # one of the four; default: at the end only
    checkpoint.every_epochs = config_dict.placeholder(float)  # the same in epochs
    checkpoint.every_examples = config_dict.placeholder(int)  # the same in examples
    checkpoint.every_percent = config_dict.placeholder(float)  # the same in percent of all steps
    checkpoint.keep = 2  # the newest ones; the one with the best mean IoU stays besides

    config.distributed = ConfigDict({"heartbeat_seconds": 30})  # silence after which a process counts as dead

    config.mesh = mesh = ConfigDict()  # devices along each axis; -1, for one of them, is the rest
    mesh.data = -1  # the batch is split over data and fsdp
    mesh.fsdp = 1  # parameters, momentum and batch statistics are split over it
    mesh.spatial = 1  # the rows of pictures are split over it
    mesh.fsdp_min_size = 2**14  # arrays of fewer elements are not split: gathering them takes longer than they save

    config.log = log = ConfigDict()
    log.every_steps = 10  # loss, scores and speed of so many steps on the console and in metrics.jsonl
    log.tensorboard = True  # also as TensorBoard events
    log.gallery_images = 8  # validation masks drawn at every evaluation
    log.profile_steps = 0  # steps traced into the workdir's `profile`, for TensorBoard and Perfetto
    return config.lock()  # a config file that sets a field there is not fails, with the nearest name


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
    """The arguments behind the colon of `--config name:size=256,batch=8`, typed by their defaults.

    Args:
      arg: what `get_config` received: comma-separated `key=value`; a bool may stand without a value.
      **defaults: every argument the config knows with its default; a value must have the default's type, where
        None stands for a number.

    Raises:
      UserError: an unknown argument, or a value of another type.
    """
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        key, given, text = item.partition("=")
        if key not in defaults:
            raise UserError(f"config argument {key!r} does not exist{suggest(key, defaults)}")
        default = defaults[key]
        if isinstance(default, str):
            values[key] = text
            continue
        kind = "number" if default is None else type(default).__name__
        try:
            value = ast.literal_eval(text) if given else True
        except (SyntaxError, ValueError):
            raise UserError(f"config argument {key}={text!r} is not a {kind}") from None
        wanted = (int, float) if default is None or isinstance(default, float) else type(default)
        if not isinstance(value, wanted) or (isinstance(value, bool) and not isinstance(default, bool)):
            raise UserError(f"config argument {key}={text!r} is not a {kind}")
        values[key] = type(default)(value) if default is not None else value
    return ConfigDict(values)


def parse_leg(arg: str | None, legs: Mapping[int, Mapping[str, Any]], settable: Sequence[str]) -> ConfigDict:
    """The settings of one leg of a run, whose legs begin with the weights of the one before.

    Args:
      arg: what `get_config` received. `leg` chooses, 1 if not given; the others replace settings.
      legs: the settings of each by its number. `init` are the weights it begins with, "" where they have to be given.
      settable: the settings that `arg` can replace: text, and numbers.

    Raises:
      UserError: as `parse_arg`; there is no such leg; a leg without weights to begin with.
    """
    given = parse_arg(arg, leg=1, **{name: "" if isinstance(legs[1][name], str) else None for name in settable})
    if given.leg not in legs:
        raise UserError(f"leg={given.leg} does not exist{suggest(str(given.leg), legs)}")
    settings = {**legs[given.leg], **{name: given[name] for name in settable if given[name] not in (None, "")}}
    if not settings["init"]:
        raise UserError(f"leg {given.leg} begins with the weights of the one before: give its workdir, init=FOLDER")
    return ConfigDict(settings)


def suggest(name: str, known) -> str:
    """The end of an error message about a name that does not exist: the nearest one, or all there are."""
    known = [str(other) for other in known]
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else f"; choose from {', '.join(known)}"


def find_config(name: str) -> pathlib.Path:
    """The file of a config: a path, or the name of one that the package brings.

    Raises:
      UserError: there is no such file.
    """
    path = pathlib.Path(name)
    if path.is_file():
        return path
    for folder in config_folders():
        candidate = folder / f"{path.stem}.py"
        if path.parent == pathlib.Path(".") and candidate.is_file():
            return candidate
    names = sorted({file.stem for folder in config_folders() for file in folder.glob("*.py")})
    raise UserError(f"config {name!r} is no file and no config of the package{suggest(path.stem, names)}")


def config_folders() -> list[pathlib.Path]:
    """Where the package's configs lie: inside it when installed, next to it in a checkout."""
    package = pathlib.Path(__file__).parent
    return [folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()]


def load_config(name: str, **arguments: Any) -> ConfigDict:
    """The config of a file or name, for notebooks and tests: `load_config("kerascv_guide", size=256)`.

    Raises:
      UserError: no such config, or an argument it does not know.
    """
    return read_config_file(find_config(name), ",".join(f"{key}={value}" for key, value in arguments.items()))


def read_config_file(path: pathlib.Path, argument: str = "") -> ConfigDict:
    """What `get_config(argument)` of a config file returns.

    Raises:
      UserError: an argument it does not know, or a mistake in the file; the message names the line.
    """
    spec = importlib.util.spec_from_file_location(f"deeplab_jax_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module.get_config(argument)
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"config {error.filename}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        raise UserError(f"config {where}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """A config as JSON can hold it; `from_dict` reads it back."""
    return json.loads(json.dumps(config.to_dict()))


def from_dict(values: Mapping[str, Any]) -> ConfigDict:
    """The config of a workdir: the schema with these values.

    Raises:
      UserError: a field that the schema does not have.
      TypeError: a value of another type than the schema's.
    """
    config = base_config()
    _update(config, values, "")
    return config


def _update(config: ConfigDict, values: Mapping[str, Any], path: str) -> None:
    for key, value in values.items():
        if key not in config:
            raise UserError(f"config field {path}{key} does not exist{suggest(key, config.keys())}")
        # What a ConfigDict would take for a value of any type.
        if isinstance(config[key], ConfigDict) != isinstance(value, Mapping):
            raise TypeError(f"{path}{key} cannot be {value!r}")
        if value is None and config[key] is not None:
            raise TypeError(f"{path}{key} has no value")
        if isinstance(value, Mapping):
            _update(config[key], value, f"{path}{key}.")
        else:
            config[key] = tuple(value) if isinstance(value, list) else value


def differences(config: ConfigDict, other: ConfigDict, *, groups: Sequence[str]) -> dict[str, str]:
    """The fields in which two configs differ, each with `group.field: value here / value there`."""
    lines = {}
    for group in groups:
        for key, value in config[group].items():
            if to_dict(ConfigDict({key: value})) != to_dict(ConfigDict({key: other[group][key]})):
                lines[f"{group}.{key}"] = f"{group}.{key}: {value!r} / {other[group][key]!r}"
    return lines


def duration_steps(
    group: ConfigDict | Mapping, prefix: str = "", *, batch_size: int, num_examples: int, total_steps: int | None = None
) -> int | None:
    """A duration in steps, from whichever of `<prefix>steps|epochs|examples|percent` the config sets.

    Epochs and examples are rounded to whole steps, at least one; percent is of `total_steps`.

    Args:
      group: of a config, or any mapping.
      prefix: of the fields' names, such as `every_`.
      batch_size: examples a step.
      num_examples: of the split, an epoch.
      total_steps: of the training; needed for percent.

    Returns:
      The steps, or None if none of the four is set.

    Raises:
      UserError: more than one is set, or one is negative.
    """
    given = {unit: group[key] for unit in _DURATION_UNITS if group.get(key := prefix + unit) is not None}
    if not given:
        return None
    names = [prefix + unit for unit in given]
    if len(given) > 1:
        raise UserError(f"only one of {' and '.join(names)} can be set")
    ((unit, value),) = given.items()
    if value < 0:
        raise UserError(f"{names[0]}={value} is negative")
    if unit == "steps":
        return int(value)
    if unit == "percent":
        return round(total_steps * value / 100)
    examples = value * num_examples if unit == "epochs" else value
    return max(1, round(examples / batch_size)) if value else 0


def validate(config: ConfigDict, *, devices: int = 1, processes: int = 1, training: bool = True) -> None:
    """Checks what can be known before any data is read and any device is used.

    Args:
      config: a whole config.
      devices: over all processes.
      processes: that read data.
      training: whether what only training needs has to be set.

    Raises:
      UserError: naming the field and the fix.
    """
    _require(config, "model.backbone", "data.name", "data.batch_size", "data.image_size")
    if training:
        _require(config, "optimizer.learning_rate")
    for field in ("data.image_size", "eval.image_size"):
        size = config[field.split(".")[0]].image_size
        if size is not None and (len(size) != 2 or min(size) < config.model.output_stride):
            raise UserError(
                f"{field}={tuple(size)} must be (height, width), each at least the output stride "
                f"{config.model.output_stride}"
            )
    _validate_mesh(config, devices, processes)
    if config.data.resize != "squeeze":
        scales = tuple(config.data.scale_range)
        most = 1 if config.data.resize == "resized_crop" else math.inf
        if len(scales) != 2 or not 0 < scales[0] <= scales[1] <= most:
            raise UserError(
                f"data.scale_range={scales} must be two rising factors above 0"
                + (", at most 1 for data.resize='resized_crop'" if most == 1 else "")
            )
    for field, known in {
        "data.resize": ("squeeze", "scale_crop", "resized_crop"),
        "data.random_flip": ("none", "horizontal", "horizontal_and_vertical"),
        "data.unreadable": ("raise", "skip"),
        "train.nonfinite": ("stop", "skip"),
        "train.compute_dtype": ("float32", "bfloat16"),
        "train.remat": ("none", "activations", "units"),
        "eval.protocol": PROTOCOLS,
        "eval.void": ("ignore", "background"),
    }.items():
        group, name = field.split(".")
        if config[group][name] not in known:
            raise UserError(f"{field}={config[group][name]!r} does not exist{suggest(str(config[group][name]), known)}")
    check_scales("eval.scales", config.eval.scales)
    if not 0 <= config.data.color_jitter < 1:
        raise UserError(f"data.color_jitter={config.data.color_jitter} must be at least 0 and below 1")
    if not 0 <= config.data.paste_share <= 1:
        raise UserError(f"data.paste_share={config.data.paste_share} must be a share, from 0 to 1")
    if not 0 <= config.data.repeat_threshold <= 1:
        raise UserError(f"data.repeat_threshold={config.data.repeat_threshold} must be a share, from 0 to 1")
    if config.loss.teacher is not None:
        if config.loss.name != "softmax_cross_entropy":
            raise UserError(f"loss.teacher needs loss.name='softmax_cross_entropy' (is {config.loss.name!r})")
        if not 0 < config.loss.teacher_weight <= 1:
            raise UserError(f"loss.teacher_weight={config.loss.teacher_weight} must be above 0 and at most 1")
        check_scales("loss.teacher_scales", config.loss.teacher_scales)
    decay = config.train.ema_decay
    if decay is not None and not 0 < decay < 1:
        raise UserError(f"train.ema_decay={decay} must lie between 0 and 1, for instance 0.999")
    for field in ("checkpoint.keep", "log.every_steps", "mesh.fsdp_min_size", "distributed.heartbeat_seconds"):
        group, name = field.split(".")
        if config[group][name] < 1:
            raise UserError(f"{field}={config[group][name]} must be at least 1")
    if config.log.profile_steps < 0:
        raise UserError(f"log.profile_steps={config.log.profile_steps} must be at least 0")


def check_scales(name: str, scales: Sequence[Any]) -> None:
    """Raises a UserError unless these are factors to see pictures at."""
    if not scales or not all(isinstance(scale, (int, float)) and 0 < scale < math.inf for scale in scales):
        raise UserError(f"{name}={tuple(scales)} must be factors above 0, for instance (0.75, 1.0, 1.25)")


def mesh_sizes(mesh: ConfigDict, devices: int) -> dict[str, int]:
    """Devices along each of `MESH_AXES`.

    Args:
      mesh: the `mesh` group of a config.
      devices: that there are; without a -1 the mesh may take fewer.

    Raises:
      UserError: sizes that do not fit the devices.
    """
    sizes = {axis: mesh[axis] for axis in MESH_AXES}
    given = ", ".join(f"mesh.{axis}={size}" for axis, size in sizes.items())
    rest = [axis for axis, size in sizes.items() if size == -1]
    for axis, size in sizes.items():
        if size < 1 and size != -1:
            raise UserError(f"mesh.{axis}={size} must be at least 1, or -1 for the rest of the devices")
    if len(rest) > 1:
        raise UserError(f"{given}: only one of them can be -1, the rest of the devices")
    taken = math.prod(size for size in sizes.values() if size != -1)
    if taken > devices:
        raise UserError(f"{given} needs {taken} devices, there are {devices}; -1 for one of them takes the rest")
    if rest and devices % taken:
        raise UserError(f"{given} does not divide {devices} devices; choose sizes that do")
    return sizes | dict.fromkeys(rest, devices // taken)


def _validate_mesh(config: ConfigDict, devices: int, processes: int) -> None:
    sizes = mesh_sizes(config.mesh, devices)
    if processes > 1 and math.prod(sizes.values()) != devices:
        raise UserError(
            f"the mesh takes {math.prod(sizes.values())} of {devices} devices, but every process needs its own in it; "
            "set mesh.data=-1"
        )
    if processes > 1 and devices // processes % sizes["spatial"]:
        raise UserError(
            f"mesh.spatial={sizes['spatial']} splits pictures over processes, which read whole ones; use a divisor of "
            f"the {devices // processes} devices of a process"
        )
    shards, parts = sizes["data"] * sizes["fsdp"], config.train.accumulate_steps
    if parts < 1:
        raise UserError(f"train.accumulate_steps={parts} must be at least 1")
    for field, size in (("data.batch_size", config.data.batch_size), ("eval.batch_size", eval_batch_size(config))):
        if size < 1 or size % shards:
            raise UserError(f"{field}={size} does not divide over {shards} devices; use a multiple of {shards}")
    if config.data.batch_size % (shards * parts):
        raise UserError(
            f"data.batch_size={config.data.batch_size} does not divide into train.accumulate_steps={parts} parts over "
            f"{shards} devices; use a multiple of {shards * parts}"
        )
    if sizes["spatial"] > 1:
        _validate_spatial(config, sizes["spatial"])


def _validate_spatial(config: ConfigDict, spatial: int) -> None:
    """Whether each device gets whole rows at every stride, and no step needs rows of the whole picture."""
    rows = spatial * config.model.output_stride
    if config.eval.protocol == "squeeze":
        raise UserError(
            f"eval.protocol='squeeze' resizes to each picture's own size, which mesh.spatial={spatial} cannot split; "
            "use whole with eval.image_size, or guide"
        )
    if any(scale != 1 for scale in config.eval.scales):
        raise UserError(
            f"eval.scales={tuple(config.eval.scales)} gives heights that mesh.spatial={spatial} does not divide; "
            "leave one of them out"
        )
    fields = ("data.image_size", "eval.image_size") if config.eval.protocol == "whole" else ("data.image_size",)
    for field in fields:
        size = config[field.split(".")[0]].image_size
        if size is None or size[0] % rows:
            given = " is not set" if size is None else f"={tuple(size)} does not divide"
            raise UserError(
                f"{field}{given}; with mesh.spatial={spatial} and model.output_stride={config.model.output_stride} "
                f"its height must be a multiple of {rows}"
            )
    if config.model.align_corners:
        raise UserError(
            f"model.align_corners=True needs heights of k * stride + 1, which mesh.spatial={spatial} does not divide; "
            "leave one of them out"
        )


def eval_batch_size(config: ConfigDict) -> int:
    """Pictures an evaluation step, over all devices."""
    return config.data.batch_size if config.eval.batch_size is None else config.eval.batch_size


def _require(config: ConfigDict, *fields: str) -> None:
    for field in fields:
        group, name = field.split(".")
        if config[group][name] is None:
            raise UserError(f"{field} is not set; set it in the config file or with --config.{field}=...")
