"""Networks with parameters from elsewhere: presets by name, folders, other runs, and files of other frameworks."""

import importlib
import pathlib
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console

from deeplab_jax import config as config_lib
from deeplab_jax.data.protocol import set_input_size
from deeplab_jax.errors import UserError, suggest
from deeplab_jax.models import PARTS, DeepLabV3Plus, abstract_variables, build_model, random_variables
from deeplab_jax.pretrained import bundle
from deeplab_jax.pretrained.importers import workdir
from deeplab_jax.pretrained.merge import merge
from deeplab_jax.pretrained.network import PretrainedNetwork

#: What labels images where nothing else is named; it comes with the package.
DEFAULT_PRESET = "deeplab_v3_plus_efficientnet_lite2_pascalvoc"

#: What `deeplab-jax convert --from` and presets know: the module of this package whose `load(path)` reads it.
FORMATS = {
    "kerascv": "importers.kerascv",
    "kerashub": "importers.kerashub",
    "torchvision": "importers.torchvision",
    "smp": "importers.smp",
    "timm": "importers.timm",
    "efficientnet-lite": "importers.efficientnet_lite",
    "tflite": "importers.tflite",
    "tf-deeplab": "importers.tf_deeplab",
    "workdir": "importers.workdir",
    "deeplab_jax": "bundle",
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
    importer = importlib.import_module(f"deeplab_jax.pretrained.{FORMATS[file_format]}")
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
        return bundle.load(path) if bundle.is_native(path) else workdir.load(path)
    from deeplab_jax.pretrained import presets

    if path.exists() or len(path.parts) > 1:
        raise UserError(
            f"{path} is no folder of a pretrained network; give a preset's name, a workdir, or what "
            "`deeplab-jax convert` made of a file"
        )
    preset = presets.find_preset(str(name_or_path))
    return import_file(presets.fetch_preset(preset, console=console), preset.format)


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
      num_classes: another number of classes initializes the classifier anew, and only it. Needed for a backbone, where
        everything behind it is new.
      seed: of what is initialized.
      console: is told what was initialized; default: stderr.
      **model_fields: fields of `config.model` to change, such as `output_stride=8`.

    Returns:
      The module, and its `params` and `batch_stats`.

    Raises:
      UserError: no such preset, a backbone without `num_classes`, or fields that make another network.
    """
    console = Console(stderr=True) if console is None else console
    network = load(name_or_path, console=console)
    if num_classes is None:
        if network.label_set is None:
            raise UserError(f"{name_or_path} is a backbone without classes; give num_classes")
        num_classes = network.label_set.num_classes
    model_config = network.model.copy_and_resolve_references()
    for field, value in model_fields.items():
        if field not in model_config:
            raise UserError(f"config field model.{field} does not exist{suggest(field, model_config.keys())}")
        model_config[field] = value
    model = build_model(model_config, num_classes)
    if network.label_set is not None and num_classes == network.label_set.num_classes:
        variables = abstract_variables(model)  # nothing to initialize
    else:
        variables = random_variables(model, seed=seed)
    variables, report = merge(variables, network.variables, reinitialize=new_parts(network))
    if "newly initialized" in report:
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
    return fields if network.label_set is not None else {name: fields[name] for name in BACKBONE_FIELDS}


def preset_config(network: PretrainedNetwork) -> ConfigDict:
    """A whole config that feeds a network images as its authors did; what training needs stays unset."""
    config = config_lib.from_dict({"model": network.model.to_dict()})
    config.eval.protocol = network.protocol
    config.data.batch_size = 8
    config.data.image_size = network.image_size or (513, 513)
    if network.image_size is not None:
        set_input_size(config, network.image_size)
    return config


def new_parts(network: PretrainedNetwork) -> tuple[str, ...]:
    return ("classifier",) if network.label_set else tuple(part for part in PARTS if part != "backbone")
