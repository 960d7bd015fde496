"""The exported program: a function of images that includes the weights, and its description."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from deeplab_jax import __version__
from deeplab_jax.errors import UserError, suggest
from deeplab_jax.models import build_model, fold_batch_norm
from deeplab_jax.ops import XLA, Operations
from deeplab_jax.pretrained import PretrainedNetwork

#: Smallest height and width of images of any size. A feature map of a single pixel would need a program of its own.
MIN_SIZE = 32

#: Values of `ExportOptions.quantize`.
QUANTIZATIONS = ("float16", "int8")


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """The input and the output of an exported network.

    Attributes:
      size: (height, width) of the images; None allows any size, see `Program.symbols`.
      batch: number of images per call; None allows any number.
      argmax: return uint8 labels of shape (batch, height, width) instead of float32 logits of shape (batch, height,
        width, classes).
      uint8: take uint8 images instead of float32. Both are RGB of range 0-255, or what else the network takes.
      quantize: "float16" stores weights as float16, "int8" computes with 8-bit integers; None keeps float32.
    """

    size: tuple[int, int] | None = None
    batch: int | None = None
    argmax: bool = False
    uint8: bool = False
    quantize: str | None = None

    def __post_init__(self):
        if self.quantize not in (None, *QUANTIZATIONS):
            raise UserError(
                f"quantization {self.quantize!r} does not exist{suggest(str(self.quantize), QUANTIZATIONS)}"
            )
        if self.batch is not None and self.batch < 1:
            raise UserError(f"the batch size is {self.batch}; it must be at least 1")
        if self.size is not None and min(self.size) < 1:
            raise UserError(f"the image size is {self.size[0]}x{self.size[1]}; height and width must be at least 1")


@dataclasses.dataclass(frozen=True)
class Program:
    """A network as a function of images.

    Attributes:
      apply: maps (variables, images) to logits or labels. Can be traced and jitted.
      variables: the network's variables with BatchNorm folded into kernels, on a device.
      channels: number of channels of the images.
      classes: number of classes.
      needs_multiples: images of any size must be multiples of `MIN_SIZE` in height and width.
      options: the input and the output.
      classify: maps (variables, images) to logits at the resolution of the classifier, which `apply` resizes; None if
        it does not.
      align_corners: whether this resizing aligns corners.
    """

    apply: Callable[[Any, Array], Array]
    variables: Any
    channels: int
    classes: int
    needs_multiples: bool
    options: ExportOptions
    classify: Callable[[Any, Array], Array] | None = None
    align_corners: bool = False

    def function(self, images: Array) -> Array:
        """Maps images to logits or labels, with the variables as constants."""
        return self.apply(self.variables, images)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the images."""
        return np.dtype(np.uint8 if self.options.uint8 else np.float32)

    @property
    def output_name(self) -> str:
        """The name of the output: "labels" or "logits"."""
        return "labels" if self.options.argmax else "logits"

    @property
    def symbols(self) -> tuple[str, str, str, str]:
        """The axes of the images in the notation of `jax.export`: a number, or a name if any size is allowed."""
        names = (f"{MIN_SIZE}*rows", f"{MIN_SIZE}*columns") if self.needs_multiples else ("height", "width")
        height, width = self.options.size or names
        return tuple(str(axis) for axis in (self.options.batch or "batch", height, width, self.channels))

    @property
    def constraints(self) -> tuple[str, ...]:
        """Constraints on the names in `symbols`."""
        any_pixel = self.options.size is None and not self.needs_multiples
        return (f"height >= {MIN_SIZE}", f"width >= {MIN_SIZE}") if any_pixel else ()

    def images(self) -> jax.ShapeDtypeStruct:
        """The shape and dtype of the images, as `jax.export` accepts them."""
        shape = jax.export.symbolic_shape(", ".join(self.symbols), constraints=self.constraints)
        return jax.ShapeDtypeStruct(shape, self.dtype)


def make_program(network: PretrainedNetwork, options: ExportOptions, *, operations: Operations = XLA) -> Program:
    """Builds the function to export.

    Args:
      network: a network with classes.
      options: the input and the output.
      operations: the operations that the network calls.

    Raises:
      UserError: the network is a backbone without classes, or its images do not fit uint8.
    """
    if network.label_set is None:
        raise UserError(
            f"a {network.model.backbone} backbone alone has no classes; train a network with it and export that"
        )
    low, high = network.model.value_range
    if options.uint8 and high > 255:
        raise UserError(f"the network takes values from {low:g} to {high:g}, which uint8 does not hold; export float32")
    model = build_model(network.model, network.label_set.num_classes, ops=operations)

    def classify(variables, images):
        return model.apply(variables, images, train=False)[1]["logits"]

    def apply(variables, images):
        logits, _ = model.apply(variables, images, train=False)
        return jnp.argmax(logits, axis=-1).astype(jnp.uint8) if options.argmax else logits

    # A ResNet unit with stride 2 adds the output of a 3x3 window to that of a slice or a 1x1 window. JAX cannot prove
    # for a symbolic size that both have the same shape, except for multiples of all strides.
    needs_multiples = model.backbone.startswith("resnet")
    variables = jax.tree.map(jnp.asarray, fold_batch_norm(model, network.variables))
    return Program(
        apply=apply,
        classify=classify,
        align_corners=model.align_corners,
        variables=variables,
        channels=model.in_channels,
        classes=network.label_set.num_classes,
        needs_multiples=needs_multiples,
        options=options,
    )


def metadata(network: PretrainedNetwork, program: Program, file_format: str) -> dict[str, Any]:
    """The description of an exported network, as JSON values."""
    low, high = network.model.value_range
    batch, height, width, channels = (int(axis) if axis.isdigit() else axis for axis in program.symbols)
    shape = [batch, height, width]
    return {
        "format": file_format,
        "input": {
            "shape": [*shape, channels],
            "dtype": program.dtype.name,
            "contents": f"{'RGB of ' if channels == 3 else ''}range {low:g}-{high:g}; do not normalize",
            "value_range": [low, high],
            "constraints": list(program.constraints),
        },
        "output": {
            "shape": shape if program.options.argmax else [*shape, program.classes],
            "dtype": "uint8" if program.options.argmax else "float32",
            "contents": "class ids" if program.options.argmax else "logits",
        },
        "quantization": program.options.quantize,
        "feeding": {"protocol": network.protocol, "image_size": network.image_size, **network.feeding},
        "class_names": list(network.label_set.class_names),
        "palette": [list(color) for color in network.label_set.palette],
        "backbone": network.model.backbone,
        "output_stride": network.model.output_stride,
        "deeplab_jax": __version__,
        "jax": jax.__version__,
    }


def to_json(values: dict[str, Any]) -> str:
    """The text of a description."""
    return json.dumps(values, indent=2, sort_keys=True) + "\n"
