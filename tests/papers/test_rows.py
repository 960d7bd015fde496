"""The rows: every published figure is there once, and what a row names exists."""

import dataclasses
import importlib.resources
import tomllib
from collections import Counter

import pytest

from deeplab_jax import papers
from deeplab_jax.cli import names
from deeplab_jax.config import base_config
from deeplab_jax.errors import UserError
from deeplab_jax.papers import rows as rows_lib
from deeplab_jax.papers import states
from deeplab_jax.pretrained.presets import load_table

# Rows per table, counted in the publications. Tables 7 and 13 of v3, and 6 of v3plus, also
# list other authors' networks.
COUNTS = {
    "v3": {
        "1": 6, "2": 8, "3": 20, "4": 4, "5": 5, "6": 5, "7": 2, "8": 4, "9": 4, "10": 6, "11": 6, "12": 4, "13": 1,
    },
    "v3plus": {"1": 5, "2": 6, "3": 14, "4": 2, "5": 24, "6": 2, "7": 5},
    "segformer": {
        "ade20k": 12, "cityscapes": 12, "mmseg-ade20k": 14, "mmseg-ade20k-aligned": 14, "mmseg-cityscapes": 12,
    },
    "mobilenetv3": {"torchvision": 2, "mmseg": 8},
    "zoo": {"voc": 8, "8bit": 2, "mobile": 1, "cityscapes": 8, "edgetpu": 4, "ade20k": 2, "chainercv": 2},
    "torchvision": {"deeplabv3": 2},
    "keras": {"guide": 2, "training": 1, "presets": 2},
}  # fmt: skip


def test_every_table_has_all_of_its_rows():
    counts = {paper: Counter(row.table for row in papers.list_rows(paper)) for paper in papers.PAPERS}
    assert counts == COUNTS
    assert names.PAPERS == papers.PAPERS


@pytest.mark.parametrize(
    ("paper", "table", "scores"),
    [  # typed again from the papers
        ("v3", "1", [75.18, 73.88, 70.06, 59.99, 42.34, 20.29]),
        ("v3", "9", [64.43, 75.76, 76.49, 77.21]),
        ("v3plus", "2", [78.21, 78.85, 78.02, 77.25, 78.07, 78.61]),
    ],
)
def test_scores_of_a_table_are_in_its_order(paper, table, scores):
    assert [row.published["mean_iou"] for row in papers.list_rows(paper, table)] == scores


def test_rows_of_a_network_and_protocol_publish_one_score():
    """The papers repeat rows in several tables, with the same score."""
    scores = {}
    for row in papers.list_rows("v3") + papers.list_rows("v3plus"):
        if row.table not in ("4", "11") and row.cannot is None:
            key = (row.config, tuple(sorted(row.train.items())), tuple(sorted(row.evaluate.items())), row.init)
            scores.setdefault(key, set()).add(row.published["mean_iou"])
    assert [values for values in scores.values() if len(values) > 1] == []
    assert sum(1 for row in papers.list_rows() if row.published.get("mean_iou") == 77.21) == 7


def test_ids_start_with_the_paper_and_scores_are_percent():
    for row in papers.list_rows():
        assert row.id.startswith(f"{row.paper}-")
        assert set(row.published) <= set(papers.METRICS)
        assert all(1 < score <= 100 for score in row.published.values())
        assert row.published or row.weights is not None


def test_rows_set_fields_of_the_schema():
    fields = set(base_config().to_dict())
    for row in papers.list_rows():
        for path in (*row.train, *row.evaluate):
            assert path.split(".")[0] in fields


def test_presets_that_rows_name_exist():
    table = load_table()
    for row in papers.list_rows():
        assert row.init is None or table[row.init].classes is None, row.id
        assert row.weights is None or table[row.weights].classes == row.classes, row.id


def test_a_row_that_states_no_start_has_one_in_words_or_random_weights():
    random = [row.id for row in papers.list_rows() if row.init is None and row.pretraining is None and not row.cannot]
    assert random == [
        "zoo-cityscapes-mobilenet-v3-large", "zoo-cityscapes-mobilenet-v3-small",
        "keras-presets-kerascv", "keras-presets-kerashub",
    ]  # fmt: skip


def test_unknown_names_are_errors_with_a_suggestion():
    with pytest.raises(UserError, match="row 'v3-1-os9' does not exist; did you mean v3-1-os8"):
        papers.find_row("v3-1-os9")
    with pytest.raises(UserError, match="paper 'v3pluss' does not exist; did you mean v3plus"):
        papers.list_rows("v3pluss")
    with pytest.raises(UserError, match="table '9' of v3plus does not exist; choose from 1, 2, 3, 4, 5, 6, 7"):
        papers.list_rows("v3plus", "9")


def test_what_a_table_states_holds_for_its_rows_unless_they_state_it_again():
    content = {"source": "a book", "changes": {"wide": {"model.decoder_channels": 512}}}
    table = {
        "table": "1",
        "title": "t",
        "config": "c",
        "images": 3,
        "train": ["wide"],
        "classes": 4,
        "arguments": "a=1",
    }
    plain = {"id": "p-1", "name": "n", "mean_iou": 50.0}
    again = plain | {"classes": 5, "train": [{"model.decoder_channels": 64, "eval.scales": [1.0]}], "arguments": "b=2"}
    row, other = (rows_lib._make_row("p", content, table, entry) for entry in (plain, again))
    assert (row.classes, row.config, row.train) == (4, "c:a=1", {"model.decoder_channels": 512})
    assert (other.classes, other.config) == (5, "c:a=1,b=2")
    assert other.train == {"model.decoder_channels": 64, "eval.scales": (1.0,)}
    assert (row.source, row.published) == ("a book", {"mean_iou": 50.0})


# ---- States ----


def test_every_state_occurs_and_is_derived():
    assert {papers.state_of(row) for row in papers.list_rows()} == set(papers.STATES)
    row = papers.find_row("v3-6-os8")
    assert papers.state_of(row) == "runs"
    assert papers.state_of(dataclasses.replace(row, data="Cityscapes")) == "needs data"
    unpublished = dataclasses.replace(row, pretraining="weights of ours")
    assert papers.state_of(unpublished) == "needs pretraining"
    assert papers.state_of(dataclasses.replace(unpublished, weights="a preset")) == "runs"
    assert papers.state_of(dataclasses.replace(row, cannot="private data")) == "cannot"


def test_what_needs_private_data_cannot_be_reproduced():
    for row in papers.list_rows():
        if "jft" in row.id or row.split == "test":
            assert "private" in row.cannot


def test_measurements_are_complete():
    text = importlib.resources.files("deeplab_jax.papers").joinpath("measured.toml").read_text()
    entries = tomllib.loads(text)["measured"]
    assert len({entry["row"] for entry in entries}) == len(entries)
    for entry in entries:
        measured = states.Measurement(**entry)
        assert papers.state_of(papers.find_row(measured.row)) == "verified"
        assert all((measured.command, measured.commit, measured.hardware, measured.data, measured.images))
        assert set(measured.scores) <= set(papers.METRICS)
        assert bool(measured.original) == (measured.original_source is not None)
