"""The rows: published scores, and the config fields that describe how they came about. Read from `rows/*.toml`.

A file is a publication and holds tables. A table states values for all of its rows, and a row can state its own.
"""

import dataclasses
import functools
import importlib.resources
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from deeplab_jax.errors import UserError, suggest

#: The scores that rows publish, by the name that evaluations give them. All are in percent.
METRICS: Mapping[str, str] = {
    "mean_iou": "mean IoU",
    "pixel_accuracy": "pixel accuracy",
    "top_1_error": "top-1 error",
    "top_5_error": "top-5 error",
}

#: The publications, in the order of `deeplab-jax papers list`.
PAPERS = ("v3", "v3plus", "segformer", "mobilenetv3", "zoo", "torchvision", "keras")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Row:
    """A published row. Rows are equal only if they are the same object, so they can be keys.

    Attributes:
      id: its name on the command line.
      paper: one of `PAPERS`.
      table: number or name of the table.
      title: what the table is about.
      name: what distinguishes the row in its table.
      config: the config and its arguments, as after `--config`.
      train: fields of the config that training changes, by path.
      evaluate: further fields that evaluation changes.
      published: scores by name, see `METRICS`, in percent.
      images: number of images that were scored.
      source: who publishes the row.
      classes: number of classes.
      split: split that was scored; None for the config's `data.eval_split`.
      data: name of the data set, `data.name` of the config.
      init: preset that training starts from; None for random weights, or for `pretraining`.
      pretraining: weights that training starts from, in words, if nobody publishes them.
      weights: preset with the row's trained weights, if they are public.
      multiply_adds: published multiply-adds of one image, over all of its views, in 10^9.
      parameters: published number of parameters, in 10^6.
      differs: how the evaluation here differs from the published one; None if it does not.
      cannot: why the score cannot be reproduced; None if it can.
    """

    id: str
    paper: str
    table: str
    title: str
    name: str
    config: str
    train: Mapping[str, Any]
    evaluate: Mapping[str, Any]
    published: Mapping[str, float]
    images: int
    source: str
    classes: int = 21
    split: str | None = None
    data: str = "voc2012_segmentation"
    init: str | None = None
    pretraining: str | None = None
    weights: str | None = None
    multiply_adds: float | None = None
    parameters: float | None = None
    differs: str | None = None
    cannot: str | None = None

    def __repr__(self) -> str:
        scores = ", ".join(f"{METRICS[name]} {score:g}" for name, score in self.published.items())
        return f"Row({self.id}: {self.name}; {scores or 'no published score'})"


def list_rows(paper: str | None = None, table: str | None = None) -> list[Row]:
    """Returns the rows in the order of the publications.

    Args:
      paper: only those of this publication, one of `PAPERS`.
      table: only those of the tables with this number or name.

    Raises:
      UserError: there is no such publication or table.
    """
    rows = list(_load_rows().values())
    if paper is not None:
        if paper not in PAPERS:
            raise UserError(f"paper {paper!r} does not exist{suggest(paper, PAPERS)}")
        rows = [row for row in rows if row.paper == paper]
    if table is not None:
        tables = list(dict.fromkeys(row.table for row in rows))
        if table not in tables:
            of_paper = "" if paper is None else f" of {paper}"
            raise UserError(f"table {table!r}{of_paper} does not exist; choose from {', '.join(tables)}")
        rows = [row for row in rows if row.table == table]
    return rows


def find_row(name: str) -> Row:
    """Returns the row with this id.

    Raises:
      UserError: there is none; the message suggests the nearest id.
    """
    rows = _load_rows()
    if name not in rows:
        raise UserError(f"row {name!r} does not exist{suggest(name, rows)}; see `deeplab-jax papers list`")
    return rows[name]


@functools.cache
def _load_rows() -> dict[str, Row]:
    rows = {}
    for paper in PAPERS:
        text = importlib.resources.files(__package__).joinpath("rows", f"{paper}.toml").read_text(encoding="utf-8")
        content = tomllib.loads(text)
        for table in content["table"]:
            for entry in table["rows"]:
                row = _make_row(paper, content, table, entry)
                if row.id in rows:
                    raise ValueError(f"two rows are named {row.id}")
                rows[row.id] = row
    return rows


def _make_row(paper: str, content: dict[str, Any], table: dict[str, Any], entry: dict[str, Any]) -> Row:
    shared = {name: value for name, value in table.items() if name != "rows"}
    values = {"source": content["source"]} | shared | entry | {"paper": paper}
    arguments = ",".join(filter(None, (part.get("arguments") for part in (table, entry))))
    values.pop("arguments", None)
    if arguments:
        values["config"] += f"{',' if ':' in values['config'] else ':'}{arguments}"
    for step in ("train", "evaluate"):
        changes = [*table.get(step, ()), *entry.get(step, ())]
        values[step] = _merge_changes(changes, content["changes"])
    values["published"] = {name: values.pop(name) for name in METRICS if name in values}
    return Row(**values)


def _merge_changes(changes: Sequence[str | dict[str, Any]], named: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that changes set, the last of them first in rank. TOML's arrays become tuples."""
    fields = {}
    for change in changes:
        for path, value in (named[change] if isinstance(change, str) else change).items():
            fields[path] = tuple(value) if isinstance(value, list) else value
    return fields
