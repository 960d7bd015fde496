"""Oversampling: images of rare classes by the formula of its paper, images of listed classes by their factor."""

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

    name, split, label_set = "eight", "train", LabelSet.from_names(("a", "b", "c"))

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


def test_pixels_are_counted_without_ignored_ones():
    pixels = sampling.count_pixels(Source())
    np.testing.assert_array_equal(pixels[[0, 1, 6]], [[25, 0, 0], [20, 5, 0], [24, 0, 1]])


def test_factors_equal_those_of_the_paper():
    factors = sampling.rare_class_factors(sampling.find_classes(Source()), threshold=0.5)
    np.testing.assert_allclose(factors, [1, 1, 1, 1, 1, 1, 2, 1])  # sqrt(.5 / .125) = 2; class 1 is in half of them


@pytest.mark.parametrize(("threshold", "at_least", "at_most"), [(0.5, 2, 2), (0.28125, 1, 2)])
def test_an_example_is_repeated_by_its_randomly_rounded_factor(threshold, at_least, at_most):
    counts = []
    factors = sampling.rare_class_factors(sampling.find_classes(Source()), threshold)
    for seed in range(200):
        source = sampling.RepeatedSource(Source(), factors, seed=seed)
        ids = [source[i]["id"] for i in range(len(source))]
        assert sorted(set(ids)) == [str(i) for i in range(8)]
        counts.append(ids.count("6"))
    assert (min(counts), max(counts)) == (at_least, at_most)
    # sqrt(.28125 / .125) = 1.5 on average; 200 draws of a coin stay within .11 of it but once in a thousand times
    assert abs(np.mean(counts) - np.sqrt(threshold / 0.125)) < 0.12


def data_config(**fields):
    config = base_config().data
    config.update({"batch_size": 1, "image_size": (6, 5), "random_flip": "none"} | fields)
    return config


@pytest.mark.parametrize(
    ("fields", "repeated"),
    [
        ({"repeat_threshold": 0.5}, {"6": 2}),
        ({"repeat_classes": (2,), "repeat_factor": 3.0}, {"6": 3}),
        ({"repeat_classes": (1, 2)}, {"1": 2, "3": 2, "5": 2, "6": 2, "7": 2}),
        # Each image gets the larger factor of the two, not their product.
        ({"repeat_classes": (1, 2), "repeat_factor": 3.0, "repeat_threshold": 0.5}, dict.fromkeys("13567", 3)),
        ({"repeat_classes": (1,), "repeat_factor": 1.0, "repeat_threshold": 0.5}, {"6": 2}),
    ],
)
def test_an_epoch_has_each_image_as_often_as_its_factor(fields, repeated):
    expected = sorted("".join(name * repeated.get(name, 1) for name in "01234567"))
    config = data_config(**fields)
    with contextlib.closing(data.train_batches(Source(), config, seed=0)) as batches:
        ids = [batch["id"].item() for batch in itertools.islice(batches, len(expected))]
    assert sorted(ids) == expected


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ((1, 3), r"^data\.repeat_classes=\(1, 3\) must be ids from 0 to 2$"),
        ((3,), r"^data\.repeat_classes=\(3,\): no image of eight/train contains any of these classes; remove them$"),
    ],
)
def test_a_listed_class_that_cannot_be_repeated_is_an_error(monkeypatch, classes, message):
    if classes == (3,):
        monkeypatch.setattr(Source, "label_set", LabelSet.from_names(("a", "b", "c", "d")))
    with pytest.raises(UserError, match=message):
        next(data.train_batches(Source(), data_config(repeat_classes=classes), seed=0))


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
    config = data_config(batch_size=8, repeat_threshold=0.5, unreadable="skip")
    with contextlib.closing(data.train_batches(Damaged(), config, seed=0)) as batches:
        batch = next(batches)
    assert sorted(batch["id"].tolist()) == ["0", "1", "2", "3", "4", "5", "7", "7"]
    assert [message for message in batch["unreadable"].tolist() if message] == ["example 6 is damaged"]
