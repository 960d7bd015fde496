"""Finding the folders and files of official layouts."""

import pathlib
from collections.abc import Iterable

import numpy as np

from deeplab_jax.errors import UserError

_DEPTHS = ("", "*/", "*/*/")  # archives are unpacked into folders of their own


def find_root(root: pathlib.Path, inside: str, title: str) -> pathlib.Path:
    """The folder that contains `inside`: `root`, or a folder up to two levels below it.

    Args:
      root: the folder that was given.
      inside: a folder or file of the layout, with `/` between folders.
      title: the data set, for the message.

    Raises:
      UserError: there is no such folder.
    """
    for depth in _DEPTHS:
        for path in sorted(root.glob(depth + inside)):
            return path.parents[inside.count("/")]
    raise UserError(f"{root} does not have the layout of {title}: it has no {inside}")


def list_files(folder: pathlib.Path, suffix: str) -> list[pathlib.Path]:
    """The files of a folder whose names end with `suffix`, sorted, without hidden ones such as macOS's `._a.png`."""
    return sorted(path for path in folder.glob(f"*{suffix}") if not path.name.startswith("."))


def check_splits(splits: dict[str, list], root: pathlib.Path, title: str, expected: Iterable[str]) -> None:
    """Raises an error if no split was found.

    Raises:
      UserError: there are no splits.
    """
    if not splits:
        raise UserError(f"{root} does not have the layout of {title}: it has none of {', '.join(expected)}")


def read_mat(path: pathlib.Path, name: str) -> np.ndarray:
    """Reads an array of integers of a MATLAB file: a label of shape (height, width).

    Args:
      path: the file.
      name: the variable.

    Raises:
      UserError: the file is missing or damaged, or has no such array.
    """
    import scipy.io  # half a second, which few data sets need

    try:
        with path.open("rb") as file:  # given a path, scipy hides that the file does not exist
            values = np.asarray(scipy.io.loadmat(file, variable_names=[name])[name])
        if values.ndim != 2:
            raise ValueError(f"{name} has {values.ndim} dimensions")
        return values.astype(np.int64, casting="safe") if values.dtype.kind != "f" else _whole(values)
    except FileNotFoundError:
        raise UserError(f"mask {path} does not exist") from None
    except Exception as error:  # scipy raises all kinds of exceptions for damaged bytes
        raise UserError(f"mask {path} cannot be read as a MATLAB file with {name}: {error!r}") from None


def _whole(values: np.ndarray) -> np.ndarray:
    """MATLAB stores most numbers as floats."""
    whole = values.astype(np.int64)
    if not np.array_equal(whole, values):
        raise ValueError("it contains fractions")
    return whole
