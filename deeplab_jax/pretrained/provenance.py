"""Facts about the origin of a network: author, training data, date, license and scores. Nothing is guessed."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from deeplab_jax.errors import UserError

#: `Provenance.origin` of the network of a training run.
TRAINING_RUN = "training run"

#: The license of NVIDIA's SegFormer weights, as presets.toml states it.
NVIDIA_LICENSE = "NVIDIA Source Code License: research and evaluation only"

_LONGEST_TEXT, _MOST_ITEMS = 1000, 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """One score of a network, and how it was measured.

    Attributes:
      metric: its name, such as "mean_iou".
      value: the score; shares are between 0 and 1.
      data: the data set.
      split: the split of the data set; None if it is unknown or part of `protocol`.
      protocol: how images were fed and what was counted, for people.
      source: who measured it.
    """

    metric: str
    value: float
    data: str
    protocol: str
    split: str | None = None
    source: str | None = None

    @property
    def place(self) -> str:
        """The data set and its split."""
        return self.data if self.split is None else f"{self.data} {self.split}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """The origin of a network. Unknown facts are None or empty.

    Attributes:
      author: the person or organization that published the network.
      data: the data sets that it was trained on.
      date: the day it was trained or published, `YYYY-MM-DD`.
      license: the license of the weights, an identifier of SPDX where there is one.
      origin: `TRAINING_RUN`, or where the weights were found, such as "preset X".
      base: the network that the training started from.
      base_license: the license of `base`.
      scores: its scores.
    """

    author: str | None = None
    data: tuple[str, ...] = ()
    date: str | None = None
    license: str | None = None
    origin: str | None = None
    base: str | None = None
    base_license: str | None = None
    scores: tuple[Score, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns the known facts as values of JSON."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if value not in (None, ())}

    @classmethod
    def from_json(cls, values: Any) -> "Provenance":
        """Reads what `to_json` returned, from a file that may come from a stranger.

        Raises:
          ValueError: it is something else.
        """
        if not isinstance(values, Mapping):
            raise ValueError("provenance is not an object")
        texts = {field.name for field in dataclasses.fields(cls)} - {"data", "scores"}
        data, scores = values.get("data", []), values.get("scores", [])
        if not isinstance(data, list) or not isinstance(scores, list) or max(len(data), len(scores)) > _MOST_ITEMS:
            raise ValueError(f"provenance.data and provenance.scores must be lists of at most {_MOST_ITEMS} items")
        facts = {name: _text(values[name], f"provenance.{name}") for name in texts if values.get(name) is not None}
        return cls(
            data=tuple(_text(name, "provenance.data") for name in data),
            scores=tuple(_read_score(score) for score in scores),
            **facts,
        )


#: The provenance of a network of which nothing is known.
UNKNOWN = Provenance()


def check_license(name: str) -> str:
    """Returns the name of a license that a user gave.

    Raises:
      UserError: it is not one line of text.
    """
    if not name.strip() or len(name) > _LONGEST_TEXT or not name.isprintable():
        raise UserError(f"license {name[:80]!r} is not the name of a license, such as Apache-2.0")
    return name.strip()


def forbids_copies(license_name: str | None) -> bool:
    """Returns True for a license under which the weights must not be published again."""
    return license_name is not None and license_name.lower().startswith("nvidia")


def _read_score(values: Any) -> Score:
    if not isinstance(values, Mapping):
        raise ValueError("a score is not an object")
    value = values.get("value")
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:  # nor NaN
        raise ValueError("the value of a score is not a number")
    names = {field.name for field in dataclasses.fields(Score)} - {"value"}
    texts = {name: _text(values[name], f"{name} of a score") for name in names if values.get(name) is not None}
    if missing := {"metric", "data", "protocol"} - set(texts):
        raise ValueError(f"a score has no {min(missing)}")
    return Score(value=float(value), **texts)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT:
        raise ValueError(f"{name} is not a text of at most {_LONGEST_TEXT} characters")
    return value
