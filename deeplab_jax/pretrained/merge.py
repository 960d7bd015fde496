"""A strict merge: every parameter is taken over or accounted for."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from flax import traverse_util
from jaxtyping import PyTree

from deeplab_jax.errors import UserError

_SHOWN = 5


def merge(variables: PyTree, foreign: PyTree, *, reinitialize: Sequence[str] = ()) -> tuple[Any, str]:
    """The variables with the foreign values in their place, on the same devices.

    Args:
      variables: `params` and `batch_stats` of the network, initialized.
      foreign: the same collections with other values.
      reinitialize: parts that keep their initial values where the foreign shapes differ.

    Returns:
      The merged variables, and a line that counts what was taken and names what kept its initial values.

    Raises:
      UserError: a variable is missing, unused or of another shape outside these parts.
    """
    own = traverse_util.flatten_dict(variables, sep="/")
    other = traverse_util.flatten_dict(foreign, sep="/")
    kept = _kept(own, other, reinitialize)
    merged = {
        path: value if path in kept else jax.device_put(other[path].astype(value.dtype), value.sharding)
        for path, value in own.items()
    }
    report = f"{len(merged) - len(kept)} of {len(own)} variables taken"
    if kept:
        report += f"; newly initialized: {', '.join(_by_part(kept, own))}"
    return traverse_util.unflatten_dict(merged, sep="/"), report


def check_fit(shapes: PyTree, foreign: PyTree, *, reinitialize: Sequence[str] = ()) -> None:
    """What `merge` would raise, before there is anything to merge into.

    Args:
      shapes: of `params` and `batch_stats` of the network.
      foreign: see `merge`.
      reinitialize: see `merge`.

    Raises:
      UserError: see `merge`.
    """
    _kept(traverse_util.flatten_dict(shapes, sep="/"), traverse_util.flatten_dict(foreign, sep="/"), reinitialize)


def _kept(own: Mapping[str, Any], other: Mapping[str, Any], reinitialize: Sequence[str]) -> list[str]:
    """The paths that keep their initial values."""
    kept, wrong = [], []
    for path, value in own.items():
        if path in other and other[path].shape == value.shape:
            continue
        if path.split("/")[1] in reinitialize:
            kept.append(path)
        elif path in other:
            wrong.append(f"{path} has shape {other[path].shape} there, {value.shape} here")
        else:
            wrong.append(f"{path} is missing there")
    wrong += [f"{path} is unused here" for path in other if path not in own and path.split("/")[1] not in reinitialize]
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise UserError(f"the networks differ: {'; '.join(wrong[:_SHOWN])}{more}; make config.model the same")
    return kept


def _by_part(kept: Sequence[str], own: Iterable[str]) -> list[str]:
    """The parts of which nothing was taken, and the paths of what else was not."""
    taken = {path.split("/")[1] for path in set(own) - set(kept)}
    return sorted({path if path.split("/")[1] in taken else path.split("/")[1] for path in kept})
