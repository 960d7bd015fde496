"""Functions that tests name in `config.data.transform`."""

import numpy as np


def shift(image, label, rng):
    """Moves the image and its label to the right by up to three pixels, around the edge."""
    pixels = int(rng.integers(0, 4))
    return np.roll(image, pixels, axis=1), np.roll(label, pixels, axis=1)


def fail(image, label, rng):
    """Fails."""
    raise RuntimeError("no fog\ntoday")
