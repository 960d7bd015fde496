"""Precise BatchNorm: statistics of the trained network, instead of an average over steps that changed it."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from deeplab_jax.parallel import sharding


def make_moments_function(
    model: nn.Module, *, num_parts: int = 1, mesh: jax.sharding.Mesh | None = None
) -> Callable[[PyTree, Array, Array], PyTree]:
    """Returns a function that computes the moments of a batch at every BatchNorm.

    Args:
      model: the network.
      num_parts: number of parts of a batch that BatchNorm sees one at a time, `config.train.accumulate_steps`.
      mesh: the mesh that the variables are split over.

    Returns:
      A jitted function of variables, images (batch, height, width, channels) and a dropout key. Its result has the
      structure of the batch statistics: at `mean` the mean, and at `var` the mean of squares.
    """

    def part_moments(variables, images, rng):
        def update(batch_stats):
            _, updates = model.apply(
                {"params": variables["params"], "batch_stats": batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": rng},
            )
            return updates["batch_stats"]

        # running = decay * running + (1 - decay) * batch: at 0 it is (1 - decay) * batch, and its slope is the decay.
        zeros, ones = (jax.tree.map(fill, variables["batch_stats"]) for fill in (jnp.zeros_like, jnp.ones_like))
        value, decay = jax.jvp(update, (zeros,), (ones,))
        return _with_squares(jax.tree.map(lambda value, decay: value / (1 - decay), value, decay))

    @jax.jit
    def moments(variables, images, rng):
        if mesh is not None:
            variables = sharding.gather(variables, mesh)
        # Parts as in the train step: part k holds every `num_parts`-th example starting at the k-th.
        parts = jnp.moveaxis(images.reshape(-1, num_parts, *images.shape[1:]), 1, 0)
        keys = jax.random.split(rng, num_parts)
        of_parts = jax.lax.map(lambda part: part_moments(variables, *part), (parts, keys))
        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), of_parts)

    return moments


def recompute_statistics(
    moments: Callable[[PyTree, Array, Array], PyTree], variables: PyTree, batches: Iterable[Array], rng: Array
) -> PyTree:
    """Returns the batch statistics of the network over all batches together.

    Args:
      moments: the function of `make_moments_function`.
      variables: the variables of the network.
      batches: images of the same number in each batch.
      rng: key of the dropout, of which each batch derives its own.
    """
    total, count = None, 0
    for count, images in enumerate(batches, start=1):
        new = moments(variables, images, jax.random.fold_in(rng, count))
        total = new if total is None else jax.tree.map(jnp.add, total, new)
    return _with_variances(jax.tree.map(lambda leaf: leaf / count, total))


def _with_squares(stats: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces each variance with the mean of squares, which can be averaged."""
    if "var" in stats:
        return {"mean": stats["mean"], "var": stats["var"] + jnp.square(stats["mean"])}
    return {name: _with_squares(child) for name, child in stats.items()}


def _with_variances(moments: Mapping[str, Any]) -> dict[str, Any]:
    """Undoes `_with_squares`."""
    if "var" in moments:
        variance = jnp.maximum(moments["var"] - jnp.square(moments["mean"]), 0)
        return {"mean": moments["mean"], "var": variance}
    return {name: _with_variances(child) for name, child in moments.items()}
