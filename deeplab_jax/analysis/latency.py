"""How long a network takes for images of some sizes, one and several at a time."""

import itertools
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from deeplab_jax.inference import streaming_resize
from deeplab_jax.models import build_model
from deeplab_jax.pretrained import PretrainedNetwork

_WARM_UP = 3


class Latency(NamedTuple):
    """Milliseconds of a batch: the median, and what 19 of 20 stay below.

    Attributes:
      size: height and width of the images, as the network sees them.
      batch: images at a time.
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
    console: Console | None = None,
) -> list[Latency]:
    """Times a compiled network on images of noise: from uint8 RGB on the host to uint8 labels on the host.

    A repetition is over when the labels are there; the first three are not counted.

    Args:
      network: with classes.
      sizes: heights and widths of images.
      batches: images at a time.
      compute_dtype: float32 or bfloat16.
      repetitions: that are counted.
      console: shows progress on it.
    """
    model = build_model(
        network.model, network.label_set.num_classes, platform=jax.default_backend(), compute_dtype=compute_dtype
    )
    variables = jax.device_put(network.variables)
    rng, results = np.random.default_rng(0), []
    cases = list(itertools.product(sizes, batches))
    for size, batch in track(cases, "benchmark", console=console, disable=console is None):

        @jax.jit
        def predict(variables, images, size=size):
            coarse = model.apply(variables, images, train=False)[1]["logits"]
            sizes = jnp.broadcast_to(jnp.array(size).reshape(1, 2), (len(images), 2))
            return streaming_resize.map_resized(
                [coarse], [sizes], sizes, size, lambda strips: streaming_resize.arg_max(strips[0])[0],
                inputs=[size], align_corners=model.align_corners,
            )  # fmt: skip

        images = rng.integers(0, 256, (batch, *size, 3), dtype=np.uint8)
        milliseconds = []
        for _ in range(_WARM_UP + repetitions):
            start = time.perf_counter()
            np.asarray(predict(variables, images))
            milliseconds.append(1000 * (time.perf_counter() - start))
        p50, p95 = np.percentile(milliseconds[_WARM_UP:], (50, 95))
        results.append(Latency(size, batch, float(p50), float(p95)))
    return results


def latency_table(results: Sequence[Latency], title: str) -> Table:
    """The results, a line each."""
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
