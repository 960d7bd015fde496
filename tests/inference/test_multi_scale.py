"""Views, their averages and sizes, and sliding windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.inference import multi_scale, sliding_window
from deeplab_jax.models import build_model
from tests.support import exports


def photos(height: int, width: int, count: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


# ---- Sizes ----


def test_sizes_of_k_strides_plus_one_keep_this_form_at_quarter_scales():
    assert [multi_scale.scaled_size((513, 257), scale) for scale in (0.5, 0.75, 1, 1.25, 1.75)] == [
        (257, 129), (385, 193), (513, 257), (641, 321), (897, 449),
    ]  # fmt: skip
    assert multi_scale.scaled_size((3, 1), 0.1) == (1, 1)


# ---- Views ----


def test_views_equal_the_network_on_scaled_and_mirrored_images():
    network = exports.network(**exports.TINY_RESNET)
    model, variables = build_model(network.model, 6), network.variables
    images = photos(33, 49, count=2)

    @jax.jit
    def views(variables, images):
        found = list(multi_scale.network_views(model, variables, images, scales=(0.5,), flip=True))
        assert [view.size for view in found] == multi_scale.view_sizes((33, 49), (0.5,), True) == [(17, 25)] * 2
        return [(view.logits, view.coarse) for view in found]

    @jax.jit
    def apply(variables, seen):
        logits, endpoints = model.apply(variables, seen, train=False)
        return logits, endpoints["logits"]

    small = jax.image.resize(images.astype(np.float32), (2, 17, 25, 3), "bilinear", antialias=False)
    found = views(variables, images)
    for got, mirror in zip(found, (1, -1), strict=True):
        for one, other in zip(got, apply(variables, small[:, :, ::mirror]), strict=True):
            # Two programs of the same network round differently; logits are of order one.
            np.testing.assert_allclose(one, other[:, :, ::mirror], atol=1e-3)
    assert np.abs(found[0][0] - found[1][0]).max() > 0.1  # mirroring matters
    assert multi_scale.view_sizes((33, 49), (1.0, 0.5), False) == [(33, 49), (17, 25)]


def test_views_are_averaged_as_probabilities():
    views = [jnp.array([[0.0, 10.0]]), jnp.array([[3.0, 0.0]])]
    mean = multi_scale.average_probabilities(views, axis=1)
    expected = [(1 / (1 + np.exp(10)) + 1 / (1 + np.exp(-3))) / 2]
    np.testing.assert_allclose(mean[:, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(np.exp(multi_scale.log_probabilities(mean)), mean, rtol=1e-6)
    assert np.isfinite(multi_scale.log_probabilities(jnp.zeros((1, 2)))).all()


# ---- Windows ----


@pytest.mark.parametrize("extent", [1, 96, 97, 100, 112, 160, 161, 500, 1023])
@pytest.mark.parametrize(("window", "stride"), [(96, 16), (97, 16), (64, 32), (16, 8)])
def test_windows_cover_an_image_overlap_by_a_third_and_end_with_it(extent, window, stride):
    starts = sliding_window.window_starts(extent, window, stride)
    assert starts[0] == 0
    assert all(start % stride == 0 for start in starts)
    hops = np.diff(starts)
    assert all(hops > 0)
    assert all(hops <= max(stride, 2 / 3 * window))
    end = starts[-1] + window
    assert end >= extent
    assert len(starts) == 1 or end - extent < stride


def test_window_sizes_keep_features_aligned():
    assert sliding_window.window_size((257, 256), 16, align_corners=False) == (272, 256)
    assert sliding_window.window_size((257, 256), 16, align_corners=True) == (257, 257)
    assert sliding_window.window_size((8, 9), 8, align_corners=False) == (
        16,
        16,
    )  # one stride cannot overlap


@pytest.mark.parametrize("starts", [[0], [0, 48], [0, 48, 96, 160]])
def test_weights_sum_to_one_and_vanish_at_borders_inside_the_image(starts):
    window = 96
    weights = sliding_window.blending_weights(starts, window)
    total = np.zeros(starts[-1] + window)
    for start, profile in zip(starts, weights, strict=True):
        total[start : start + window] += profile
    np.testing.assert_allclose(total, 1, rtol=1e-12)
    assert weights.min() >= 0
    for profile in weights[1:]:
        assert not profile[:8].any()
    for profile in weights[:-1]:
        assert not profile[-8:].any()


def neighborhood(pixels: np.ndarray) -> np.ndarray:
    """Scores (height, classes, width) of two classes from 15x15 neighborhoods, with zero padding."""
    padded = np.pad(pixels[..., 0].astype(np.float64), 7)
    sums = np.lib.stride_tricks.sliding_window_view(padded, (15, 15)).sum(axis=(2, 3)) / 255 / 225
    return np.stack([sums, 1 - sums], axis=1)


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(250, 304), (96, 96), (40, 200)])
def test_blended_windows_equal_the_whole_image_for_small_receptive_fields(height, width, batch_size):
    """Seven pixels are less than a twelfth of a window of 96, so every weighted pixel has its full context."""
    (image,) = photos(height, width)
    seen = []

    def predict(windows):
        seen.extend(window.shape for window in windows)
        assert len(windows) <= batch_size
        return np.stack([neighborhood(window) for window in windows])

    options = {"output_stride": 16, "pad_color": (0, 0, 0), "batch_size": batch_size}
    strips = [strip.copy() for strip in sliding_window.blended_strips(image, (96, 96), predict, **options)]
    assert set(seen) == {(96, 96, 3)}
    assert max(len(strip) for strip in strips) <= 96  # rows in memory
    np.testing.assert_allclose(np.concatenate(strips), neighborhood(image), rtol=1e-12)
    if height > 96:
        assert len(strips) > 2
