"""Prediction with SegFormer."""

import jax
import numpy as np
import pytest

from deeplab_jax import pretrained
from deeplab_jax.inference.predictor import Predictor
from tests.inference.test_predictor import photo
from tests.support import exports


@pytest.mark.slow
def test_segformer_labels_images_of_any_size_with_views_and_windows():
    """Its logits have stride 4, not its output stride of 32, and any size of at least 32 is its own."""
    network = exports.network(**exports.SEGFORMER)
    config = pretrained.preset_config(network)
    config.eval.protocol, config.eval.image_size = "whole", (61, 90)
    image = photo(61, 90)
    result = Predictor.from_network(network, config, flip=True)(image, probabilities=True)
    logits = exports.logits(network, np.stack([image, image[:, ::-1]]))
    expected = jax.nn.softmax(np.stack([logits[0], logits[1][:, ::-1]])).mean(axis=0)
    # Of float32 rounding in other operations.
    np.testing.assert_allclose(result.probabilities, expected, atol=1e-4)
    assert len(np.unique(result.label_map)) > 1
    for options in ({"scales": (0.75, 1.25)}, {"window": (64, 64)}):
        other = Predictor.from_network(network, config, **options)(image, probabilities=True)
        np.testing.assert_allclose(other.probabilities.sum(axis=-1), 1, rtol=1e-5)
        assert np.mean(other.label_map == result.label_map) > 0.5
