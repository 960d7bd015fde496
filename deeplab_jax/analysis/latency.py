"""Measures the latency of a network for several image and batch sizes."""

import itertools
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from deeplab_jax import progress
from deeplab_jax.errors import UserError
from deeplab_jax.inference import streaming_resize
from deeplab_jax.models import build_model, fold_batch_norm
from deeplab_jax.pretrained import PretrainedNetwork

_WARM_UP = 3  # runs that are not measured


class Latency(NamedTuple):
    """The latency of one batch in milliseconds.

    Attributes:
      size: (height, width) of the images.
      batch: number of images.
      p50: median.
      p95: 95th percentile.
    """

    size: tuple[int, int]
    batch: int
    p50: float
    p95: float


def measure_latency(
    network: PretrainedNetwork,
    sizes: Sequence[tuple[int, int]],
    batches: Sequence[int],
    *,
    compute_dtype: str = "float32",
    repetitions: int = 50,
) -> list[Latency]:
    """Times a compiled network on random images, from uint8 RGB on the host to uint8 labels on the host.

    Args:
      network: a network with classes.
      sizes: (height, width) of the images.
      batches: batch sizes.
      compute_dtype: "float32" or "bfloat16".
      repetitions: number of measured runs for each size and batch size.

    Raises:
      UserError: the network is a backbone without classes.
    """
    if network.label_set is None:
        raise UserError(f"{network.model.backbone} is a backbone without classes; choose a network that segments")
    model = build_model(
        network.model, network.label_set.num_classes, platform=jax.default_backend(), compute_dtype=compute_dtype
    )
    variables = jax.device_put(fold_batch_norm(model, network.variables))
    rng = np.random.default_rng(0)
    results = []
    for size, batch in progress.track(list(itertools.product(sizes, batches)), "benchmark"):
        images = rng.integers(0, 256, (batch, *size, model.in_channels), dtype=np.uint8)
        predict = _jit_predict(model, size)
        milliseconds = []
        for _ in range(_WARM_UP + repetitions):
            start = time.perf_counter()
            np.asarray(predict(variables, images))
            milliseconds.append(1000 * (time.perf_counter() - start))
        p50, p95 = np.percentile(milliseconds[_WARM_UP:], (50, 95))
        results.append(Latency(size, batch, float(p50), float(p95)))
    return results


def latency_table(results: Sequence[Latency], title: str) -> Table:
    """A table with one row per result."""
    table = Table("size", "batch", "p50 ms", "p95 ms", "images/s at p50", title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for result in results:
        height, width = result.size
        table.add_row(
            f"{height}x{width}", str(result.batch), f"{result.p50:.1f}", f"{result.p95:.1f}",
            f"{1000 * result.batch / result.p50:.1f}",
        )  # fmt: skip
    return table


def _jit_predict(model, size: tuple[int, int]):
    """The jitted function from (variables, images) to labels that prediction uses."""

    @jax.jit
    def predict(variables, images):
        coarse = model.apply(variables, images, train=False)[1]["logits"]
        sizes = jnp.broadcast_to(jnp.array(size).reshape(1, 2), (len(images), 2))
        return streaming_resize.map_resized(
            [coarse], [sizes], sizes, size, lambda strips: jnp.argmax(strips[0], axis=1),
            inputs=[size], align_corners=model.align_corners,
        )  # fmt: skip

    return predict
