"""Suggestions for config fields that do not exist."""

import pytest

from deeplab_jax.config import iterate_fields, suggest_field
from deeplab_jax.config.suggestions import _FIELD_OF, _SYNONYMS


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("optimizer.lr", "optimizer.learning_rate"),
        ("log.every", "log.every_steps"),
        ("optimizer.wd", "optimizer.weight_decay"),
        ("train.batch_size", "data.batch_size"),
        ("bs", "data.batch_size"),
        ("crop_size", "data.image_size"),
        ("train.zzz", None),
        ("num-workers", "data.workers"),
        ("data.batchsize", "data.batch_size"),
        ("modl.backbone", "model.backbone"),
        ("data.name.first", "data.name"),
        ("optimizer.momentm", "optimizer.momentum"),
        ("stpes", "train.duration"),
        ("eval.evry", "eval.every"),
        ("checkpoint.evry", "checkpoint.every"),
    ],
)
def test_the_field_that_is_meant_is_suggested(path, field):
    if field is None:
        assert suggest_field(path).startswith("; choose from train.duration, train.patience, ")
    else:
        assert suggest_field(path) == f"; did you mean {field}?"


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("train.steps", "; write train.duration='N steps'"),
        ("train.epochs", "; write train.duration='N epochs'"),
        ("eval.every_percent", "; write eval.every='N%'"),
        ("optimizer.warmup_steps", "; write optimizer.warmup='N steps'"),
        ("eval.void", "; write eval.ignored_pixels"),
        ("model.num_classes", "; the classes are those of the data set"),
        (
            "nothing",
            "; choose from model, data, unlabeled, train, optimizer, loss, eval, checkpoint, distributed, mesh, log",
        ),
    ],
)
def test_fields_of_earlier_versions_and_unknown_groups_are_explained(path, hint):
    assert suggest_field(path) == hint


def test_synonyms_are_of_fields_that_exist_and_are_not_fields_of_their_own():
    fields = {path for path, _ in iterate_fields()}
    assert set(_SYNONYMS) <= fields
    assert sum(len(synonyms) for synonyms in _SYNONYMS.values()) == len(_FIELD_OF)
