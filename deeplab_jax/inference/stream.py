"""Labels of many images: read ahead in threads, computed in batches of equal shapes, returned in order."""

import contextlib
import dataclasses
import math
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import numpy as np

from deeplab_jax.data import LazyTiff
from deeplab_jax.errors import UserError
from deeplab_jax.inference.computation import Arrays, Computation, Fitted, Kind
from deeplab_jax.inference.overlap import map_ahead
from deeplab_jax.inference.prediction import Prediction

_T = TypeVar("_T")

# Images per batch and device. Larger batches are not faster on CPUs.
_CPU_BATCH_SIZE, _ACCELERATOR_BATCH_SIZE = 1, 16

# Numbers of a batch on a device: pixels of network inputs and results, times the number of classes if all probabilities
# are wanted. The first limit applies if no batch size is given, the second one always, also to the images that wait.
_DEFAULT_VALUES = 10**7
MOST_VALUES = 2**27

_BATCHES_TO_WAIT = 4  # an image waits for others of its shape while at most this number of full batches is read


@dataclasses.dataclass(eq=False)
class Labeled(Generic[_T]):
    """An item, with its image and labels, or with the reason why there are none.

    Attributes:
      item: the item.
      image: its image, if it could be read.
      fitted: the image as the network takes it, until it is computed.
      prediction: the result.
      error: why the image could not be read.
    """

    item: _T
    image: np.ndarray | LazyTiff | None = None
    fitted: Fitted | None = None
    prediction: Prediction | None = None
    error: UserError | None = None

    @property
    def is_done(self) -> bool:
        """Whether the result is known."""
        return self.prediction is not None or self.error is not None

    @property
    def num_pixels(self) -> int:
        """Number of pixels of the image."""
        return 0 if self.image is None else math.prod(self.image.shape[:2])


class LabelStream:
    """Labels images in batches.

    An image waits until its batch is full, until `_BATCHES_TO_WAIT` batches of other shapes have been read after it, or
    until the end of the images; large images do not wait for as many. While the devices compute a batch, the next
    images are read.

    Args:
      computation: computes the labels.
      to_prediction: creates the result of an image from its arrays.
      kind: the arrays to compute.
      num_classes: number of classes of the arrays.
      batch_size: most images per batch and device; None chooses.
    """

    def __init__(
        self,
        computation: Computation,
        to_prediction: Callable[..., Prediction],
        *,
        kind: Kind,
        num_classes: int,
        batch_size: int | None,
    ):
        self._computation, self._to_prediction, self._kind = computation, to_prediction, kind
        self._most_values = _DEFAULT_VALUES if batch_size is None else MOST_VALUES
        self._batch_size = batch_size
        self._planes = num_classes if kind == "probabilities" else 1
        self._groups: dict[Hashable, list[Labeled[Any]]] = {}
        self._running: deque[tuple[list[Labeled[Any]], Callable[[], list[Arrays]]]] = deque()

    def __call__(self, items: Iterable[_T], read: Callable[[_T], np.ndarray]) -> Iterator[Labeled[_T]]:
        """Yields each item with its labels, in order.

        Args:
          items: names of the images.
          read: returns the image of an item; called in other threads. If it raises `UserError`, the item has an error.
        """

        def read_and_fit(item: _T) -> Labeled[_T]:
            try:
                image = read(item)
                return Labeled(item, image, self._computation.fit(image))
            except UserError as error:
                return Labeled(item, error=error)

        order: deque[Labeled[_T]] = deque()
        with contextlib.closing(map_ahead(read_and_fit, items, num_pixels=lambda each: each.num_pixels)) as images:
            for each in images:
                order.append(each)
                if each.error is None:
                    self._add(each)
                while not order[0].is_done and self._is_long(order):
                    self._advance(order[0])
                yield from _done(order)
            while order:
                self._advance(order[0])
                yield from _done(order)

    def _is_long(self, order: deque[Labeled[Any]]) -> bool:
        """Whether the images that wait for the first one, in order or in its batch, are too many or too large."""
        most = _BATCHES_TO_WAIT * self._capacity(order[0])
        return len(order) > most or sum(each.num_pixels for each in order) > MOST_VALUES

    def _add(self, each: Labeled[Any]) -> None:
        group = self._groups.setdefault(each.fitted.shapes, [])
        group.append(each)
        if len(group) == self._capacity(each):
            self._start(self._groups.pop(each.fitted.shapes))

    def _advance(self, each: Labeled[Any]) -> None:
        """Brings the result of an image nearer: starts its batch, or waits for the batch that runs longest."""
        group = self._groups.get(each.fitted.shapes, [])
        if each in group:
            self._start(self._groups.pop(each.fitted.shapes))
        else:
            self._finish()

    def _start(self, group: list[Labeled[Any]]) -> None:
        size = padded_size(len(group), self._computation, full=self._capacity(group[0]))
        finish = self._computation.start([each.fitted for each in group], self._kind, size=size)
        self._running.append((group, finish))
        if len(self._running) > 1:
            self._finish()

    def _finish(self) -> None:
        group, finish = self._running.popleft()
        for each, arrays in zip(group, finish(), strict=True):
            each.prediction, each.fitted = self._to_prediction(*arrays), None

    def _capacity(self, each: Labeled[Any]) -> int:
        """Number of images in a batch of this image's shapes."""
        values = each.fitted.num_pixels * self._planes
        return full_batch(self._computation, self._batch_size, values=values, most=self._most_values)


def full_batch(computation: Computation, batch_size: int | None, *, values: int, most: int) -> int:
    """Number of images of a full batch, over all devices.

    Args:
      computation: computes the batch.
      batch_size: most images per device; None chooses.
      values: numbers that an image needs on a device.
      most: the most that all images of a device may need.
    """
    wanted = batch_size or (_CPU_BATCH_SIZE if computation.platform == "cpu" else _ACCELERATOR_BATCH_SIZE)
    return computation.num_devices * max(1, min(wanted, most // values))


def padded_size(count: int, computation: Computation, *, full: int) -> int:
    """Number of images to compute for a batch of `count`: `full`, or fewer for a handful, which is not worth that."""
    return computation.num_devices if count <= computation.num_devices else full


def slide_ahead(
    items: Iterable[_T], read: Callable[[_T], Any], slide: Callable[[Any], Prediction]
) -> Iterator[Labeled[_T]]:
    """Yields each item with its labels, in order. Images are read ahead, but computed one by one, by `slide`."""

    def read_item(item: _T) -> Labeled[_T]:
        try:
            return Labeled(item, read(item))
        except UserError as error:
            return Labeled(item, error=error)

    with contextlib.closing(map_ahead(read_item, items, num_pixels=lambda each: each.num_pixels)) as images:
        for each in images:
            if each.error is None:
                try:
                    each.prediction = slide(each.image)
                except UserError as error:  # values of a large TIFF, which is read window by window
                    each.error = error
            yield each


def _done(order: deque[Labeled[_T]]) -> Iterator[Labeled[_T]]:
    """Removes and yields the images at the front that are done."""
    while order and order[0].is_done:
        yield order.popleft()
