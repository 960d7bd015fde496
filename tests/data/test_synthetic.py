"""Synthetic scenes: reproducible, all different, with every class and with ignored borders."""

import hashlib

import cv2
import numpy as np
import pytest

from deeplab_jax.data import open_source
from deeplab_jax.data.sources.synthetic import SPLIT_SIZES, SyntheticSource
from deeplab_jax.errors import UserError
from deeplab_jax.labels import SYNTHETIC


def test_a_scene_depends_only_on_split_and_position():
    source, again = SyntheticSource("train"), SyntheticSource("train")
    last = again[7]
    first = source[7]
    assert first["id"] == last["id"] == "train_00007"
    np.testing.assert_array_equal(first["image"], last["image"])
    np.testing.assert_array_equal(first["label"], last["label"])


def test_scenes_and_splits_differ():
    digests = {
        hashlib.sha256(SyntheticSource(split)[i]["image"].tobytes()).digest()
        for split in SPLIT_SIZES
        for i in range(40)
    }
    assert len(digests) == 40 * len(SPLIT_SIZES)
    assert not set(SyntheticSource("train").ids()) & set(SyntheticSource("val").ids())


def test_every_class_appears_and_borders_are_ignored():
    source = SyntheticSource("val")
    pixels = np.zeros(256, np.int64)
    for i in range(40):
        label = source[i]["label"]
        pixels += np.bincount(label.ravel(), minlength=256)
        # Ignored pixels separate classes: a 2x2 neighborhood never contains two of them.
        without_ignored = np.where(label == 255, 0, label + 1)
        least = np.where(label == 255, 254, label + 1).astype(np.uint8)
        kernel, anchor = np.ones((2, 2), np.uint8), (0, 0)
        most = cv2.dilate(without_ignored.astype(np.uint8), kernel, anchor=anchor)
        assert not ((most > cv2.erode(least, kernel, anchor=anchor)) & (most > 0))[:-1, :-1].any()
    share = pixels / pixels.sum()
    assert share[: SYNTHETIC.num_classes].min() > 0.01
    assert 0.05 < share[255] < 0.3
    assert pixels.sum() == pixels[: SYNTHETIC.num_classes].sum() + pixels[255]


@pytest.mark.parametrize("size", [(96, 96), (64, 80), (33, 57)])
def test_scenes_have_the_size_asked_for(size):
    source = open_source("synthetic", "train", num_examples=5, image_size=size)
    assert len(source) == len(source.ids()) == 5
    assert source.largest_size() == size
    assert source[4]["image"].shape == (*size, 3)
    assert source[4]["label"].shape == size
    assert source[4]["image"].dtype == source[4]["label"].dtype == np.uint8
    with pytest.raises(IndexError):
        source[5]


def test_the_number_of_examples_applies_to_training_only():
    assert len(open_source("synthetic", "val", num_examples=5)) == SPLIT_SIZES["val"]
    assert len(open_source("synthetic", "train")) == SPLIT_SIZES["train"]


def test_an_unknown_split_is_named():
    with pytest.raises(UserError, match="synthetic has no split 'vall'; did you mean val?"):
        open_source("synthetic", "vall")
