"""A file that the fuzzer damages and reads."""

import dataclasses
import pathlib
import random
from collections.abc import Callable

Mutate = Callable[[random.Random, bytes], bytes]


@dataclasses.dataclass(frozen=True)
class Target:
    """A file to damage, and what reads it.

    Attributes:
      reader: the name under which results are counted.
      path: the file that is replaced by damaged content.
      content: its valid content.
      mutate: damages the content.
      read: reads the file or the folder around it.
    """

    reader: str
    path: pathlib.Path
    content: bytes
    mutate: Mutate
    read: Callable[[], object]


def make_target(reader: str, path: pathlib.Path, mutate: Mutate, read: Callable[[pathlib.Path], object]) -> Target:
    """Creates the target of a file that exists."""
    return Target(reader, path, path.read_bytes(), mutate, lambda: read(path))
