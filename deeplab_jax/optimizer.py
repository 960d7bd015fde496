"""SGD with momentum, its schedules, clipping and decay, as the papers and as Keras define them.

The two families differ in three places, and each place is an option of its own:

* momentum: `classic` (PyTorch, TensorFlow, optax) multiplies the whole buffer by the current rate; `keras` adds the
  already scaled gradient to the buffer. They part ways whenever the rate changes.
* clipping: `global` scales all gradients by their common norm; `per_variable` is Keras' clipnorm.
* decay: `coupled_kernels` is the papers' L2 term, part of the loss and therefore of the gradient *before* clipping and
  momentum, on convolution kernels only; `decoupled_all` is Keras' decay of every variable by rate x decay x weight,
  outside clipping and momentum. At momentum 0.9 the first is about ten times as strong for the same number.
"""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from deeplab_jax.errors import UserError

Schedule = Callable[[int | Int[Array, ""]], Float[Array, ""]]

_SCHEDULES = ("constant", "cosine", "poly")
_MOMENTUM_RULES = ("classic", "keras")
_CLIPS = ("none", "per_variable", "global")
_DECAY_RULES = ("coupled_kernels", "decoupled_all")


def make_schedule(optimizer: ConfigDict, total_steps: int, warmup_steps: int = 0) -> Schedule:
    """The learning rate as a function of the number of updates already made (0 in the first step).

    The rate rises linearly from 0 over `warmup_steps`, and the decay then runs over the remaining
    T = total_steps - warmup_steps, with t = step - warmup_steps, as in Keras' CosineDecay:

    * constant: `learning_rate`.
    * cosine: lr * ((1 - a) / 2 * (1 + cos(pi * min(t, T) / T)) + a) with a = end_learning_rate / learning_rate.
    * poly: (lr - end) * (1 - min(t, T) / T) ** poly_power + end (DeepLabv3, section 4.1, there with end 0).

    Args:
      optimizer: the group `optimizer` of a config.
      total_steps: updates of the whole run, warm-up included.
      warmup_steps: 0 for none.

    Returns:
      A jittable function of an integer step to a float scalar.

    Raises:
      UserError: a field is missing or out of range, or the warm-up leaves no step to train.
    """
    rate, end = optimizer.learning_rate, optimizer.end_learning_rate
    _choose("schedule", optimizer.schedule, _SCHEDULES)
    if rate is None or not (rate > 0 and math.isfinite(rate)):
        raise UserError(f"optimizer.learning_rate is {rate}: set a number above 0")
    if not 0 <= end <= rate:
        raise UserError(f"optimizer.end_learning_rate={end} is not between 0 and optimizer.learning_rate={rate}")
    if total_steps < 1:
        raise UserError(f"a run of {total_steps} steps trains nothing: set train.steps, train.epochs or train.examples")
    if not 0 <= warmup_steps < total_steps:
        raise UserError(f"a warm-up of {warmup_steps} steps does not fit in a run of {total_steps}: shorten it")

    decay_steps = total_steps - warmup_steps
    if optimizer.schedule == "cosine":
        schedule = optax.cosine_decay_schedule(rate, decay_steps, alpha=end / rate)
    elif optimizer.schedule == "poly":
        if not optimizer.poly_power > 0:
            raise UserError(f"optimizer.poly_power is {optimizer.poly_power}: set a number above 0")
        schedule = optax.polynomial_schedule(rate, end, optimizer.poly_power, decay_steps)
    else:
        schedule = optax.constant_schedule(rate)
    if warmup_steps:
        schedule = optax.join_schedules([optax.linear_schedule(0.0, rate, warmup_steps), schedule], [warmup_steps])
    return lambda step: jnp.asarray(schedule(step), dtype=float)


def make_optimizer(
    optimizer: ConfigDict, total_steps: int, warmup_steps: int, params: Mapping[str, Any]
) -> optax.GradientTransformation:
    """The whole update rule, from mean gradients to what `optax.apply_updates` adds to the parameters.

    In this order: coupled L2 on leaves named "kernel", clipping, momentum and rate, decoupled decay, the multiplier
    of the part. Multipliers scale the rate of everything in their part, decay included. Frozen parts get updates of
    exactly zero, are not decayed, do not count in the global norm and have no momentum buffer.

    Args:
      optimizer: the group `optimizer` of a config.
      total_steps: updates of the whole run, warm-up included.
      warmup_steps: updates of the linear warm-up, 0 for none.
      params: the parameters, or anything of their structure; only the names at the top level are read. Multipliers
        and frozen parts name these; parts that the config knows and this network lacks are passed over.

    Returns:
      A transformation whose state holds the step count and the momentum buffers.

    Raises:
      UserError: an option, a part or a number that does not exist or does not fit.
    """
    _validate(optimizer)
    schedule = make_schedule(optimizer, total_steps, warmup_steps)
    multipliers = dict(optimizer.learning_rate_multipliers)
    _check_parts("learning_rate_multipliers", multipliers, params)
    _check_parts("frozen", optimizer.frozen, params)
    for part, factor in multipliers.items():
        if not (factor > 0 and math.isfinite(factor)):
            raise UserError(
                f"optimizer.learning_rate_multipliers.{part} is {factor}: set a number above 0, "
                f"or name the part in optimizer.frozen"
            )

    coupled = optimizer.weight_decay if optimizer.weight_decay_rule == "coupled_kernels" else 0.0
    decoupled = optimizer.weight_decay if optimizer.weight_decay_rule == "decoupled_all" else 0.0
    stages = []
    if coupled:
        stages.append(optax.add_decayed_weights(coupled, mask=_is_kernel))
    if optimizer.clip == "per_variable":
        stages.append(clip_by_variable_norm(optimizer.clip_norm))
    elif optimizer.clip == "global":
        stages.append(optax.clip_by_global_norm(optimizer.clip_norm))
    rate = optax.scale_by_learning_rate(schedule)
    momentum = optax.trace(optimizer.momentum, optimizer.nesterov) if optimizer.momentum else optax.identity()
    stages += [rate, momentum] if optimizer.momentum_rule == "keras" else [momentum, rate]
    if decoupled:
        stages.append(add_decoupled_decay(decoupled, schedule))
    if any(factor != 1 for factor in multipliers.values()):
        stages.append(scale_parts(multipliers))
    update_rule = optax.chain(*stages)

    frozen = set(optimizer.frozen) & set(params)
    if not frozen:
        return update_rule
    if frozen == set(params):
        raise UserError(f"optimizer.frozen={tuple(optimizer.frozen)} holds every part: nothing is left to train")
    labels = {part: "frozen" if part in frozen else "trained" for part in params}
    return optax.partition({"trained": update_rule, "frozen": optax.set_to_zero()}, labels)


def clip_by_variable_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales every array on its own to an L2 norm of at most `max_norm`: g * c / max(norm, c), Keras' clipnorm."""

    def clip(gradient, _):
        return gradient * (max_norm / jnp.maximum(jnp.linalg.norm(gradient.ravel()), max_norm))

    return optax.stateless_with_tree_map(clip)


def add_decoupled_decay(weight_decay: float, schedule: Schedule) -> optax.GradientTransformation:
    """Adds -rate * weight_decay * weight to finished updates, with the rate of the current step (Keras' rule)."""

    def update(updates, state, params=None):
        factor = -weight_decay * schedule(state.count)
        updates = jax.tree.map(lambda u, p: u + factor.astype(p.dtype) * p, updates, params)
        return updates, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformation(lambda params: optax.ScaleByScheduleState(jnp.zeros([], jnp.int32)), update)


def scale_parts(multipliers: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies every update by the factor of its top-level part; parts without a factor keep theirs."""

    def scale(path, update):
        return update * multipliers.get(path[0].key, 1.0)

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates))


def _is_kernel(params) -> Any:
    """True at convolution kernels; BatchNorm's scale and bias and the classifier's bias carry no L2 in the papers."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def _validate(optimizer: ConfigDict) -> None:
    _choose("momentum_rule", optimizer.momentum_rule, _MOMENTUM_RULES)
    _choose("clip", optimizer.clip, _CLIPS)
    _choose("weight_decay_rule", optimizer.weight_decay_rule, _DECAY_RULES)
    if not 0 <= optimizer.momentum < 1:
        raise UserError(f"optimizer.momentum is {optimizer.momentum}: set a number from 0 up to, not including, 1")
    if optimizer.nesterov and not optimizer.momentum:
        raise UserError("optimizer.nesterov needs momentum: set optimizer.momentum above 0")
    if not (optimizer.weight_decay >= 0 and math.isfinite(optimizer.weight_decay)):
        raise UserError(f"optimizer.weight_decay is {optimizer.weight_decay}: set 0 or a number above it")
    norm = optimizer.clip_norm
    if optimizer.clip == "none" and norm is not None:
        raise UserError(
            f"optimizer.clip_norm={norm} has no effect with optimizer.clip=none: set per_variable or global"
        )
    if optimizer.clip != "none" and (norm is None or not norm > 0):
        raise UserError(f"optimizer.clip={optimizer.clip} needs optimizer.clip_norm above 0, not {norm}")


def _choose(field: str, value: str, options: tuple[str, ...]) -> None:
    if value not in options:
        raise UserError(f"optimizer.{field} is {value!r}: choose one of {', '.join(options)}{_hint(value, options)}")


def _check_parts(field: str, names: Iterable[str], params: Mapping[str, Any]) -> None:
    known = sorted({"backbone", "aspp", "decoder", "classifier"} | set(params))
    for name in names:
        if name not in known:
            parts = ", ".join(known)
            raise UserError(f"optimizer.{field} names {name!r}, but the parts are {parts}{_hint(name, known)}")


def _hint(value: str, options: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(value), list(options), n=1)
    return f" (did you mean {near[0]}?)" if near else ""
