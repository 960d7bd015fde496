"""The training and evaluation steps: pure functions of arrays, jitted once by their callers."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int

from deeplab_jax import metrics, ops
from deeplab_jax.models import DeepLabV3Plus
from deeplab_jax.train_state import TrainState

Batch = dict[str, Array]

# By platform. XLA:CPU's usual order of operations keeps its threads busy and everything in memory; our operations keep
# the threads busy themselves.
TRAIN_COMPILER_OPTIONS = {"cpu": {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}}


def make_train_step(
    model: DeepLabV3Plus,
    optimizer: optax.GradientTransformation,
    loss_fn: Callable,
    *,
    learning_rate: Callable,
    void: str = "ignore",
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """One step of gradient descent on a batch.

    Args:
      model: the network.
      optimizer: of `deeplab_jax.optimizer.make_optimizer`.
      loss_fn: of `deeplab_jax.losses.make_loss`: (logits, labels) to (sum, valid count).
      learning_rate: the schedule, for the report.
      void: what the confusion matrix does with void pixels.

    Returns:
      `step(state, batch)` with `image` uint8 (batch, height, width, channels) and `label` uint8 (batch, height,
      width). It returns the next state and a report: `loss_sum`, `loss_count`, `confusion` (int32, classes by classes,
      of the logits that the loss saw), `gradient_norm` (before clipping) and `learning_rate`.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        dropout_rng = jax.random.fold_in(state.rng, state.step)

        def mean_loss(params):
            (logits, _), updates = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                batch["image"],
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": dropout_rng},
            )
            loss_sum, count = loss_fn(logits, batch["label"])
            mean = loss_sum / jnp.maximum(count, 1).astype(loss_sum.dtype)
            return mean, (loss_sum, count, logits, updates["batch_stats"])

        gradients, (loss_sum, count, logits, batch_stats) = jax.grad(mean_loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        confusion = metrics.confusion_matrix(
            batch["label"], jnp.argmax(logits, axis=-1), num_classes=model.num_classes, void=void
        )
        report = {
            "loss_sum": loss_sum,
            "loss_count": count,
            "confusion": confusion,
            "gradient_norm": optax.tree.norm(gradients),
            "learning_rate": learning_rate(state.step),
        }
        state = state.replace(
            step=state.step + 1,
            examples_seen=state.examples_seen + jnp.uint32(len(batch["label"])),
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        return state, report

    return train_step


def make_eval_step(model: DeepLabV3Plus, loss_fn: Callable, *, protocol: str, void: str = "ignore") -> Callable:
    """Predicts a batch at the size it is scored at, and counts.

    Args:
      model: the network.
      loss_fn: of `deeplab_jax.losses.make_loss`.
      protocol: `config.eval.protocol`; with `squeeze` the logits are resized to each picture's own size.
      void: what the confusion matrix does with void pixels.

    Returns:
      `step(variables, batch)` for batches of `deeplab_jax.data.eval_batches`. It returns `loss_sum`, `loss_count`,
      `confusion` (int32, classes by classes), `num_images` and `prediction` (uint8, batch by label canvas; beyond a
      picture's size it means nothing).
    """

    def eval_step(variables, batch: Batch) -> dict[str, Array]:
        logits, _ = model.apply(variables, batch["image"], train=False)
        labels, canvas = batch["label"], batch["label"].shape[1:3]
        if protocol == "squeeze":
            extents = jnp.broadcast_to(jnp.asarray(logits.shape[1:3], jnp.int32).reshape(1, 2), batch["size"].shape)
            logits = ops.resize_to_sizes(logits, extents, batch["size"], canvas)
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
    """Which pixels of a canvas belong to pictures of the given (height, width) at its top left."""
    rows = jnp.arange(canvas[0]).reshape(1, -1, 1) < sizes[:, 0].reshape(-1, 1, 1)
    columns = jnp.arange(canvas[1]).reshape(1, 1, -1) < sizes[:, 1].reshape(-1, 1, 1)
    return rows & columns
