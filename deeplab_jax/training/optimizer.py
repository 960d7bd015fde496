"""Optimizers and schedules: SGD as in the papers and as in Keras, Adam, clipping, weight decay, freezing."""

import fnmatch
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
    schedule = make_schedule(optimizer, total_steps, warmup_steps)
    rate = optax.scale_by_learning_rate(schedule)
    add_decay = _WEIGHT_DECAY_RULES[optimizer.weight_decay_rule]
    before, after = add_decay(optimizer.weight_decay, schedule) if optimizer.weight_decay else ([], [])
    clipping = _CLIPS[optimizer.clip](optimizer)
    order = _MOMENTUM_RULES[optimizer.momentum_rule]
    momentum = _MOMENTUMS[optimizer.name](optimizer)
    chain = optax.chain(*before, *clipping, *order(momentum, rate), *after)
    return _by_part(chain, optimizer, parts), schedule


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
    check_fields("optimizer", optimizer)
    remaining = total_steps - warmup_steps
    if remaining < 1:
        raise UserError(
            f"the warm-up ({warmup_steps} steps) must be shorter than the training ({total_steps} steps); "
            "lower optimizer.warmup"
        )
    decay = _SCHEDULES[optimizer.schedule](optimizer, remaining)
    if not warmup_steps:
        return decay
    first = optimizer.warmup_learning_rate
    warmup = {
        "linear": optax.linear_schedule(first, optimizer.learning_rate, warmup_steps),
        "constant": optax.constant_schedule(first),
    }[optimizer.warmup_rule]
    return optax.join_schedules([warmup, decay], [warmup_steps])


def _constant(optimizer: ConfigDict, steps: int) -> Schedule:
    return optax.constant_schedule(optimizer.learning_rate)


def _cosine(optimizer: ConfigDict, steps: int) -> Schedule:
    return optax.cosine_decay_schedule(optimizer.learning_rate, steps)


def _poly(optimizer: ConfigDict, steps: int) -> Schedule:
    """Like optax's polynomial_schedule, whose compiled 1 - t / T can fall below 0 at t = T, where its power is NaN."""
    peak, power = optimizer.learning_rate, optimizer.poly_power
    return lambda step: peak * ((steps - jnp.clip(step, 0, steps)) / steps) ** power


def _step(optimizer: ConfigDict, steps: int) -> Schedule:
    milestones = sorted(round(fraction * steps) for fraction in optimizer.milestones)
    rates = [optimizer.learning_rate * optimizer.milestone_factor**falls for falls in range(len(milestones) + 1)]
    return optax.join_schedules([optax.constant_schedule(rate) for rate in rates], milestones)


_SCHEDULES = {"constant": _constant, "cosine": _cosine, "poly": _poly, "step": _step}


def _sgd(optimizer: ConfigDict) -> optax.GradientTransformation:
    return optax.trace(optimizer.momentum, nesterov=optimizer.nesterov) if optimizer.momentum else optax.identity()


def _adam(optimizer: ConfigDict) -> optax.GradientTransformation:
    if optimizer.momentum_rule != "classic":
        raise UserError(f"optimizer.momentum_rule={optimizer.momentum_rule!r} is for sgd; set 'classic' for adam")
    return optax.scale_by_adam(optimizer.momentum, nesterov=optimizer.nesterov)


_MOMENTUMS = {"sgd": _sgd, "adam": _adam}
_MOMENTUM_RULES = {"classic": lambda momentum, rate: (momentum, rate), "keras": lambda momentum, rate: (rate, momentum)}


def clip_per_variable(max_norm: float) -> optax.GradientTransformation:
    """Clips like Keras' clipnorm: each variable's gradient g becomes g * max_norm / max(norm(g), max_norm)."""

    def clip(gradient):
        norm = jnp.sqrt(jnp.sum(jnp.square(gradient)))
        return gradient * (max_norm / jnp.maximum(norm, max_norm))

    return optax.stateless(lambda gradients, params=None: jax.tree.map(clip, gradients))


def _max_norm(optimizer: ConfigDict) -> float:
    if optimizer.clip_norm is None or optimizer.clip_norm <= 0:
        raise UserError(f"optimizer.clip={optimizer.clip!r} needs optimizer.clip_norm above 0")
    return optimizer.clip_norm


# By name, functions of `config.optimizer` that return the transformations.
_CLIPS = {
    "none": lambda optimizer: [],
    "per_variable": lambda optimizer: [clip_per_variable(_max_norm(optimizer))],
    "global": lambda optimizer: [optax.clip_by_global_norm(_max_norm(optimizer))],
}


def _is_kernel(params: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def _is_any(params: PyTree) -> PyTree:
    return jax.tree.map(lambda _: True, params)


class _StepCount(NamedTuple):
    count: Int[Array, ""]


def _decoupled_decay(
    weight_decay: float, schedule: Schedule, mask: Callable[[PyTree], PyTree]
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
    rule: optax.GradientTransformation, optimizer: ConfigDict, parts: Sequence[str]
) -> optax.GradientTransformation:
    """Scales the updates of each part. Frozen parameters get no update and no optimizer state.

    Clipping by the global norm comes earlier in the chain and sees trained parameters only.
    """
    multipliers, frozen = dict(optimizer.learning_rate_multipliers), tuple(optimizer.frozen)
    wrong = [("learning_rate_multipliers", name) for name in multipliers if name not in parts]
    first_names = [pattern.split("/")[0] for pattern in frozen]
    wrong += [("frozen", name) for name in first_names if not fnmatch.filter(parts, name)]
    for field, name in wrong:
        raise UserError(f"optimizer.{field} names {name!r}, which is not a part of the network{suggest(name, parts)}")

    def scale(updates, params=None):
        if optimizer.bias_multiplier != 1.0:
            updates = _scale_biases(updates, optimizer.bias_multiplier)
        return {
            part: _scale(tree, multipliers[part]) if multipliers.get(part, 1.0) != 1.0 else tree
            for part, tree in updates.items()
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


def _scale(updates: PyTree, factor: float) -> PyTree:
    return jax.tree.map(lambda update: update * factor, updates)


def _scale_biases(updates: PyTree, factor: float) -> PyTree:
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
