"""The train step: loss, gradient, accumulation, averages, NaN policy, and how it is compiled for a mesh."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array
from ml_collections import ConfigDict

from deeplab_jax import losses
from deeplab_jax.data.protocol import protocol_for
from deeplab_jax.evaluation import metrics
from deeplab_jax.models import PARTS, build_for_mesh, initializer_options, jit_initializer
from deeplab_jax.parallel import sharding
from deeplab_jax.program_cache import Program, load_or_compute
from deeplab_jax.training import optimizer as optimizer_lib
from deeplab_jax.training import pseudo_labels
from deeplab_jax.training.optimizer import Number, Schedule, stop_frozen
from deeplab_jax.training.program_key import train_key
from deeplab_jax.training.pseudo_labels import PseudoLabels
from deeplab_jax.training.state import TrainState

# Arrays of a batch by name, see `deeplab_jax.data.train_batches`.
Batch = dict[str, Array]


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    loss_fn: losses.Loss | Callable,
    *,
    learning_rate: Schedule,
    auxiliary_weight: Number = 0.4,
    ignored_pixels: str = "exclude",
    accumulate_steps: int = 1,
    frozen: Sequence[str] = (),
    ema_rate: Number | None = None,
    skip_nonfinite: bool = False,
    unlabeled: PseudoLabels | None = None,
    shardings: TrainState | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """Returns a function that takes one step of gradient descent on a batch.

    Args:
      model: the network.
      optimizer: the gradient transformation of `deeplab_jax.training.optimizer.make`.
      loss_fn: a loss of `deeplab_jax.losses.make_loss`, or a function that `deeplab_jax.losses.as_loss` accepts.
      learning_rate: the schedule of `deeplab_jax.training.optimizer.make`, for the report.
      auxiliary_weight: weight of the loss of the auxiliary head, if the network has one.
      ignored_pixels: how the confusion matrix treats ignored pixels, `config.eval.ignored_pixels`.
      accumulate_steps: number of parts of a batch, which are computed one after another to save memory.
      frozen: parameters whose gradients are not computed, `config.optimizer.frozen`.
      ema_rate: share of the new variables in `state.ema_variables`, 1 - decay; about 1 / ema_rate steps are averaged.
      skip_nonfinite: leave the variables as they were if the loss or the gradient is not finite.
      unlabeled: how to learn from unlabeled images; None if batches have none. The count of a function of your own as
        `loss_fn` must then be the number of labeled pixels.
      shardings: shardings of the state if it is split over a mesh.

    Returns:
      `step(state, batch)`, where the batch has `image` (batch, height, width, channels), `label` uint8 (batch,
      height, width) and, with a teacher, `teacher_logits` (batch, height, width, classes). It returns the next state
      and a report: `loss_sum`, `loss_count`, `loss_terms` (of a loss with several), `confusion` (int32, classes by
      classes), `gradient_norm` (of the trained parameters, before clipping) and `learning_rate`. With unlabeled images,
      the batch has the arrays of `pseudo_labels.BATCH_NAMES` too, and the report has `unlabeled`, see
      `pseudo_labels.report`; everything else in it is about the labeled images.
    """
    loss_fn = losses.as_loss(loss_fn)
    sum_gradients = _make_gradient_function(
        model,
        loss_fn,
        auxiliary_weight=auxiliary_weight,
        ignored_pixels=ignored_pixels,
        frozen=frozen,
        shardings=shardings,
    )

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        # Gradient of the mean loss over the whole batch.
        rng = jax.random.fold_in(state.rng, state.step)
        if unlabeled is not None:
            mesh = None if shardings is None else shardings.step.mesh
            batch = pseudo_labels.teach(model, state, batch, unlabeled, num_parts=accumulate_steps, mesh=mesh)
        whole = _count_whole(loss_fn, batch, state.step, unlabeled)
        batch_stats, (gradients, counts) = _accumulate(sum_gradients, state, batch, rng, whole, accumulate_steps)
        count = jnp.maximum(counts["loss_count"], 1).astype(counts["loss_sum"].dtype)
        gradients = jax.tree.map(lambda gradient: gradient / count.astype(gradient.dtype), gradients)

        # Update.
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        report = counts | {"gradient_norm": optax.tree.norm(gradients), "learning_rate": learning_rate(state.step)}
        new = state.replace(
            step=state.step + 1,
            examples_seen=state.examples_seen + jnp.uint32(len(batch["label"])),
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        if ema_rate is not None:
            new = _update_averages(new, state, ema_rate)
        if skip_nonfinite:
            new = _keep_if_nonfinite(new, state, report)
        return new, report

    return train_step


class _Whole(NamedTuple):
    """Numbers of the whole batch that each part of it needs.

    Attributes:
      counts: see `losses.Loss.counts`.
      unlabeled_factor: factor on the summed loss of the unlabeled images, if there are any.
    """

    counts: losses.Counts | None
    unlabeled_factor: Array | None = None


def _count_whole(loss_fn: losses.Loss, batch: Batch, step: Array, unlabeled: PseudoLabels | None) -> _Whole:
    counts = loss_fn.counts(batch["label"], step=step)
    if unlabeled is None:
        return _Whole(counts)
    # All gradients are divided by the count of the labeled images at the end.
    labeled = jnp.maximum(loss_fn.count(batch["label"], step=step), 1)
    pixels = jnp.maximum(pseudo_labels.count_pixels(batch), 1)
    return _Whole(counts, unlabeled.weight * labeled / pixels)


def _make_gradient_function(
    model: nn.Module,
    loss_fn: losses.Loss,
    *,
    auxiliary_weight: Number,
    ignored_pixels: str,
    frozen: Sequence[str],
    shardings: TrainState | None,
) -> Callable:
    """Returns `sum_gradients`, which computes gradients and counts as sums over examples."""

    def sum_gradients(state: TrainState, batch_stats, examples: Batch, rng, whole: _Whole):
        images, num_labeled = examples["image"], len(examples["image"])
        if whole.unlabeled_factor is not None:
            # One forward pass, so BatchNorm's statistics are those of both.
            images = pseudo_labels.join(images, examples["unlabeled_strong"])

        def loss(params):
            (logits, endpoints), updates = model.apply(
                {"params": stop_frozen(params, frozen), "batch_stats": batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": rng},
            )
            found = {}
            if whole.unlabeled_factor is not None:
                logits, unlabeled_logits = pseudo_labels.separate(logits, num_labeled)
                found = pseudo_labels.report(unlabeled_logits, examples)
            options = {"step": state.step, "whole": whole.counts}
            counts = loss_fn.report(logits, examples["label"], teacher_logits=examples.get("teacher_logits"), **options)
            confusion = metrics.confusion_matrix(
                examples["label"],
                jnp.argmax(logits, axis=-1),
                num_classes=model.num_classes,
                ignored_pixels=ignored_pixels,
            )
            if "auxiliary_logits" in endpoints:
                auxiliary_logits = endpoints["auxiliary_logits"]
                if found:  # the auxiliary head learns from labels alone
                    auxiliary_logits, _ = pseudo_labels.separate(auxiliary_logits, num_labeled)
                auxiliary_logits = model.resize(auxiliary_logits, examples["label"].shape[1:])
                auxiliary = loss_fn.report(auxiliary_logits, examples["label"], **options)
                counts = losses.add_auxiliary(counts, auxiliary, auxiliary_weight)
            total = counts["loss_sum"]
            if found:
                total = total + whole.unlabeled_factor.astype(total.dtype) * found["loss_sum"]
                counts |= {"unlabeled": found}
            return total, (updates["batch_stats"], counts | {"confusion": confusion})

        params = state.params
        if shardings is not None:
            params = sharding.gather(params, shardings.step.mesh)
        gradients, (batch_stats, counts) = jax.grad(loss, has_aux=True)(params)
        if shardings is not None:
            # Constrained before anything reads them, so each device receives only the sum of its own share.
            gradients = jax.lax.with_sharding_constraint(gradients, shardings.params)
        return batch_stats, (gradients, counts)

    return sum_gradients


def _accumulate(
    sum_gradients: Callable,
    state: TrainState,
    batch: Batch,
    rng: Array,
    whole: _Whole,
    num_parts: int,
):
    """Sums gradients and counts over the parts of a batch.

    Part k holds every `num_parts`-th example starting at the k-th, so each device keeps its own examples. Dividing the
    sums by the total count gives the gradient of the mean loss over the whole batch, however labeled pixels are
    distributed over the parts. BatchNorm normalizes each part with the part's own statistics, and its running
    statistics move once per part; with `model.freeze_norm_statistics` it does neither, and the step equals the
    unsplit one.
    """
    if num_parts == 1:
        return sum_gradients(state, state.batch_stats, batch, rng, whole)
    parts = jax.tree.map(lambda array: pseudo_labels.split_parts(array, num_parts), batch)

    def compute(batch_stats, part: Batch, k):
        return sum_gradients(state, batch_stats, part, jax.random.fold_in(rng, k), whole)

    def add(carry, part_and_k):
        batch_stats, sums = carry
        batch_stats, new = compute(batch_stats, *part_and_k)
        return (batch_stats, jax.tree.map(jnp.add, sums, new)), None

    first = jax.tree.map(lambda x: x[0], parts)
    _, shapes = jax.eval_shape(compute, state.batch_stats, first, 0)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (batch_stats, sums), _ = jax.lax.scan(add, (state.batch_stats, zeros), (parts, jnp.arange(num_parts)))
    return batch_stats, sums


def _update_averages(new: TrainState, old: TrainState, rate: Number) -> TrainState:
    """Returns the new state with the averages that include its variables.

    Batch statistics are averaged too: averaged parameters lag behind, and with the newest statistics a network whose
    learning rate is still high predicts almost nothing.
    """
    return new.replace(ema_variables=optax.incremental_update(new.variables, old.ema_variables, rate))


def _keep_if_nonfinite(new: TrainState, old: TrainState, report: dict[str, Array]) -> TrainState:
    """Returns the new state, with the old floating-point values if the loss or the gradient is not finite.

    `step`, `examples_seen` and the optimizer's counters advance either way, so the schedule and the data keep their
    positions. A finite step is the same to the bit.
    """
    finite = jnp.isfinite(report["loss_sum"]) & jnp.isfinite(report["gradient_norm"])

    def choose(new_leaf, old_leaf):
        return jnp.where(finite, new_leaf, old_leaf) if jnp.issubdtype(new_leaf.dtype, jnp.floating) else new_leaf

    return jax.tree.map(choose, new, old)


@dataclasses.dataclass(frozen=True)
class TrainProgram:
    """The compiled program that `train` runs and `aot` measures.

    Attributes:
      model: the network, with the operations that the mesh needs.
      learning_rate: the schedule, a function of the step.
      shapes: shapes of the state; each leaf has its sharding.
      batch_shapes: shapes of a batch, also with shardings.
      hyperparams: the numbers that the compiled step takes as inputs, see `hyperparams`.
      create: the function of a seed that creates the first state.
      take_step: the function of a state, a batch and `hyperparams`.
    """

    model: nn.Module
    learning_rate: Schedule
    shapes: TrainState
    batch_shapes: dict[str, jax.ShapeDtypeStruct]
    hyperparams: dict[str, Any]
    create: Program
    take_step: Program

    @property
    def shardings(self) -> TrainState:
        """The sharding of each leaf of the state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.shapes)

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        """Takes the step of `make_train_step`. Donates the state."""
        return self.take_step(state, batch, self.hyperparams)

    def with_functions_of(self, other: "TrainProgram") -> "TrainProgram":
        """Returns this program with the functions of another, whose config may only differ in its numbers."""
        return dataclasses.replace(self, create=other.create, take_step=other.take_step)

    def lower_step(self) -> jax.stages.Lowered:
        """Lowers the step for its shapes."""
        return self.take_step.jitted.lower(self.shapes, self.batch_shapes, self.hyperparams)

    def random_state(self, *, seed: int) -> TrainState:
        """Creates the state before the first step. Also compiles the step, which its first call would wait for."""
        seed = np.uint32(seed)
        create = self.create.prepare(seed)  # here, since options such as `jax.enable_x64` hold in their thread alone
        # The state is created while the step is traced or loaded.
        with ThreadPoolExecutor(1) as other_thread:
            state = other_thread.submit(create, seed)
            self.take_step.prepare()
        return state.result()


def hyperparams(config: ConfigDict, total_steps: int, warmup_steps: int = 0) -> dict[str, Any]:
    """Returns the numbers of a config that its compiled train step takes as inputs.

    They are those of `deeplab_jax.training.optimizer.hyperparams`, which states the rule, the weight of the auxiliary
    head, the rate of the averages, and the threshold and the weight of pseudo labels.

    Args:
      config: a whole config.
      total_steps: number of training steps.
      warmup_steps: number of warm-up steps of the learning rate.
    """
    values = {"optimizer": optimizer_lib.hyperparams(config.optimizer, total_steps, warmup_steps)}
    values["auxiliary_weight"] = float(config.loss.auxiliary_weight)
    if config.train.ema_decay is not None:
        values["ema_rate"] = 1 - config.train.ema_decay  # in float32, the difference would have half of its digits
    return values | pseudo_labels.hyperparams(config)


def build_program(
    config: ConfigDict,
    num_classes: int,
    mesh: Mesh,
    *,
    total_steps: int,
    warmup_steps: int = 0,
    image_dtype: str = "uint8",
) -> TrainProgram:
    """Builds the training program of a config. Computes nothing.

    Args:
      config: a whole config that `deeplab_jax.config.validate` accepted.
      num_classes: number of classes of the data set.
      mesh: a mesh of `deeplab_jax.parallel.mesh.make_mesh`; its devices need not exist on this machine.
      total_steps: number of training steps.
      warmup_steps: number of warm-up steps of the learning rate.
      image_dtype: dtype of the images.

    Raises:
      UserError: a value that the network, the loss or the optimizer cannot be built with.
    """
    model = build_for_mesh(config, num_classes, mesh, input_sizes=protocol_for(config).input_sizes)
    loss_fn = losses.make_loss(config.loss, num_classes=num_classes)
    make_optimizer = functools.partial(optimizer_lib.make_from, config.optimizer, parts=PARTS)
    numbers = hyperparams(config, total_steps, warmup_steps)
    optimizer, learning_rate = make_optimizer(numbers["optimizer"])
    averages = config.train.ema_decay is not None
    key = train_key(config, num_classes, str(mesh), image_dtype, str(jax.tree.structure(numbers)))
    devices = tuple(mesh.devices.flat)
    trace_shapes = functools.partial(TrainState.shapes, model, optimizer, averages=averages)
    shapes = load_or_compute(trace_shapes, ["shapes", key, model], devices)
    shapes = sharding.with_shardings(shapes, mesh, fsdp_min_size=config.mesh.fsdp_min_size)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)

    def create(seed: Array) -> TrainState:
        return TrainState.create(model, optimizer, seed=seed, averages=averages, image_size=config.data.image_size)

    def train_step(state: TrainState, batch: Batch, numbers: dict[str, Any]) -> tuple[TrainState, dict[str, Array]]:
        optimizer, learning_rate = make_optimizer(numbers["optimizer"])
        take_step = make_train_step(
            model,
            optimizer,
            loss_fn,
            learning_rate=learning_rate,
            auxiliary_weight=numbers["auxiliary_weight"],
            ignored_pixels=config.eval.ignored_pixels,
            accumulate_steps=config.train.accumulate_steps,
            frozen=tuple(config.optimizer.frozen),
            ema_rate=numbers.get("ema_rate"),
            skip_nonfinite=config.train.nonfinite == "skip",
            unlabeled=pseudo_labels.from_config(config, numbers),
            shardings=shardings,
        )
        return take_step(state, batch)

    size = (config.data.batch_size, *config.data.image_size)
    batch = {"image": ((*size, config.model.in_channels), np.dtype(image_dtype)), "label": (size, np.uint8)}
    if config.loss.teacher is not None:
        batch["teacher_logits"] = ((*size, num_classes), np.float32)
    batch |= pseudo_labels.batch_shapes(config, np.dtype(image_dtype))
    batch_shapes = sharding.abstract_batch(batch, mesh)
    jitted_create = jit_initializer(create, shardings)
    jitted_step = jax.jit(train_step, out_shardings=(shardings, sharding.replicated(mesh)), donate_argnums=0)
    return TrainProgram(
        model=model,
        learning_rate=learning_rate,
        shapes=shapes,
        batch_shapes=batch_shapes,
        hyperparams=numbers,
        create=Program(jitted_create, ["create", key, model], devices, compiler_options=initializer_options(), fixed=1),
        take_step=Program(
            jitted_step, ["step", key, model], devices, arguments=(shapes, batch_shapes, numbers), fixed=3
        ),
    )
