"""The Grain pipeline of evaluation: batches that hold every example of a split exactly once."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from deeplab_jax.data.pipeline import decode_example, positions, stream
from deeplab_jax.data.pixel_format import pixels_of
from deeplab_jax.data.protocol import EvalProtocol
from deeplab_jax.errors import UserError
from deeplab_jax.labels import IGNORE_LABEL


def eval_batches(
    source,
    protocol: EvalProtocol,
    *,
    batch_size: int,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, Any]]:
    """Yields batches of this process's share of a split, in order, every example exactly once.

    All processes yield the same number of batches. The last ones are filled up with black, unlabeled images whose
    `valid` is False.

    Args:
      source: a split, see `deeplab_jax.data.open_source`.
      protocol: how images are resized or padded.
      batch_size: examples per batch of this process.
      workers: number of data worker processes; 0 uses threads of this one.
      process_index: index of this process.
      process_count: number of processes in the run.

    Yields:
      `image` (batch, H, W, channels) in the dtype of the source, uint8 RGB by default, `label` uint8 (batch, h, w)
      with the ignore label outside each image's own pixels, `size` int32 (batch, 2): height and width of these pixels,
      at the top left, `valid` bool (batch,), `id` (a list).

    Raises:
      UserError: an image is larger than `eval.image_size`, or a stored example is damaged.
    """
    num_batches = math.ceil(len(source) / (batch_size * process_count))
    indices = positions(num_batches * batch_size * process_count)[process_index::process_count]
    dataset = indices.map(_EvalExample(source, protocol)).batch(batch_size, drop_remainder=True, batch_fn=_collate)
    return stream(dataset, workers)


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


def _collate(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    batch = {name: np.stack([example[name] for example in examples]) for name in ("image", "label", "size", "valid")}
    return batch | {"id": [example["id"] for example in examples]}
