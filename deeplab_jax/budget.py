"""Limits on the cost of reading untrusted files, for all readers. `docs/security.md` explains them.

A file can claim anything: a header of gigabytes, an array that no disk holds, a value inside itself. So readers count
what they read, headers included, and stop with one line when a file costs more than its size can justify.
"""

import dataclasses
import pathlib
import stat

from deeplab_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Limit:
    """A number of bytes: `per_byte` for each byte of the file, and `fixed` for small files.

    Attributes:
      per_byte: factor of the size of the file.
      fixed: bytes that every file may cost.
      excuse: ends the error message: what the file is then.
    """

    per_byte: int
    fixed: int
    excuse: str


#: Memory of the arrays in a weight file. Stored values of one byte become float32, which is the factor of four.
ARRAYS = Limit(4, 512 << 20, "it is damaged, or was made to fill the memory")
#: Disk space of an unpacked archive, and bytes read from it. Images and masks are compressed already.
ARCHIVE = Limit(100, 1 << 30, "so it is probably not a data set; if it is, unpack it yourself and pass the folder")

#: Largest piece of a file that is read whole before its content is known, in bytes: the header of an archive's entry.
HEADER_BYTES = 4 << 20
#: Largest JSON text, in bytes, and its deepest nesting. Configs have some kilobytes and four levels.
JSON_BYTES, JSON_DEPTH = 8 << 20, 64
#: Largest file of annotations, JSON or XML, in bytes: COCO's instances_train2017.json has 448 MB.
ANNOTATION_BYTES = 512 << 20
#: Most vertices of one polygon in annotations, and most points of its outline after it is drawn.
POLYGON_VERTICES, OUTLINE_POINTS = 100_000, 1 << 26
#: Largest YAML file, in bytes.
YAML_BYTES = 1 << 20
#: Most instructions in a pickle. A network of 1000 tensors has about 30,000, with the state of Adam 150,000.
PICKLE_INSTRUCTIONS = 500_000
#: Most bits of an integer in a pickle; the longest in PyTorch's files is its magic number of 77.
PICKLE_INTEGER_BITS = 128
#: Most dimensions of an array, as in NumPy.
DIMENSIONS = 64
#: Most groups and links in an HDF5 file, and its deepest nesting.
HDF5_OBJECTS, HDF5_DEPTH = 20_000, 32
#: Most tensors, operators or buffers in a TFLite file, most operands of an operator, and most bytes of a name.
TFLITE_ITEMS, TFLITE_OPERANDS, TFLITE_NAME = 16_384, 64, 1024
#: Most numbers in a field of `config.model`; `deeplab_jax.config` has the range of each number.
MODEL_NUMBERS = 64
#: Largest height and width of a network's input that a file may state.
INPUT_SIDE = 8192


class Budget:
    """The bytes that one file may still cost."""

    def __init__(self, name: str, size: int, limit: Limit | None = None):
        """Creates the budget of a file.

        Args:
          name: what to call the file in messages.
          size: its size in bytes.
          limit: how much it may cost; default: `ARRAYS`.
        """
        self._name, self._limit = name, limit or ARRAYS
        self._left = self._total = self._limit.per_byte * size + self._limit.fixed

    def grow(self, size: int) -> None:
        """Adds the size of another file that belongs to the first."""
        self._left += self._limit.per_byte * size
        self._total += self._limit.per_byte * size

    def spend(self, count: int) -> None:
        """Counts bytes before they are allocated or written.

        Raises:
          UserError: the file costs more than it may.
        """
        self._left -= count
        if self._left < 0:
            raise UserError(
                f"{self._name} expands to more than {self._total / 1e6:.0f} MB, which its size does not justify; "
                f"{self._limit.excuse}"
            )


def file_size(path: pathlib.Path) -> int:
    """Returns the size of a regular file in bytes.

    Raises:
      OSError: the file does not exist, or is a folder, a device or a pipe, which might never end.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(None, "it is not a regular file")
    return status.st_size


def read_bytes(path: pathlib.Path, limit: int | None = None) -> bytes:
    """Reads a regular file.

    Args:
      path: the file.
      limit: most bytes to accept; default: any number, for files whose readers need memory in proportion to them.

    Raises:
      OSError: the file cannot be read, see `file_size`.
      ValueError: the file is larger than the limit.
    """
    size = file_size(path)
    if limit is not None and size > limit:
        raise ValueError(f"it has {size} bytes; at most {limit} are read")
    with path.open("rb") as file:
        return file.read(size)
