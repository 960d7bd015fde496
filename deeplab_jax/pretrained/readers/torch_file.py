"""Reader of PyTorch state dicts. Needs no PyTorch and executes no code from the file.

The two file layouts are those of torch/serialization.py (PyTorch 2). Since version 1.6: a zip archive of `data.pkl` and
uncompressed `data/<key>`. Before: three pickles of metadata, the pickled object, the pickled list of keys, and for
each key the number of elements (int64) and the elements. `pickle_machine` interprets the pickles.

Training scripts save more than the network, and wrap it. The reader finds the state dict among the optimizer, the
epoch and the arguments, and removes the names of wrappers such as `module.` (DataParallel) and `model.` (Lightning).
"""

import dataclasses
import io
import math
import pathlib
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from deeplab_jax import budget
from deeplab_jax.errors import UserError
from deeplab_jax.pretrained.readers import pickle_machine, safetensors_file
from deeplab_jax.pretrained.readers.pickle_machine import BadPickle, Opaque, StandIn, abridge

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# Where training scripts store the network, in order of preference: weights that are averaged come last.
_NESTED = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights")
_LEVELS = 4  # of dictionaries around a state dict
_WRAPPERS = 16  # most components to remove from all names: each takes time in proportion to their lengths
_NOT_WEIGHTS = ("n_averaged",)  # of torch.optim.swa_utils.AveragedModel
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


def read_torch_file(path: pathlib.Path, *, unwrap: bool = True) -> dict[str, np.ndarray]:
    """Reads the tensors of a state dict by name, from a `.pth`, `.pt`, `.ckpt`, `.bin` or `.safetensors` file.

    In a checkpoint of a training script, the state dict is found by its usual names, such as `state_dict` or `model`,
    or because it is the only one. A first component that all names share, such as `module.`, is removed. bfloat16
    becomes float32, which represents it exactly.

    Args:
      path: the file.
      unwrap: whether to remove such a component. A file may contain a part of a network.

    Raises:
      UserError: the file does not exist, is damaged, contains no state dict or several, or needs more than tensors.
    """
    return read_torch_checkpoint(path, unwrap=unwrap)[0]


def read_torch_checkpoint(path: pathlib.Path, *, unwrap: bool = True) -> tuple[dict[str, np.ndarray], dict[Any, Any]]:
    """Reads a state dict as `read_torch_file` does, and what a training script saved beside it.

    Args:
      path: the file.
      unwrap: see `read_torch_file`.

    Returns:
      The tensors by name, and the other entries of the file. Their values are plain or inert stand-ins, so check the
      type of each before you use it.

    Raises:
      UserError: see `read_torch_file`.
    """
    if path.suffix == ".safetensors":
        arrays = safetensors_file.read(path)
        return _as_float32(_without_wrapper(arrays) if unwrap else arrays), {}
    try:
        content = budget.read_bytes(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; expected a file of PyTorch weights") from None
    try:
        if content.startswith(b"PK"):
            arrays, root = _read_zip(content, path)
        elif content.startswith(b"\x80"):
            arrays, root = _read_legacy(content, path)
        else:
            raise _Damaged("it is neither a zip archive nor a pickle")
    except _Refused as error:
        raise UserError(
            f"{path} needs {error}, which could run code, so it is refused; "
            "ask its author for the weights only: torch.save(model.state_dict(), ...)"
        ) from None
    except (_Damaged, BadPickle) as error:
        problem = f"its pickle is invalid ({error})" if isinstance(error, BadPickle) else error
        raise UserError(
            f"{path} is not a file of PyTorch weights: {problem}; "
            "expected a complete file written by torch.save(model.state_dict(), ...)"
        ) from None
    others = {name: value for name, value in root.items() if type(value) is not _Tensor}
    return _as_float32(_without_wrapper(arrays) if unwrap else arrays), others


class _Refused(Exception):
    """The network needs a function or an object that this reader does not support."""


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


def _read_zip(content: bytes, path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[Any, Any]]:
    """Returns the state dict, and the whole pickled dictionary."""
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
            root = _run(io.BytesIO(archive.read(pickles[0])))
            state_dict = _find_state_dict(root)
            big_endian = f"{folder}byteorder" in entries and archive.read(f"{folder}byteorder") == b"big"
            keys = {tensor.storage.key for tensor in state_dict.values()}
            missing = [key for key in keys if f"{folder}data/{key}" not in entries]
            if missing:
                raise _Damaged(f"the archive has no data/{missing[0][:40]}")
            storages = {key: archive.read(f"{folder}data/{key}") for key in keys}
    except (zipfile.BadZipFile, struct.error, EOFError, RuntimeError, ValueError, OverflowError, OSError) as error:
        raise _Damaged(f"the archive cannot be opened ({error})") from None
    return _views(state_dict, storages, big_endian, budget.Budget(str(path), len(content))), root


def _read_legacy(content: bytes, path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[Any, Any]]:
    """Returns the state dict, and the whole pickled dictionary."""
    stream = io.BytesIO(content)
    if _run(stream) != _LEGACY_MAGIC:
        raise _Damaged("it is a pickle, but PyTorch did not write it")
    _run(stream)  # the protocol version; there is only one
    system = _run(stream)
    announced: dict[str, _Storage] = {}
    root = _run(stream, announced)
    state_dict = _find_state_dict(root)
    keys = _run(stream)
    if type(keys) is not list or not all(type(key) is str for key in keys) or set(keys) != set(announced):
        raise _Damaged("its list of storages does not match its tensors")
    storages = {}
    for key in keys:
        size = int.from_bytes(stream.read(8), "little")
        if size != announced[key].size:
            raise _Damaged(f"storage {abridge(key)} has {size} numbers instead of {announced[key].size}")
        storages[key] = stream.read(min(size * announced[key].dtype.itemsize, len(content)))
    big_endian = type(system) is dict and system.get("little_endian") is False
    return _views(state_dict, storages, big_endian, budget.Budget(str(path), len(content))), root


def _views(
    state_dict: Mapping[str, _Tensor], storages: Mapping[str, bytes], big_endian: bool, left: budget.Budget
) -> dict[str, np.ndarray]:
    arrays = {}
    for name, tensor in state_dict.items():
        arrays[name] = _view(abridge(name), tensor, storages[tensor.storage.key], big_endian)
        left.spend(arrays[name].nbytes)  # tensors can share their numbers, but importers copy each
    return arrays


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


# ---- The state dict in a file ----


def _find_state_dict(root: Any) -> Mapping[str, _Tensor]:
    """Returns the state dict of a file: the object itself, or one that a training script stored in it."""
    for _ in range(_LEVELS):
        if type(root) is Opaque:
            raise _Refused(root.name)
        if type(root) is not dict or not root:
            raise _Damaged("it does not contain a state dict")
        key = None if _has_tensors(root) else _find_nested(root)
        if key is None:
            break
        root = root[key]
    if opaque := next((value for value in root.values() if type(value) is Opaque), None):
        raise _Refused(opaque.name)
    for name, value in root.items():
        if type(name) is not str or type(value) is not _Tensor:
            raise _Damaged(f"entry {abridge(name) if type(name) is str else name} is not a tensor")
    return root


def _find_nested(root: Mapping[Any, Any]) -> Any:
    """Returns the key of the state dict in the dictionary of a training script; None if it has none."""
    dictionaries = {id(value): key for key, value in root.items() if type(value) is dict}  # each once
    found = [key for key in dictionaries.values() if _has_tensors(root[key])]
    known = [key for key in _NESTED if type(root.get(key)) is dict and (key in found or not found)]
    if not known and len(found) > 1:
        names = ", ".join(abridge(str(key)) for key in found[:5])
        raise _Damaged(f"it has {len(found)} state dicts ({names}); save one of them")
    return next(iter(known or found), None)


def _has_tensors(values: Mapping[Any, Any]) -> bool:
    return any(type(value) is _Tensor for value in values.values())


def _without_wrapper(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Removes first components that all names share, unless they number the layers of a `Sequential`."""
    arrays = {name: array for name, array in arrays.items() if name not in _NOT_WEIGHTS or len(arrays) == 1}
    for _ in range(_WRAPPERS):
        parts = [name.partition(".") for name in arrays]
        first = {head for head, _, _ in parts}
        if len(first) != 1 or not all(rest for _, _, rest in parts) or first.pop().isdigit():
            return arrays
        arrays = dict(zip((rest for _, _, rest in parts), arrays.values(), strict=True))
    return arrays


def _as_float32(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array.astype(np.float32) if array.dtype == jnp.bfloat16 else array for name, array in arrays.items()}


# ---- What PyTorch's pickles name ----


def _run(stream: io.BytesIO, storages: dict[str, _Storage] | None = None) -> Any:
    """Interprets a pickle of PyTorch; `storages` receives its storages by key."""

    def load_storage(identity: tuple) -> _Storage:
        kind, dtype, key, _, size, *view = identity  # with a device; `view` is None since PyTorch 0.4
        known = kind == "storage" and isinstance(dtype, np.dtype) and type(key) is str and _is_size(size)
        if not known or view not in ([], [None]):
            raise BadPickle("it has an unknown kind of storage")
        storage = _Storage(dtype, key, size)
        if storages is not None:
            storages[key] = storage
        return storage

    return pickle_machine.run(stream, _NAMES, load_storage)


def _is_size(number: Any) -> bool:
    return type(number) is int and 0 <= number < 1 << 63


def _is_shape(value: Any) -> bool:
    return type(value) in (list, tuple) and len(value) <= budget.DIMENSIONS


def _rebuild_tensor(*arguments: Any) -> _Tensor:
    """Stands for `torch._utils._rebuild_tensor` and `_v2`; arguments after the strides concern gradients."""
    storage, offset, shape, strides, *_ = arguments
    if type(storage) is not _Storage:
        raise BadPickle("a tensor has no storage")
    if not (_is_shape(shape) and _is_shape(strides)):
        raise BadPickle(f"a tensor has the impossible shape of something else than at most {budget.DIMENSIONS} numbers")
    if not all(map(_is_size, (offset, *shape, *strides))) or len(shape) != len(strides):
        raise BadPickle("a tensor has the impossible shape, strides or offset")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(*arguments: Any) -> Any:
    """Stands for `torch._utils._rebuild_parameter`; arguments after the tensor concern gradients."""
    return arguments[0]


def _ordered_dict(*arguments: Any) -> dict:
    """Stands for `collections.OrderedDict`. Python 2 passed a list of pairs; later versions fill it afterwards."""
    if not arguments:
        return {}
    (pairs,) = arguments
    if type(pairs) is not list:
        raise BadPickle("a dictionary is not made of a list of pairs")
    result = pickle_machine.pairs_to_dict(pairs)
    pairs.clear()  # a file could have the same list copied again and again
    return result


def _size(*arguments: Any) -> tuple:
    """Stands for `torch.Size`."""
    (shape,) = arguments
    if not _is_shape(shape):
        raise BadPickle("a tensor has an impossible shape")
    return tuple(shape)


_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): StandIn(_ordered_dict),
    ("torch", "Size"): StandIn(_size),
    ("torch._utils", "_rebuild_tensor"): StandIn(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): StandIn(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): StandIn(_rebuild_parameter),
    **{("torch", name): np.dtype(dtype) for name, dtype in _STORAGE_DTYPES.items()},
}
