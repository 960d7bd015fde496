"""Comparison of an exported file, in its own runtime, with the network in JAX."""

import dataclasses
import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from deeplab_jax.data.sources.synthetic import draw_scene
from deeplab_jax.errors import UserError
from deeplab_jax.export import running
from deeplab_jax.export.program import ExportOptions, make_program
from deeplab_jax.pretrained import PretrainedNetwork

#: By quantization: the largest difference of logits relative to their range, and the smallest share of equal labels.
#: float32 differs by rounding alone. The shipped networks stay within a quarter of the others.
TOLERANCES = {None: (1e-4, 0.999), "float16": (1e-2, 0.995), "int8": (None, 0.95)}

#: Side of drawn images of a network that takes any size.
_ANY_SIZE = 256


@dataclasses.dataclass(frozen=True)
class Verification:
    """How an exported file differs from the network in JAX.

    Attributes:
      images: number of images that were compared.
      equal_labels: share of pixels with equal labels.
      largest_difference: largest difference of two logits; None if the file returns labels.
      logit_range: difference of the largest and the smallest logit in JAX.
      quantize: see `ExportOptions`.
    """

    images: int
    equal_labels: float
    largest_difference: float | None
    logit_range: float
    quantize: str | None

    @property
    def passed(self) -> bool:
        """Whether the differences are within `TOLERANCES`."""
        relative, share = TOLERANCES[self.quantize]
        is_close = None in (relative, self.largest_difference) or self.largest_difference <= relative * self.logit_range
        return is_close and self.equal_labels >= share

    def __str__(self) -> str:
        relative, share = TOLERANCES[self.quantize]
        logits, tolerance = "", f"{share:.1%} equal labels"
        if self.largest_difference is not None:
            logits = f"logits differ by at most {self.largest_difference:.2g} of a range of {self.logit_range:.3g}, "
            tolerance += f", {relative * self.logit_range:.2g} for logits" if relative is not None else ""
        return (
            f"{logits}{self.equal_labels:.3%} of the labels of {self.images} images are equal (tolerance: {tolerance})"
        )


def verify(
    network: PretrainedNetwork,
    file_format: str,
    path: pathlib.Path,
    options: ExportOptions,
    images: Sequence[np.ndarray],
) -> Verification:
    """Runs an exported file on images and compares it with the network in JAX, in float32.

    Args:
      network: the network.
      file_format: one of `FORMATS`.
      path: the file, or the folder of a SavedModel.
      options: the options that it was exported with.
      images: inputs of the network, (height, width, channels) each, see `feeding.read_inputs` and `draw_inputs`.

    Raises:
      UserError: the runtime is not installed, or the file does not take the images.
    """
    run = running.load(file_format, path)
    program = make_program(network, dataclasses.replace(options, argmax=False, quantize=None))
    reference = jax.jit(program.function)
    equal, differences, low, high = [], [], np.inf, -np.inf
    for image in images:
        batch = np.stack([image] * (options.batch or 1)).astype(program.dtype)
        try:
            found = run(batch)
        except Exception as error:  # each runtime has its own
            raise UserError(f"{path} does not run on an image of shape {image.shape}: {error}") from error
        expected = np.asarray(reference(batch))
        low, high = min(low, expected.min()), max(high, expected.max())
        if not options.argmax:
            differences.append(np.max(np.abs(found - expected)))
            found = found.argmax(axis=-1)
        equal.append(np.mean(found == expected.argmax(axis=-1)))
    return Verification(
        len(images),
        float(np.mean(equal)),
        float(max(differences)) if differences else None,
        float(high - low),
        options.quantize,
    )


def draw_inputs(network: PretrainedNetwork, options: ExportOptions, count: int) -> list[np.ndarray]:
    """Draws inputs of the network with colored shapes, for a comparison without image files."""
    size = options.size or (_ANY_SIZE, _ANY_SIZE)
    low, high = network.model.value_range
    drawn = []
    for seed in range(count):
        image = draw_scene(np.random.default_rng(seed), size)[0]
        channels = np.arange(network.model.in_channels) % image.shape[2]
        drawn.append(low + image[..., channels].astype(np.float32) * ((high - low) / 255))
    return drawn
