"""Strict merge of pretrained variables: every variable is loaded or accounted for."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from flax import traverse_util
from jaxtyping import PyTree

from deeplab_jax.errors import UserError

_SHOWN = 5


def merge(variables: PyTree, loaded: PyTree, *, reinitialize: Sequence[str] = ()) -> tuple[Any, str]:
    """Replaces variables by loaded values. Dtypes and devices stay those of `variables`.

    Args:
      variables: `params` and `batch_stats` of the model.
      loaded: the same collections with other values.
      reinitialize: parts of the model that keep their own values where shapes differ or values are missing. Loaded
        values of these parts that the model lacks are left out.

    Returns:
      The merged variables, and a line that counts the loaded variables and names those that kept their own values and
      the parts that were left out.

    Raises:
      UserError: outside these parts, a variable is missing, unused, or has another shape.
    """
    own = traverse_util.flatten_dict(variables, sep="/")
    other = traverse_util.flatten_dict(loaded, sep="/")
    kept = _kept_paths(own, other, reinitialize)
    merged = {
        path: value if path in kept else jax.device_put(other[path].astype(value.dtype), value.sharding)
        for path, value in own.items()
    }
    report = f"loaded {len(merged) - len(kept)} of {len(own)} variables"
    if kept:
        report += f"; newly initialized: {', '.join(_by_part(kept, own))}"
    if left_out := sorted({path.split("/")[1] for path in other if path not in own}):
        report += f"; not in the model: {', '.join(left_out)}"
    return traverse_util.unflatten_dict(merged, sep="/"), report


def check_fit(shapes: PyTree, loaded: PyTree, *, reinitialize: Sequence[str] = ()) -> list[str]:
    """Raises the errors of `merge` before the model's variables exist, and lists those that need values.

    Args:
      shapes: abstract `params` and `batch_stats` of the model.
      loaded: see `merge`.
      reinitialize: see `merge`.

    Returns:
      The paths of the variables that `merge` would not replace.

    Raises:
      UserError: see `merge`.
    """
    own, other = (traverse_util.flatten_dict(tree, sep="/") for tree in (shapes, loaded))
    return _kept_paths(own, other, reinitialize)


def _kept_paths(own: Mapping[str, Any], other: Mapping[str, Any], reinitialize: Sequence[str]) -> list[str]:
    """Returns the paths of variables that keep their own values."""
    kept, wrong = [], []
    for path, value in own.items():
        if path in other and other[path].shape == value.shape:
            continue
        if path.split("/")[1] in reinitialize:
            kept.append(path)
        elif path in other:
            wrong.append(f"{path} has shape {other[path].shape} in the loaded network and {value.shape} in the model")
        else:
            wrong.append(f"{path} is missing in the loaded network")
    wrong += [
        f"{path} is unused by the model" for path in other if path not in own and path.split("/")[1] not in reinitialize
    ]
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise UserError(f"the networks differ: {'; '.join(wrong[:_SHOWN])}{more}; use the same config.model")
    return kept


def _by_part(kept: Sequence[str], own: Iterable[str]) -> list[str]:
    """Returns the parts that are entirely in `kept`, and the paths of its other variables."""
    loaded_parts = {path.split("/")[1] for path in set(own) - set(kept)}
    return sorted({path if path.split("/")[1] in loaded_parts else path.split("/")[1] for path in kept})
