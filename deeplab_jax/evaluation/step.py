"""The evaluation step: predicts a batch at the size it is scored at, and counts."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int
from ml_collections import ConfigDict

from deeplab_jax import losses, ops
from deeplab_jax.data.eval_pipeline import view_names
from deeplab_jax.data.protocol import CanvasProtocol, protocol_for
from deeplab_jax.data.view_protocols import ViewProtocol
from deeplab_jax.evaluation import metrics
from deeplab_jax.inference import multi_scale
from deeplab_jax.inference.views import ViewNetwork, view_network
from deeplab_jax.parallel import sharding

# Arrays of a batch by name, see `deeplab_jax.data.eval_batches`.
Batch = dict[str, Array]


def make_eval_step(
    model: nn.Module,
    loss_fn: losses.Loss | Callable,
    *,
    protocol: CanvasProtocol,
    scales: Sequence[int | float] = (1.0,),
    flip: bool = False,
    ignored_pixels: str = "exclude",
    with_confidence: bool = False,
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
      with_confidence: also return the confidence of every pixel.
      mesh: the mesh that the variables are split over.

    Returns:
      `step(variables, batch)` for batches of `deeplab_jax.data.eval_batches`. It returns `loss_sum`, `loss_count`,
      `loss_terms` (of a loss with several), `confusion` (int32, classes by classes), `num_images`, `prediction` (uint8,
      the shape of the labels; its values outside an image's own pixels are meaningless) and, on request, `confidence`:
      the probability of the prediction.
    """

    loss_fn = losses.as_loss(loss_fn)

    def eval_step(variables, batch: Batch) -> dict[str, Array]:
        if mesh is not None:
            variables = sharding.gather(variables, mesh)
        views = multi_scale.network_views(model, variables, batch["image"], scales=scales, flip=flip)
        canvas = batch["label"].shape[1:3]
        return score([protocol.resize_logits(view.logits, batch["size"], canvas) for view in views], batch)

    score = make_score(
        loss_fn,
        num_classes=model.num_classes,
        ignored_pixels=ignored_pixels,
        with_confidence=with_confidence,
    )
    return eval_step


def make_score(
    loss_fn: losses.Loss, *, num_classes: int, ignored_pixels: str = "exclude", with_confidence: bool = False
) -> Callable:
    """Returns a function of the views' logits of a batch, at the size that is scored, and of the batch.

    It returns what the step of `make_eval_step` does, whose arguments have the same meanings. A third argument is the
    prediction, if it is known.
    """

    def score(logits: Sequence[Array], batch: Batch, prediction: Array | None = None) -> dict[str, Array]:
        labels, canvas = batch["label"], batch["label"].shape[1:3]
        logits = multi_scale.mean_prediction(logits)
        counted = inside(batch["size"], canvas) & batch["valid"].reshape(-1, 1, 1)
        report = loss_fn.report(logits, labels, where=counted)
        if prediction is None:
            prediction = jnp.argmax(logits, axis=-1).astype(jnp.uint8)
        confusion = metrics.confusion_matrix(
            labels, prediction, num_classes=num_classes, ignored_pixels=ignored_pixels, where=counted
        )
        outputs = report | {
            "confusion": confusion,
            "num_images": jnp.sum(batch["valid"].astype(jnp.int32)),
            "prediction": prediction,
        }
        if with_confidence:
            outputs["confidence"] = jnp.max(jax.nn.softmax(logits, axis=-1), axis=-1)
        return outputs

    return score


def jit_eval_step(
    config: ConfigDict, model: nn.Module, mesh: jax.sharding.Mesh, *, with_confidence: bool = False
) -> Callable:
    """Returns the `step(variables, batch)` that a config evaluates with.

    It is the jitted one of `make_eval_step`. With a `ViewProtocol`, it calls several jitted functions.
    """
    protocol, loss_fn = protocol_for(config), losses.make_loss(config.loss, num_classes=model.num_classes)
    scales, flip = tuple(config.eval.scales), config.eval.flip
    options = {"ignored_pixels": config.eval.ignored_pixels, "with_confidence": with_confidence}
    replicated, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    sums = ("loss_sum", "loss_count", "confusion", "num_images") + (("loss_terms",) if len(loss_fn.terms) > 1 else ())
    outputs = dict.fromkeys(sums, replicated)
    outputs |= dict.fromkeys(("prediction", *(["confidence"] if with_confidence else [])), split)
    if not isinstance(protocol, ViewProtocol):
        step = make_eval_step(model, loss_fn, protocol=protocol, scales=scales, flip=flip, mesh=mesh, **options)
        return jax.jit(step, out_shardings=outputs)
    return _make_view_step(
        view_network(model, protocol, flip=flip, mesh=mesh),
        make_score(loss_fn, num_classes=model.num_classes, **options),
        protocol,
        scales=scales,
        flip=flip,
        mesh=mesh,
        outputs=outputs,
    )


def _make_view_step(
    network: ViewNetwork,
    score: Callable,
    protocol: ViewProtocol,
    *,
    scales: Sequence[int | float],
    flip: bool,
    mesh: jax.sharding.Mesh,
    outputs: dict[str, jax.sharding.Sharding],
) -> Callable:
    """Returns the step of a protocol that makes a view for each scale; only one view is in memory at a time."""
    names, count = view_names(scales), len(scales) * (1 + flip)
    split = sharding.batch_sharding(mesh)

    def resize(logits, extents, sizes, canvas, keeps_size):
        logits = logits if keeps_size else ops.resize_to_sizes(logits, extents, sizes, canvas)
        return logits if count == 1 else jax.nn.softmax(logits, axis=-1)

    def score_mean(total, batch):
        return score([total if count == 1 else multi_scale.log_probabilities(total / count)], batch)

    resize = jax.jit(resize, static_argnums=(3, 4), out_shardings=split)
    add = jax.jit(jnp.add, donate_argnums=0, out_shardings=split)
    score_mean = jax.jit(score_mean, out_shardings=outputs)

    def step(variables, batch):
        total, canvas = None, tuple(batch["label"].shape[1:3])
        for name, (scale, extent) in names.items():
            for logits in network(variables, batch[name], batch[extent]):
                view = resize(logits, batch[extent], batch["size"], canvas, protocol.keeps_size(scale))
                total = view if total is None else add(total, view)
        return score_mean(total, {name: batch[name] for name in ("label", "size", "valid")})

    return step


def inside(sizes: Int[Array, "batch 2"], canvas: Sequence[int]) -> Bool[Array, "batch height width"]:
    """Marks the pixels of a canvas that belong to images of the given (height, width) at its top left."""
    rows = jnp.arange(canvas[0]).reshape(1, -1, 1) < sizes[:, 0].reshape(-1, 1, 1)
    columns = jnp.arange(canvas[1]).reshape(1, 1, -1) < sizes[:, 1].reshape(-1, 1, 1)
    return rows & columns
