"""Optimizers and schedules: SGD as in the papers and as in Keras, Adam, clipping, weight decay, freezing."""

import fnmatch
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree
from ml_collections import ConfigDict

from deeplab_jax.config import check_fields
from deeplab_jax.errors import UserError, suggest

# Learning rate as a function of the step, counted from 0.
Schedule = Callable[[Int[Array, ""] | int], Float[Array, ""]]

# A Python number, or a traced one in a compiled step.
Number = float | int | Array

# The numbers of an optimizer by name, see `hyperparams`.
Hyperparams = Mapping[str, Any]


def make(
    optimizer: ConfigDict, total_steps: int, warmup_steps: int = 0, *, parts: Sequence[str]
) -> tuple[optax.GradientTransformation, Schedule]:
    """Builds the gradient transformation of `config.optimizer` and its learning rate schedule.

    The transformation applies, in order: coupled weight decay (research/deeplab adds it to the loss, so it is clipped
    too); clipping; momentum and learning rate; decoupled weight decay; the multipliers of parts and of biases.

    With `momentum_rule="keras"` the learning rate is inside the momentum buffer: m = momentum * m - lr * g; w += m.
    With `classic` it is outside: m = momentum * m + g; w -= lr * m (PyTorch, optax). The two differ while the learning
    rate changes. With `weight_decay_rule="decoupled_all"` every variable shrinks by lr * weight_decay * w in addition
    to its momentum update, as in Keras 3. `coupled_kernels` adds weight_decay * w to the gradients of kernels only (the
    papers).

    Args:
      optimizer: the `optimizer` group of a config.
      total_steps: number of training steps.
      warmup_steps: number of warm-up steps of the learning rate.
      parts: top-level names of the parameters, which multipliers and freezing refer to.

    Returns:
      The gradient transformation, and the learning rate as a function of the step, counted from 0.

    Raises:
      UserError: an option or a part that does not exist, or a warm-up as long as the training.
    """
    return make_from(optimizer, hyperparams(optimizer, total_steps, warmup_steps), parts=parts)


def hyperparams(optimizer: ConfigDict, total_steps: int, warmup_steps: int = 0) -> dict[str, Any]:
    """Returns the numbers of `config.optimizer`, which a compiled train step takes as inputs.

    A number is left out if no selected option reads it, or if its value switches its part of the update off: a
    momentum, weight decay or warm-up of 0, or a multiplier of 1. The step then does not contain that part. Everything
    else, such as the name of a rule or the frozen parts, is a constant of the step. Two configs therefore have the same
    step if they have the same names here and the same constants.

    Args:
      optimizer: the `optimizer` group of a config.
      total_steps: number of training steps.
      warmup_steps: number of warm-up steps of the learning rate.

    Returns:
      The values by field. `steps` is the number of steps after the warm-up, and `milestones` count from its end.

    Raises:
      UserError: an option that does not exist, or a warm-up as long as the training.
    """
    check_fields("optimizer", optimizer)
    remaining = total_steps - warmup_steps
    if remaining < 1:
        raise UserError(
            f"the warm-up ({warmup_steps} steps) must be shorter than the training ({total_steps} steps); "
            "lower optimizer.warmup"
        )
    read_numbers, _ = _SCHEDULES[optimizer.schedule]
    values = {"learning_rate": float(optimizer.learning_rate), **read_numbers(optimizer, remaining)}
    if warmup_steps:
        values |= {"warmup_steps": warmup_steps, "warmup_learning_rate": float(optimizer.warmup_learning_rate)}
    if optimizer.clip != "none":
        values["clip_norm"] = _max_norm(optimizer)
    switched_off = {"momentum": 0, "weight_decay": 0, "bias_multiplier": 1}
    values |= {name: float(optimizer[name]) for name, off in switched_off.items() if optimizer[name] != off}
    multipliers = {part: float(factor) for part, factor in optimizer.learning_rate_multipliers.items() if factor != 1}
    return values | {"learning_rate_multipliers": multipliers}


def make_from(
    optimizer: ConfigDict, values: Hyperparams, *, parts: Sequence[str]
) -> tuple[optax.GradientTransformation, Schedule]:
    """Does what `make` does, with the numbers of `hyperparams` instead of the config's.

    Args:
      optimizer: the `optimizer` group of a config, for everything that is not a number.
      values: the numbers, which may be traced.
      parts: see `make`.
    """
    schedule = _make_schedule(optimizer, values)
    rate = optax.scale_by_learning_rate(schedule)
    add_decay = _WEIGHT_DECAY_RULES[optimizer.weight_decay_rule]
    before, after = add_decay(values["weight_decay"], schedule) if "weight_decay" in values else ([], [])
    clipping = _CLIPS[optimizer.clip](values)
    order = _MOMENTUM_RULES[optimizer.momentum_rule]
    momentum = _MOMENTUMS[optimizer.name](optimizer, values)
    chain = optax.chain(*before, *clipping, *order(momentum, rate), *after)
    return _by_part(chain, optimizer, values, parts), schedule


def make_schedule(optimizer: ConfigDict, total_steps: int, warmup_steps: int = 0) -> Schedule:
    """Builds the learning rate schedule of `config.optimizer`.

    `cosine` is Keras' CosineDecay: lr * (1 + cos(pi * t / T)) / 2. `poly` is DeepLabv3's (arXiv 1706.05587, section
    4.1): lr * (1 - t / T)^power. `step` multiplies the rate by a factor at each milestone, a fraction of T. In all of
    them, t counts from the end of the warm-up and T is the number of steps after it. The warm-up rises linearly, or
    stays low like research/deeplab's slow start, whose T contains the warm-up.

    Args:
      optimizer: the `optimizer` group of a config.
      total_steps: number of training steps.
      warmup_steps: number of warm-up steps.

    Raises:
      UserError: a schedule that does not exist, or a warm-up as long as the training.
    """
    return _make_schedule(optimizer, hyperparams(optimizer, total_steps, warmup_steps))


def _make_schedule(optimizer: ConfigDict, values: Hyperparams) -> Schedule:
    _, make_decay = _SCHEDULES[optimizer.schedule]
    decay = make_decay(**{name: values[name] for name in inspect.signature(make_decay).parameters})
    if "warmup_steps" not in values:
        return decay
    peak, first, steps = values["learning_rate"], values["warmup_learning_rate"], values["warmup_steps"]
    warmup = {
        "linear": lambda step: first + (peak - first) * (jnp.clip(step, 0, steps) / steps),
        "constant": lambda step: first,
    }[optimizer.warmup_rule]
    return optax.join_schedules([warmup, decay], [steps])


def _constant(learning_rate: Number) -> Schedule:
    return lambda step: learning_rate


def _cosine(learning_rate: Number, steps: Number) -> Schedule:
    return lambda step: learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(step, steps) / steps))


def _poly(learning_rate: Number, steps: Number, poly_power: Number) -> Schedule:
    """Like optax's polynomial_schedule, whose compiled 1 - t / T can fall below 0 at t = T, where its power is NaN."""
    return lambda step: learning_rate * ((steps - jnp.clip(step, 0, steps)) / steps) ** poly_power


def _step(learning_rate: Number, milestones: Sequence[Number], milestone_factor: Number) -> Schedule:
    def rate(step):
        falls = sum(jnp.asarray(step >= milestone, jnp.int32) for milestone in milestones)
        return learning_rate * milestone_factor**falls

    return rate


# By name, the numbers of a config that a schedule of some steps has apart from the learning rate, and the schedule.
_SCHEDULES = {
    "constant": (lambda optimizer, steps: {}, _constant),
    "cosine": (lambda optimizer, steps: {"steps": steps}, _cosine),
    "poly": (lambda optimizer, steps: {"steps": steps, "poly_power": float(optimizer.poly_power)}, _poly),
    "step": (
        lambda optimizer, steps: {
            "milestones": sorted(round(fraction * steps) for fraction in optimizer.milestones),
            "milestone_factor": float(optimizer.milestone_factor),
        },
        _step,
    ),
}


def _sgd(optimizer: ConfigDict, values: Hyperparams) -> optax.GradientTransformation:
    return optax.trace(values["momentum"], nesterov=optimizer.nesterov) if "momentum" in values else optax.identity()


def _adam(optimizer: ConfigDict, values: Hyperparams) -> optax.GradientTransformation:
    if optimizer.momentum_rule != "classic":
        raise UserError(f"optimizer.momentum_rule={optimizer.momentum_rule!r} is for sgd; set 'classic' for adam")
    return optax.scale_by_adam(values.get("momentum", 0.0), nesterov=optimizer.nesterov)


_MOMENTUMS = {"sgd": _sgd, "adam": _adam}
_MOMENTUM_RULES = {"classic": lambda momentum, rate: (momentum, rate), "keras": lambda momentum, rate: (rate, momentum)}


def clip_per_variable(max_norm: Number) -> optax.GradientTransformation:
    """Clips like Keras' clipnorm: each variable's gradient g becomes g * max_norm / max(norm(g), max_norm)."""

    def clip(gradient):
        norm = jnp.sqrt(jnp.sum(jnp.square(gradient)))
        return gradient * (max_norm / jnp.maximum(norm, max_norm))

    return optax.stateless(lambda gradients, params=None: jax.tree.map(clip, gradients))


def _max_norm(optimizer: ConfigDict) -> float:
    if optimizer.clip_norm is None or optimizer.clip_norm <= 0:
        raise UserError(f"optimizer.clip={optimizer.clip!r} needs optimizer.clip_norm above 0")
    return optimizer.clip_norm


# By name, functions of the numbers that return the transformations.
_CLIPS = {
    "none": lambda values: [],
    "per_variable": lambda values: [clip_per_variable(values["clip_norm"])],
    "global": lambda values: [optax.clip_by_global_norm(values["clip_norm"])],
}


def _is_kernel(params: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def _is_any(params: PyTree) -> PyTree:
    return jax.tree.map(lambda _: True, params)


class _StepCount(NamedTuple):
    count: Int[Array, ""]


def _decoupled_decay(
    weight_decay: Number, schedule: Schedule, mask: Callable[[PyTree], PyTree]
) -> optax.GradientTransformation:
    def update(updates, state, params):
        factor = schedule(state.count) * weight_decay
        updates = jax.tree.map(
            lambda update, param, decays: update - factor * param if decays else update, updates, params, mask(params)
        )
        return updates, _StepCount(state.count + 1)

    return optax.GradientTransformation(lambda params: _StepCount(jnp.zeros((), jnp.int32)), update)


# By name, functions of the factor and the schedule that return the transformations before and after the momentum.
_WEIGHT_DECAY_RULES = {
    "coupled_kernels": lambda decay, schedule: ([optax.add_decayed_weights(decay, mask=_is_kernel)], []),
    "decoupled_all": lambda decay, schedule: ([], [_decoupled_decay(decay, schedule, _is_any)]),
    "decoupled_kernels": lambda decay, schedule: ([], [_decoupled_decay(decay, schedule, _is_kernel)]),
}


def _by_part(
    rule: optax.GradientTransformation, optimizer: ConfigDict, values: Hyperparams, parts: Sequence[str]
) -> optax.GradientTransformation:
    """Scales the updates of each part. Frozen parameters get no update and no optimizer state.

    Clipping by the global norm comes earlier in the chain and sees trained parameters only.
    """
    multipliers, frozen = values["learning_rate_multipliers"], tuple(optimizer.frozen)
    wrong = [("learning_rate_multipliers", name) for name in optimizer.learning_rate_multipliers if name not in parts]
    first_names = [pattern.split("/")[0] for pattern in frozen]
    wrong += [("frozen", name) for name in first_names if not fnmatch.filter(parts, name)]
    for field, name in wrong:
        raise UserError(f"optimizer.{field} names {name!r}, which is not a part of the network{suggest(name, parts)}")

    def scale(updates, params=None):
        if "bias_multiplier" in values:
            updates = _scale_biases(updates, values["bias_multiplier"])
        return {
            part: _scale(tree, multipliers[part]) if part in multipliers else tree for part, tree in updates.items()
        }

    rule = optax.chain(rule, optax.stateless(scale))
    if not frozen:
        return rule

    def partition(params):
        _check_patterns(params, frozen)
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "frozen" if _is_frozen(path, frozen) else "learning", params
        )

    return optax.partition({"learning": rule, "frozen": optax.set_to_zero()}, partition)


def _scale(updates: PyTree, factor: Number) -> PyTree:
    return jax.tree.map(lambda update: update * factor, updates)


def _scale_biases(updates: PyTree, factor: Number) -> PyTree:
    """Scales the biases that stand beside a kernel. BatchNorm and LayerNorm have a `bias` beside their `scale`."""
    if not isinstance(updates, Mapping):
        return updates
    return {
        name: _scale(tree, factor) if name == "bias" and "kernel" in updates else _scale_biases(tree, factor)
        for name, tree in updates.items()
    }


def stop_frozen(params: PyTree, frozen: Sequence[str]) -> PyTree:
    """Stops the gradients of the parameters that `optimizer.frozen` matches, so XLA never computes them.

    Args:
      params: the parameters of the network.
      frozen: patterns of `config.optimizer.frozen`.
    """
    if not frozen:
        return params
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.lax.stop_gradient(leaf) if _is_frozen(path, frozen) else leaf, params
    )


def _is_frozen(path: tuple[Any, ...], frozen: Sequence[str]) -> bool:
    """True if a pattern matches a parameter's path or a prefix of it."""
    names = [key.key for key in path]
    patterns = (pattern.split("/") for pattern in frozen)
    return any(len(pattern) <= len(names) and all(map(fnmatch.fnmatchcase, names, pattern)) for pattern in patterns)


def _check_patterns(params: PyTree, frozen: Sequence[str]) -> None:
    """Raises a UserError for a pattern that matches no parameter."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in frozen:
        if not any(_is_frozen(path, [pattern]) for path in paths):
            modules = sorted({"/".join(key.key for key in path[:2]) for path in paths})
            raise UserError(f"optimizer.frozen={pattern!r} matches no parameter{suggest(pattern, modules)}")
