"""The evaluation step of blended windows: `predict --window` labels the images, and its probabilities are scored."""

from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from deeplab_jax import losses
from deeplab_jax.errors import UserError
from deeplab_jax.evaluation.step import make_score
from deeplab_jax.inference import multi_scale
from deeplab_jax.inference.predictor import Predictor
from deeplab_jax.labels import LabelSet
from deeplab_jax.parallel import sharding


def make_blended_step(
    config: ConfigDict, model: nn.Module, mesh: jax.sharding.Mesh, label_set: LabelSet, *, with_confidence: bool = False
) -> Callable:
    """Returns the `step(variables, batch)` of `eval.window_average=blended`; see `make_eval_step` for its result.

    The labels are those of a `Predictor` with windows of `eval.window`, and the loss is that of its probabilities.
    Images are computed one by one.

    Args:
      config: a whole config whose protocol is `windows`.
      model: the network.
      mesh: the mesh that variables and batches are split over.
      label_set: the classes.
      with_confidence: also return the confidence of every pixel.

    Raises:
      UserError: the run has several processes.
    """
    if jax.process_count() > 1:
        raise UserError(
            "eval.window_average=blended needs a single process; choose probabilities, or evaluate with one"
        )
    predictor = Predictor(model, None, config, label_set, scales=tuple(config.eval.scales), flip=config.eval.flip)
    score_logits = make_score(
        losses.make_loss(config.loss, num_classes=model.num_classes),
        num_classes=model.num_classes,
        ignored_pixels=config.eval.ignored_pixels,
        with_confidence=with_confidence,
    )
    score = jax.jit(
        lambda probabilities, batch, labels: score_logits([multi_scale.log_probabilities(probabilities)], batch, labels)
    )
    split = sharding.batch_sharding(mesh)

    def step(variables, batch):
        predict = predictor.with_variables(variables)
        images, extents, valid = (np.asarray(batch[name]) for name in ("image", "extent", "valid"))
        size = batch["label"].shape
        labels, probabilities = np.zeros(size, np.uint8), np.zeros((*size, model.num_classes), np.float32)
        for i, (height, width) in enumerate(extents):
            if valid[i]:
                found = predict(images[i, :height, :width], probabilities=True)
                labels[i, :height, :width] = found.label_map
                probabilities[i, :height, :width] = found.probabilities
        known = {name: batch[name] for name in ("label", "size", "valid")}
        return score(jax.device_put(probabilities, split), known, jax.device_put(labels, split))

    return step
