"""The computation of a predictor: from a batch of images, fitted to the network, to their labels."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from deeplab_jax import data
from deeplab_jax.data.eval_protocol import EvalProtocol, Size
from deeplab_jax.data.view_protocols import ViewProtocol, Windows
from deeplab_jax.inference import multi_scale, streaming_resize
from deeplab_jax.inference.views import view_network
from deeplab_jax.models import SegmentationNetwork
from deeplab_jax.parallel import sharding
from deeplab_jax.program_cache import Program

#: The arrays to return: labels alone, with the confidence, or with the probabilities of all classes too.
Kind = Literal["labels", "confidence", "probabilities"]

#: Labels (height, width), confidence (height, width) and probabilities (height, classes, width) of one image. Labels
#: are positions among the chosen classes. Arrays that were not asked for are None.
Arrays = tuple[np.ndarray, np.ndarray | None, np.ndarray | None]


@dataclasses.dataclass(frozen=True)
class Fitted:
    """An image as the network takes it.

    Attributes:
      views: the network's inputs, each (height, width, channels).
      extents: for each view, (height, width) of the image inside it, at the top left.
      size: (height, width) of the image.
    """

    views: tuple[np.ndarray, ...]
    extents: tuple[Size, ...]
    size: Size

    @property
    def canvas(self) -> Size:
        """(height, width) of the result, which contains the image at the top left."""
        height, width = map(data.bucket, self.size)
        return height, width

    @property
    def shapes(self) -> Hashable:
        """The key of a batch: images of equal shapes run the same compiled programs."""
        return self.canvas, tuple((view.shape, view.dtype.str) for view in self.views)

    @property
    def num_pixels(self) -> int:
        """Number of pixels of the network's inputs and of the result."""
        return self.canvas[0] * self.canvas[1] + sum(view.shape[0] * view.shape[1] for view in self.views)


@dataclasses.dataclass(frozen=True)
class Logits:
    """Logits of a batch, and how its images fit into them.

    Attributes:
      views: for each view, float (batch, height, width, chosen classes), at the classifier's resolution.
      inputs: for each view, (height, width) of the network's input.
      extents: for each view, float (batch, 2): height and width of the images inside the input.
      sizes: int (batch, 2), heights and widths of the images.
      canvas: (height, width) of the result.
    """

    views: list[jax.Array]
    inputs: tuple[Size, ...]
    extents: list[np.ndarray]
    sizes: np.ndarray
    canvas: Size


class Computation:
    """Computes the labels of batches of images, on one device or split over several.

    On several devices, each computes its images on its own, with the program that one device would run for them.

    Args:
      model: the network.
      variables: its variables, on the device or the devices.
      protocol: fits images to the network.
      scales: factors at which an image is seen.
      flip: see every scale mirrored as well.
      ids: ids of the classes to choose from.
      mesh: splits batches over its devices; None for one device.
    """

    def __init__(
        self,
        model: SegmentationNetwork,
        variables: Any,
        protocol: EvalProtocol,
        *,
        scales: tuple[int | float, ...],
        flip: bool,
        ids: np.ndarray,
        mesh: jax.sharding.Mesh | None = None,
    ):
        self._model, self._variables, self._protocol, self._mesh = model, variables, protocol, mesh
        self._scales, self._flip = scales, flip
        self._chosen = slice(None) if len(ids) == model.num_classes else ids
        self._split = None if mesh is None else sharding.batch_sharding(mesh)
        made_from = [model, mesh, scales, flip, self._chosen]
        self._network = self._program(jax.jit(self._on_each_device(self._apply_views, 1)), "network", made_from, 1)
        finish = jax.jit(self._resize_and_reduce, static_argnames=("inputs", "canvas", "kind"))
        self._finish = self._program(finish, "finish", made_from, 0)
        self._view_network = None
        is_blended = isinstance(protocol, Windows) and protocol.is_blended  # computed window by window
        if isinstance(protocol, ViewProtocol) and not is_blended:
            self._view_network = view_network(model, protocol, flip=flip, mesh=mesh, coarse=True)

    def with_variables(self, variables: Any) -> "Computation":
        """Returns the computation with other variables. It shares the compiled programs."""
        computation = copy.copy(self)
        computation._variables = variables
        return computation

    def _program(self, jitted: jax.stages.Wrapped, name: str, made_from: Sequence[Any], fixed: int) -> Callable:
        """Returns a function that is kept on disk when it is compiled. Needs variables on a device."""
        if self._mesh is not None:
            return Program(jitted, [name, *made_from], tuple(self._mesh.devices.flat), fixed=fixed)
        first = jax.tree.leaves(self._variables)[0]
        if not isinstance(first, jax.Array):
            return jitted
        return Program(jitted, [name, *made_from], tuple(first.devices()), fixed=fixed)

    @property
    def platform(self) -> str:
        """Platform of the devices, such as "cpu"."""
        first = jax.tree.leaves(self._variables)[0]
        return next(iter(first.devices())).platform if isinstance(first, jax.Array) else jax.default_backend()

    @property
    def num_devices(self) -> int:
        """Number of devices, of which batches have a multiple."""
        return 1 if self._mesh is None else self._mesh.size

    def fit(self, image: np.ndarray) -> Fitted:
        """Fits an image to the network. Needs no device, so other threads can call it."""
        if self._view_network is None:
            fed, extent = self._protocol.fit(image)
            return Fitted((fed,), (extent,), image.shape[:2])
        views, extents = zip(*(self._protocol.fit(image, scale) for scale in self._scales), strict=True)
        return Fitted(views, extents, image.shape[:2])

    def start(self, batch: Sequence[Fitted], kind: Kind, *, size: int = 1) -> Callable[[], list[Arrays]]:
        """Dispatches a batch without blocking.

        Args:
          batch: images of equal `Fitted.shapes`.
          kind: the arrays to return.
          size: number of images to compute, a multiple of `num_devices`; the last image fills up a smaller batch.

        Returns:
          A function that waits for the arrays of each image, and returns them.
        """
        return self.reduce(self.logits(batch, size=size), batch, kind)

    def logits(self, batch: Sequence[Fitted], *, size: int = 1) -> Logits:
        """Dispatches the network. See `start` for the arguments."""
        filled = [*batch, *[batch[-1]] * (size - len(batch))]
        shape = batch[0].views[0].shape[:2]
        if self._view_network is None:
            inputs = multi_scale.view_sizes(shape, self._scales, self._flip)
            fed = self._put(np.stack([fitted.views[0] for fitted in filled]))
            given = np.array([fitted.extents[0] for fitted in filled], np.float32)
            extents = [given * np.divide(view, shape, dtype=np.float32) for view in inputs]
            views = self._network(self._variables, fed)
        else:
            views, inputs, extents = [], [], []
            for i, view in enumerate(batch[0].views):
                fed = self._put(np.stack([fitted.views[i] for fitted in filled]))
                given = np.array([fitted.extents[i] for fitted in filled], np.int32)
                of_view = self._view_network(self._variables, fed, self._put(given))
                views += [logits[..., self._chosen] for logits in of_view]
                inputs += [view.shape[:2]] * len(of_view)
                extents += [given.astype(np.float32)] * len(of_view)
        sizes = np.array([fitted.size for fitted in filled], np.int32)
        return Logits(views, tuple(inputs), extents, sizes, batch[0].canvas)

    def reduce(self, logits: Logits, batch: Sequence[Fitted], kind: Kind) -> Callable[[], list[Arrays]]:
        """Dispatches the resizing of a batch's logits and their reduction. See `start` for the result."""
        extents, sizes = self._put((logits.extents, logits.sizes))
        arrays = self._finish(logits.views, extents, sizes, inputs=logits.inputs, canvas=logits.canvas, kind=kind)

        def finish() -> list[Arrays]:
            on_host = [None if array is None else np.asarray(array) for array in arrays]
            return [
                tuple(None if each is None else each[i, : fitted.size[0], ..., : fitted.size[1]] for each in on_host)
                for i, fitted in enumerate(batch)
            ]

        return finish

    def window_probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """Returns the probabilities (height, classes, width) of one window. Waits for the device."""
        size = pixels.shape[:2]
        inputs = tuple(multi_scale.view_sizes(size, self._scales, self._flip))
        extents = [np.array([view], np.float32) for view in inputs]
        views, sizes = self._network(self._variables, pixels[None]), np.array([size], np.int32)
        arrays = self._finish(views, extents, sizes, inputs=inputs, canvas=size, kind="probabilities")
        return np.asarray(arrays[2])[0]

    def _put(self, arrays):
        """Starts to copy arrays of a batch to the devices, while these may compute the previous batch."""
        return jax.tree.map(jnp.asarray, arrays) if self._split is None else jax.device_put(arrays, self._split)

    def _on_each_device(self, function: Callable, first: int) -> Callable:
        """Makes each device call a function with its own images. The arguments before `first` are not split."""
        if self._mesh is None:
            return function
        split = PartitionSpec(sharding.BATCH_AXES)

        def call(*arguments):
            specs = tuple(PartitionSpec() if i < first else split for i in range(len(arguments)))
            mapped = jax.shard_map(function, mesh=self._mesh, in_specs=specs, out_specs=split, check_vma=False)
            return mapped(*arguments)

        return call

    def _apply_views(self, variables, images):
        views = multi_scale.network_views(self._model, variables, images, scales=self._scales, flip=self._flip)
        return [view.coarse[..., self._chosen] for view in views]

    def _resize_and_reduce(self, views, extents, sizes, *, inputs, canvas, kind):
        def resize(views, extents, sizes):
            finish = functools.partial(_reduce_strips, kind=kind)
            return streaming_resize.map_resized(
                views, extents, sizes, canvas, finish, inputs=inputs, align_corners=self._model.align_corners
            )

        return self._on_each_device(resize, 0)(views, extents, sizes)


def _reduce_strips(strips, kind):
    """Reduces the views' logits to the best class, its probability and all probabilities; None for unneeded results."""
    if len(strips) == 1 and kind != "probabilities":
        labels = jnp.argmax(strips[0], axis=1).astype(jnp.uint8)
        if kind == "labels":
            return labels, None, None
        return labels, jnp.exp(jnp.max(strips[0], axis=1) - jax.nn.logsumexp(strips[0], axis=1)), None
    probabilities = multi_scale.average_probabilities(strips, axis=1)
    # Labels of one view always come from its logits: probabilities of different logits can round to the same value.
    labels = jnp.argmax(strips[0] if len(strips) == 1 else probabilities, axis=1).astype(jnp.uint8)
    confidence = None if kind == "labels" else jnp.max(probabilities, axis=1)
    return labels, confidence, probabilities if kind == "probabilities" else None
