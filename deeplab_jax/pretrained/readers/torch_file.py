"""Reader of PyTorch state dicts. Needs no PyTorch and executes no code from the file.

A `.pth` file is a pickle, and a pickle is a program: unpickling it calls whatever functions it names. This reader
interprets the instructions itself (`pickletools.genops` parses them and runs nothing). It supports the few instructions
that containers, numbers and tensors need, and the few functions that PyTorch rebuilds tensors with. Everything else is
refused.

The two file layouts are those of torch/serialization.py (PyTorch 2). Since version 1.6: a zip archive of `data.pkl` and
uncompressed `data/<key>`. Before: three pickles of metadata, the pickled object, the pickled list of keys, and for
each key the number of elements (int64) and the elements.
"""

import dataclasses
import io
import math
import pathlib
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors

from deeplab_jax.errors import UserError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_NESTED = ("state_dict", "model")  # where training scripts store the network next to optimizer and epoch
_STORAGE_DTYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_SAFETENSORS_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def read_torch_file(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a state dict by name, from a `.pth`, `.pt`, `.bin` or `.safetensors` file.

    A state dict under the key `state_dict` or `model` is used. bfloat16 becomes float32, which represents it exactly.

    Raises:
      UserError: the file does not exist, is damaged, contains no state dict, or needs more than tensors.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; expected a file of PyTorch weights") from None
    try:
        if path.suffix == ".safetensors":
            arrays = _read_safetensors(content)
        elif content.startswith(b"PK"):
            arrays = _read_zip(content)
        elif content.startswith(b"\x80"):
            arrays = _read_legacy(content)
        else:
            raise _Damaged("it is neither a zip archive nor a pickle")
    except _Refused as error:
        raise UserError(
            f"{path} needs {error}, which could run code, so it is refused; "
            "ask its author for the weights only: torch.save(model.state_dict(), ...)"
        ) from None
    except _Damaged as error:
        raise UserError(
            f"{path} is not a file of PyTorch weights: {error}; "
            "expected a complete file written by torch.save(model.state_dict(), ...)"
        ) from None
    return {name: array.astype(np.float32) if array.dtype == jnp.bfloat16 else array for name, array in arrays.items()}


class _Refused(Exception):
    """The file uses a function or an instruction that this reader does not support."""


class _Damaged(Exception):
    """The file does not follow its format."""


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A block of numbers in the file that tensors are views of."""

    dtype: np.dtype
    key: str
    size: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A view of a storage; offset and strides count elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


# ---- The two file layouts ----


def _read_zip(content: bytes) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            # PyTorch does not compress, so no entry of its archives is larger than the file.
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
                raise _Damaged("the archive is compressed")
            if sum(entry.file_size for entry in entries.values()) > len(content):
                raise _Damaged("the archive's entries are larger than the file")
            pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise _Damaged("the archive has no data.pkl")
            folder = pickles[0].removesuffix("data.pkl")
            state_dict = _state_dict(_run(io.BytesIO(archive.read(pickles[0]))))
            big_endian = f"{folder}byteorder" in entries and archive.read(f"{folder}byteorder") == b"big"
            keys = {tensor.storage.key for tensor in state_dict.values()}
            missing = [key for key in keys if f"{folder}data/{key}" not in entries]
            if missing:
                raise _Damaged(f"the archive has no data/{missing[0]}")
            storages = {key: archive.read(f"{folder}data/{key}") for key in keys}
    except (zipfile.BadZipFile, struct.error, EOFError, RuntimeError, ValueError, OverflowError, OSError) as error:
        raise _Damaged(f"the archive cannot be opened ({error})") from None
    return {name: _view(name, tensor, storages[tensor.storage.key], big_endian) for name, tensor in state_dict.items()}


def _read_legacy(content: bytes) -> dict[str, np.ndarray]:
    stream = io.BytesIO(content)
    if _run(stream) != _LEGACY_MAGIC:
        raise _Damaged("it is a pickle, but PyTorch did not write it")
    _run(stream)  # the protocol version; there is only one
    system = _run(stream)
    announced: dict[str, _Storage] = {}
    state_dict = _state_dict(_run(stream, announced))
    keys = _run(stream)
    if not isinstance(keys, list) or set(map(repr, keys)) != set(map(repr, announced)):
        raise _Damaged("its list of storages does not match its tensors")
    storages = {}
    for key in keys:
        size = int.from_bytes(stream.read(8), "little")
        if size != announced[key].size:
            raise _Damaged(f"storage {key!r} has {size} numbers instead of {announced[key].size}")
        storages[key] = stream.read(min(size * announced[key].dtype.itemsize, len(content)))
    big_endian = isinstance(system, dict) and system.get("little_endian") is False
    return {name: _view(name, tensor, storages[tensor.storage.key], big_endian) for name, tensor in state_dict.items()}


def _read_safetensors(content: bytes) -> dict[str, np.ndarray]:
    try:
        tensors = safetensors.deserialize(content)
    except safetensors.SafetensorError as error:
        raise _Damaged(str(error)) from None
    arrays = {}
    for name, tensor in sorted(tensors, key=lambda item: item[0]):  # the library returns them in random order
        if tensor["dtype"] not in _SAFETENSORS_DTYPES:
            raise _Damaged(f"{name} has the unsupported type {tensor['dtype']}")
        dtype = _SAFETENSORS_DTYPES[tensor["dtype"]]
        arrays[name] = np.frombuffer(tensor["data"], dtype).reshape(tensor["shape"])
    return arrays


def _state_dict(root: Any) -> Mapping[str, _Tensor]:
    for key in _NESTED:
        if isinstance(root, dict) and isinstance(root.get(key), dict):
            root = root[key]
    if not isinstance(root, dict) or not root:
        raise _Damaged("it does not contain a state dict")
    for name, value in root.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            raise _Damaged(f"entry {name!r} is not a tensor")
    return root


def _view(name: str, tensor: _Tensor, storage: bytes, big_endian: bool) -> np.ndarray:
    """Returns a tensor as a view of its storage, after checking that it stays inside."""
    dtype = tensor.storage.dtype
    if len(storage) != tensor.storage.size * dtype.itemsize:
        raise _Damaged(f"the numbers of {name} are truncated")
    elements = math.prod(tensor.shape)
    reach = sum((extent - 1) * stride for extent, stride in zip(tensor.shape, tensor.strides, strict=True))
    if elements and (tensor.offset + reach >= tensor.storage.size or elements > tensor.storage.size):
        raise _Damaged(f"{name} reaches beyond its {tensor.storage.size} numbers")
    strides = [stride * dtype.itemsize for stride in tensor.strides]
    try:
        flat = np.frombuffer(storage, f"u{dtype.itemsize}")
        flat = (flat.byteswap() if big_endian else flat).view(dtype)[tensor.offset :]
        return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False)
    except (ValueError, OverflowError) as error:
        raise _Damaged(f"{name} has an impossible shape ({error})") from None


# ---- Pickle instructions ----


def _rebuild_tensor(storage, offset, shape, strides, *_) -> _Tensor:
    """Stands for `torch._utils._rebuild_tensor` and `_v2`; further arguments concern gradients."""
    if not isinstance(storage, _Storage):
        raise _Damaged("a tensor has no storage")
    numbers = (offset, *shape, *strides)
    if not all(type(number) is int and number >= 0 for number in numbers) or len(shape) != len(strides):
        raise _Damaged(f"a tensor has the impossible shape {shape}, strides {strides} or offset {offset}")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor, *_) -> _Tensor:
    """Stands for `torch._utils._rebuild_parameter`; further arguments concern gradients."""
    return tensor


# Names that a file may use. Values are only looked up and compared, or called if they are in `_CALLABLE`.
_GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): dict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): np.dtype(dtype) for name, dtype in _STORAGE_DTYPES.items()},
}
_CALLABLE: tuple[Callable, ...] = (dict, tuple, _rebuild_tensor, _rebuild_parameter)

_LITERALS = (
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING",
)  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


def _run(stream: io.BytesIO, storages: dict[str, _Storage] | None = None) -> Any:
    """Interprets the pickle at the position of a stream, and leaves the stream after it.

    Args:
      stream: the file.
      storages: receives the storages of the pickle, by key.

    Raises:
      _Refused: a function or an instruction that containers and tensors do not need.
      _Damaged: invalid instructions.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pickletools warns about escape sequences in damaged names
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "STOP":
                    return stack.pop()
                _step(opcode.name, argument, stack, memo, {} if storages is None else storages)
    except (ValueError, TypeError, IndexError, KeyError, StopIteration) as error:
        raise _Damaged(f"its pickle is invalid ({error})") from None
    raise _Damaged("its pickle has no end")


def _step(name: str, argument: Any, stack: list[Any], memo: dict[int, Any], storages: dict[str, _Storage]) -> None:
    """Executes one instruction of the pickle machine, see the docstrings of `pickletools`."""
    if name in _LITERALS:
        stack.append(argument)
    elif name in _CONSTANTS:
        stack.append(_CONSTANTS[name])
    elif name in _EMPTY:
        stack.append(_EMPTY[name]())
    elif name in _TUPLES:
        items = stack[-_TUPLES[name] :]
        del stack[-_TUPLES[name] :]
        stack.append(tuple(items))
    elif name in ("BINPUT", "LONG_BINPUT"):
        memo[argument] = stack[-1]
    elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name == "MARK":
        stack.append(_MARK)
    elif name == "TUPLE":
        stack.append(tuple(_pop_to_mark(stack)))
    elif name in ("APPEND", "APPENDS"):
        items = _pop_to_mark(stack) if name == "APPENDS" else [stack.pop()]
        _expect(stack[-1], list).extend(items)
    elif name in ("SETITEM", "SETITEMS"):
        items = _pop_to_mark(stack) if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
        _expect(stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))
    elif name == "GLOBAL":
        stack.append(_lookup(*argument.split(" ", 1)))
    elif name == "STACK_GLOBAL":
        function = stack.pop()
        stack.append(_lookup(stack.pop(), function))
    elif name == "REDUCE":
        arguments = _expect(stack.pop(), tuple)
        function = stack.pop()
        if not any(function is known for known in _CALLABLE):
            raise _Refused(f"a call of a {type(function).__name__}")
        stack.append(function(*arguments))
    elif name == "BUILD":
        stack.pop()  # attributes: a state dict has `_metadata` with the versions of its modules
        _expect(stack[-1], dict)
    elif name == "BINPERSID":
        storage = _storage(*stack.pop())
        storages[storage.key] = storage
        stack.append(storage)
    elif name not in ("PROTO", "FRAME"):
        raise _Refused(f"the pickle instruction {name}")


def _lookup(module: Any, name: Any) -> Any:
    if (module, name) not in _GLOBALS:
        raise _Refused(repr(f"{module}.{name}"))
    return _GLOBALS[module, name]


def _storage(kind, dtype, key, device, size, view=None) -> _Storage:
    """Returns the storage of a tensor's persistent id; `view` is None since PyTorch 0.4."""
    known = kind == "storage" and isinstance(dtype, np.dtype) and isinstance(key, str) and type(size) is int
    if not known or view is not None:
        raise _Damaged("it has an unknown kind of storage")
    return _Storage(dtype, key, size)


def _pop_to_mark(stack: list[Any]) -> list[Any]:
    start = next(i for i in reversed(range(len(stack))) if stack[i] is _MARK)
    items = stack[start + 1 :]
    del stack[start:]
    return items


def _expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{type(value).__name__} instead of a {kind.__name__}")
    return value
