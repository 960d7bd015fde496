"""Labels of the frames of a video, from logits that are averaged over time."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from deeplab_jax.inference.computation import Arrays, Computation


def smooth_labels(computation: Computation, smoothing: int | float) -> Callable[[np.ndarray], Arrays]:
    """Returns a function that computes the labels of each frame in turn. See `Predictor.start_video`.

    Args:
      computation: computes the logits of a frame, and reduces their average.
      smoothing: weight of the current frame.
    """
    mix = jax.jit(lambda new, old: jax.tree.map(lambda x, y: smoothing * x + (1 - smoothing) * y, new, old))
    state = None

    def label_frame(frame: np.ndarray) -> Arrays:
        nonlocal state
        fitted = computation.fit(frame)
        logits = computation.logits([fitted])
        state = logits.views if state is None else mix(logits.views, state)
        (arrays,) = computation.reduce(dataclasses.replace(logits, views=state), [fitted], "labels")()
        return arrays

    return label_frame
