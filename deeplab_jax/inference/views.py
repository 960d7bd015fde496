"""The logits of views that a `ViewProtocol` makes: of the whole view, or of windows that slide over it."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, UInt8

from deeplab_jax.data.view_protocols import ViewProtocol, Windows, window_count
from deeplab_jax.errors import UserError
from deeplab_jax.inference import multi_scale
from deeplab_jax.inference.runtime import CoarseNetwork, coarse_logits, coarse_views
from deeplab_jax.parallel import sharding

# Takes variables, views (batch, height, width, 3) and their extents (batch, 2). Returns the logits of the views, at
# their size, and with `flip` also those of the mirrored views, mirrored back.
ViewNetwork = Callable[[Any, Array, Array], list[Float[Array, "batch height width classes"]]]


def view_network(
    model: nn.Module,
    protocol: ViewProtocol,
    *,
    flip: bool = False,
    mesh: jax.sharding.Mesh | None = None,
    coarse: bool = False,
    network: CoarseNetwork | None = None,
) -> ViewNetwork:
    """Returns the function that computes the logits of views. Evaluation and prediction call the same one.

    Args:
      model: the network.
      protocol: makes the views.
      flip: also see each view mirrored.
      mesh: the mesh that variables and views are split over.
      coarse: return logits at the classifier's resolution, except for windows, which have none in common.
      network: computes the network in place of XLA, without a mesh and only with `coarse`.

    Raises:
      UserError: windows are blended, which a `Predictor` does.
    """
    if isinstance(protocol, Windows) and protocol.is_blended:
        raise UserError("eval.window_average=blended computes windows one by one, not in one program; choose another")
    if isinstance(protocol, Windows):
        return _SlidingNetwork(model, protocol, flip=flip, mesh=mesh, network=network)
    if network is not None:
        views_of = coarse_views(network, model, scales=(1.0,), flip=flip)
        return lambda variables, views, extents: views_of(views)

    def apply(variables, views):
        if mesh is not None:
            variables = sharding.gather(variables, mesh)
        both = multi_scale.network_views(model, variables, views, flip=flip)
        return [view.coarse if coarse else view.logits for view in both]

    compiled = jax.jit(apply)
    return lambda variables, views, extents: compiled(variables, views)


class _SlidingNetwork:
    """Slides windows over views. The network, which takes long to compile, is compiled for one window size.

    All views of a batch have the same number of windows on the host. A view that needs fewer of them sees its last one
    again, with weight zero.
    """

    def __init__(
        self,
        model: nn.Module,
        protocol: Windows,
        *,
        flip: bool,
        mesh: jax.sharding.Mesh | None,
        network: CoarseNetwork | None,
    ):
        self._protocol, self._flips = protocol, (False, True) if flip else (False,)
        self._num_classes = model.num_classes

        def apply(variables, pixels):
            if mesh is not None:
                variables = sharding.gather(variables, mesh)
            logits, _ = model.apply(variables, pixels, train=False)
            return values(logits)

        def values(logits):
            return logits if protocol.average == "logits" else jax.nn.softmax(logits, axis=-1)

        split = None if mesh is None else sharding.batch_sharding(mesh)
        self._apply = jax.jit(apply, out_shardings=split)
        if network is not None:
            enlarge = jax.jit(lambda logits, size: values(model.resize(logits, size)), static_argnums=1)
            self._apply = lambda variables, pixels: enlarge(coarse_logits(network, pixels), pixels.shape[1:3])
        self._zeros = jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=split)
        self._cut = jax.jit(_cut_window, static_argnames=("window", "stride", "is_mirrored"), out_shardings=split)
        self._add = jax.jit(
            _add_window, static_argnames=("counts", "stride", "is_mirrored"), donate_argnums=0, out_shardings=split
        )
        self._finish = jax.jit(multi_scale.log_probabilities, out_shardings=split)

    def __call__(
        self,
        variables: Any,
        views: UInt8[Array, "batch height width channels"],
        extents: Int[Array, "batch 2"],
    ) -> list[Float[Array, "batch height width classes"]]:
        """Returns the averaged logits of each view, or the logarithms of its averaged probabilities."""
        canvas, stride = views.shape[1:3], self._protocol.stride
        window = tuple(min(side, extent) for side, extent in zip(self._protocol.window, canvas, strict=True))
        counts = tuple(map(window_count, canvas, window, stride))
        results = []
        for is_mirrored in self._flips:
            total = self._zeros((*views.shape[:3], self._num_classes), jnp.float32)
            for row in range(counts[0]):
                for column in range(counts[1]):
                    at = np.array([row, column], np.int32)  # not on a device: processes have different ones
                    pixels = self._cut(views, extents, at, window=window, stride=stride, is_mirrored=is_mirrored)
                    values = self._apply(variables, pixels)
                    total = self._add(total, values, extents, at, counts=counts, stride=stride, is_mirrored=is_mirrored)
            results.append(total if self._protocol.average == "logits" else self._finish(total))
        return results


def _cut_window(views, extents, at, *, window, stride, is_mirrored):
    """Returns one window of each view. The windows of a mirrored view are those of the view from right to left."""
    starts = _starts(extents, at, window, stride, is_mirrored)
    size = (*window, views.shape[-1])
    pixels = jax.vmap(lambda view, start: lax.dynamic_slice(view, (start[0], start[1], 0), size))(views, starts)
    return pixels[:, :, ::-1] if is_mirrored else pixels


def _add_window(total, values, extents, at, *, counts, stride, is_mirrored):
    """Adds the values of one window of each view, divided by the number of windows that see a pixel."""
    if is_mirrored:
        values = values[:, :, ::-1]
    window = values.shape[1:3]
    starts = _starts(extents, at, window, stride, is_mirrored)
    weights = [_weights(extents[:, axis], at[axis], counts[axis], window[axis], stride[axis]) for axis in (0, 1)]
    if is_mirrored:
        weights[1] = weights[1][:, ::-1]

    def add(one, value, start, rows, columns):
        corner = (start[0], start[1], 0)
        part = lax.dynamic_slice(one, corner, value.shape) + value * rows[:, None, None] * columns[None, :, None]
        return lax.dynamic_update_slice(one, part, corner)

    return jax.vmap(add)(total, values, starts, *weights)


def _starts(extents, at, window, stride, is_mirrored):
    """Returns the (row, column) at which a window of each view begins: the last window ends with the view."""
    window = jnp.array(window, jnp.int32)[None]
    last = jnp.maximum(extents - window, 0)
    starts = jnp.minimum(at[None] * jnp.array(stride, jnp.int32)[None], last)
    if is_mirrored:
        starts = starts.at[:, 1].set(last[:, 1] - starts[:, 1])
    return starts


def _weights(extents, index, count, window, stride):
    """Returns the weight of each pixel of a window along one axis: one over the number of windows that contain it."""
    last = jnp.maximum(extents - window, 0)[:, None]
    needed = -(-last // stride) + 1  # see `window_count`
    indices = jnp.arange(count, dtype=jnp.int32)[None]
    starts = jnp.minimum(indices * stride, last)  # (batch, count)
    pixels = jnp.minimum(index * stride, last) + jnp.arange(window, dtype=jnp.int32)[None]  # (batch, window)
    offsets = pixels[:, None] - starts[:, :, None]
    covers = (offsets >= 0) & (offsets < window) & (indices < needed)[:, :, None]
    return jnp.where(index < needed, 1 / jnp.sum(covers.astype(jnp.float32), axis=1), 0.0)
