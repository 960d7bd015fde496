"""The state of a row: whether its score was measured here, can be, or why not."""

import dataclasses
import functools
import importlib.resources
import tomllib
from collections.abc import Mapping

from deeplab_jax.papers.rows import Row

#: The states and their meanings.
STATES: Mapping[str, str] = {
    "verified": "its public weights, or a training, were evaluated here",
    "runs": "its data and the weights it starts from are public; it was not run",
    "needs data": "it also needs a data set that you have to ask for or to arrange yourself",
    "needs pretraining": "it starts from weights that nobody publishes",
    "cannot": "its score cannot be reproduced, for the reason that `papers show` gives",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """A score that was measured here.

    Attributes:
      row: id of the row.
      scores: measured scores in percent, by name.
      images: number of images.
      original: scores of the original program on the same images, in percent; empty if it was not run.
      original_source: what ran the original program.
      variations: mean IoU in percent under other protocols, by their description.
      data: the images.
      command: what was run.
      commit: commit of this package.
      hardware: the machine.
    """

    row: str
    scores: Mapping[str, float]
    images: int
    data: str
    command: str
    commit: str
    hardware: str
    original: Mapping[str, float] = dataclasses.field(default_factory=dict)
    original_source: str | None = None
    variations: Mapping[str, float] = dataclasses.field(default_factory=dict)


def state_of(row: Row) -> str:
    """Returns the row's state, one of `STATES`."""
    if row.cannot is not None:
        return "cannot"
    if measurement_of(row) is not None:
        return "verified"
    if row.pretraining is not None and row.weights is None:
        return "needs pretraining"
    return "runs" if row.data is None else "needs data"


def measurement_of(row: Row) -> Measurement | None:
    """Returns what was measured here, None if nothing was."""
    return _load_measurements().get(row.id)


@functools.cache
def _load_measurements() -> dict[str, Measurement]:
    text = importlib.resources.files(__package__).joinpath("measured.toml").read_text(encoding="utf-8")
    measurements = (Measurement(**entry) for entry in tomllib.loads(text).get("measured", ()))
    return {measurement.row: measurement for measurement in measurements}
