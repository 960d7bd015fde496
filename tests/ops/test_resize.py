"""Resizing against independent references, and the prediction at each pixel of resized logits."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeplab_jax import ops
from deeplab_jax.inference import streaming_resize
from tests.support.operations import TOLERANCE, few, random, sizes

pytestmark = pytest.mark.usefixtures("float64")


@few
@given(size=sizes, out_size=st.tuples(st.integers(1, 29), st.integers(1, 29)))
def test_resize_bilinear_equals_opencv(size, out_size):
    x = random((2, *size, 3))
    output = ops.resize_bilinear(jnp.asarray(x), out_size)
    expected = [cv2.resize(image, out_size[::-1], interpolation=cv2.INTER_LINEAR) for image in x]
    # OpenCV computes its interpolation weights in float32.
    np.testing.assert_allclose(output, np.stack(expected), rtol=0, atol=1e-5)


@few
@given(size=sizes, out_size=st.tuples(st.integers(1, 29), st.integers(1, 29)))
def test_resize_bilinear_with_aligned_corners_equals_interpolation_by_hand(size, out_size):
    x = random((2, *size, 3))
    expected = np.zeros((2, *out_size, 3))
    for row in range(out_size[0]):
        for column in range(out_size[1]):
            y = row * (size[0] - 1) / max(out_size[0] - 1, 1)
            z = column * (size[1] - 1) / max(out_size[1] - 1, 1)
            top, left = min(int(y), size[0] - 1), min(int(z), size[1] - 1)
            below, right = min(top + 1, size[0] - 1), min(left + 1, size[1] - 1)
            upper = x[:, top, left] * (1 - (z - left)) + x[:, top, right] * (z - left)
            lower = x[:, below, left] * (1 - (z - left)) + x[:, below, right] * (z - left)
            expected[:, row, column] = upper * (1 - (y - top)) + lower * (y - top)
    output = ops.resize_bilinear(jnp.asarray(x), out_size, align_corners=True)
    np.testing.assert_allclose(output, expected, **TOLERANCE)


def ragged_logits():
    """Logits of four images on one canvas, and the sizes they go to; no size is a multiple of a block of 8."""
    logits = random((4, 9, 12, 5))
    extents = np.array([[9, 12], [5, 7], [9, 11], [1, 3]], np.int32)
    sizes = np.array([[37, 45], [29, 50], [4, 6], [6, 11]], np.int32)  # three grow, one shrinks
    return logits, extents, sizes, (37, 50)


def test_resize_to_sizes_equals_resizing_each_image_alone():
    logits, extents, sizes, canvas = ragged_logits()
    output = jax.jit(ops.resize_to_sizes, static_argnums=3)(
        jnp.asarray(logits), jnp.asarray(extents), jnp.asarray(sizes), canvas
    )
    assert output.shape == (4, *canvas, 5)
    for i, ((height, width), size) in enumerate(zip(extents, sizes.tolist(), strict=True)):
        alone = ops.resize_bilinear(jnp.asarray(logits[i : i + 1, :height, :width]), size)
        np.testing.assert_allclose(output[i : i + 1, : size[0], : size[1]], alone, **TOLERANCE)


def test_resize_to_sizes_repeats_the_border_on_the_rest_of_the_canvas():
    logits, extents, sizes, canvas = ragged_logits()
    output = np.asarray(ops.resize_to_sizes(*map(jnp.asarray, (logits, extents, sizes)), canvas))
    for image, (height, width) in zip(output, sizes, strict=True):
        padding = ((0, canvas[0] - height), (0, canvas[1] - width), (0, 0))
        np.testing.assert_array_equal(image, np.pad(image[:height, :width], padding, mode="edge"))


@pytest.mark.parametrize("block", [8, 37, 64])
def test_strips_of_resized_logits_have_the_same_arg_max(block):
    logits, extents, sizes, canvas = ragged_logits()
    logits, extents, sizes = jnp.asarray(logits), jnp.asarray(extents), jnp.asarray(sizes)
    labels = streaming_resize.map_resized(
        [logits], [extents], sizes, canvas, lambda strips: jnp.argmax(strips[0], axis=1), block=block
    )
    np.testing.assert_array_equal(labels, np.argmax(ops.resize_to_sizes(logits, extents, sizes, canvas), axis=-1))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("block", [8, 64])
def test_strips_of_logits_at_the_classifiers_resolution_equal_resizing_twice(block, align_corners):
    """Of two views: to the network's input, then to each image's size; wherever strips begin, whatever they need."""
    inputs = [(33, 45), (21, 25)]
    coarse = [random((3, 9, 12, 5)), random((3, 6, 7, 5), seed=1)]
    sizes = jnp.array([[133, 90], [33, 45], [7, 5]])  # grows so that strips need few rows, stays, shrinks
    extents = [jnp.array([[33, 45], [20, 31], [33, 40]]), jnp.array([[21, 25], [13, 17], [21.0, 22.5]])]
    canvas = (133, 90)
    got = jax.jit(
        lambda views: streaming_resize.map_resized(
            views, extents, sizes, canvas, lambda strips: jnp.stack(strips, axis=-1),
            inputs=inputs, align_corners=align_corners, block=block,
        )
    )(coarse)  # fmt: skip
    assert got.shape == (3, 133, 5, 90, 2)
    for view in range(2):
        full = ops.resize_bilinear(jnp.asarray(coarse[view]), inputs[view], align_corners=align_corners)
        expected = np.asarray(ops.resize_to_sizes(full, extents[view], sizes, canvas)).swapaxes(2, 3)
        for i, (height, width) in enumerate(sizes.tolist()):
            np.testing.assert_allclose(got[i, :height, :, :width, view], expected[i, :height, :, :width], **TOLERANCE)


@pytest.mark.parametrize("align_corners", [False, True])
def test_resized_labels_are_those_of_the_largest_weight(align_corners):
    """If the logits of every pixel are one-hot with a class of its own, the largest resized logit names that pixel."""
    coarse, given, canvas = (5, 7), (17, 27), (40, 33)
    extents, sizes = jnp.array([[17, 27], [11, 22.5]]), jnp.array([[39, 32], [8, 11]])
    labels = np.random.default_rng(0).permutation(2 * 35).reshape(2, *coarse).astype(np.uint8)
    options = {"inputs": [given], "align_corners": align_corners}
    logits = jnp.asarray(np.eye(70, dtype=np.float32)[labels])
    expected = streaming_resize.map_resized(
        [logits], [extents], sizes, canvas, lambda strips: jnp.argmax(strips[0], axis=1), **options
    )
    found = streaming_resize.resize_labels(jnp.asarray(labels), extents, sizes, canvas, **options)
    for i, (height, width) in enumerate(sizes.tolist()):
        differs = np.asarray(found != expected)[i, :height, :width]
        assert differs.mean() < 0.02  # halfway between two pixels, either is right
