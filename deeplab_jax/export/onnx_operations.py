"""Translations of JAX primitives to ONNX nodes.

Each translation takes the graph, the result's shape and dtype, the operands (a `Tensor`, or an array that is known at
export time) and the primitive's parameters, and returns a `Tensor`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax import lax

from deeplab_jax.errors import UserError
from deeplab_jax.export.onnx_graph import Tensor, import_onnx
from deeplab_jax.export.onnx_sizes import add_shape, add_size
from deeplab_jax.ops import XLA, resize_bilinear

_NCHW = (0, 2, 3, 1)  # layout of an NHWC value

_RESIZE = "resize_bilinear"


def _marked_resize(x, size, *, align_corners=False):
    """`resize_bilinear` as one equation of the traced program, which becomes one node."""
    if x.shape[1:3] == tuple(size):
        return x

    def decomposed(x, *, align_corners):
        return resize_bilinear(x, size, align_corners=align_corners)

    return lax.composite(decomposed, name=_RESIZE)(x, align_corners=align_corners)


#: Operations of a network that is translated to ONNX.
OPERATIONS = dataclasses.replace(XLA, name="onnx", resize_bilinear=_marked_resize)


def is_resize(equation: Any) -> bool:
    """Whether an equation is a call of `OPERATIONS.resize_bilinear`."""
    return equation.primitive.name == "composite" and equation.params["name"] == _RESIZE


def _invert(axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(position) for position in np.argsort(axes))


def _without(layout: Sequence[int], removed: Sequence[int]) -> tuple[int, ...]:
    """The layout without some axes of the tensor, renumbered."""
    return tuple(position - sum(axis < position for axis in removed) for position in layout if position not in removed)


def _keep(graph, aval, operands, params):
    return operands[0]


def _elementwise(kind: str) -> Callable:
    def translate(graph, aval, operands, params):
        layout = max((operand.layout for operand in operands if isinstance(operand, Tensor)), key=len)  # not a scalar's
        names = [_add_operand(graph, operand, layout) for operand in operands]
        return Tensor(graph.add_node(kind, names), aval, layout)

    return translate


def _add_operand(graph, operand, layout) -> str:
    """The name of an operand of an element-wise node whose tensors have this layout."""
    if isinstance(operand, Tensor):
        return graph.transpose(operand, layout) if operand.layout else operand.name
    return graph.add_array(operand if operand.ndim == 0 else operand.transpose(np.argsort(layout)))


def _subtract(graph, aval, operands, params):
    tensor, other = operands
    if isinstance(other, Tensor):
        return _elementwise("Sub")(graph, aval, operands, params)
    # onnxruntime fuses additions with the preceding convolution, but not subtractions.
    return _elementwise("Add")(graph, aval, [tensor, -other], params)


def _maximum(graph, aval, operands, params):
    tensor, other = operands
    if not isinstance(other, Tensor) and not np.any(other):
        return Tensor(graph.add_node("Relu", [tensor.name]), aval, tensor.layout)
    return _elementwise("Max")(graph, aval, operands, params)


def _minimum(graph, aval, operands, params):
    tensor, other = operands
    if isinstance(other, Tensor) or other.ndim:
        return _elementwise("Min")(graph, aval, operands, params)
    producer, bounds = graph.producer(tensor), [""]
    source = tensor.name
    if producer is not None and producer.kind == "Relu":
        source, bounds = producer.inputs[0], [graph.add_array(np.zeros((), aval.dtype))]
    return Tensor(graph.add_node("Clip", [source, *bounds, graph.add_array(other)]), aval, tensor.layout)


def _cast(graph, aval, operands, params):
    (tensor,) = operands
    kind = import_onnx().helper.np_dtype_to_tensor_dtype(np.dtype(params["new_dtype"]))
    return Tensor(graph.add_node("Cast", [tensor.name], to=kind), aval, tensor.layout)


def _convolution(graph, aval, operands, params):
    tensor, kernel = operands
    numbers = params["dimension_numbers"]
    if isinstance(kernel, Tensor) or set(params["lhs_dilation"]) != {1} or params["batch_group_count"] != 1:
        raise UserError("a convolution of this network cannot be translated to ONNX")
    kernel = kernel.transpose(numbers.rhs_spec)
    size = [tensor.aval.shape[axis] for axis in numbers.lhs_spec[2:]]
    name = graph.add_node(
        "Conv",
        [graph.transpose(tensor, _invert(numbers.lhs_spec)), graph.add_array(kernel)],
        strides=params["window_strides"],
        **_padding(params["padding"], size, kernel.shape[2:], params["window_strides"], params["rhs_dilation"]),
        dilations=params["rhs_dilation"],
        group=params["feature_group_count"],
        kernel_shape=kernel.shape[2:],
    )
    return Tensor(name, aval, _invert(numbers.out_spec))


def _padding(padding, size, window, strides, dilations=(1, 1)):
    """The attributes of a window's padding. Padding that depends on the image size is TensorFlow's SAME."""
    before, after = zip(*padding, strict=True)
    if all(isinstance(count, int) for count in (*before, *after)):
        return {"pads": (*before, *after)}
    reach = [dilation * (extent - 1) + 1 for extent, dilation in zip(window, dilations, strict=True)]
    if list(padding) != list(lax.padtype_to_pads(size, reach, strides, "SAME")):
        raise UserError("the padding of this network cannot be translated to ONNX for images of any size; set --size")
    return {"auto_pad": "SAME_UPPER"}


def _max_pool(graph, aval, operands, params):
    (tensor,) = operands
    window, strides, padding = params["window_dimensions"], params["window_strides"], params["padding"]
    dilations = (*params["base_dilation"], *params["window_dilation"])
    if set(dilations) != {1} or (window[0], window[3]) != (1, 1):
        raise UserError("a pooling of this network cannot be translated to ONNX")
    name = graph.add_node(
        "MaxPool",
        [graph.transpose(tensor, _NCHW)],
        kernel_shape=window[1:3],
        strides=strides[1:3],
        **_padding(padding[1:3], tensor.aval.shape[1:3], window[1:3], strides[1:3]),
    )
    return Tensor(name, aval, _NCHW)


def _product(graph, aval, operands, params):
    first, second = operands
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return _product_of_tensors(graph, aval, first, second, params["dimension_numbers"])
    return _product_with_constant(graph, aval, first, second, params["dimension_numbers"])


def _product_of_tensors(graph, aval, first, second, numbers):
    """A batch of matrix products, as in attention."""
    (left, right), (left_batch, right_batch) = numbers
    batch, rank = len(left_batch), first.aval.ndim
    if len(left) != 1 or batch != rank - 2 or second.aval.ndim != rank:
        raise UserError("a matrix product of this network cannot be translated to ONNX")

    def arrange(tensor, batch_axes, last):
        """Names the tensor with its axes in this order: of the batch, the one that is not `last`, `last`."""
        other = next(axis for axis in range(rank) if axis not in (*batch_axes, last))
        return graph.transpose(tensor, _invert((*batch_axes, other, last)))

    (free,) = (axis for axis in range(rank) if axis not in (*right_batch, *right))
    names = [arrange(first, left_batch, left[0]), arrange(second, right_batch, free)]
    return Tensor(graph.add_node("MatMul", names), aval, tuple(range(rank)))


def _product_with_constant(graph, aval, first, second, numbers):
    """A tensor times a constant matrix along one axis, which is how the network resizes."""
    (left, right), (left_batch, _) = numbers
    swapped = not isinstance(first, Tensor)
    if swapped:
        first, second, left, right = second, first, right, left
    if second.ndim != 2 or len(left) != 1 or left_batch:
        raise UserError("a matrix product of this network cannot be translated to ONNX")
    matrix = second if right[0] == 0 else second.T  # (contracted, new)
    (axis,), rank = left, first.aval.ndim
    if first.layout[axis] == rank - 1:
        name = graph.add_node("MatMul", [first.name, graph.add_array(matrix)])
    elif first.layout[axis] == rank - 2:
        name = graph.add_node("MatMul", [graph.add_array(matrix.T), first.name])
    else:
        layout = tuple(rank - 1 if i == axis else i - (i > axis) for i in range(rank))
        first = Tensor(graph.transpose(first, layout), first.aval, layout)
        name = graph.add_node("MatMul", [first.name, graph.add_array(matrix)])
    others = tuple(position for i, position in enumerate(first.layout) if i != axis)
    new = (first.layout[axis],)
    return Tensor(name, aval, new + others if swapped else others + new)


def _transpose(graph, aval, operands, params):
    (tensor,) = operands
    return Tensor(tensor.name, aval, tuple(tensor.layout[axis] for axis in params["permutation"]))


def _reduction(kind: str) -> Callable:
    def translate(graph, aval, operands, params):
        (tensor,) = operands
        reduced = [tensor.layout[axis] for axis in params["axes"]]
        return Tensor(graph.reduce(kind, tensor, params["axes"]), aval, _without(tensor.layout, reduced))

    return translate


def _arg_max(graph, aval, operands, params):
    (tensor,), (axis,) = operands, params["axes"]
    position = tensor.layout[axis]
    name = graph.add_node("ArgMax", [tensor.name], axis=position, keepdims=0)  # the first of equal values, as in JAX
    kind = import_onnx().helper.np_dtype_to_tensor_dtype(np.dtype(params["index_dtype"]))
    return Tensor(graph.add_node("Cast", [name], to=kind), aval, _without(tensor.layout, [position]))


def _broadcast(graph, aval, operands, params):
    """Adds axes of size one, then expands those that grow. A batch of any size keeps its size."""
    tensor, axes = operands[0], params["broadcast_dimensions"]
    if not isinstance(tensor, Tensor):  # a constant that is as large as the images
        tensor = Tensor(graph.add_array(tensor), tensor, tuple(range(tensor.ndim)))
    added = [axis for axis in range(aval.ndim) if axis not in axes]
    if all(aval.shape[axis] == 1 for axis in added) and (kept := graph.keep_reduced_axes(tensor, added)):
        # Norms and softmax subtract and divide by this. In the layout of their input they need no transposition.
        return Tensor(kept[0], aval, kept[1])
    name = graph.transpose(tensor, tuple(range(tensor.aval.ndim)))
    if added:
        name = graph.add_node("Unsqueeze", [name, graph.add_array(np.asarray(added))])
    grown = [
        (axis, axis not in axes or tensor.aval.shape[axes.index(axis)] != size) for axis, size in enumerate(aval.shape)
    ]
    target = [aval.shape[axis] if grows else 1 for axis, grows in grown]
    if any(size != 1 for size in target):
        name = graph.add_node("Expand", [name, add_shape(graph, target)])
    return Tensor(name, aval, tuple(range(aval.ndim)))


def _reshape(graph, aval, operands, params):
    """Splits or joins axes."""
    (tensor,) = operands
    sizes = [size if isinstance(size, int) else -1 for size in aval.shape]
    if sizes.count(-1) > 1:  # ONNX computes one size itself
        sizes = aval.shape
    order = tuple(range(tensor.aval.ndim))
    name = graph.add_node("Reshape", [graph.transpose(tensor, order), add_shape(graph, sizes)])
    return Tensor(name, aval, tuple(range(aval.ndim)))


def _unary(*kinds: str) -> Callable:
    """Nodes of one input, one after the other."""

    def translate(graph, aval, operands, params):
        (tensor,) = operands
        name = tensor.name
        for kind in kinds:
            name = graph.add_node(kind, [name])
        return Tensor(name, aval, tensor.layout)

    return translate


def _power(graph, aval, operands, params):
    (tensor,) = operands
    exponent = np.asarray(params["y"], aval.dtype)
    return Tensor(graph.add_node("Pow", [tensor.name, graph.add_array(exponent)]), aval, tensor.layout)


def _square(graph, aval, operands, params):
    (tensor,) = operands
    return Tensor(graph.add_node("Mul", [tensor.name, tensor.name]), aval, tensor.layout)


def _complementary_error(graph, aval, operands, params):
    """1 - erf(x). Where erfc is tiny it loses digits, but GELU multiplies it by x and adds up the result."""
    (tensor,) = operands
    error = graph.add_node("Erf", [tensor.name])
    return Tensor(graph.add_node("Sub", [graph.add_array(np.ones((), aval.dtype)), error]), aval, tensor.layout)


def _concatenate(graph, aval, operands, params):
    layout = operands[0].layout
    names = [graph.transpose(operand, layout) for operand in operands]
    return Tensor(graph.add_node("Concat", names, axis=layout[params["dimension"]]), aval, layout)


def _slice(graph, aval, operands, params):
    (tensor,) = operands
    strides = params["strides"] or (1,) * aval.ndim
    cut = [axis for axis in range(aval.ndim) if aval.shape[axis] != tensor.aval.shape[axis]]
    columns = zip(
        *((params["start_indices"][i], params["limit_indices"][i], tensor.layout[i], strides[i]) for i in cut),
        strict=True,
    )
    if not cut:
        return tensor
    return Tensor(
        graph.add_node("Slice", [tensor.name, *(add_shape(graph, column) for column in columns)]),
        aval,
        tensor.layout,
    )


def _resize(graph, aval, operands, params):
    (tensor,) = operands
    ((_, (align_corners,), _),) = params["attributes"]
    batch, height, width, channels = aval.shape
    name = graph.add_node(
        "Resize",
        [graph.transpose(tensor, _NCHW), "", "", add_shape(graph, (batch, channels, height, width))],
        mode="linear",
        coordinate_transformation_mode="align_corners" if align_corners else "half_pixel",
    )
    return Tensor(name, aval, _NCHW)


def _size(graph, aval, operands, params):
    """A size of the images' as a scalar."""
    size = graph.add_node("Squeeze", [add_size(graph, params["dim"])])
    kind = import_onnx().helper.np_dtype_to_tensor_dtype(np.dtype(aval.dtype))
    return Tensor(graph.add_node("Cast", [size], to=kind), aval, ())


#: The translation of each primitive, by its name.
TRANSLATIONS: dict[str, Callable] = {
    "add": _elementwise("Add"),
    "add_any": _elementwise("Add"),
    "argmax": _arg_max,
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "convert_element_type": _cast,
    "composite": _resize,
    "copy": _keep,
    "dim_as_value": _size,
    "div": _elementwise("Div"),
    "dot_general": _product,
    "erf": _unary("Erf"),
    "erfc": _complementary_error,
    "exp": _unary("Exp"),
    "integer_pow": _power,
    "logistic": _unary("Sigmoid"),
    "max": _maximum,
    "min": _minimum,
    "mul": _elementwise("Mul"),
    "name": _keep,
    "neg": _unary("Neg"),
    "reduce_max": _reduction("ReduceMax"),
    "reduce_sum": _reduction("ReduceSum"),
    "reduce_window_max": _max_pool,
    "reshape": _reshape,
    "rsqrt": _unary("Sqrt", "Reciprocal"),
    "slice": _slice,
    "square": _square,
    "squeeze": _reshape,
    "stop_gradient": _keep,
    "sub": _subtract,
    "tanh": _unary("Tanh"),
    "transpose": _transpose,
}
