"""Networks with parameters from elsewhere: presets by name, folders, other runs, and files of other frameworks."""

import importlib
import pathlib
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console

from deeplab_jax import config as config_lib
from deeplab_jax.config import suggest
from deeplab_jax.errors import UserError
from deeplab_jax.models import PARTS, DeepLabV3Plus, abstract_variables, build_model
from deeplab_jax.pretrained import native, workdir
from deeplab_jax.pretrained.merge import check_fit, merge
from deeplab_jax.pretrained.network import PretrainedNetwork, average
from deeplab_jax.train_state import TrainState, random_variables

__all__ = [
    "BACKBONE_FIELDS",
    "DEFAULT_PRESET",
    "FORMATS",
    "PretrainedNetwork",
    "average",
    "from_preset",
    "import_file",
    "init_from",
    "load",
    "merge",
    "model_fields",
    "preset_config",
]

#: What labels pictures where nothing else is named; it comes with the package.
DEFAULT_PRESET = "deeplab_v3_plus_efficientnet_lite2_pascalvoc"

#: What `deeplab-jax convert --from` and presets know: the module of this package whose `load(path)` reads it.
FORMATS = {
    "kerascv": "kerascv",
    "kerashub": "kerashub",
    "torchvision": "torchvision",
    "smp": "smp",
    "timm": "timm",
    "efficientnet-lite": "efficientnet_lite",
    "tflite": "tflite",
    "tf-deeplab": "tf_deeplab",
    "workdir": "workdir",
    "deeplab_jax": "native",
}

#: Fields of config.model that change what a backbone computes with the same parameters. The others either change the
#: parameters, which the merge sees, or are free to choose: the output stride, how logits are resized.
BACKBONE_FIELDS = (
    "backbone", "width_multiplier", "padding", "backbone_norm_epsilon", "input_mean", "input_std",
)  # fmt: skip


def import_file(path: pathlib.Path, file_format: str) -> PretrainedNetwork:
    """The network in a file of another framework.

    Args:
      path: the file.
      file_format: a key of `FORMATS`.

    Raises:
      UserError: no such format or file, or a file that holds something else.
    """
    if file_format not in FORMATS:
        raise UserError(f"format {file_format!r} does not exist{suggest(file_format, FORMATS)}")
    importer = importlib.import_module(f"{__name__}.{FORMATS[file_format]}")
    try:
        return importer.load(path)
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def load(name_or_path: str | pathlib.Path, *, console: Console | None = None) -> PretrainedNetwork:
    """A pretrained network.

    Args:
      name_or_path: a preset's name, a folder that `deeplab-jax convert` wrote, or the workdir of a training run.
      console: shows the progress of a download.

    Raises:
      UserError: it is none of these, or cannot be read.
    """
    path = pathlib.Path(name_or_path)
    if path.is_dir():
        return native.load(path) if native.is_native(path) else workdir.load(path)
    from deeplab_jax.pretrained import table  # the table is read where a name needs it

    if path.exists() or len(path.parts) > 1:
        raise UserError(
            f"{path} is no folder of a pretrained network; give a preset's name, a workdir, or what "
            "`deeplab-jax convert` made of a file"
        )
    preset = table.find_preset(str(name_or_path))
    return import_file(table.fetch_preset(preset, console=console), preset.format)


def from_preset(
    name_or_path: str | pathlib.Path,
    num_classes: int | None = None,
    *,
    seed: int = 0,
    console: Console | None = None,
    **model_fields: Any,
) -> tuple[DeepLabV3Plus, dict[str, Any]]:
    """A pretrained network, ready for `model.apply(variables, images, train=False)`.

    Args:
      name_or_path: as for `load`.
      num_classes: another number of classes initialises the classifier anew, and only it. Needed for a backbone, where
        everything behind it is new.
      seed: of what is initialised.
      console: is told what was initialised; default: stderr.
      **model_fields: fields of `config.model` to change, such as `output_stride=8`.

    Returns:
      The module, and its `params` and `batch_stats`.

    Raises:
      UserError: no such preset, a backbone without `num_classes`, or fields that make another network.
    """
    console = Console(stderr=True) if console is None else console
    network = load(name_or_path, console=console)
    if num_classes is None:
        if network.labels is None:
            raise UserError(f"{name_or_path} is a backbone without classes; give num_classes")
        num_classes = network.labels.num_classes
    model_config = network.model.copy_and_resolve_references()
    for field, value in model_fields.items():
        if field not in model_config:
            raise UserError(f"config field model.{field} does not exist{suggest(field, model_config.keys())}")
        model_config[field] = value
    model = build_model(model_config, num_classes)
    if network.labels is not None and num_classes == network.labels.num_classes:
        variables = abstract_variables(model)  # nothing to initialise
    else:
        variables = random_variables(model, seed=seed)
    variables, report = merge(variables, network.variables, reinitialise=_new_parts(network))
    if "newly initialised" in report:
        console.print(f"{name_or_path}: {report}", soft_wrap=True, highlight=False)
    return model, variables


def model_fields(name_or_path: str | pathlib.Path) -> dict[str, Any]:
    """Fields of `config.model` of a network that can start from another: all of a network with classes, and those of
    `BACKBONE_FIELDS` of a backbone alone.

    Args:
      name_or_path: as for `load`; a download shows its progress on stderr.

    Raises:
      UserError: nothing to load.
    """
    network = load(name_or_path, console=Console(stderr=True))
    fields = network.model.to_dict()
    return fields if network.labels is not None else {name: fields[name] for name in BACKBONE_FIELDS}


def preset_config(network: PretrainedNetwork) -> ConfigDict:
    """A whole config that feeds a network pictures as its authors did; what training needs stays unset."""
    config = config_lib.from_dict({"model": network.model.to_dict()})
    config.eval.protocol = network.protocol
    config.data.batch_size = 8
    config.data.image_size = network.image_size or (513, 513)
    if network.protocol == "whole":
        config.eval.image_size = network.image_size
    return config


def init_from(
    new_state: Callable[[], TrainState],
    shapes: TrainState,
    model: ConfigDict,
    name_or_path: str | pathlib.Path,
    *,
    console: Console | None = None,
) -> tuple[TrainState, str]:
    """A fresh state with the parameters, their averages if it has any, and batch statistics of another run or a preset.

    The classifier is taken over only if it has the same classes; its size decides. Of a backbone preset the backbone
    is. Everything else has to fit.

    Args:
      new_state: makes the fresh state; called when the other network is known to fit, for it may take long.
      shapes: of the fresh state.
      model: the `config.model` of the state's network.
      name_or_path: as for `load`.
      console: shows the progress of a download.

    Returns:
      The state, and a line that says what was taken and what was not.

    Raises:
      UserError: nothing to load, or networks that differ in more than their classifier.
    """
    network = load(name_or_path, console=console)
    here, there = model.to_dict(), network.model.to_dict()
    wrong = [
        f"config.model.{field}={there[field]!r} (is {here[field]!r})"
        for field in BACKBONE_FIELDS
        if here[field] != there[field]
    ]
    if wrong:
        raise UserError(f"train.init_from={name_or_path} needs {', '.join(wrong)}")
    check_fit(shapes.variables, network.variables, reinitialise=_new_parts(network))
    state = new_state()
    variables, report = merge(state.variables, network.variables, reinitialise=_new_parts(network))
    report += _other_rates(here, there) if network.labels is not None else ""
    started = state.replace(**variables)
    if state.ema_variables is not None:
        started = started.with_averages()
    return started, f"Starting from {name_or_path}: {report}"


def _other_rates(here: dict[str, Any], there: dict[str, Any]) -> str:
    """Tells of ASPP kernels that saw other distances; rates that follow the output stride see the same ones."""
    stride, other_stride = here["atrous_rates_stride"], there["atrous_rates_stride"]
    distances = [rate * stride for rate in here["atrous_rates"]]
    if distances == [rate * other_stride for rate in there["atrous_rates"]]:
        return ""
    return (
        f"; ASPP learned at rates {tuple(there['atrous_rates'])} for stride {other_stride}, "
        f"here they are {tuple(here['atrous_rates'])} for {stride}"
    )


def _new_parts(network: PretrainedNetwork) -> tuple[str, ...]:
    return ("classifier",) if network.labels else tuple(part for part in PARTS if part != "backbone")
