"""What is exported: a function of images with the weights inside, and what a reader of the file has to know."""

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
from deeplab_jax.errors import UserError
from deeplab_jax.models import build_model
from deeplab_jax.pretrained import PretrainedNetwork

# Images of any size have at least so many pixels each way: a feature map of one pixel is a case of its own.
SMALLEST = 32


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """What the exported function takes and returns.

    Attributes:
      size: (height, width) of the images; None: any, see `Program.symbols`.
      batch: images a call; None: any number.
      argmax: uint8 labels come out, (batch, height, width), instead of float32 logits, (batch, height, width, classes).
      uint8: images come as uint8 instead of float32; RGB of range 0-255 in either case.
    """

    size: tuple[int, int] | None = None
    batch: int | None = None
    argmax: bool = False
    uint8: bool = False

    def __post_init__(self):
        if self.batch is not None and self.batch < 1:
            raise UserError(f"a batch of {self.batch} images cannot be exported; give at least 1")
        if self.size is not None and min(self.size) < 1:
            raise UserError(f"images of {self.size[0]}x{self.size[1]} pixels cannot be exported")


@dataclasses.dataclass(frozen=True)
class Program:
    """A network and what it computes of images.

    Attributes:
      apply: from variables and images to logits or labels; can be traced and jitted.
      variables: the network's own, on a device.
      channels: of the images.
      classes: of the logits.
      whole_strides: images of any size have to be multiples of `SMALLEST`.
      options: what it takes and returns.
    """

    apply: Callable[[Any, Array], Array]
    variables: Any
    channels: int
    classes: int
    whole_strides: bool
    options: ExportOptions

    def function(self, images: Array) -> Array:
        """From images alone to logits or labels: the variables are constants."""
        return self.apply(self.variables, images)

    @property
    def dtype(self) -> np.dtype:
        """Of the images."""
        return np.dtype(np.uint8 if self.options.uint8 else np.float32)

    @property
    def symbols(self) -> tuple[str, str, str, str]:
        """Of the images' axes, as `jax.export` reads them: a number, or a name where any is taken."""
        names = (f"{SMALLEST}*rows", f"{SMALLEST}*columns") if self.whole_strides else ("height", "width")
        height, width = self.options.size or names
        return tuple(str(axis) for axis in (self.options.batch or "batch", height, width, self.channels))

    @property
    def constraints(self) -> tuple[str, ...]:
        """On the names among the symbols."""
        any_pixel = self.options.size is None and not self.whole_strides
        return (f"height >= {SMALLEST}", f"width >= {SMALLEST}") if any_pixel else ()

    def images(self) -> jax.ShapeDtypeStruct:
        """Shape and type of the images, as `jax.export` takes them."""
        shape = jax.export.symbolic_shape(", ".join(self.symbols), constraints=self.constraints)
        return jax.ShapeDtypeStruct(shape, self.dtype)


def make_program(network: PretrainedNetwork, options: ExportOptions) -> Program:
    """The function that is exported.

    Args:
      network: with classes.
      options: what it takes and returns.

    Raises:
      UserError: a backbone alone.
    """
    if network.label_set is None:
        raise UserError(f"a {network.model.backbone} backbone alone has no classes; train from it, then export that")
    model = build_model(network.model, network.label_set.num_classes)

    def apply(variables, images):
        logits, _ = model.apply(variables, images, train=False)
        return jnp.argmax(logits, axis=-1).astype(jnp.uint8) if options.argmax else logits

    # A ResNet's unit of stride 2 adds what a 3x3 window and what a slice, or a 1x1 window, leave of a size. That these
    # are equal is more than JAX can prove of a symbol; of multiples of all strides it can.
    whole_strides = model.backbone.startswith("resnet")
    variables = jax.tree.map(jnp.asarray, network.variables)
    return Program(apply, variables, model.in_channels, network.label_set.num_classes, whole_strides, options)


def metadata(network: PretrainedNetwork, program: Program, file_format: str) -> dict[str, Any]:
    """What a reader of the file has to know, as JSON holds it."""
    batch, height, width, channels = (int(axis) if axis.isdigit() else axis for axis in program.symbols)
    shape = [batch, height, width]
    return {
        "format": file_format,
        "input": {
            "shape": [*shape, channels],
            "dtype": program.dtype.name,
            "contents": "RGB of range 0-255, not normalized: that happens inside" if channels == 3 else "range 0-255",
            "constraints": list(program.constraints),
        },
        "output": {
            "shape": shape if program.options.argmax else [*shape, program.classes],
            "dtype": "uint8" if program.options.argmax else "float32",
            "contents": "class ids" if program.options.argmax else "logits",
        },
        "feeding": {"protocol": network.protocol, "image_size": network.image_size},
        "class_names": list(network.label_set.class_names),
        "palette": [list(color) for color in network.label_set.palette],
        "backbone": network.model.backbone,
        "output_stride": network.model.output_stride,
        "deeplab_jax": __version__,
        "jax": jax.__version__,
    }


def to_json(values: dict[str, Any]) -> str:
    """Text of `metadata`."""
    return json.dumps(values, indent=2, sort_keys=True) + "\n"
