"""SGD with momentum, schedules, clipping and weight decay, as the papers and as Keras define them; and Adam."""

import fnmatch
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree
from ml_collections import ConfigDict

from deeplab_jax.errors import UserError, suggest

# The learning rate of a step, counted from 0.
Schedule = Callable[[Int[Array, ""] | int], Float[Array, ""]]


def make_schedule(optimizer: ConfigDict, total_steps: int, warmup_steps: int = 0) -> Schedule:
    """The learning rate of a step, counted from 0 before the step's update.

    `cosine` is Keras' CosineDecay: lr * (1 + cos(pi * t / T)) / 2. `poly` is DeepLabv3's (arXiv 1706.05587, section
    4.1): lr * (1 - t / T)^power. In both, t counts from the end of the warm-up and T is what remains of `total_steps`.
    The warm-up rises linearly from 0.

    Raises:
      UserError: no such schedule, or a warm-up as long as the training.
    """
    peak = optimizer.learning_rate
    remaining = total_steps - warmup_steps
    if remaining < 1:
        raise UserError(f"the warm-up of {warmup_steps} steps fills the whole training of {total_steps}")
    if optimizer.schedule == "constant":
        decay = optax.constant_schedule(peak)
    elif optimizer.schedule == "cosine":
        decay = optax.cosine_decay_schedule(peak, remaining)
    elif optimizer.schedule == "poly":
        decay = _poly(peak, optimizer.poly_power, remaining)
    else:
        known = ("constant", "cosine", "poly")
        raise UserError(f"optimizer.schedule={optimizer.schedule!r} does not exist{suggest(optimizer.schedule, known)}")
    if not warmup_steps:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup_steps), decay], [warmup_steps])


def _poly(peak: int | float, power: int | float, steps: int) -> Schedule:
    """As optax' polynomial_schedule, whose compiled 1 - t / T can fall below 0 at t = T, where its power is NaN."""
    return lambda step: peak * ((steps - jnp.clip(step, 0, steps)) / steps) ** power


def make_optimizer(
    optimizer: ConfigDict, total_steps: int, warmup_steps: int = 0, *, parts: tuple[str, ...]
) -> optax.GradientTransformation:
    """The update rule of `config.optimizer`.

    In order: coupled weight decay joins the gradient (research/deeplab has it in the loss, so it is clipped too);
    clipping; momentum and rate; decoupled weight decay. With `momentum_rule="keras"` the buffer holds rates:
    m = momentum * m - lr * g; w += m. With `classic` it does not: m = momentum * m + g; w -= lr * m (PyTorch, optax);
    the two differ while the rate changes. With `weight_decay_rule="decoupled_all"` every variable shrinks by
    lr * weight_decay * w beside its momentum, as Keras 3 does; `coupled_kernels` adds weight_decay * w to the gradients
    of kernels only (the papers).

    Args:
      optimizer: the `optimizer` group of a config.
      total_steps: of the training.
      warmup_steps: of the schedule.
      parts: top-level names of the parameters that multipliers and freezing may name.

    Raises:
      UserError: an option or a part that does not exist.
    """
    schedule = make_schedule(optimizer, total_steps, warmup_steps)
    chain = []
    if optimizer.weight_decay_rule not in ("coupled_kernels", "decoupled_all"):
        known = ("coupled_kernels", "decoupled_all")
        raise UserError(
            f"optimizer.weight_decay_rule={optimizer.weight_decay_rule!r} does not exist"
            f"{suggest(optimizer.weight_decay_rule, known)}"
        )
    if optimizer.weight_decay and optimizer.weight_decay_rule == "coupled_kernels":
        chain.append(optax.add_decayed_weights(optimizer.weight_decay, mask=_is_kernel))
    chain += _clipping(optimizer)
    rate = optax.scale_by_learning_rate(schedule)
    momentum = _momentum(optimizer)
    if optimizer.momentum_rule == "keras":
        chain += [rate, momentum]
    elif optimizer.momentum_rule == "classic":
        chain += [momentum, rate]
    else:
        known = ("classic", "keras")
        raise UserError(
            f"optimizer.momentum_rule={optimizer.momentum_rule!r} does not exist"
            f"{suggest(optimizer.momentum_rule, known)}"
        )
    if optimizer.weight_decay and optimizer.weight_decay_rule == "decoupled_all":
        chain.append(_decoupled_decay(optimizer.weight_decay, schedule))
    return _by_part(optax.chain(*chain), optimizer, parts)


def _momentum(optimizer: ConfigDict) -> optax.GradientTransformation:
    if optimizer.name == "adam":
        if optimizer.momentum_rule != "classic":
            raise UserError(f"optimizer.momentum_rule={optimizer.momentum_rule!r} is of sgd; adam needs 'classic'")
        return optax.scale_by_adam(optimizer.momentum, nesterov=optimizer.nesterov)
    if optimizer.name != "sgd":
        raise UserError(f"optimizer.name={optimizer.name!r} does not exist{suggest(optimizer.name, ('sgd', 'adam'))}")
    return optax.trace(optimizer.momentum, nesterov=optimizer.nesterov) if optimizer.momentum else optax.identity()


def clip_per_variable(max_norm: float) -> optax.GradientTransformation:
    """Keras' clipnorm: each variable's gradient becomes g * max_norm / max(norm(g), max_norm), on its own."""

    def clip(gradient):
        norm = jnp.sqrt(jnp.sum(jnp.square(gradient)))
        return gradient * (max_norm / jnp.maximum(norm, max_norm))

    return optax.stateless(lambda gradients, params=None: jax.tree.map(clip, gradients))


def _clipping(optimizer: ConfigDict) -> list[optax.GradientTransformation]:
    if optimizer.clip == "none":
        return []
    if optimizer.clip not in ("per_variable", "global"):
        known = ("none", "per_variable", "global")
        raise UserError(f"optimizer.clip={optimizer.clip!r} does not exist{suggest(optimizer.clip, known)}")
    if optimizer.clip_norm is None or optimizer.clip_norm <= 0:
        raise UserError(f"optimizer.clip={optimizer.clip!r} needs optimizer.clip_norm above 0")
    if optimizer.clip == "per_variable":
        return [clip_per_variable(optimizer.clip_norm)]
    return [optax.clip_by_global_norm(optimizer.clip_norm)]


def _is_kernel(params: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


class _StepCount(NamedTuple):
    count: Int[Array, ""]


def _decoupled_decay(weight_decay: float, schedule: Schedule) -> optax.GradientTransformation:
    def update(updates, state, params):
        factor = schedule(state.count) * weight_decay
        updates = jax.tree.map(lambda update, param: update - factor * param, updates, params)
        return updates, _StepCount(state.count + 1)

    return optax.GradientTransformation(lambda params: _StepCount(jnp.zeros((), jnp.int32)), update)


def _by_part(rule: optax.GradientTransformation, optimizer: ConfigDict, parts: tuple[str, ...]):
    """Scales whole updates by part, and gives what is frozen none at all (and no momentum to remember).

    Clipping by the global norm comes before: it sees the learning parts only.
    """
    multipliers, frozen = dict(optimizer.learning_rate_multipliers), tuple(optimizer.frozen)
    wrong = [("learning_rate_multipliers", name) for name in multipliers if name not in parts]
    first_names = [pattern.split("/")[0] for pattern in frozen]
    wrong += [("frozen", name) for name in first_names if not fnmatch.filter(parts, name)]
    for field, name in wrong:
        raise UserError(f"optimizer.{field} names {name!r}, which is no part{suggest(name, parts)}")

    def scale(updates, params=None):
        return {
            part: jax.tree.map(lambda update, part=part: update * multipliers[part], tree)
            if multipliers.get(part, 1.0) != 1.0
            else tree
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


def stop_frozen(params: PyTree, frozen: Sequence[str]) -> PyTree:
    """The parameters, of which those of `optimizer.frozen` have a gradient of zero that takes no time to compute."""
    if not frozen:
        return params
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.lax.stop_gradient(leaf) if _is_frozen(path, frozen) else leaf, params
    )


def _is_frozen(path: tuple[Any, ...], frozen: Sequence[str]) -> bool:
    """Whether a pattern matches a parameter's path or the beginning of it."""
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
