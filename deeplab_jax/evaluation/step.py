"""The evaluation step: predicts a batch at the size it is scored at, and counts."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int
from ml_collections import ConfigDict

from deeplab_jax import losses
from deeplab_jax.data.protocol import EvalProtocol, protocol_for
from deeplab_jax.evaluation import metrics
from deeplab_jax.inference import multi_scale
from deeplab_jax.parallel import sharding

# Arrays of a batch by name, see `deeplab_jax.data.eval_batches`.
Batch = dict[str, Array]


def make_eval_step(
    model: nn.Module,
    loss_fn: losses.Loss | Callable,
    *,
    protocol: EvalProtocol,
    scales: Sequence[int | float] = (1.0,),
    flip: bool = False,
    ignored_pixels: str = "exclude",
    mesh: jax.sharding.Mesh | None = None,
) -> Callable:
    """Returns a function that evaluates a batch.

    With several scales, or mirrored views, the logits of each view (`deeplab_jax.inference.multi_scale.network_views`)
    are resized to the size that is scored, and their softmax probabilities are averaged. The prediction is the class of
    the largest mean probability; the loss is that of the mean probabilities.

    Args:
      model: the network.
      loss_fn: a loss of `deeplab_jax.losses.make_loss`, or a function that `deeplab_jax.losses.as_loss` accepts.
      protocol: resizes logits to the size that is scored.
      scales: factors at which each image is seen, `config.eval.scales`.
      flip: also see each scale mirrored, `config.eval.flip`.
      ignored_pixels: how the confusion matrix treats ignored pixels, `config.eval.ignored_pixels`.
      mesh: the mesh that the variables are split over.

    Returns:
      `step(variables, batch)` for batches of `deeplab_jax.data.eval_batches`. It returns `loss_sum`, `loss_count`,
      `loss_terms` (of a loss with several), `confusion` (int32, classes by classes), `num_images` and `prediction`
      (uint8, the shape of the labels; its values outside an image's own pixels are meaningless).
    """

    loss_fn = losses.as_loss(loss_fn)

    def eval_step(variables, batch: Batch) -> dict[str, Array]:
        if mesh is not None:
            variables = sharding.gather(variables, mesh)
        labels, canvas = batch["label"], batch["label"].shape[1:3]
        views = multi_scale.network_views(model, variables, batch["image"], scales=scales, flip=flip)
        logits = [protocol.resize_logits(view.logits, batch["size"], canvas) for view in views]
        logits = multi_scale.mean_prediction(logits)
        counted = inside(batch["size"], canvas) & batch["valid"].reshape(-1, 1, 1)
        report = loss_fn.report(logits, labels, where=counted)
        prediction = jnp.argmax(logits, axis=-1).astype(jnp.uint8)
        confusion = metrics.confusion_matrix(
            labels, prediction, num_classes=model.num_classes, ignored_pixels=ignored_pixels, where=counted
        )
        return report | {
            "confusion": confusion,
            "num_images": jnp.sum(batch["valid"].astype(jnp.int32)),
            "prediction": prediction,
        }

    return eval_step


def jit_eval_step(config: ConfigDict, model: nn.Module, mesh: jax.sharding.Mesh) -> jax.stages.Wrapped:
    """Returns the jitted `step(variables, batch)` of `make_eval_step` that a config evaluates with."""
    loss = losses.make_loss(config.loss, num_classes=model.num_classes)
    step = make_eval_step(
        model,
        loss,
        protocol=protocol_for(config),
        scales=tuple(config.eval.scales),
        flip=config.eval.flip,
        ignored_pixels=config.eval.ignored_pixels,
        mesh=mesh,
    )
    replicated, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    sums = ("loss_sum", "loss_count", "confusion", "num_images") + (("loss_terms",) if len(loss.terms) > 1 else ())
    outputs = dict.fromkeys(sums, replicated)
    return jax.jit(step, out_shardings=outputs | {"prediction": split})


def inside(sizes: Int[Array, "batch 2"], canvas: Sequence[int]) -> Bool[Array, "batch height width"]:
    """Marks the pixels of a canvas that belong to images of the given (height, width) at its top left."""
    rows = jnp.arange(canvas[0]).reshape(1, -1, 1) < sizes[:, 0].reshape(-1, 1, 1)
    columns = jnp.arange(canvas[1]).reshape(1, 1, -1) < sizes[:, 1].reshape(-1, 1, 1)
    return rows & columns
