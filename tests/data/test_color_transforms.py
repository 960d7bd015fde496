"""Color transforms against their formulas, written out in float64 or with another library."""

import cv2
import numpy as np
import pytest
from scipy import ndimage

from deeplab_jax.config import base_config
from deeplab_jax.data import transforms

PAD_COLOR = (124, 116, 104)


def noise(seed, size=(24, 32)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


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
    label = np.random.default_rng(3).choice(np.array((0, 3, 7, 20, 255), np.uint8), (40, 50))
    image, data = noise(3, (40, 50)), base_config().data
    data.image_size, data.resize = (24, 32), "scale_crop"
    results = []
    for strength in (0.0, 0.4):
        data.color_jitter = strength
        results.append(transforms.augment(image, label, np.random.default_rng(7), data, pad_color=PAD_COLOR))
    plain, jittered = results
    np.testing.assert_array_equal(plain[1], jittered[1])
    assert not np.array_equal(plain[0], jittered[0])


def reference_distortion(image, rng):
    """PhotoMetricDistortion of MMSegmentation 1.2.2, which works on BGR, with the random numbers of `rng`."""

    def convert(values, factor=1.0, offset=0.0):
        return np.clip(values.astype(np.float32) * factor + offset, 0, 255).astype(np.uint8)

    def contrast(image):
        return convert(image, factor=rng.uniform(0.5, 1.5)) if rng.random() < 0.5 else image

    image = image[..., ::-1]
    if rng.random() < 0.5:
        image = convert(image, offset=rng.uniform(-32, 32))
    contrast_is_last = rng.random() < 0.5
    if not contrast_is_last:
        image = contrast(image)
    if rng.random() < 0.5:
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        hsv[..., 1] = convert(hsv[..., 1], factor=rng.uniform(0.5, 1.5))
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if rng.random() < 0.5:
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + rng.integers(-18, 18)) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if contrast_is_last:
        image = contrast(image)
    return image[..., ::-1]


def test_photometric_distortion_is_that_of_mmsegmentation():
    results = set()
    for seed in range(100):
        image = noise(seed, (6, 7))
        rng, reference_rng = np.random.default_rng(seed), np.random.default_rng(seed)
        distorted = transforms.photometric_distortion(image, rng)
        assert distorted.dtype == np.uint8
        np.testing.assert_array_equal(distorted, reference_distortion(image, reference_rng))
        assert rng.bit_generator.state == reference_rng.bit_generator.state
        results.add(np.array_equal(distorted, image))
    assert results == {False, True}  # one of sixteen images stays as it is


class Draws(np.random.Generator):
    """A generator whose coins and numbers are given."""

    def __init__(self, coins, numbers):
        super().__init__(np.random.PCG64())
        self.coins, self.numbers = iter(coins), iter(numbers)

    def random(self):
        return 0.1 if next(self.coins) else 0.9

    def uniform(self, low, high):
        value = next(self.numbers)
        assert low <= value <= high
        return value

    integers = uniform


# Coins: brightness, contrast last, (contrast if first), saturation, hue, (contrast if last).
@pytest.mark.parametrize(
    ("coins", "numbers", "color", "expected"),
    [
        ((1, 0, 0, 0, 0), (20,), (100, 150, 250), (120, 170, 255)),
        ((1, 0, 0, 0, 0), (-32,), (100, 20, 250), (68, 0, 218)),
        ((0, 0, 1, 0, 0), (1.5,), (100, 150, 200), (150, 225, 255)),
        ((1, 0, 1, 0, 0), (30, 0.5), (100, 150, 200), (65, 90, 115)),
        # Gray has no saturation, and no hue.
        ((0, 0, 0, 1, 1), (1.5, 17), (90, 90, 90), (90, 90, 90)),
        # The largest value stays; the distances of the others are halved.
        ((0, 0, 0, 1, 0), (0.5,), (200, 100, 100), (200, 150, 150)),
        # Red turns by 2 * 15 degrees toward yellow, and by -30 degrees toward magenta.
        ((0, 0, 0, 0, 1), (15,), (200, 0, 0), (200, 100, 0)),
        ((0, 0, 0, 0, 1), (-15,), (200, 0, 0), (200, 0, 100)),
        # Half of the contrast before 1.5 times the saturation, and after it.
        ((0, 0, 1, 1, 0), (0.5, 1.5), (200, 100, 100), (100, 25, 25)),
        ((0, 1, 1, 0, 1), (1.5, 0.5), (200, 100, 100), (100, 25, 25)),
    ],
)
def test_each_step_of_the_distortion_changes_a_color_as_described(coins, numbers, color, expected):
    image = np.full((2, 3, 3), color, np.uint8)
    distorted = transforms.photometric_distortion(image, Draws(coins, numbers))
    # 8-bit HSV rounds saturations to 1/255 and hues to 2 degrees; every step rounds down.
    np.testing.assert_allclose(distorted.astype(int), np.broadcast_to(expected, (2, 3, 3)), atol=2)


def test_half_of_the_images_are_blurred_by_every_width():
    image = noise(5, (40, 40))
    rng, sigmas = np.random.default_rng(0), []
    for _ in range(200):
        state = rng.bit_generator.state
        blurred = transforms.random_blur(image, rng, sigma=2.0)
        again = np.random.default_rng()
        again.bit_generator.state = state
        if again.random() >= 0.5:
            np.testing.assert_array_equal(blurred, image)
            continue
        sigmas.append(2.0 * (1 - again.random()))
        expected = ndimage.gaussian_filter(image.astype(float), (sigmas[-1], sigmas[-1], 0), mode="mirror", truncate=6)
        # OpenCV cuts its kernel off at three standard deviations; noise is the worst case.
        assert np.abs(blurred - expected).max() < 3.5
    assert 70 < len(sigmas) < 130  # of 200 with odds of one half: four standard deviations of 7.1
    assert min(sigmas) < 0.2
    assert max(sigmas) > 1.9


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 5])
def test_images_of_any_channels_and_depth_are_blurred_channel_by_channel(dtype, channels):
    image = (np.random.default_rng(0).random((20, 30, channels)) * (255 if dtype == np.uint8 else 4000)).astype(dtype)

    def blur(pixels):
        rng = np.random.default_rng(1)
        attempts = (transforms.random_blur(pixels, rng, sigma=3.0) for _ in range(50))
        return next(result for result in attempts if not np.array_equal(result, pixels))

    blurred = blur(image)
    assert (blurred.shape, blurred.dtype) == (image.shape, dtype)
    for channel in range(channels):
        alone = blur(np.ascontiguousarray(image[..., channel : channel + 1]))
        np.testing.assert_allclose(blurred[..., [channel]], alone, rtol=1e-6)  # float32 sums in another order
