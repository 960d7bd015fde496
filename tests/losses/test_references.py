"""Terms against segmentation-models-pytorch, torchvision and PyTorch: values and gradients that these computed."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax import losses

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens" / "losses.npz"
CLASSES = 5
# In the first image all classes are present, in the second all but one. SMP's mean is over all, ours over these.
PRESENT_SHARE = np.array([1.0, (CLASSES - 1) / CLASSES])

REFERENCES = {
    "dice": (losses.dice, {}),
    "dice_smooth": (losses.dice, {"smooth": 3.0}),
    "jaccard": (losses.jaccard, {}),
    "tversky": (losses.tversky, {"alpha": 0.3, "beta": 0.7}),
    "lovasz": (losses.lovasz_softmax, {}),
    "focal": (losses.focal, {"alpha": 0.25, "gamma": 1.5}),
    "focal_torchvision": (losses.focal, {"alpha": 0.25, "gamma": 2.0}),
    "binary_cross_entropy": (losses.binary_cross_entropy, {}),
    "cross_entropy": (losses.softmax_cross_entropy, {"class_weights": (1.0, 0.5, 2.0, 3.0, 0.25)}),
}


@pytest.fixture(scope="module")
def goldens():
    with np.load(GOLDENS) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("name", REFERENCES)
def test_value_and_gradient_equal_those_of_the_other_library(float64, goldens, name):
    function, options = REFERENCES[name]
    logits, labels = jnp.asarray(goldens["logits"], np.float64), jnp.asarray(goldens["labels"])
    expected = goldens[name]

    @jax.jit
    @jax.value_and_grad
    def mean(x, y):
        total, count = function(x, y, **options)
        return total / count

    if expected.ndim:
        share = PRESENT_SHARE if function in (losses.dice, losses.jaccard, losses.tversky) else np.ones(2)
        pairs = [mean(logits[i : i + 1], labels[i : i + 1]) for i in range(2)]
        value = np.array([pair[0] for pair in pairs]) * share
        gradient = np.concatenate([np.asarray(pair[1]) * share[i] for i, pair in enumerate(pairs)])
    else:
        value, gradient = mean(logits, labels)
    # Float64 sums in another order; SMP computes Lovasz's weights in float32.
    tolerance = 1e-6 if name == "lovasz" else 1e-12
    np.testing.assert_allclose(value, expected, rtol=tolerance)
    np.testing.assert_allclose(gradient, goldens[f"{name}:gradient"], rtol=0, atol=tolerance)
