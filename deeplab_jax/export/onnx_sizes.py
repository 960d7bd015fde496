"""Sizes in an ONNX graph: constants if they are known at export, or else computed from the shape of the images.

JAX states the sizes of a program for images of any size as expressions, such as `floordiv(height + 1, 2)`, in the
notation that `jax.export.symbolic_shape` reads. Here they become nodes over int64 tensors of one element.
"""

import ast
from collections.abc import Sequence
from typing import Any

import numpy as np

from deeplab_jax.errors import UserError
from deeplab_jax.export.onnx_graph import Graph, Tensor


def add_shape(graph: Graph, sizes: Sequence[Any]) -> str:
    """Returns the name of an int64 vector of sizes: of an initializer, or of a node that computes it."""
    if all(isinstance(size, int | np.integer) for size in sizes):
        return graph.add_array(np.asarray(sizes, np.int64))
    return graph.add_node("Concat", [add_size(graph, size) for size in sizes], axis=0)


def add_size(graph: Graph, size: Any) -> str:
    """Returns the name of an int64 vector that holds one size."""
    return _add_expression(graph, ast.parse(str(size), mode="eval").body)


def _add_expression(graph: Graph, node: ast.expr) -> str:
    key = ast.unparse(node)
    if key not in graph.computed_sizes:
        graph.computed_sizes[key] = _translate(graph, node)
    return graph.computed_sizes[key]


def _translate(graph: Graph, node: ast.expr) -> str:
    def operand(part):
        return _add_expression(graph, part)

    match node:
        case ast.Constant(value=int(number)):
            return graph.add_array(np.asarray([number], np.int64))
        case ast.Name(id=name):
            return _add_symbol(graph, graph.images, name)
        case ast.UnaryOp(op=ast.USub(), operand=part):
            return graph.add_node("Neg", [operand(part)])
        case ast.BinOp(op=ast.Add() | ast.Sub() | ast.Mult() as operation, left=left, right=right):
            kind = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul"}[type(operation)]
            return graph.add_node(kind, [operand(left), operand(right)])
        case ast.Call(func=ast.Name(id="max" | "min" as name), args=parts):
            return graph.add_node(name.capitalize(), [operand(part) for part in parts])
        case ast.Call(func=ast.Name(id="floordiv" | "mod" as name), args=[left, right]):
            remainder = graph.add_node("Mod", [operand(left), operand(right)])  # has the sign of the divisor
            if name == "mod":
                return remainder
            multiple = graph.add_node("Sub", [operand(left), remainder])  # ONNX rounds quotients toward zero
            return graph.add_node("Div", [multiple, operand(right)])
    raise UserError(f"the size {ast.unparse(node)} of this network cannot be translated to ONNX; set --size")


def _add_symbol(graph: Graph, images: Tensor, name: str) -> str:
    """Returns the value of a name in the shape of the images, whose axes are `name` or `NUMBER*name`."""
    for axis, size in enumerate(images.aval.shape):
        factor, _, symbol = str(size).rpartition("*")
        if symbol == name:
            shape = graph.add_node("Shape", [images.name])
            extent = graph.add_node("Gather", [shape, graph.add_array(np.asarray([axis], np.int64))])
            return (
                graph.add_node("Div", [extent, graph.add_array(np.asarray([int(factor)], np.int64))])
                if factor
                else extent
            )
    raise AssertionError(f"{name} is not in the shape {images.aval.shape} of the images")
