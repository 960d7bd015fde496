"""Writes files as `torch.save` does, without PyTorch."""

import dataclasses
import io
import pathlib
import pickle
import zipfile
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Name:
    """A function or class that is pickled by its name, whether it exists or not."""

    module: str
    name: str

    def __call__(self) -> None:
        """Pickle asks whether it is callable."""


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor with these values."""

    array: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Object:
    """The result of a call, with attributes."""

    function: Name
    arguments: tuple = ()
    attributes: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class _Storage:
    array: np.ndarray


class _Writer(pickle._Pickler):  # the one of pure Python, which can write names that do not exist
    def __init__(self, file: io.BytesIO, protocol: int):
        super().__init__(file, protocol=protocol)
        self.arrays: list[np.ndarray] = []

    def persistent_id(self, value: object) -> tuple | None:
        if not isinstance(value, _Storage):
            return None
        self.arrays.append(value.array)
        kind = {"float32": "FloatStorage", "int64": "LongStorage"}[value.array.dtype.name]
        return ("storage", Name("torch", kind), str(len(self.arrays) - 1), "cpu", value.array.size)

    def reducer_override(self, value: object) -> Any:
        if isinstance(value, Tensor):
            array = np.ascontiguousarray(value.array)
            strides = tuple(stride // array.itemsize for stride in array.strides)
            arguments = (_Storage(array), 0, value.array.shape, strides[: value.array.ndim], False, {})
            return Name("torch._utils", "_rebuild_tensor_v2"), arguments
        if isinstance(value, Object):
            return value.function, value.arguments, value.attributes
        return NotImplemented

    def save_name(self, value: Name) -> None:
        self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())

    dispatch = pickle._Pickler.dispatch | {Name: save_name}


def save(path: pathlib.Path, value: object, *, protocol: int = 2) -> pathlib.Path:
    """Writes a value of containers, numbers, `Tensor`s and `Object`s."""
    content = io.BytesIO()
    writer = _Writer(content, protocol)
    writer.dump(value)
    return save_pickle(path, content.getvalue(), writer.arrays)


def save_pickle(path: pathlib.Path, content: bytes, arrays: tuple | list = ()) -> pathlib.Path:
    """Writes an archive around a pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        for number, array in enumerate(arrays):
            archive.writestr(f"archive/data/{number}", array.tobytes())
    return path
