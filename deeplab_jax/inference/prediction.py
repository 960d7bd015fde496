"""The result of labeling one image."""

import dataclasses

import numpy as np
from jaxtyping import Float, UInt8

from deeplab_jax import visualization
from deeplab_jax.labels import LabelSet


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Prediction:
    """Predicted labels of an image, at the image's own size.

    Attributes:
      label_map: class id of every pixel.
      label_set: names and colors of the classes.
      confidence: probability of the predicted class, 0 to 1; None unless requested.
      probabilities: probabilities of all classes, which sum to 1 (0 for classes excluded by the option `classes`); None
        unless requested.
    """

    label_map: UInt8[np.ndarray, "height width"]
    label_set: LabelSet
    confidence: Float[np.ndarray, "height width"] | None = None
    probabilities: Float[np.ndarray, "height width classes"] | None = None

    def __repr__(self) -> str:
        height, width = self.label_map.shape
        shares = visualization.class_shares(self.label_map, self.label_set)
        return f"Prediction({height}x{width}: {', '.join(f'{share.name} {share.percent}' for share in shares)})"
