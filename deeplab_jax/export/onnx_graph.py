"""A graph of ONNX nodes and initializers that remembers how the axes of its tensors are ordered."""

import dataclasses
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from deeplab_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A value of the traced program that the graph computes.

    Attributes:
      name: name of the tensor in the graph.
      aval: shape and dtype in the traced program.
      layout: for each axis of the traced value, the axis of the graph's tensor.
    """

    name: str
    aval: Any
    layout: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Node:
    """A node of the graph: its operation, the names of its inputs and its output, and its attributes."""

    kind: str
    inputs: tuple[str, ...]
    output: str
    attributes: dict[str, Any]


class Graph:
    """Nodes and initializers, in the order in which they were added.

    Attributes:
      images: the input.
      computed_sizes: the names of the sizes that `onnx_sizes` computes, by their expressions.
    """

    def __init__(self, images: Tensor):
        self.images = images
        self.computed_sizes: dict[str, str] = {}
        self._nodes: dict[str, Node] = {}  # by output
        self._arrays: dict[str, np.ndarray] = {}
        self._transposed: dict[tuple[str, tuple[int, ...]], str] = {}
        self._reductions: dict[str, tuple[str, Tensor, tuple[int, ...]]] = {}  # by output

    def add_node(self, kind: str, inputs: Sequence[str], *, output: str | None = None, **attributes: Any) -> str:
        """Adds a node and returns the name of its output."""
        output = output or f"{kind.lower()}_{len(self._nodes)}"
        self._nodes[output] = Node(kind, tuple(inputs), output, attributes)
        return output

    def add_array(self, value: Any) -> str:
        """Adds an initializer and returns its name."""
        name = f"array_{len(self._arrays)}"
        self._arrays[name] = np.ascontiguousarray(value)
        return name

    def reduce(self, kind: str, tensor: Tensor, axes: Sequence[int], *, keepdims: bool = False) -> str:
        """Adds a reduction over axes of the traced value and returns the name of its output."""
        reduced = sorted(tensor.layout[axis] for axis in axes)
        if kind == "ReduceSum":  # the only reduction of this opset whose axes are an input
            inputs, attributes = [tensor.name, self.add_array(np.asarray(reduced))], {}
        else:
            inputs, attributes = [tensor.name], {"axes": reduced}
        name = self.add_node(kind, inputs, keepdims=int(keepdims), **attributes)
        self._reductions[name] = kind, tensor, tuple(axes)
        return name

    def keep_reduced_axes(self, tensor: Tensor, axes: Sequence[int]) -> tuple[str, tuple[int, ...]] | None:
        """Repeats the reduction that computes a tensor so that it keeps its axes, with size one.

        Returns:
          The name of the output and its layout, which is that of the reduction's input; None if the tensor is not the
          result of a reduction over these axes.
        """
        kind, source, reduced = self._reductions.get(tensor.name, (None, tensor, ()))
        if kind is None or reduced != tuple(axes):
            return None
        return self.reduce(kind, source, axes, keepdims=True), source.layout

    def transpose(self, tensor: Tensor, layout: tuple[int, ...]) -> str:
        """Returns the name of a tensor in another layout. Adds a node if it has none yet."""
        if tensor.layout == layout:
            return tensor.name
        key = tensor.name, tuple(tensor.layout[layout.index(axis)] for axis in range(len(layout)))
        if key not in self._transposed:
            self._transposed[key] = self.add_node("Transpose", [tensor.name], perm=key[1])
        return self._transposed[key]

    def producer(self, tensor: Tensor) -> Node | None:
        """The node that computes a tensor."""
        return self._nodes.get(tensor.name)

    def nodes_for(self, result: str) -> list[Node]:
        """The nodes that a result depends on, in order."""
        needed = {result}
        for node in reversed(self._nodes.values()):
            if node.output in needed:
                needed.update(node.inputs)
        return [node for node in self._nodes.values() if node.output in needed]

    def arrays_for(self, result: str) -> dict[str, np.ndarray]:
        """The initializers that a result depends on."""
        needed = {name for node in self.nodes_for(result) for name in node.inputs}
        return {name: value for name, value in self._arrays.items() if name in needed}


def import_onnx() -> ModuleType:
    """Imports the package `onnx`.

    Raises:
      UserError: it is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise UserError(
            f"the package onnx cannot be imported ({error}); install the extra: pip install 'deeplab_jax[export]'"
        ) from None
    return onnx
