"""Repeat factor sampling: images of rare classes are oversampled by the formula of its paper."""

import contextlib
import itertools

import numpy as np
import pytest

from deeplab_jax import data
from deeplab_jax.config import base_config
from deeplab_jax.data import sampling
from deeplab_jax.errors import UserError
from deeplab_jax.labels import LabelSet


class Source:
    """Eight images of class 0; half of them have class 1 too, and one has class 2."""

    label_set = LabelSet.from_names(("a", "b", "c"))

    def __len__(self):
        return 8

    def __getitem__(self, index):
        label = np.zeros((6, 5), np.uint8)
        label[0] = 255
        if index % 2:
            label[1] = 1
        if index == 6:
            label[2, 2] = 2
        return {"image": np.full((6, 5, 3), index, np.uint8), "label": label, "id": str(index)}


def test_classes_are_found_and_the_ignore_label_is_not_one():
    present = sampling.find_classes(Source())
    assert present[:, 0].all()
    assert np.flatnonzero(present[:, 1]).tolist() == [1, 3, 5, 7]
    assert np.flatnonzero(present[:, 2]).tolist() == [6]


def test_factors_equal_those_of_the_paper():
    factors = sampling.repeat_factors(sampling.find_classes(Source()), threshold=0.5)
    np.testing.assert_allclose(factors, [1, 1, 1, 1, 1, 1, 2, 1])  # sqrt(.5 / .125) = 2; class 1 is in half of them


@pytest.mark.parametrize(("threshold", "at_least", "at_most"), [(0.5, 2, 2), (0.28125, 1, 2)])
def test_an_example_is_repeated_by_its_randomly_rounded_factor(threshold, at_least, at_most):
    counts = []
    for seed in range(200):
        source = sampling.RepeatedSource(Source(), threshold, seed=seed)
        ids = [source[i]["id"] for i in range(len(source))]
        assert sorted(set(ids)) == [str(i) for i in range(8)]
        counts.append(ids.count("6"))
    assert (min(counts), max(counts)) == (at_least, at_most)
    # sqrt(.28125 / .125) = 1.5 on average; 200 draws of a coin stay within .11 of it but once in a thousand times
    assert abs(np.mean(counts) - np.sqrt(threshold / 0.125)) < 0.12


def test_an_epoch_has_the_rare_image_twice():
    config = base_config().data
    config.update({"batch_size": 3, "image_size": (6, 5), "random_flip": "none", "repeat_threshold": 0.5})
    with contextlib.closing(data.train_batches(Source(), config, seed=0)) as batches:
        ids = [id for batch in itertools.islice(batches, 3) for id in batch["id"].tolist()]
    assert sorted(ids) == ["0", "1", "2", "3", "4", "5", "6", "6", "7"]


class Damaged(Source):
    """The only image of class 2 cannot be read."""

    def __getitem__(self, index):
        if index == 6:
            raise UserError("example 6 is damaged")
        return super().__getitem__(index)


def test_an_unreadable_example_raises_or_has_no_class():
    with pytest.raises(UserError, match="^example 6 is damaged"):
        sampling.find_classes(Damaged())
    present = sampling.find_classes(Damaged(), unreadable="skip")
    assert not present[6].any()
    assert present[5].tolist() == [True, True, False]


def test_a_stream_with_rare_classes_skips_unreadable_examples():
    config = base_config().data
    config.update({"batch_size": 8, "image_size": (6, 5), "random_flip": "none", "repeat_threshold": 0.5})
    config.unreadable = "skip"
    with contextlib.closing(data.train_batches(Damaged(), config, seed=0)) as batches:
        batch = next(batches)
    assert sorted(batch["id"].tolist()) == ["0", "1", "2", "3", "4", "5", "7", "7"]
    assert [message for message in batch["unreadable"].tolist() if message] == ["example 6 is damaged"]
