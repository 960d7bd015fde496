"""The computation of a predictor: from a batch of images, fitted to the network, to their labels."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Float

from deeplab_jax import data
from deeplab_jax.data.eval_protocol import EvalProtocol, Size
from deeplab_jax.data.view_protocols import ViewProtocol, Windows
from deeplab_jax.errors import UserError
from deeplab_jax.inference import multi_scale, streaming_resize
from deeplab_jax.inference.runtime import CoarseNetwork, coarse_views, platform_of
from deeplab_jax.inference.views import view_network
from deeplab_jax.models import SegmentationNetwork
from deeplab_jax.parallel import sharding
from deeplab_jax.program_cache import Program

#: The arrays to return: labels alone, with the confidence, or with the probabilities of all classes too.
Kind = Literal["labels", "confidence", "probabilities"]

#: What is resized to the size of the image.
Upsample = Literal["logits", "labels"]

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

    views: list[jax.Array | np.ndarray]
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
      upsample: "logits", or "labels" for one view and nothing but labels.
      mesh: splits batches over its devices; None for one device.
      network: computes the network in place of XLA, without a mesh.
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
        upsample: Upsample = "logits",
        mesh: jax.sharding.Mesh | None = None,
        network: CoarseNetwork | None = None,
    ):
        self._model, self._variables, self._protocol, self._mesh = model, variables, protocol, mesh
        self._scales, self._flip, self._ids = scales, flip, ids
        self._upsample, self._coarse_network = upsample, network
        self._chosen = slice(None) if len(ids) == model.num_classes else ids
        self._split = None if mesh is None else sharding.batch_sharding(mesh)
        made_from = [model, mesh, scales, flip, self._chosen, upsample]
        if network is None:
            self._network = self._program(jax.jit(self._on_each_device(self._apply_views, 1)), "network", made_from)
        else:
            self._network = self._choose_classes(coarse_views(network, model, scales=scales, flip=flip))
        finish = jax.jit(self._resize_and_reduce, static_argnames=("inputs", "canvas", "kind"))
        self._finish = self._program(finish, "finish", made_from)
        self._view_network = None
        is_blended = isinstance(protocol, Windows) and protocol.is_blended  # computed window by window
        if isinstance(protocol, ViewProtocol) and not is_blended:
            self._view_network = view_network(model, protocol, flip=flip, mesh=mesh, coarse=True, network=network)

    def with_variables(self, variables: Any) -> "Computation":
        """Returns the computation with other variables. It shares the compiled programs."""
        if self._coarse_network is not None:  # which contains its variables
            network = self._coarse_network.with_variables(variables)
            options = {"scales": self._scales, "flip": self._flip, "ids": self._ids, "upsample": self._upsample}
            return Computation(self._model, variables, self._protocol, **options, network=network)
        computation = copy.copy(self)
        computation._variables = variables
        return computation

    def _program(self, jitted: jax.stages.Wrapped, name: str, made_from: Sequence[Any]) -> Callable:
        """Returns a function that is kept on disk when it is compiled. Needs variables on a device."""
        if self._mesh is not None:
            return Program(jitted, [name, *made_from], tuple(self._mesh.devices.flat))
        first = next(iter(jax.tree.leaves(self._variables)), None)  # None: each call has variables of its own
        if not isinstance(first, jax.Array):
            return jitted
        return Program(jitted, [name, *made_from], tuple(first.devices()))

    @property
    def platform(self) -> str:
        """Platform of the devices, such as "cpu"."""
        return platform_of(self._variables)

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
        """Dispatches a batch without blocking, unless another runtime computes the network.

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
        if self._upsample == "labels" and kind != "labels":
            raise UserError("upsample=labels gives labels alone; leave it out for the confidence and the probabilities")
        arrays = self._dispatch_reduction(logits, kind)

        def finish() -> list[Arrays]:
            on_host = [None if array is None else np.asarray(array) for array in arrays]
            return [
                tuple(None if each is None else each[i, : fitted.size[0], ..., : fitted.size[1]] for each in on_host)
                for i, fitted in enumerate(batch)
            ]

        return finish

    def window_probabilities(
        self, windows: Sequence[np.ndarray], *, size: int = 1
    ) -> Float[np.ndarray, "windows height classes width"]:
        """Returns the probabilities of windows of equal shapes. Waits for the devices.

        Args:
          windows: the windows, as the network takes them.
          size: see `start`.
        """
        extent = windows[0].shape[:2]
        inputs = tuple(multi_scale.view_sizes(extent, self._scales, self._flip))
        extents = [np.array([view] * size, np.float32) for view in inputs]
        fed = self._put(np.stack([*windows, *[windows[-1]] * (size - len(windows))]))
        sizes = np.array([extent] * size, np.int32)
        logits = Logits(self._network(self._variables, fed), inputs, extents, sizes, extent)
        _, _, probabilities = self._dispatch_reduction(logits, "probabilities")
        return np.asarray(probabilities)[: len(windows)]

    def _dispatch_reduction(self, logits: Logits, kind: Kind) -> tuple[jax.Array | None, ...]:
        extents, sizes = self._put((logits.extents, logits.sizes))
        return self._finish(logits.views, extents, sizes, inputs=logits.inputs, canvas=logits.canvas, kind=kind)

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

    def _choose_classes(self, network: Callable) -> Callable:
        return lambda variables, images: [logits[..., self._chosen] for logits in network(images)]

    def _resize_and_reduce(self, views, extents, sizes, *, inputs, canvas, kind):
        options = {"inputs": inputs, "align_corners": self._model.align_corners}

        def resize(views, extents, sizes):
            if self._upsample == "labels":
                labels = [jnp.argmax(view, axis=-1).astype(jnp.uint8) for view in views]
                return streaming_resize.resize_labels(*labels, *extents, sizes, canvas, **options), None, None
            finish = functools.partial(_reduce_strips, kind=kind)
            return streaming_resize.map_resized(views, extents, sizes, canvas, finish, **options)

        return self._on_each_device(resize, 0)(views, extents, sizes)


def kind_of(confidence: bool, probabilities: bool) -> Kind:
    """Returns the kind that includes these arrays."""
    return "probabilities" if probabilities else "confidence" if confidence else "labels"


def check_upsample(upsample: str, scales: Sequence[int | float], flip: bool, window: Sequence[int] | None) -> None:
    """Checks that labels, if they are resized, come from a single view.

    Raises:
      UserError: it is not one of `Upsample`, or there are several views.
    """
    if upsample not in get_args(Upsample):
        raise UserError(f"upsample={upsample!r} must be one of {', '.join(get_args(Upsample))}")
    if upsample == "labels" and (len(scales) > 1 or flip or window is not None):
        raise UserError("upsample=labels works with one view of the image; leave out scales, flip and window")


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
