"""Which examples the gallery of an evaluation shows."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from deeplab_jax import data
from deeplab_jax.evaluation import evaluator
from deeplab_jax.labels import SYNTHETIC
from deeplab_jax.parallel import mesh as mesh_lib


def test_the_gallery_is_spread_over_the_split(monkeypatch, tiny_config):
    """Neighbors in a split are often frames of one video."""

    def predict_the_label(variables, batch):
        counts = jnp.eye(SYNTHETIC.num_classes, dtype=jnp.int32)
        valid = jnp.sum(batch["valid"], dtype=jnp.int32)
        zero, one = jnp.float32(0), jnp.int32(1)
        sums = {"loss_sum": zero, "loss_count": one, "confusion": counts, "num_images": valid}
        return sums | {"prediction": batch["label"]}

    monkeypatch.setattr(evaluator, "jit_eval_step", lambda *args, **kwargs: predict_the_label)
    tiny_config.eval.batch_size = 3  # divides neither the split nor the distance of two examples
    source = data.open_split(tiny_config, "val")
    mesh = mesh_lib.make_mesh(tiny_config.mesh)
    scores = evaluator.Evaluator(tiny_config, nn.Module(), source, mesh)({})
    expected = [label for _, label in data.decode_examples(source, range(0, 200, 25))]
    assert len(source) == 200
    assert len(scores["gallery"]) == evaluator.GALLERY_SIZE == len(expected)
    for (_, label, prediction), truth in zip(scores["gallery"], expected, strict=True):
        height, width = truth.shape
        np.testing.assert_array_equal(label[:height, :width], truth)
        np.testing.assert_array_equal(prediction, label)
