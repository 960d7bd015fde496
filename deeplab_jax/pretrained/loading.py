"""Loading of pretrained networks by name, path or address."""

import dataclasses
import logging
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from deeplab_jax import config as config_lib
from deeplab_jax.data import set_input_size
from deeplab_jax.errors import UserError, suggest
from deeplab_jax.files import open_path
from deeplab_jax.models import PARTS, SegmentationNetwork, abstract_variables, build_model, random_variables
from deeplab_jax.pretrained import bundle, hub, presets
from deeplab_jax.pretrained.formats import import_file
from deeplab_jax.pretrained.merge import check_fit, merge
from deeplab_jax.pretrained.network import PretrainedNetwork, set_feeding
from deeplab_jax.pretrained.stem import with_channels
from deeplab_jax.workdir import layout

logger = logging.getLogger(__name__)

#: The default preset for prediction. Its weights ship with the package.
DEFAULT_PRESET = "deeplab_v3_plus_efficientnet_lite2_pascalvoc"

#: Fields of `config.model` that change the output of a backbone but not its parameters. Fields that change parameters
#: are checked by the merge; the others, such as the output stride, are free to choose.
BACKBONE_FIELDS = (
    "backbone", "width_multiplier", "padding", "backbone_norm_epsilon", "layer_norm_epsilons", "gelu", "input_mean",
    "input_std",
)  # fmt: skip


def load(name_or_path: str | pathlib.Path = DEFAULT_PRESET, *, checkpoint: str | None = None) -> PretrainedNetwork:
    """Loads a pretrained network.

    Args:
      name_or_path: the name of a preset, which is downloaded if necessary; a folder that `save_pretrained` or
        `deeplab-jax convert` wrote; the workdir of a training run; or `hf://owner/name[@revision]`, a network on the
        Hugging Face Hub. A workdir can name its checkpoint, such as `runs/photos@best` or `runs/photos@900`.
      checkpoint: checkpoint of a workdir: "newest", "best" or a step (default: the one that `name_or_path` names, or
        else the run's `checkpoint.use`).

    Raises:
      UserError: there is no such preset, folder, workdir, checkpoint or repository, it cannot be read, or a weight is
        NaN or infinite.
    """
    path, named = split_checkpoint(name_or_path)
    checkpoint = checkpoint or named
    if hub.is_address(path):
        if checkpoint is not None:
            raise UserError(f"{path} is not the workdir of a training run, so it has no checkpoint {checkpoint!r}")
        return hub.load(path)
    if path.is_dir():
        return import_file(path, "workdir" if is_workdir(path) else "deeplab_jax", checkpoint=checkpoint)
    if path.exists() or len(path.parts) > 1:
        problem = "is a file; run `deeplab-jax convert` to import it" if path.exists() else "does not exist"
        raise UserError(
            f"{path} {problem}; expected the name of a preset, a saved network, a workdir or {hub.PREFIX}owner/name"
        )
    preset = presets.find_preset(str(name_or_path))
    network = import_file(presets.fetch_preset(preset), preset.format, checkpoint=checkpoint)
    return dataclasses.replace(network, provenance=preset.provenance)


def split_checkpoint(name_or_path: str | pathlib.Path) -> tuple[str | pathlib.Path, str | None]:
    """Splits `WORKDIR@CHECKPOINT`. The workdir of a training in stages means that of its last stage.

    Returns:
      The path, or the address if it is `hf://owner/name`; and the checkpoint, None if the name has none.
    """
    if hub.is_address(name_or_path):
        return name_or_path, None
    path = open_path(name_or_path)
    folder, at, checkpoint = str(name_or_path).rpartition("@")
    if path.exists() or not at or not open_path(folder).is_dir():
        return layout.last_stage(path), None
    return layout.last_stage(open_path(folder)), checkpoint


def is_workdir(path: str | pathlib.Path) -> bool:
    """Returns True for a folder that is not a saved network, so only a training run can have written it."""
    if hub.is_address(path):
        return False
    path = open_path(path)
    return path.is_dir() and not bundle.is_bundle(path)


def from_pretrained(
    name_or_path: str | pathlib.Path = DEFAULT_PRESET,
    num_classes: int | None = None,
    *,
    seed: int = 0,
    **model_fields: Any,
) -> tuple[SegmentationNetwork, dict[str, Any]]:
    """Loads a pretrained model and its variables, ready for `model.apply(variables, images, train=False)`.

    Args:
      name_or_path: preset name, saved network, workdir or `hf://owner/name`, see `load`.
      num_classes: number of classes (default: the network's own). With another number, the classifiers are newly
        initialized. Required for a backbone, whose decoder and ASPP are newly initialized too.
      seed: seed of newly initialized parameters.
      **model_fields: fields of `config.model` to change, such as `output_stride=8` or `in_channels=4`, which adapts the
        first convolution (see `deeplab_jax.pretrained.stem`); or `ops`, the operations of the
        model (default: `deeplab_jax.ops.select` for the default device).

    Returns:
      The Flax module, and its variables (`params` and `batch_stats`).

    Raises:
      UserError: nothing to load, a backbone without `num_classes`, or fields that do not fit the parameters.
    """
    network = load(name_or_path)
    if num_classes is None:
        if network.label_set is None:
            raise UserError(f"{name_or_path} is a backbone without classes; pass num_classes")
        num_classes = network.label_set.num_classes
    network = with_channels(network, model_fields.pop("in_channels", network.model.in_channels))
    model_config = network.model.copy_and_resolve_references()
    overrides = {"ops": model_fields.pop("ops")} if "ops" in model_fields else {}
    for field, value in model_fields.items():
        if field not in model_config:
            raise UserError(f"config field model.{field} does not exist{suggest(field, model_config.keys())}")
        model_config[field] = value
    model = build_model(model_config, num_classes, platform=jax.default_backend(), **overrides)
    variables = abstract_variables(model)
    if check_fit(variables, network.variables, reinitialize=new_parts(network)):
        variables = random_variables(model, seed=seed)
    variables, report = merge(variables, network.variables, reinitialize=new_parts(network))
    if "newly initialized" in report:
        logger.warning("%s: %s", name_or_path, report)
    return model, variables


def model_fields(name_or_path: str | pathlib.Path) -> dict[str, Any]:
    """Returns the fields of `config.model` that a model must have to start from a pretrained network.

    These are all fields for a network with classes, and `BACKBONE_FIELDS` for a backbone.

    Args:
      name_or_path: preset name, saved network, workdir or `hf://owner/name`, see `load`.

    Raises:
      UserError: nothing to load.
    """
    network = load(name_or_path)
    fields = network.model.to_dict()
    return fields if network.label_set is not None else {name: fields[name] for name in BACKBONE_FIELDS}


def preset_config(network: PretrainedNetwork) -> ConfigDict:
    """Returns a config that feeds images to a network as its authors did. Fields for training stay unset."""
    config = config_lib.from_dict({"model": network.model.to_dict()})
    config.eval.protocol = network.protocol
    set_feeding(config, network.feeding)
    config.data.batch_size = 8
    config.data.image_size = network.image_size or (513, 513)
    if network.image_size is not None:
        set_input_size(config, network.image_size)
    return config


def new_parts(network: PretrainedNetwork) -> tuple[str, ...]:
    """Returns the parts of a model that may be newly initialized when it starts from this network.

    The auxiliary head is one of them, since networks are often published without it. With other classes, only its
    classifier is new.
    """
    return ("classifier", "auxiliary") if network.label_set else tuple(part for part in PARTS if part != "backbone")
