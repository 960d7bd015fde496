"""The training and evaluation steps: pure functions of arrays, jitted once by their callers."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from deeplab_jax.evaluation import metrics
from deeplab_jax.models import DeepLabV3Plus
from deeplab_jax.parallel import sharding
from deeplab_jax.training.optimizer import stop_frozen
from deeplab_jax.training.state import TrainState

# Arrays of a batch by name, see `deeplab_jax.data.train_batches` and `deeplab_jax.data.eval_batches`.
Batch = dict[str, Array]


def make_train_step(
    model: DeepLabV3Plus,
    optimizer: optax.GradientTransformation,
    loss_fn: Callable,
    *,
    learning_rate: Callable,
    void: str = "ignore",
    accumulate: int = 1,
    shardings: TrainState | None = None,
    frozen: Sequence[str] = (),
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """One step of gradient descent on a batch.

    With `accumulate` the batch is computed in parts, one after the other, which takes the activations' memory of one
    part. Part k is every `accumulate`-th example from the k-th, so that each device keeps its own examples. The
    gradient is that of the mean loss over the whole batch, whatever each part's share of labeled pixels. BatchNorm,
    however, normalizes each part by the part's own statistics, and its running statistics move once a part; with
    `model.freeze_norm_statistics` it does neither, and the step equals the undivided one.

    Args:
      model: the network.
      optimizer: of `deeplab_jax.training.optimizer.make_optimizer`.
      loss_fn: of `deeplab_jax.losses.make_loss`: (logits, labels) to (sum, valid count).
      learning_rate: the schedule, for the report.
      void: what the confusion matrix does with void pixels.
      accumulate: parts of a batch.
      shardings: of `deeplab_jax.parallel.sharding.state_shardings`, where the state is spread over a mesh.
      frozen: of `config.optimizer.frozen`; their gradients are not computed.

    Returns:
      `step(state, batch)` with `image` uint8 (batch, height, width, channels), `label` uint8 (batch, height, width)
      and, where there is a teacher, `teacher_logits` (batch, height, width, classes). It returns the next state and a
      report: `loss_sum`, `loss_count`, `confusion` (int32, classes by classes, of the logits that the loss saw),
      `gradient_norm` (of what learns, before clipping) and `learning_rate`.
    """

    def part_gradients(params, batch_stats, part: Batch, rng):
        """Gradients of the sum of the loss over some examples, statistics after them, and what to report of them."""

        def loss(params):
            (logits, _), updates = model.apply(
                {"params": stop_frozen(params, frozen), "batch_stats": batch_stats},
                part["image"],
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": rng},
            )
            loss_sum, loss_count = loss_fn(logits, part["label"], teacher_logits=part.get("teacher_logits"))
            confusion = metrics.confusion_matrix(
                part["label"], jnp.argmax(logits, axis=-1), num_classes=model.num_classes, void=void
            )
            counts = {"loss_sum": loss_sum, "loss_count": loss_count, "confusion": confusion}
            return loss_sum, (updates["batch_stats"], counts)

        if shardings is not None:
            params = sharding.gather(params, shardings.step.mesh)
        gradients, (batch_stats, counts) = jax.grad(loss, has_aux=True)(params)
        if shardings is not None:
            # Said before anything reads them, so that each device receives the sum of its own share alone.
            gradients = jax.lax.with_sharding_constraint(gradients, shardings.params)
        return batch_stats, (gradients, counts)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        rng = jax.random.fold_in(state.rng, state.step)
        if accumulate == 1:
            batch_stats, sums = part_gradients(state.params, state.batch_stats, batch, rng)
        else:
            batch_stats, sums = _accumulate(
                lambda batch_stats, part, k: part_gradients(
                    state.params, batch_stats, part, jax.random.fold_in(rng, k)
                ),
                state.batch_stats,
                batch,
                accumulate,
            )
        gradients, counts = sums
        count = jnp.maximum(counts["loss_count"], 1).astype(counts["loss_sum"].dtype)
        gradients = jax.tree.map(lambda gradient: gradient / count.astype(gradient.dtype), gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        report = counts | {
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


def _accumulate(compute: Callable, batch_stats, batch: Batch, count: int):
    """Sums `compute(batch_stats, part, k)`, which returns new statistics and what to sum, over `count` parts."""
    parts = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0), batch)

    def add(carry, part_and_k):
        batch_stats, sums = carry
        batch_stats, new = compute(batch_stats, *part_and_k)
        return (batch_stats, jax.tree.map(jnp.add, sums, new)), None

    first = jax.tree.map(lambda x: x[0], parts)
    _, shapes = jax.eval_shape(compute, batch_stats, first, 0)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (batch_stats, sums), _ = jax.lax.scan(add, (batch_stats, zeros), (parts, jnp.arange(count)))
    return batch_stats, sums
