"""The evaluation step: a pure function of arrays, jitted by its caller."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from deeplab_jax import ops
from deeplab_jax.evaluation import metrics
from deeplab_jax.inference import multi_scale
from deeplab_jax.models import DeepLabV3Plus
from deeplab_jax.parallel import sharding

Batch = dict[str, Array]


def make_eval_step(
    model: DeepLabV3Plus,
    loss_fn: Callable,
    *,
    protocol: str,
    scales: Sequence[int | float] = (1.0,),
    flip: bool = False,
    void: str = "ignore",
    mesh: jax.sharding.Mesh | None = None,
) -> Callable:
    """Predicts a batch at the size it is scored at, and counts.

    Args:
      model: the network.
      loss_fn: of `deeplab_jax.losses.make_loss`.
      protocol: `config.eval.protocol`; with `squeeze` the logits are resized to each image's own size.
      scales: of `config.eval`: with more than one view of an image, `deeplab_jax.inference.multi_scale.network_views`, its logits
        are resized to what is scored, and the class of the largest mean probability is predicted. The loss is that of
        the mean probabilities.
      flip: of `config.eval`: every scale is seen mirrored as well.
      void: what the confusion matrix does with void pixels.
      mesh: over which the variables are spread.

    Returns:
      `step(variables, batch)` for batches of `deeplab_jax.data.eval_batches`. It returns `loss_sum`, `loss_count`,
      `confusion` (int32, classes by classes), `num_images` and `prediction` (uint8, batch by label canvas; beyond a
      image's size it means nothing).
    """

    def eval_step(variables, batch: Batch) -> dict[str, Array]:
        if mesh is not None:
            variables = sharding.gather(variables, mesh)
        labels, canvas = batch["label"], batch["label"].shape[1:3]
        logits = []
        for view in multi_scale.network_views(model, variables, batch["image"], scales=scales, flip=flip):
            scored = view.logits
            if protocol == "squeeze":
                extents = jnp.broadcast_to(jnp.asarray(view.size, jnp.int32).reshape(1, 2), batch["size"].shape)
                scored = ops.resize_to_sizes(scored, extents, batch["size"], canvas)
            elif view.size != tuple(canvas):
                factors = jnp.asarray(view.size, scored.dtype) / jnp.asarray(canvas, scored.dtype)
                extents = batch["size"].astype(scored.dtype) * factors.reshape(1, 2)
                scored = ops.resize_to_sizes(scored, extents, batch["size"], canvas)
            logits.append(scored)
        logits = multi_scale.mean_prediction(logits)
        counted = inside(batch["size"], canvas) & batch["valid"].reshape(-1, 1, 1)
        loss_sum, loss_count = loss_fn(logits, labels, where=counted)
        prediction = jnp.argmax(logits, axis=-1).astype(jnp.uint8)
        confusion = metrics.confusion_matrix(
            labels, prediction, num_classes=model.num_classes, void=void, where=counted
        )
        return {
            "loss_sum": loss_sum,
            "loss_count": loss_count,
            "confusion": confusion,
            "num_images": jnp.sum(batch["valid"].astype(jnp.int32)),
            "prediction": prediction,
        }

    return eval_step


def inside(sizes: Int[Array, "batch 2"], canvas: Sequence[int]) -> Bool[Array, "batch height width"]:
    """Which pixels of a canvas belong to images of the given (height, width) at its top left."""
    rows = jnp.arange(canvas[0]).reshape(1, -1, 1) < sizes[:, 0].reshape(-1, 1, 1)
    columns = jnp.arange(canvas[1]).reshape(1, 1, -1) < sizes[:, 1].reshape(-1, 1, 1)
    return rows & columns
