"""Reads configs that earlier versions of this package wrote.

Version 1, which has no version number in a workdir's `config.json`, had a field for each unit of a duration. Up to
version 2, the loss had a name instead of terms, and Copy-Paste had other names.
"""

import math
from collections.abc import Mapping
from typing import Any

from deeplab_jax.config.durations import PERCENT, Duration
from deeplab_jax.errors import UserError

#: Version of the schema, written next to every saved config.
VERSION = 3

# New field, and the prefix of the fields that it replaces.
_DURATIONS = {
    ("train", "duration"): "",
    ("optimizer", "warmup"): "warmup_",
    ("eval", "every"): "every_",
    ("checkpoint", "every"): "every_",
}
_UNITS = {"steps": "steps", "epochs": "epochs", "examples": "examples", "percent": PERCENT}
_IGNORED_PIXELS = {"ignore": "exclude", "background": "background"}
_LOSS_NAMES = {"softmax_cross_entropy": "cross_entropy", "keras": "keras_cross_entropy"}
# Fields of versions 1 and 2 by their new names.
_RENAMED = {
    "data.paste_classes": "data.copy_paste_classes",
    "data.paste_share": "data.copy_paste_share",
}
#: Fields of earlier versions, and what to write instead.
REPLACED = (
    _RENAMED
    | {
        f"{group}.{prefix}{unit}": f"{group}.{field}='N{suffix if suffix == PERCENT else ' ' + suffix}'"
        for (group, field), prefix in _DURATIONS.items()
        for unit, suffix in _UNITS.items()
    }
    | {"eval.void": "eval.ignored_pixels", "loss.name": "loss.terms='cross_entropy'"}
)

# Removed fields with the one value that the package still computes. None of them has an effect on a trained network.
# Any value of the others had no effect on a result.
_REMOVED = {"model.decoder_dropout": 0.0, "optimizer.adam_beta2": 0.999, "optimizer.end_learning_rate": 0.0}
_REMOVED_WITHOUT_EFFECT = ("log.gallery_images",)


def migrate_config(values: Mapping[str, Any], version: Any, *, for_training: bool = False) -> dict[str, Any]:
    """Converts a config of an earlier version, as read from JSON, to this version's fields.

    Args:
      values: field values by group; groups and fields may be missing.
      version: schema version that `values` were written with.
      for_training: whether the config is for training, and not only for using a trained network.

    Raises:
      UserError: the version is newer than this package; or the config is for training, and a field that no longer
        exists has a value that this package cannot compute.
    """
    _check_version(version)
    groups = {name: dict(group) if isinstance(group, Mapping) else group for name, group in values.items()}
    if version < 3:
        _migrate_from_2(groups)
    if version < 2:
        _migrate_from_1(groups, for_training=for_training)
    return groups


def _migrate_from_2(groups: dict[str, Any]) -> None:
    """Renames fields in place."""
    for old, new in _RENAMED.items():
        name, _, field = old.partition(".")
        group = groups.get(name)
        if isinstance(group, dict) and field in group:
            group[new.partition(".")[2]] = group.pop(field)
    loss = groups.get("loss")
    if isinstance(loss, dict) and "name" in loss:
        name = loss.pop("name")
        loss["terms"] = _LOSS_NAMES.get(name, name)


def _migrate_from_1(groups: dict[str, Any], *, for_training: bool) -> None:
    """Converts durations and removed fields in place."""
    for (name, field), prefix in _DURATIONS.items():
        _merge_units(groups.get(name), field, prefix)
    evaluation = groups.get("eval")
    if isinstance(evaluation, dict) and "void" in evaluation:
        void = evaluation.pop("void")
        evaluation["ignored_pixels"] = _IGNORED_PIXELS.get(void, void)
    optimizer = groups.get("optimizer")
    if isinstance(optimizer, dict) and optimizer.get("name", "sgd") != "adam":
        optimizer.pop("adam_beta2", None)  # only Adam used it
    for name, group in groups.items():
        if isinstance(group, dict):
            _drop_removed(group, name, for_training=for_training)
    if isinstance(groups.get("model"), dict):
        groups["model"].setdefault("zero_unreached_taps", True)  # version 1 always did


def migrate_model(values: Mapping[str, Any], version: Any) -> dict[str, Any]:
    """Converts the `model` group of a pretrained network's config; see `migrate_config`.

    Raises:
      UserError: the version is newer than this package.
    """
    _check_version(version)
    model = dict(values)
    if version < 2:
        _drop_removed(model, "model", for_training=False)
    return model


def _check_version(version: Any) -> None:
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise UserError(
            f"config version {version!r} is not supported: this deeplab_jax reads versions 1 to {VERSION}; "
            "a newer deeplab_jax may read it"
        )


def _merge_units(group: Any, field: str, prefix: str) -> None:
    if not isinstance(group, dict):
        return
    old = {unit: group.pop(prefix + unit, None) for unit in _UNITS}
    given = {unit: value for unit, value in old.items() if value is not None}
    if len(given) > 1:
        raise UserError(f"{' and '.join(prefix + unit for unit in given)} are both set; set only one")
    for unit, value in given.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise TypeError(f"{prefix}{unit} cannot be {value!r}")
        group[field] = str(Duration(value, _UNITS[unit]))


def _drop_removed(group: dict[str, Any], name: str, *, for_training: bool) -> None:
    for path, supported in _REMOVED.items():
        owner, _, field = path.rpartition(".")
        if owner == name and group.pop(field, supported) != supported and for_training:
            raise UserError(
                f"{path} no longer exists, and this config sets it to a value other than {supported!r}; "
                "use the version of deeplab_jax that wrote the config"
            )
    for path in _REMOVED_WITHOUT_EFFECT:
        owner, _, field = path.rpartition(".")
        if owner == name:
            group.pop(field, None)
