"""ONNX, translated from the jaxpr of the network: one node per operation, with weights as initializers.

A network in plain XLA operations uses about twenty primitives, and `onnx_operations` has a function for each. Values
that depend on weights alone are computed here, once. The graph transposes axes only where a node requires it: each
tensor knows the order of its axes, so a network over NHWC images becomes a graph over NCHW tensors, which ONNX runtimes
prefer, with one transposition at its beginning and one at its end.

jax2onnx supports more, but its newest release (0.17.1, October 2026) requires an Orbax older than ours.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jaxtyping import Array

from deeplab_jax.errors import UserError
from deeplab_jax.export import onnx_quantization
from deeplab_jax.export.onnx_graph import Graph, Tensor, import_onnx
from deeplab_jax.export.onnx_operations import TRANSLATIONS, is_resize
from deeplab_jax.export.program import Program

OPSET = 17  # released in June 2022; nothing newer is needed
_IR_VERSION = 8  # the version of the same release

_IMAGES = object()  # stands for values that depend on images while constants are computed


def serialize(program: Program, metadata: dict[str, str], calibration: Sequence[np.ndarray] = ()) -> bytes:
    """Serializes a program as an ONNX model with the input `images` and the output `logits` or `labels`.

    Args:
      program: the program, of a network with the operations `onnx_operations.OPERATIONS`.
      metadata: entries of the model's `metadata_props`.
      calibration: inputs of the network, (height, width, channels) each, from which int8 takes the ranges of values.

    Raises:
      UserError: the package `onnx` is not installed, or an operation cannot be translated.
    """
    onnx = import_onnx()
    traced = jax.make_jaxpr(program.function)(program.images())
    # A single compiled program; hundreds of small operations would otherwise be compiled one by one.
    constants = jax.jit(lambda consts: _compute_constants(traced.jaxpr, consts, [_IMAGES])[0])(traced.consts)
    (images,) = traced.jaxpr.invars
    graph = Graph(Tensor("images", images.aval, tuple(range(images.aval.ndim))))
    (result,) = _translate_jaxpr(graph, traced.jaxpr, [graph.images], iter(constants))
    name = program.output_name
    graph.add_node("Identity", [graph.transpose(result, tuple(range(result.aval.ndim)))], output=name)

    helper = onnx.helper
    nodes = [helper.make_node(n.kind, n.inputs, [n.output], **n.attributes) for n in graph.nodes_for(name)]
    arrays = graph.arrays_for(name)
    if program.options.quantize == "float16":
        casts, arrays = _store_as_float16(helper, arrays)
        nodes = casts + nodes
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "deeplab",
            [_declare(helper, "images", images.aval)],
            [_declare(helper, name, result.aval)],
            [onnx.numpy_helper.from_array(value, key) for key, value in arrays.items()],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="deeplab_jax",
    )
    if program.options.quantize == "int8":
        quantized = onnx_quantization.quantize(model.SerializeToString(), calibration, program.options.batch)
        model = onnx.load_model_from_string(quantized)
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _compute_constants(
    jaxpr: core.Jaxpr, consts: Sequence[Any], arguments: Sequence[Any]
) -> tuple[list[Any], list[Any]]:
    """Evaluates the part of a program that does not depend on images.

    Returns:
      The constant operands of the equations that depend on images, in order; and the results of the program.
    """
    known = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, arguments, strict=True))

    def read(variable):
        return variable.val if isinstance(variable, core.Literal) else known[variable]

    found = []
    for equation in jaxpr.eqns:
        operands = [read(variable) for variable in equation.invars]
        inner = _called_jaxpr(equation)
        if inner is not None:
            more, results = _compute_constants(inner.jaxpr, inner.consts, operands)
            found += more
        elif any(operand is _IMAGES for operand in operands) or _has_image_size(equation):
            found += [operand for operand in operands if operand is not _IMAGES]
            results = [_IMAGES] * len(equation.outvars)
        else:
            results = equation.primitive.bind(*operands, **equation.params)
            results = results if equation.primitive.multiple_results else [results]
        known.update(zip(equation.outvars, results, strict=True))
    return found, [read(variable) for variable in jaxpr.outvars]


def _translate_jaxpr(
    graph: Graph, jaxpr: core.Jaxpr, arguments: Sequence[Tensor | None], constants: Iterator[Array]
) -> list[Tensor | None]:
    """Adds the equations that depend on images to the graph.

    Args:
      graph: the graph.
      jaxpr: the traced program.
      arguments: a tensor for each argument that depends on images, None for the others.
      constants: the constant operands, from `_compute_constants`.

    Returns:
      The results, as `arguments`.
    """
    known = {
        variable: argument
        for variable, argument in zip(jaxpr.invars, arguments, strict=True)
        if isinstance(argument, Tensor)
    }

    def read(variable):
        return None if isinstance(variable, core.Literal) else known.get(variable)

    for equation in jaxpr.eqns:
        operands = [read(variable) for variable in equation.invars]
        if all(operand is None for operand in operands) and not _has_image_size(equation):
            continue
        inner = _called_jaxpr(equation)
        if inner is not None:
            results = _translate_jaxpr(graph, inner.jaxpr, operands, constants)
        else:
            operands = [np.asarray(next(constants)) if operand is None else operand for operand in operands]
            results = [_translate(graph, equation, operands)]
        known.update(zip(equation.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _translate(graph: Graph, equation: core.JaxprEqn, operands: Sequence[Any]) -> Tensor:
    name = equation.primitive.name
    if name not in TRANSLATIONS:
        raise UserError(f"the operation {name} of this network cannot be translated to ONNX")
    return TRANSLATIONS[name](graph, equation.outvars[0].aval, operands, equation.params)


def _has_image_size(equation: core.JaxprEqn) -> bool:
    """Whether an equation's result is a size that the images have when the graph runs, or has such a size."""
    sizes = (size for variable in equation.outvars for size in variable.aval.shape)
    return equation.primitive.name == "dim_as_value" or not all(isinstance(size, int) for size in sizes)


def _called_jaxpr(equation: core.JaxprEqn) -> core.ClosedJaxpr | None:
    """The program that an equation calls, if it does nothing else."""
    if is_resize(equation):
        return None
    return equation.params.get("jaxpr") or equation.params.get("call_jaxpr")


def _store_as_float16(helper, arrays: dict[str, np.ndarray]) -> tuple[list[Any], dict[str, np.ndarray]]:
    """Stores kernels as float16, in half the space. Runtimes convert them to float32 once, when they load the file."""
    casts, stored = [], {}
    for name, value in arrays.items():
        if value.dtype == np.float32 and value.size > 1 and np.abs(value).max() < np.finfo(np.float16).max:
            stored[f"{name}_float16"] = value.astype(np.float16)
            casts.append(
                helper.make_node("Cast", [f"{name}_float16"], [name], to=helper.np_dtype_to_tensor_dtype(value.dtype))
            )
        else:
            stored[name] = value
    return casts, stored


def _declare(helper, name: str, aval):
    shape = [size if isinstance(size, int) else str(size) for size in aval.shape]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(aval.dtype)), shape)
