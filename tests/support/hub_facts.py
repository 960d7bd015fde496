"""Classes and facts of a network that tests push to a Hub."""

from deeplab_jax.labels import LabelSet
from deeplab_jax.pretrained import Provenance, Score
from deeplab_jax.pretrained.provenance import TRAINING_RUN

LABELS = LabelSet.from_names(["ground", "crop", "weed"])
FACTS = Provenance(
    author="Ada",
    data=("fields",),
    date="2026-01-02",
    license="MIT",
    origin=TRAINING_RUN,
    scores=(Score(metric="mean_iou", value=0.5, data="fields", split="val", protocol="9 images, one scale"),),
)
