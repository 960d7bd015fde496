"""Augmentation: image and label stay aligned, no new label appears, sizes are as requested."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplab_jax.config import base_config
from deeplab_jax.data import transforms
from tests.conftest import scene

PAD_COLOR = (124, 116, 104)
SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))
SEEDS = st.integers(0, 2**32)


def as_image(label):
    """An image that shows the labels themselves, so that it tells where each label pixel went."""
    return np.repeat(label[..., None], 3, axis=-1)


def random_labels(seed, size, values=(0, 3, 7, 20, 255)):
    return np.random.default_rng(seed).choice(np.array(values, np.uint8), size)


def data_config(**fields):
    data = base_config().data
    data.image_size = (24, 32)
    data.update(fields)
    return data


@settings(max_examples=60, deadline=None)
@given(
    SIZES,
    SIZES,
    SEEDS,
    st.sampled_from(["squeeze", "scale_crop", "resized_crop"]),
    st.sampled_from(["none", "horizontal", "horizontal_and_vertical"]),
    st.sampled_from([0.0, 0.25]),
)
def test_augmentation_has_the_requested_size_and_no_new_label(size, out, seed, resize, flip, step):
    label = random_labels(seed, size)
    data = data_config(image_size=out, resize=resize, random_flip=flip, scale_step=step, scale_range=(0.5, 1.0))
    rng = np.random.default_rng(seed)
    image, labels = transforms.augment(as_image(label), label, rng, data, pad_color=PAD_COLOR)
    assert image.shape == (*out, 3)
    assert labels.shape == out
    assert image.dtype == labels.dtype == np.uint8
    assert set(np.unique(labels)) <= {*np.unique(label).tolist(), 255}


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from(["squeeze", "scale_crop", "resized_crop"]))
def test_image_and_labels_stay_aligned(seed, resize):
    """Away from the edges of blocks of one label, an image of the labels still shows each pixel's label."""
    blocks = random_labels(seed, (4, 5), values=(10, 60, 110, 160, 210))
    label = blocks.repeat(16, axis=0).repeat(16, axis=1)
    data = data_config(image_size=(40, 48), resize=resize, random_flip="horizontal_and_vertical")
    data.scale_range = (0.5, 1.0) if resize == "resized_crop" else (0.5, 2.0)
    rng = np.random.default_rng(seed)
    image, labels = transforms.augment(as_image(label), label, rng, data, pad_color=(255, 255, 255))
    # Two pixels from every edge, and from the window's, bilinear weights stay within one block.
    smooth = cv2.dilate(labels, np.ones((5, 5))) == cv2.erode(labels, np.ones((5, 5)))
    smooth[:2] = smooth[-2:] = smooth[:, :2] = smooth[:, -2:] = False
    assert smooth.mean() > 0.1
    np.testing.assert_array_equal(image[smooth], as_image(labels)[smooth])


def test_flips_are_mirrors_drawn_with_even_odds():
    image, label = scene(1)
    seen = dict.fromkeys(("as it was", "left-right", "up-down", "both"), 0)
    views = {"as it was": np.s_[:, :], "left-right": np.s_[:, ::-1], "up-down": np.s_[::-1], "both": np.s_[::-1, ::-1]}
    rng = np.random.default_rng(0)
    for _ in range(400):
        flipped, labels = transforms.random_flip(image, label, rng, directions="horizontal_and_vertical")
        (name,) = [name for name, view in views.items() if np.array_equal(labels, label[view])]
        np.testing.assert_array_equal(flipped, image[views[name]])
        assert flipped.flags.c_contiguous
        seen[name] += 1
    # 400 draws with odds of 1/4: 60 to 140 is beyond four standard deviations (8.7) either way.
    assert all(60 < count < 140 for count in seen.values()), seen


@pytest.mark.parametrize(("directions", "views"), [("none", 1), ("horizontal", 2)])
def test_flip_directions(directions, views):
    image, label = scene(1)
    rng = np.random.default_rng(0)
    seen = {transforms.random_flip(image, label, rng, directions=directions)[1].tobytes() for _ in range(40)}
    allowed = [label, label[:, ::-1]][:views]
    assert seen == {np.ascontiguousarray(view).tobytes() for view in allowed}


def test_scale_crop_pads_with_the_mean_color_and_the_ignore_label():
    image, label = scene(2, height=20, width=20)
    window, labels = transforms.random_scale_crop(
        image,
        label,
        (64, 48),
        np.random.default_rng(0),
        scale_range=(1.0, 1.0),
        scale_step=0,
        pad_color=PAD_COLOR,
    )
    np.testing.assert_array_equal(window[:20, :20], image)
    np.testing.assert_array_equal(labels[:20, :20], label)
    outside = np.ones((64, 48), bool)
    outside[:20, :20] = False
    assert (labels[outside] == 255).all()
    assert (window[outside] == PAD_COLOR).all()


def test_scale_crop_draws_every_step_and_every_crop():
    """The slope of a ramp reveals the factor, its start the crop."""
    ramp = np.broadcast_to(np.arange(100, dtype=np.uint8), (100, 100)).copy()
    rng = np.random.default_rng(0)
    factors, starts = set(), set()
    for _ in range(300):
        _, labels = transforms.random_scale_crop(
            as_image(ramp), ramp, (30, 30), rng, scale_range=(0.5, 2.0), scale_step=0.25, pad_color=PAD_COLOR
        )
        slope = (float(labels[0, 29]) - float(labels[0, 0])) / 29
        factors.add(round(4 / slope) / 4)
        starts.add(int(labels[0, 0]))
    assert factors == {0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0}
    assert min(starts) <= 3
    assert max(starts) >= 80


@pytest.mark.parametrize("axis", [0, 1])
def test_resized_crop_draws_every_box_of_the_range_and_pads_nothing(axis):
    """The rise of a ramp reveals the size of the box, its start the position."""
    shape = (200, 100) if axis == 0 else (100, 200)
    ramp = np.moveaxis(np.broadcast_to(np.arange(200, dtype=np.uint8), (100, 200)), 1, axis).copy()
    assert ramp.shape == shape
    data = data_config(image_size=(40, 50), resize="resized_crop", scale_range=(0.5, 1.0), random_flip="none")
    rng = np.random.default_rng(0)
    shares, starts, ends = [], [], []
    for _ in range(300):
        image, labels = transforms.augment(as_image(ramp), ramp, rng, data, pad_color=PAD_COLOR)
        assert image.shape == (40, 50, 3)
        line = np.moveaxis(labels, axis, 0)[:, 0].astype(float)
        assert (np.moveaxis(labels, axis, 0) == line[:, None]).all()
        shares.append((line[-1] - line[0]) / (len(line) - 1) * len(line) / 200)
        starts.append(line[0])
        ends.append(line[-1])
    # A label is off by at most half a pixel of 200 at either end of a line of 40 or 50.
    assert 0.49 < min(shares) < 0.52
    assert 0.98 < max(shares) < 1.01
    assert abs(np.mean(shares) - 0.75) < 0.03  # of 300 draws, whose mean deviates by .5 / sqrt(12 * 300) = .0083
    assert min(starts) <= 5
    assert max(ends) >= 194
    assert max(starts) >= 75


def test_resized_crop_of_whole_images_is_a_plain_resize():
    image, label = scene(2, height=40, width=60)
    data = data_config(resize="resized_crop", scale_range=(1.0, 1.0), random_flip="none")
    cut, labels = transforms.augment(image, label, np.random.default_rng(0), data, pad_color=PAD_COLOR)
    np.testing.assert_array_equal(cut, transforms.resize_image(image, (24, 32)))
    np.testing.assert_array_equal(labels, transforms.resize_label(label, (24, 32)))


def test_images_and_labels_are_resized_with_the_same_geometry():
    """Doubling: nearest at half-pixel centers doubles every pixel, and bilinear keeps a ramp a ramp."""
    label = np.array([[1, 2], [3, 4]], np.uint8)
    np.testing.assert_array_equal(transforms.resize_label(label, (4, 4)), label.repeat(2, axis=0).repeat(2, axis=1))
    row = as_image(np.array([[0, 100]], np.uint8))
    np.testing.assert_array_equal(transforms.resize_image(row, (1, 4))[0, :, 0], [0, 25, 75, 100])
    # Shrinking by three takes the middle pixel: (i + 1/2) * 3 - 1/2 is the second of three.
    np.testing.assert_array_equal(transforms.resize_label(np.arange(9, dtype=np.uint8)[None], (1, 3)), [[1, 4, 7]])


def test_antialiased_resizing_averages():
    """Pillow's triangle spans two shrunken pixels: its weights over the twelve pixels that three become one."""
    row = np.zeros((1, 12), np.uint8)
    row[0, 4] = 90  # the middle of the second of four pixels, and its neighbors' far ends
    image = as_image(row)
    np.testing.assert_array_equal(transforms.resize_image(image, (1, 4))[0, :, 0], [0, 90, 0, 0])
    # (1 - |distance| / 3) / 3 at distance 0 is a third; at distance 3 it is none.
    np.testing.assert_array_equal(transforms.resize_image(image, (1, 4), antialias=True)[0, :, 0], [0, 30, 0, 0])


def test_pad_to_only_grows():
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert transforms.pad_to(pixels, (1, 2), 9) is pixels
    np.testing.assert_array_equal(transforms.pad_to(pixels, (3, 2), 9), [[0, 1, 2], [3, 4, 5], [9, 9, 9]])


def test_colors_change_by_brightness_contrast_and_saturation_in_this_order_of_draws():
    """Against the three steps written out, within the rounding of the gray and of the result."""
    image = np.random.default_rng(0).integers(60, 190, (8, 9, 3)).astype(np.uint8)
    brightness, contrast, saturation = np.random.default_rng(5).uniform(0.8, 1.2, 3)
    gray = image @ np.array([0.299, 0.587, 0.114])  # BT.601
    expected = saturation * image + (1 - saturation) * gray[..., None]
    expected = brightness * (contrast * (expected - gray.mean()) + gray.mean())
    changed = transforms.random_color(image, np.random.default_rng(5), strength=0.2)
    assert changed.dtype == np.uint8
    np.testing.assert_allclose(changed, expected, atol=1.2)
    assert not np.array_equal(changed, image)


def test_color_jitter_changes_neither_labels_nor_other_draws():
    label = random_labels(3, (40, 50))
    image = np.random.default_rng(3).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    plain, jittered = (
        transforms.augment(
            image,
            label,
            np.random.default_rng(7),
            data_config(resize="scale_crop", color_jitter=strength),
            pad_color=PAD_COLOR,
        )
        for strength in (0.0, 0.4)
    )
    np.testing.assert_array_equal(plain[1], jittered[1])
    assert not np.array_equal(plain[0], jittered[0])


def test_pasted_pixels_keep_their_positions_and_labels():
    other = random_labels(1, (20, 30))
    image, labels = transforms.paste(
        np.full((20, 30, 3), 9, np.uint8), np.full((20, 30), 7, np.uint8), as_image(other), other, classes=(3, 20)
    )
    pasted = (other == 3) | (other == 20)
    assert image.dtype == labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, np.where(pasted, other, 7))
    np.testing.assert_array_equal(image, as_image(np.where(pasted, other, 9)))


def single_channels(image):
    """The image in five single channels, each with the last axis."""
    return [image[..., i : i + 1] for i in range(image.shape[2])]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("options", [{"resize": "scale_crop"}, {"resize": "resized_crop"}, {"antialias": True}])
def test_other_channels_and_bit_depths_are_transformed_channel_by_channel(dtype, options):
    image = (np.random.default_rng(0).random((40, 50, 5)) * (1 if dtype == np.float32 else 200)).astype(dtype)
    if dtype == np.uint16:
        image *= 300
    label = random_labels(3, (40, 50))
    data = data_config(random_flip="horizontal_and_vertical", scale_range=(0.5, 1.0), **options)
    color = [3, 7, 11, 0, 5] if dtype != np.float32 else [0.1, 0.2, 0.3, 0.4, 0.5]
    for seed in range(4):
        found, found_label = transforms.augment(image, label, np.random.default_rng(seed), data, pad_color=color)
        assert found.dtype == dtype
        for i, channel in enumerate(single_channels(image)):
            one, one_label = transforms.augment(
                channel, label, np.random.default_rng(seed), data, pad_color=color[i : i + 1]
            )
            assert one.shape == (*found_label.shape, 1)
            # OpenCV computes other numbers of channels in another order: ties of 16 bits, the last bits of float32.
            tolerance = {np.uint8: 0, np.uint16: 1, np.float32: 1e-5}[dtype]
            np.testing.assert_allclose(one[..., 0].astype(float), found[..., i].astype(float), atol=tolerance)
            np.testing.assert_array_equal(one_label, found_label)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_resizing_of_other_bit_depths_is_that_of_8_bits(dtype, antialias):
    """Values of 0 to 255 in another dtype give what 8 bits give, which other tests compare with references."""
    image = np.random.default_rng(0).integers(0, 256, (41, 50, 3), dtype=np.uint8)
    expected = transforms.resize_image(image, (17, 30), antialias=antialias)
    found = transforms.resize_image(image.astype(dtype), (17, 30), antialias=antialias)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, atol=1.01)  # 8 bits are rounded after each axis
