"""ONNX, written from what JAX traces: one node for an operation, weights as initializers.

The plain formulation of the network is some twenty operations of `jax.lax`, and this file has a function for each.
What depends on weights alone is computed here, once. Axes are never moved but where a node needs it: a tensor of the
graph knows which of its axes is which, so that a network over NHWC images becomes a graph over NCHW tensors, as
runtimes of ONNX want them, with a transposition at its beginning and one at its end.

jax2onnx would do more than is needed here, but its releases (0.17.1 in October 2026) want an Orbax older than ours.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jaxtyping import Array

from deeplab_jax.errors import UserError
from deeplab_jax.export.program import Program

OPSET = 17  # of June 2022; nothing newer is needed
_IR_VERSION = 8  # of the same release


def to_onnx(program: Program, metadata: dict[str, str]) -> bytes:
    """A model with the input `images` and the output `logits` or `labels`; images have one size, any number of them.

    Args:
      program: what is exported.
      metadata: entries of the model's `metadata_props`.

    Raises:
      UserError: the package `onnx` is not installed, or an operation has no translation here.
    """
    onnx = _onnx()
    traced = jax.make_jaxpr(program.function)(program.images())
    # In one compiled program: on their own, hundreds of small operations would be compiled one after the other.
    constants = jax.jit(lambda consts: _constants(traced.jaxpr, consts, [_IMAGES])[0])(traced.consts)
    graph = _Graph(constants)
    (images,) = traced.jaxpr.invars
    (result,) = graph.run(traced.jaxpr, [Tensor("images", images.aval, tuple(range(images.aval.ndim)))])
    name = "labels" if program.options.argmax else "logits"
    stored = graph.stored(result, tuple(range(result.aval.ndim)))
    graph.node("Identity", [stored], output=name)

    helper = onnx.helper
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node(node.kind, node.inputs, [node.output], **node.attributes) for node in graph.used(name)],
            "deeplab",
            [_declare(helper, "images", images.aval)],
            [_declare(helper, name, result.aval)],
            [onnx.numpy_helper.from_array(value, key) for key, value in graph.initializers(name).items()],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="deeplab_jax",
    )
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A value of the traced program that the graph computes.

    Attributes:
      name: of the graph's tensor.
      aval: shape and type in the traced program.
      places: for each axis of the traced value, which axis of the graph's tensor it is.
    """

    name: str
    aval: Any
    places: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Node:
    """Of the graph: the kind of operation, names of what it reads and what it makes, and its attributes."""

    kind: str
    inputs: tuple[str, ...]
    output: str
    attributes: dict[str, Any]


_IMAGES = object()  # a value that depends on images, while constants are computed


def _constants(jaxpr: core.Jaxpr, consts: Sequence[Any], arguments: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """What the equations that depend on images read besides, in their order; and the values of the program."""
    known = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, arguments, strict=True))

    def read(variable):
        return variable.val if isinstance(variable, core.Literal) else known[variable]

    found = []
    for equation in jaxpr.eqns:
        operands = [read(variable) for variable in equation.invars]
        inner = _inner(equation)
        if inner is not None:
            more, results = _constants(inner.jaxpr, inner.consts, operands)
            found += more
        elif any(operand is _IMAGES for operand in operands):
            found += [operand for operand in operands if operand is not _IMAGES]
            results = [_IMAGES] * len(equation.outvars)
        else:
            results = equation.primitive.bind(*operands, **equation.params)
            results = results if equation.primitive.multiple_results else [results]
        known.update(zip(equation.outvars, results, strict=True))
    return found, [read(variable) for variable in jaxpr.outvars]


def _inner(equation: core.JaxprEqn) -> core.ClosedJaxpr | None:
    """The program that an equation calls, if it does nothing else."""
    return equation.params.get("jaxpr") or equation.params.get("call_jaxpr")


class _Graph:
    """Nodes and initializers, in the order in which they were made. `constants` are those of `_constants`."""

    def __init__(self, constants: Iterable[Array]):
        self._constants = iter(constants)
        self._nodes: dict[str, Node] = {}  # by output
        self._arrays: dict[str, np.ndarray] = {}
        self._stored: dict[tuple[str, tuple[int, ...]], str] = {}

    def run(self, jaxpr: core.Jaxpr, arguments: Sequence[Any]) -> list[Any]:
        """Translates a traced program, given and giving a `Tensor` for all that depends on images."""
        known = {}
        for variable, argument in zip(jaxpr.invars, arguments, strict=True):
            if isinstance(argument, Tensor):
                known[variable] = argument

        def read(variable):
            return None if isinstance(variable, core.Literal) else known.get(variable)

        for equation in jaxpr.eqns:
            operands = [read(variable) for variable in equation.invars]
            if any(operand is not None for operand in operands):
                known.update(zip(equation.outvars, self._translate(equation, operands), strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    def _translate(self, equation: core.JaxprEqn, operands: list[Tensor | None]) -> list[Tensor | None]:
        inner = _inner(equation)
        if inner is not None:
            return self.run(inner.jaxpr, operands)
        name = equation.primitive.name
        if name not in _TRANSLATIONS:
            raise UserError(f"the operation {name} of this network has no translation into ONNX")
        operands = [np.asarray(next(self._constants)) if operand is None else operand for operand in operands]
        return [_TRANSLATIONS[name](self, equation.outvars[0].aval, operands, equation.params)]

    def node(self, kind: str, inputs: Sequence[str], *, output: str | None = None, **attributes: Any) -> str:
        """Adds a node; the name of what it makes."""
        output = output or f"{kind.lower()}_{len(self._nodes)}"
        self._nodes[output] = Node(kind, tuple(inputs), output, attributes)
        return output

    def array(self, value: Any) -> str:
        """Adds an initializer; its name."""
        name = f"array_{len(self._arrays)}"
        self._arrays[name] = np.ascontiguousarray(value)
        return name

    def stored(self, tensor: Tensor, places: tuple[int, ...]) -> str:
        """The name of a tensor with its axes at these places."""
        if tensor.places == places:
            return tensor.name
        key = tensor.name, tuple(tensor.places[places.index(axis)] for axis in range(len(places)))
        if key not in self._stored:
            self._stored[key] = self.node("Transpose", [tensor.name], perm=key[1])
        return self._stored[key]

    def producer(self, tensor: Tensor) -> Node | None:
        """The node that makes a tensor."""
        return self._nodes.get(tensor.name)

    def used(self, result: str) -> list[Node]:
        """The nodes that a result needs, in order."""
        needed = {result}
        for node in reversed(self._nodes.values()):
            if node.output in needed:
                needed.update(node.inputs)
        return [node for node in self._nodes.values() if node.output in needed]

    def initializers(self, result: str) -> dict[str, np.ndarray]:
        """The arrays that a result needs."""
        needed = {name for node in self.used(result) for name in node.inputs}
        return {name: value for name, value in self._arrays.items() if name in needed}


# ---- Translations: (graph, what comes out, operands, parameters) to a tensor ----


def _same(graph, aval, operands, params):
    return operands[0]


def _elementwise(kind: str) -> Callable:
    def translate(graph, aval, operands, params):
        places = next(operand.places for operand in operands if isinstance(operand, Tensor))
        names = [_operand(graph, operand, places) for operand in operands]
        return Tensor(graph.node(kind, names), aval, places)

    return translate


def _operand(graph, operand, places) -> str:
    """Of an element-wise node over tensors with these places."""
    if isinstance(operand, Tensor):
        return graph.stored(operand, places)
    return graph.array(operand if operand.ndim == 0 else operand.transpose(np.argsort(places)))


def _subtract(graph, aval, operands, params):
    tensor, other = operands
    if isinstance(other, Tensor):
        return _elementwise("Sub")(graph, aval, operands, params)
    # onnxruntime merges additions with the convolution before them, but no subtractions.
    return _elementwise("Add")(graph, aval, [tensor, -other], params)


def _maximum(graph, aval, operands, params):
    tensor, other = operands
    if not isinstance(other, Tensor) and not np.any(other):
        return Tensor(graph.node("Relu", [tensor.name]), aval, tensor.places)
    return _elementwise("Max")(graph, aval, operands, params)


def _minimum(graph, aval, operands, params):
    tensor, other = operands
    if isinstance(other, Tensor) or other.ndim:
        return _elementwise("Min")(graph, aval, operands, params)
    made_by, bounds = graph.producer(tensor), [""]
    source = tensor.name
    if made_by is not None and made_by.kind == "Relu":
        source, bounds = made_by.inputs[0], [graph.array(np.zeros((), aval.dtype))]
    return Tensor(graph.node("Clip", [source, *bounds, graph.array(other)]), aval, tensor.places)


def _cast(graph, aval, operands, params):
    (tensor,) = operands
    kind = _onnx().helper.np_dtype_to_tensor_dtype(np.dtype(params["new_dtype"]))
    return Tensor(graph.node("Cast", [tensor.name], to=kind), aval, tensor.places)


def _convolution(graph, aval, operands, params):
    tensor, kernel = operands
    numbers = params["dimension_numbers"]
    if isinstance(kernel, Tensor) or set(params["lhs_dilation"]) != {1} or params["batch_group_count"] != 1:
        raise UserError("a convolution of this network has no translation into ONNX")
    kernel = kernel.transpose(numbers.rhs_spec)
    before, after = zip(*params["padding"], strict=True)
    name = graph.node(
        "Conv",
        [graph.stored(tensor, _inverse(numbers.lhs_spec)), graph.array(kernel)],
        strides=params["window_strides"],
        pads=(*before, *after),
        dilations=params["rhs_dilation"],
        group=params["feature_group_count"],
        kernel_shape=kernel.shape[2:],
    )
    return Tensor(name, aval, _inverse(numbers.out_spec))


def _max_pool(graph, aval, operands, params):
    (tensor,) = operands
    window, strides, padding = params["window_dimensions"], params["window_strides"], params["padding"]
    dilations = (*params["base_dilation"], *params["window_dilation"])
    if set(dilations) != {1} or (window[0], window[3]) != (1, 1):
        raise UserError("a pooling of this network has no translation into ONNX")
    before, after = zip(*padding[1:3], strict=True)
    name = graph.node(
        "MaxPool",
        [graph.stored(tensor, _NCHW)],
        kernel_shape=window[1:3],
        strides=strides[1:3],
        pads=(*before, *after),
    )
    return Tensor(name, aval, _NCHW)


def _product(graph, aval, operands, params):
    """A tensor times a constant matrix along one axis: how images are resized."""
    (left, right), (left_batch, right_batch) = params["dimension_numbers"]
    first, second = operands
    swapped = not isinstance(first, Tensor)
    if swapped:
        first, second, left, right = second, first, right, left
    if isinstance(second, Tensor) or second.ndim != 2 or len(left) != 1 or left_batch or right_batch:
        raise UserError("a matrix product of this network has no translation into ONNX")
    matrix = second if right[0] == 0 else second.T  # what is summed over, what comes out
    (axis,), rank = left, first.aval.ndim
    if first.places[axis] == rank - 1:
        name = graph.node("MatMul", [first.name, graph.array(matrix)])
    elif first.places[axis] == rank - 2:
        name = graph.node("MatMul", [graph.array(matrix.T), first.name])
    else:
        places = tuple(rank - 1 if i == axis else i - (i > axis) for i in range(rank))
        first = Tensor(graph.stored(first, places), first.aval, places)
        name = graph.node("MatMul", [first.name, graph.array(matrix)])
    others = tuple(place for i, place in enumerate(first.places) if i != axis)
    ends = (first.places[axis],)
    return Tensor(name, aval, ends + others if swapped else others + ends)


def _transpose(graph, aval, operands, params):
    (tensor,) = operands
    return Tensor(tensor.name, aval, tuple(tensor.places[axis] for axis in params["permutation"]))


def _sum(graph, aval, operands, params):
    (tensor,) = operands
    gone = [tensor.places[axis] for axis in params["axes"]]
    name = graph.node("ReduceSum", [tensor.name, graph.array(np.asarray(sorted(gone)))], keepdims=0)
    return Tensor(name, aval, _without(tensor.places, gone))


def _arg_max(graph, aval, operands, params):
    (tensor,), (axis,) = operands, params["axes"]
    place = tensor.places[axis]
    name = graph.node("ArgMax", [tensor.name], axis=place, keepdims=0)  # the first of equal ones, as JAX
    kind = _onnx().helper.np_dtype_to_tensor_dtype(np.dtype(params["index_dtype"]))
    return Tensor(graph.node("Cast", [name], to=kind), aval, _without(tensor.places, [place]))


def _broadcast(graph, aval, operands, params):
    """New axes of one pixel, then as many as are wanted; a batch of any size stays as it is."""
    tensor, axes = operands[0], params["broadcast_dimensions"]
    name = graph.stored(tensor, tuple(range(tensor.aval.ndim)))
    new = [axis for axis in range(aval.ndim) if axis not in axes]
    if new:
        name = graph.node("Unsqueeze", [name, graph.array(np.asarray(new))])
    grown = [
        (axis, axis not in axes or tensor.aval.shape[axes.index(axis)] != size) for axis, size in enumerate(aval.shape)
    ]
    target = [aval.shape[axis] if grows else 1 for axis, grows in grown]
    if any(size != 1 for size in target):
        name = graph.node("Expand", [name, graph.array(np.asarray(target))])
    return Tensor(name, aval, tuple(range(aval.ndim)))


def _concatenate(graph, aval, operands, params):
    places = operands[0].places
    names = [graph.stored(operand, places) for operand in operands]
    return Tensor(graph.node("Concat", names, axis=places[params["dimension"]]), aval, places)


def _slice(graph, aval, operands, params):
    (tensor,) = operands
    strides = params["strides"] or (1,) * aval.ndim
    cut = [axis for axis in range(aval.ndim) if aval.shape[axis] != tensor.aval.shape[axis]]
    columns = zip(
        *((params["start_indices"][i], params["limit_indices"][i], tensor.places[i], strides[i]) for i in cut),
        strict=True,
    )
    if not cut:
        return tensor
    return Tensor(
        graph.node("Slice", [tensor.name, *(graph.array(np.asarray(column)) for column in columns)]),
        aval,
        tensor.places,
    )


_NCHW = (0, 2, 3, 1)
_TRANSLATIONS = {
    "add": _elementwise("Add"),
    "add_any": _elementwise("Add"),
    "argmax": _arg_max,
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "convert_element_type": _cast,
    "copy": _same,
    "div": _elementwise("Div"),
    "dot_general": _product,
    "max": _maximum,
    "min": _minimum,
    "mul": _elementwise("Mul"),
    "name": _same,
    "reduce_sum": _sum,
    "reduce_window_max": _max_pool,
    "slice": _slice,
    "sub": _subtract,
    "transpose": _transpose,
}


def _inverse(axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(place) for place in np.argsort(axes))


def _without(places: Sequence[int], gone: Sequence[int]) -> tuple[int, ...]:
    """The places that are left, numbered anew."""
    return tuple(place - sum(other < place for other in gone) for place in places if place not in gone)


def _declare(helper, name: str, aval):
    shape = [size if isinstance(size, int) else str(size) for size in aval.shape]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(aval.dtype)), shape)


def _onnx():
    try:
        import onnx
    except ImportError as error:
        raise UserError(
            f"the package onnx cannot be imported ({error}); install the extra: pip install 'deeplab_jax[export]'"
        ) from None
    return onnx
