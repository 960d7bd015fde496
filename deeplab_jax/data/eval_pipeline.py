"""The Grain pipeline of evaluation: batches that hold every example of a split exactly once."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from deeplab_jax.data import images
from deeplab_jax.data.eval_protocol import EvalProtocol, Size
from deeplab_jax.data.pipeline import decode_example, positions, stream
from deeplab_jax.data.pixel_format import pixels_of
from deeplab_jax.data.transforms import pad_to
from deeplab_jax.data.view_protocols import ViewProtocol
from deeplab_jax.errors import UserError
from deeplab_jax.labels import IGNORE_LABEL


def eval_batches(
    source,
    protocol: EvalProtocol,
    *,
    batch_size: int,
    scales: Sequence[int | float] = (1.0,),
    sizes: Sequence[Size] | None = None,
    workers: int = 0,
    first_batch: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, Any]]:
    """Yields batches of this process's share of a split, in order, every example exactly once.

    All processes yield the same number of batches. The last ones are filled up with black, unlabeled images whose
    `valid` is False. A `ViewProtocol` puts only images of one group into a batch, so the order is that of the groups,
    and the last batch of each is filled up.

    Args:
      source: a split, see `deeplab_jax.data.open_source`.
      protocol: how images are resized or padded.
      batch_size: examples per batch of this process.
      scales: scales of the views that a `ViewProtocol` makes, `config.eval.scales`. Other protocols leave them to the
        evaluation step.
      sizes: `label_sizes(source)`, which a `ViewProtocol` needs; None reads them.
      workers: number of data worker processes; 0 uses threads of this one.
      first_batch: number of batches to leave out at the beginning.
      process_index: index of this process.
      process_count: number of processes in the run.

    Yields:
      `image` (batch, H, W, channels) in the dtype of the source, uint8 RGB by default, `label` uint8 (batch, h, w)
      with the ignore label outside each image's own pixels, `size` int32 (batch, 2): height and width of these pixels,
      at the top left, `valid` bool (batch,), `id` (a list). With a `ViewProtocol`, also the arrays of `view_names`: the
      views of each scale, and the extent of each view, int32 (batch, 2), at the top left.

    Raises:
      UserError: an image is larger than `eval.image_size`, or a stored example is damaged.
    """
    count = batch_size * process_count
    if isinstance(protocol, ViewProtocol):
        groups = _group(label_sizes(source) if sizes is None else sizes, protocol, scales)
        example = _ViewExample(source, protocol, tuple(scales), groups, count)
        num_batches = len(example.canvases)
    else:
        example, num_batches = _EvalExample(source, protocol), math.ceil(len(source) / count)
    indices = positions(num_batches * count)[first_batch * count + process_index :: process_count]
    return stream(indices.map(example).batch(batch_size, drop_remainder=True, batch_fn=_collate), workers)


def count_batches(
    source, protocol: EvalProtocol, batch_size: int, scales: Sequence[int | float], sizes: Sequence[Size] | None
) -> int:
    """Returns the number of batches that `eval_batches` yields if all processes together take `batch_size` examples."""
    if not isinstance(protocol, ViewProtocol):
        return math.ceil(len(source) / batch_size)
    groups = _group(label_sizes(source) if sizes is None else sizes, protocol, scales)
    return sum(math.ceil(len(group) / batch_size) for group in groups)


def label_sizes(source) -> list[Size]:
    """Returns (height, width) of every label of a split, from its header if it is encoded."""
    sizes = []
    for index in range(len(source)):
        example = source[index]
        label = example["label"]
        height, width = images.encoded_size(label, example["id"]) if isinstance(label, bytes) else label.shape
        sizes.append((height, width))
    return sizes


def view_names(scales: Sequence[int | float]) -> dict[str, tuple[int | float, str]]:
    """Returns the arrays of the views in a batch: their names, each with its scale and the name of its extents.

    The first is `image`, the view whose scale is nearest to 1.
    """
    ordered = sorted(scales, key=lambda scale: abs(scale - 1))
    return {
        f"image_{i}" if i else "image": (scale, f"extent_{i}" if i else "extent") for i, scale in enumerate(ordered)
    }


def check_labels(source) -> None:
    """Checks that a split has labeled pixels. Reads examples up to the first that has one, so mostly a single one.

    Args:
      source: a split, see `deeplab_jax.data.open_source`.

    Raises:
      UserError: every pixel of the split has the ignore label.
    """
    for index in range(len(source)):
        try:
            label = decode_example(source[index])["label"]
        except UserError:  # it cannot be read, which is reported where it is used
            return
        if np.any(label != IGNORE_LABEL):
            return
    raise UserError(
        f"{source.name}/{source.split} has no labeled pixels: all pixels of its {len(source)} masks have the ignore "
        f"label {IGNORE_LABEL}; check the masks and the class list, and prepare the data set again"
    )


class _EvalExample:
    """Returns the example at a position, shaped by the protocol; a black, invalid one after the end of the split."""

    def __init__(self, source, protocol: EvalProtocol):
        self._source, self._protocol, self._pixels = source, protocol, pixels_of(source)
        self._image_size, self._label_size = protocol.batch_sizes(source.largest_size)

    def __call__(self, index: int) -> dict[str, Any]:
        if index >= len(self._source):
            image = np.zeros((*self._image_size, self._pixels.channels), self._pixels.dtype)
            label = np.full(self._label_size, IGNORE_LABEL, np.uint8)
            size, valid, name = self._label_size, np.False_, ""
        else:
            example = decode_example(self._source[int(index)])
            name, valid = example["id"], np.True_
            image, label, size = self._protocol.shape_example(
                example["image"],
                example["label"],
                image_size=self._image_size,
                label_size=self._label_size,
                name=name,
            )
        return {"image": image, "label": label, "size": np.array(size, np.int32), "valid": valid, "id": name}


class _ViewExample:
    """Returns the example at a position of the order of groups, each of which is filled up to whole batches."""

    def __init__(
        self,
        source,
        protocol: ViewProtocol,
        scales: tuple[int | float, ...],
        groups: list[list[tuple[int, Size]]],
        batch_size: int,
    ):
        self._source, self._protocol, self._views = source, protocol, view_names(scales)
        self._pixels = pixels_of(source)
        self._batch_size = batch_size
        self._order: list[int | None] = []
        self.canvases: list[tuple[Size, list[Size]]] = []  # by batch: the size of the labels, and those of the views
        for group in groups:
            sizes = [size for _, size in group]
            views = [[protocol.view_size(size, scale) for size in sizes] for scale, _ in self._views.values()]
            num_batches = math.ceil(len(group) / batch_size)
            self._order += [index for index, _ in group] + [None] * (num_batches * batch_size - len(group))
            self.canvases += [(_largest(sizes), [_largest(view) for view in views])] * num_batches

    def __call__(self, position: int) -> dict[str, Any]:
        index = self._order[position]
        label_size, view_sizes = self.canvases[position // self._batch_size]
        if index is None:
            label, name = np.full(label_size, IGNORE_LABEL, np.uint8), ""
        else:
            example = decode_example(self._source[index])
            image, label, name = example["image"], example["label"], example["id"]
        shaped = {"label": pad_to(label, label_size, IGNORE_LABEL), "size": np.array(label.shape, np.int32)}
        for (view_name, (scale, extent_name)), canvas in zip(self._views.items(), view_sizes, strict=True):
            # A view of a filled-up position has the size of the canvas, which another image may not have.
            view = self._black(canvas) if index is None else self._protocol.make_view(image, scale)
            shaped[view_name] = pad_to(view, canvas, self._protocol.pad_color)
            shaped[extent_name] = np.array(view.shape[:2], np.int32)
        return shaped | {"valid": np.bool_(index is not None), "id": name}

    def _black(self, size: Size) -> np.ndarray:
        return np.zeros((*size, self._pixels.channels), self._pixels.dtype)


def _group(
    sizes: Sequence[Size], protocol: ViewProtocol, scales: Sequence[int | float]
) -> list[list[tuple[int, Size]]]:
    """Returns the positions and sizes of the images of each group, in the order of the groups' first images."""
    groups: dict[Any, list[tuple[int, Size]]] = {}
    for index, size in enumerate(sizes):
        groups.setdefault(protocol.group(size, scales), []).append((index, size))
    return list(groups.values())


def _largest(sizes: Sequence[Size]) -> Size:
    height, width = (max(extents) for extents in zip(*sizes, strict=True))
    return height, width


def _collate(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    names = [name for name in examples[0] if name != "id"]
    batch = {name: np.stack([example[name] for example in examples]) for name in names}
    return batch | {"id": [example["id"] for example in examples]}
