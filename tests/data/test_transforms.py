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
    st.booleans(),
)
def test_augmentation_has_the_requested_size_and_no_new_label(size, out, seed, resize, flip, step, strong):
    label = random_labels(seed, size)
    data = data_config(image_size=out, resize=resize, random_flip=flip, scale_step=step, scale_range=(0.5, 1.0))
    if strong:
        data.update(
            random_rotation=180.0, cat_max_ratio=0.5, short_side=30, max_long_side=60, photometric_distortion=True,
            random_blur=2.0,
        )  # fmt: skip
    rng = np.random.default_rng(seed)
    image, labels = transforms.augment(as_image(label), label, rng, data, pad_color=PAD_COLOR)
    assert image.shape == (*out, 3)
    assert labels.shape == out
    assert image.dtype == labels.dtype == np.uint8
    assert set(np.unique(labels)) <= {*np.unique(label).tolist(), 255}


def assert_aligned(image, labels, margin):
    """At this distance from every edge, and from the window's, bilinear weights stay within one block."""
    kernel = np.ones((2 * margin + 1, 2 * margin + 1))
    smooth = cv2.dilate(labels, kernel) == cv2.erode(labels, kernel)
    smooth[:margin] = smooth[-margin:] = smooth[:, :margin] = smooth[:, -margin:] = False
    assert smooth.mean() > 0.05
    np.testing.assert_array_equal(image[smooth], as_image(labels)[smooth])


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from(["squeeze", "scale_crop", "resized_crop"]), st.booleans())
def test_image_and_labels_stay_aligned(seed, resize, rotates):
    """Away from the edges of blocks of one label, an image of the labels still shows each pixel's label."""
    blocks = random_labels(seed, (4, 5), values=(10, 60, 110, 160, 210))
    label = blocks.repeat(24, axis=0).repeat(24, axis=1)
    data = data_config(image_size=(60, 72), resize=resize, random_flip="horizontal_and_vertical")
    data.scale_range = (0.5, 1.0) if resize == "resized_crop" else (0.5, 2.0)
    data.cat_max_ratio, data.short_side = 0.75, 90
    if rotates:
        data.random_rotation = 180.0
    rng = np.random.default_rng(seed)
    image, labels = transforms.augment(as_image(label), label, rng, data, pad_color=(255, 255, 255))
    assert_aligned(image, labels, margin=4 if rotates else 2)  # rotation interpolates once more


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
    data = data_config(image_size=(64, 48), resize="scale_crop", scale_range=(1.0, 1.0), random_flip="none")
    data.photometric_distortion = True  # distorts the image alone
    window, labels = transforms.augment(image, label, np.random.default_rng(0), data, pad_color=PAD_COLOR)
    np.testing.assert_array_equal(labels[:20, :20], label)
    assert not np.array_equal(window[:20, :20], image)
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
        scaled = transforms.random_scale(as_image(ramp), ramp, rng, scale_range=(0.5, 2.0), scale_step=0.25)
        _, labels = transforms.random_crop(*scaled, (30, 30), rng)
        slope = (float(labels[0, 29]) - float(labels[0, 0])) / 29
        factors.add(round(4 / slope) / 4)
        starts.add(int(labels[0, 0]))
    assert factors == {0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0}
    assert min(starts) <= 3
    assert max(starts) >= 80


@pytest.mark.parametrize(
    ("size", "limits", "scaled"),
    [
        ((120, 160), (60, 0), (60, 80)),
        ((160, 120), (60, 240), (80, 60)),
        ((20, 33), (60, 240), (60, 99)),
        ((30, 300), (60, 240), (24, 240)),  # the long side decides
        ((300, 31), (60, 240), (240, 25)),  # 24.8 is rounded up
        ((100, 100), (60, 60), (60, 60)),
        ((64, 45), (60, 60), (60, 42)),  # 42.2
    ],
)
def test_a_short_side_keeps_the_aspect_ratio(size, limits, scaled):
    label = random_labels(0, size)
    image, labels = transforms.random_scale(
        as_image(label),
        label,
        np.random.default_rng(0),
        scale_range=(1.0, 1.0),
        short_side=limits[0],
        max_long_side=limits[1],
    )
    assert labels.shape == image.shape[:2] == scaled


@settings(max_examples=40, deadline=None)
@given(SIZES, SEEDS)
def test_scaled_sizes_are_those_of_mmsegmentation(size, seed):
    """RandomResize(scale=(128, 32), ratio_range=(0.5, 2.0), keep_ratio=True) of mmcv 2.1.0."""
    label = random_labels(seed, size)
    ratio = np.random.default_rng(seed).uniform(0.5, 2.0)
    long, short = int(128 * ratio), int(32 * ratio)
    scale = min(long / max(size), short / min(size))
    expected = tuple(max(1, int(extent * scale + 0.5)) for extent in size)
    rng = np.random.default_rng(seed)
    _, labels = transforms.random_scale(
        as_image(label), label, rng, scale_range=(0.5, 2.0), short_side=32, max_long_side=128
    )
    assert labels.shape == expected


def reference_crop(label, size, rng, ratio):
    """RandomCrop(cat_max_ratio=ratio) of MMSegmentation 1.2.2, on an image that is larger than the crop."""
    for _ in range(11):
        top, left = (
            int(rng.integers(0, extent - wanted + 1)) for extent, wanted in zip(label.shape, size, strict=True)
        )
        crop = label[top : top + size[0], left : left + size[1]]
        values, counts = np.unique(crop[crop != 255], return_counts=True)
        if len(values) > 1 and counts.max() / counts.sum() < ratio:
            break
    return crop


@pytest.mark.parametrize("ratio", [0.4, 0.6, 0.75])
def test_a_crop_that_one_class_covers_is_drawn_again(ratio):
    # Smooth noise makes regions of three classes and of the ignore label; the lower rows have one class only.
    noise = cv2.GaussianBlur(np.random.default_rng(1).normal(size=(60, 60)), (0, 0), 4)
    label = np.array([255, 0, 1, 2], np.uint8)[np.digitize(noise, np.quantile(noise, (0.3, 0.6, 0.8)))]
    label[30:] = np.minimum(label[30:], 1)
    first, again = np.random.default_rng(2), np.random.default_rng(2)
    redrawn = 0
    for _ in range(200):
        state = first.bit_generator.state
        image, crop = transforms.random_crop(as_image(label), label, (12, 10), first, cat_max_ratio=ratio)
        np.testing.assert_array_equal(crop, reference_crop(label, (12, 10), again, ratio))
        np.testing.assert_array_equal(image, as_image(crop))
        assert first.bit_generator.state == again.bit_generator.state
        plain = np.random.default_rng(2)
        plain.bit_generator.state = state
        redrawn += not np.array_equal(transforms.random_crop(as_image(label), label, (12, 10), plain)[1], crop)
    assert 20 < redrawn < 200


def test_an_image_of_one_class_is_cropped_all_the_same():
    for label in (np.zeros((20, 20), np.uint8), np.full((20, 20), 255, np.uint8)):
        _, crop = transforms.random_crop(as_image(label), label, (8, 9), np.random.default_rng(0), cat_max_ratio=0.75)
        np.testing.assert_array_equal(crop, label[:8, :9])


def test_rotation_draws_every_angle_for_half_of_the_images():
    """A disk right of the center tells the angle; the corners that become empty are padded."""
    label = np.zeros((101, 101), np.uint8)
    rows, columns = np.mgrid[-50:51, -50:51]
    label[(rows**2 + (columns - 35) ** 2) < 100] = 7
    rng = np.random.default_rng(0)
    angles = []
    for _ in range(300):
        image, labels = transforms.random_rotation(as_image(label), label, rng, degrees=30, pad_color=PAD_COLOR)
        y, x = np.nonzero(labels == 7)
        angles.append(np.degrees(np.arctan2(50 - y.mean(), x.mean() - 50)))
        assert np.hypot(50 - y.mean(), x.mean() - 50) == pytest.approx(35, abs=0.3)  # around the center
        padded = cv2.erode((labels == 255).astype(np.uint8), np.ones((3, 3))).astype(bool)  # not blended with the image
        assert (image[padded] == PAD_COLOR).all()
        if not 0.2 < abs(angles[-1]) < 2:  # a smaller rotation may not fill a whole pixel
            assert padded.any() == (abs(angles[-1]) > 1)
    rotated = np.array(angles)[np.abs(angles) > 0.2]
    assert 110 < len(rotated) < 190  # of 300 with odds of one half: 4.6 standard deviations of 8.7
    assert rotated.min() < -27
    assert rotated.max() > 27
    assert np.abs(rotated).max() < 30.5
    assert abs(rotated.mean()) < 5.7  # uniform draws: 60 / sqrt(12 * 150) = 1.4


def test_many_channels_are_rotated_alike():
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 6)).astype(np.uint8)
    label = random_labels(0, (30, 40))
    for seed in range(4):
        rotated, _ = transforms.random_rotation(
            image, label, np.random.default_rng(seed), degrees=40, pad_color=(0, 50, 100, 150, 200, 250)
        )
        for i in (0, 3):
            part, _ = transforms.random_rotation(
                image[..., i : i + 3].copy(), label, np.random.default_rng(seed), degrees=40,
                pad_color=(50 * i, 50 * i + 50, 50 * i + 100),
            )  # fmt: skip
            # OpenCV rounds positions to 1/32 of a pixel for some numbers of channels: 8 of 256 values.
            np.testing.assert_allclose(rotated[..., i : i + 3].astype(int), part, atol=8)


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


def test_pasted_pixels_keep_their_positions_and_labels():
    other = random_labels(1, (20, 30))
    image, labels = transforms.copy_paste(
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
