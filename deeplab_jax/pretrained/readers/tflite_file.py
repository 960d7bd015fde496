"""Reader of TFLite files: operators, their options, and constant tensors. Needs only numpy.

A TFLite file is a FlatBuffer. Field numbers and enumerations are those of TensorFlow's schema (`schema.fbs`, version
3), which only ever appends. The layout of tables, vectors and offsets is described under "FlatBuffer binary format" in
the internals of FlatBuffers. Every offset is checked, so a damaged or hostile file is refused. Offsets may point to the
same bytes again and again, so what is copied from them is bounded too.
"""

import dataclasses
import math
import pathlib
import struct
from collections.abc import Mapping, Sequence

import numpy as np

from deeplab_jax import budget
from deeplab_jax.errors import UserError

SAME_PADDING, VALID_PADDING = 0, 1
NO_ACTIVATION, RELU, RELU6 = 0, 1, 3

_DTYPES = {0: np.float32, 1: np.float16, 2: np.int32, 3: np.uint8, 4: np.int64, 9: np.int8}

# enum BuiltinOperator
_OPERATORS = {
    0: "ADD", 1: "AVERAGE_POOL_2D", 2: "CONCATENATION", 3: "CONV_2D", 4: "DEPTHWISE_CONV_2D", 6: "DEQUANTIZE",
    23: "RESIZE_BILINEAR", 56: "ARG_MAX", 114: "QUANTIZE",
}  # fmt: skip

# Scalar options of each operator: field number, struct format, default.
_OPTIONS = {
    "ADD": {"activation": (0, "b", 0)},
    "AVERAGE_POOL_2D": {
        "padding": (0, "b", 0),
        "filter_width": (3, "i", 0),
        "filter_height": (4, "i", 0),
        "activation": (5, "b", 0),
    },
    "CONCATENATION": {"axis": (0, "i", 0), "activation": (1, "b", 0)},
    "CONV_2D": {
        "padding": (0, "b", 0),
        "stride_width": (1, "i", 0),
        "stride_height": (2, "i", 0),
        "activation": (3, "b", 0),
        "rate_width": (4, "i", 1),
        "rate_height": (5, "i", 1),
    },
    "DEPTHWISE_CONV_2D": {
        "padding": (0, "b", 0),
        "stride_width": (1, "i", 0),
        "stride_height": (2, "i", 0),
        "activation": (4, "b", 0),
        "rate_width": (5, "i", 1),
        "rate_height": (6, "i", 1),
    },
    "RESIZE_BILINEAR": {"align_corners": (2, "b", 0), "half_pixel_centers": (3, "b", 0)},
}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of the graph.

    Attributes:
      name: the name that the converter left, only for error messages.
      shape: its shape.
      dtype: dtype of the stored values; None for an unsupported type.
      constant: the stored values; None if an operator computes the tensor.
      scales: quantization scales, one for the tensor or one per slice of `axis`; empty for unquantized tensors.
      zero_points: the stored values that mean 0, shaped like `scales`.
      axis: the axis of the scales.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype | None
    constant: np.ndarray | None
    scales: np.ndarray
    zero_points: np.ndarray
    axis: int

    def values(self) -> np.ndarray:
        """Returns the constant as float32: (stored - zero point) * scale.

        Raises:
          UserError: the tensor is not constant, or its quantization does not fit its shape.
        """
        if self.constant is None:
            raise UserError(f"tensor {self.name!r} is computed, but weights were expected")
        if not self.scales.size:
            return self.constant.astype(np.float32)
        shape = [1] * len(self.shape)
        if self.scales.size > 1:
            if not 0 <= self.axis < len(self.shape) or self.shape[self.axis] != self.scales.size:
                raise UserError(f"tensor {self.name!r} of shape {self.shape} has {self.scales.size} scales")
            shape[self.axis] = -1
        stored = self.constant.astype(np.float64)
        return ((stored - self.zero_points.reshape(shape)) * self.scales.reshape(shape)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Operator:
    """An operator of the graph: its kind, the indices of its tensors, and its options."""

    kind: str
    inputs: Sequence[int]
    outputs: Sequence[int]
    options: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Graph:
    """The first subgraph of a file. Operators are in execution order."""

    tensors: Sequence[Tensor]
    operators: Sequence[Operator]
    inputs: Sequence[int]
    outputs: Sequence[int]


def read(path: pathlib.Path) -> Graph:
    """Reads the graph of a .tflite file.

    Raises:
      UserError: the file is missing, damaged, or not a TFLite file.
    """
    try:
        content = budget.read_bytes(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    if content[4:8] != b"TFL3":
        raise UserError(f"{path} is not a TFLite file (no identifier TFL3)")
    try:
        return _graph(content, budget.Budget(str(path), len(content)))
    except (struct.error, ValueError, IndexError, OverflowError) as error:
        raise UserError(f"{path} is damaged: {error}") from None


class _Table:
    """A FlatBuffers table. Its vtable locates the fields by number."""

    def __init__(self, content: bytes, position: int):
        self._content, self._position = content, position
        self._vtable = position - _scalar(content, position, "i")
        self._entries = max(0, _scalar(content, self._vtable, "H") - 4) // 2

    def scalar(self, number: int, kind: str, default: int) -> int:
        place = self._place(number)
        return default if place is None else _scalar(self._content, place, kind)

    def table(self, number: int) -> "_Table | None":
        place = self._place(number)
        return None if place is None else _Table(self._content, place + _scalar(self._content, place, "I"))

    def tables(self, number: int) -> "list[_Table]":
        start, count = self._vector(number, budget.TFLITE_ITEMS)
        places = (start + 4 * i for i in range(count))
        return [_Table(self._content, place + _scalar(self._content, place, "I")) for place in places]

    def array(self, number: int, dtype) -> np.ndarray:
        """Returns a vector of numbers as a view, of any length inside the file."""
        start, count = self._vector(number)
        return np.frombuffer(self._content, np.dtype(dtype).newbyteorder("<"), count, start)

    def integers(self, number: int, limit: int) -> tuple[int, ...]:
        """Returns a short vector of int32."""
        start, count = self._vector(number, limit)
        return struct.unpack_from(f"<{count}i", self._content, start)

    def text(self, number: int) -> str:
        start, count = self._vector(number, budget.TFLITE_NAME)
        return self._content[start : start + count].decode("utf-8", "replace")

    def _place(self, number: int) -> int | None:
        if number >= self._entries:
            return None
        offset = _scalar(self._content, self._vtable + 4 + 2 * number, "H")
        return self._position + offset if offset else None

    def _vector(self, number: int, limit: int | None = None) -> tuple[int, int]:
        place = self._place(number)
        if place is None:
            return 0, 0
        start = place + _scalar(self._content, place, "I")
        count = _scalar(self._content, start, "I")
        if limit is not None and count > limit:
            raise ValueError(f"a list has {count} items; at most {limit} are read")
        return start + 4, count


def _scalar(content: bytes, start: int, kind: str):
    if start < 0:  # struct counts negative offsets from the end
        raise ValueError(f"offset {start} is outside the file")
    (value,) = struct.unpack_from("<" + kind, content, start)
    return value


def _graph(content: bytes, left: budget.Budget) -> Graph:
    model = _Table(content, _scalar(content, 0, "I"))
    codes = [_operator_code(code) for code in model.tables(1)]
    buffers = [buffer.array(0, np.uint8) for buffer in model.tables(4)]
    subgraph = model.tables(2)[0]
    tensors = [_tensor(table, buffers) for table in subgraph.tables(0)]
    for tensor in tensors:
        if tensor.constant is not None:
            left.spend(4 * tensor.constant.size)  # importers copy constants to float32, also those that share a buffer
    operators = [_operator(table, codes) for table in subgraph.tables(3)]
    inputs, outputs = (subgraph.integers(number, budget.TFLITE_OPERANDS) for number in (1, 2))
    for numbers in (inputs, outputs, *(op.inputs for op in operators), *(op.outputs for op in operators)):
        if any(not -1 <= number < len(tensors) for number in numbers):
            raise ValueError(f"tensor {max(numbers)} does not exist")
    return Graph(tensors, operators, inputs, outputs)


def _operator_code(code: _Table) -> str:
    # Codes from 127 on are in a field of their own; the old field holds smaller ones.
    number = max(code.scalar(0, "b", 0), code.scalar(3, "i", 0))
    return _OPERATORS.get(number, f"operator {number}")


def _tensor(table: _Table, buffers: Sequence[np.ndarray]) -> Tensor:
    name, shape = table.text(3), table.integers(0, budget.DIMENSIONS)
    kind = table.scalar(1, "b", 0)
    dtype = np.dtype(_DTYPES[kind]) if kind in _DTYPES else None
    stored, constant = buffers[table.scalar(2, "I", 0)], None
    if stored.size:
        if dtype is None:
            raise ValueError(f"tensor {name!r} has the unsupported type {kind}")
        if min(shape, default=1) < 0 or stored.size != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"tensor {name!r} of shape {shape} has {stored.size} bytes")
        constant = stored.view(dtype.newbyteorder("<")).reshape(shape)
    scales, zero_points, axis = np.zeros(0, np.float32), np.zeros(0, np.int64), 0
    quantization = table.table(4)
    if quantization is not None:
        scales = quantization.array(2, np.float32)
        zero_points, axis = quantization.array(3, np.int64), quantization.scalar(6, "i", 0)
        if not zero_points.size:
            zero_points = np.broadcast_to(np.int64(0), scales.shape)
        if zero_points.size != scales.size:
            raise ValueError(f"tensor {name!r} has {scales.size} scales and {zero_points.size} zero points")
    return Tensor(name, shape, dtype, constant, scales, zero_points, axis)


def _operator(table: _Table, codes: Sequence[str]) -> Operator:
    kind = codes[table.scalar(0, "I", 0)]
    options = table.table(4)
    known = _OPTIONS.get(kind, {})
    values = {
        name: default if options is None else options.scalar(number, form, default)
        for name, (number, form, default) in known.items()
    }
    inputs, outputs = (table.integers(number, budget.TFLITE_OPERANDS) for number in (1, 2))
    return Operator(kind, inputs, outputs, values)
