"""Mining of hard pixels against the formulas of research/deeplab and of BiSeNet, written out pixel by pixel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from deeplab_jax.losses import ohem_cross_entropy, top_k_cross_entropy
from tests.losses.test_cross_entropy import WEIGHTS, batch

EQUAL = (1.0,) * 5


def pixel_losses(logits, labels):
    """float64 cross-entropy of each pixel of an image as a vector, 0 for ignored ones, and the labels."""
    labels = np.asarray(labels).ravel()
    logits = np.asarray(logits, np.float64).reshape(len(labels), -1)
    losses = -scipy.special.log_softmax(logits, axis=-1)[np.arange(len(labels)), labels % 255]
    return np.where(labels == 255, 0, losses), labels


def research_deeplab(logits, labels, share, weights):
    """Sum and number of the largest weighted losses of an image that are not 0."""
    losses, labels = pixel_losses(logits, labels)
    losses = losses * np.where(labels == 255, 0, np.asarray(weights)[labels % 255])
    largest = np.sort(losses)[::-1][: int(np.float32(share) * len(losses))]
    return largest.sum(), np.count_nonzero(largest)


def bisenet(logits, labels, threshold, min_fraction):
    """Mean of the losses of an image above the threshold, or of the largest ones if these are more."""
    losses, labels = pixel_losses(logits, labels)
    losses = losses[labels != 255]
    hard, at_least = losses[losses > -np.log(threshold)], int(min_fraction * len(losses))
    return np.mean(hard if len(hard) >= at_least else np.sort(losses)[::-1][:at_least])


@pytest.mark.parametrize("weights", [EQUAL, WEIGHTS])  # one class of the second has the weight 0
@pytest.mark.parametrize(
    ("fraction", "gradual_steps", "step", "share"),
    [(0.25, 0, 0, 0.25), (0.25, 10, 0, 1.0), (0.25, 10, 5, 0.625), (0.25, 10, 20, 0.25), (0.25, 10, None, 0.25)],
)
def test_top_k_equals_research_deeplab_on_one_image_per_device(float64, weights, fraction, gradual_steps, step, share):
    logits, labels = batch(dtype=np.float64)
    total, count = jax.jit(top_k_cross_entropy, static_argnames=("fraction", "gradual_steps", "class_weights"))(
        logits, labels, fraction=fraction, gradual_steps=gradual_steps, step=step, class_weights=weights
    )
    expected = [research_deeplab(logits[i], labels[i], share, weights) for i in range(2)]
    np.testing.assert_allclose(total, sum(value for value, _ in expected), rtol=1e-12)  # float64 sums
    assert count == sum(number for _, number in expected)


@pytest.mark.parametrize(("threshold", "min_fraction"), [(0.7, 0.0625), (0.01, 0.0), (0.01, 0.5)])
def test_ohem_equals_bisenet_on_one_image_per_device(float64, threshold, min_fraction):
    logits, labels = batch(dtype=np.float64)
    total, count = ohem_cross_entropy(logits, labels, threshold=threshold, min_fraction=min_fraction)
    expected = [bisenet(logits[i], labels[i], threshold, min_fraction) for i in range(2)]
    np.testing.assert_allclose(total, sum(expected), rtol=1e-12)  # float64 sums
    assert count == 2


def test_pixels_with_the_same_loss_share_what_is_left():
    logits, labels = jnp.zeros((1, 2, 4, 5)), jnp.zeros((1, 2, 4), jnp.uint8)
    total, count = top_k_cross_entropy(logits, labels, fraction=0.5)
    np.testing.assert_allclose([total, count], [4 * np.log(5), 4], rtol=1e-6)  # float32
    gradient = jax.grad(lambda x: top_k_cross_entropy(x, labels, fraction=0.5)[0])(logits)
    expected = np.broadcast_to(0.5 * (0.2 - np.eye(5)[0]), (1, 2, 4, 5))
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)
