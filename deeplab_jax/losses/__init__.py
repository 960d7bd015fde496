"""Losses: pure functions of logits and labels that return a sum and a count."""

from deeplab_jax.losses.boundary import boundary_cross_entropy, near_boundary
from deeplab_jax.losses.class_weights import CLASS_WEIGHT_RULES
from deeplab_jax.losses.cross_entropy import keras_categorical_cross_entropy, softmax_cross_entropy, softmax_focal
from deeplab_jax.losses.hard_pixels import ohem_cross_entropy, top_k_cross_entropy
from deeplab_jax.losses.loss import LOSSES, Counts, Loss, Term, add_auxiliary, as_loss, make_loss
from deeplab_jax.losses.lovasz import lovasz_softmax
from deeplab_jax.losses.regions import dice, jaccard, tversky
from deeplab_jax.losses.sigmoid import binary_cross_entropy, focal

__all__ = [
    "CLASS_WEIGHT_RULES",
    "LOSSES",
    "Counts",
    "Loss",
    "Term",
    "add_auxiliary",
    "as_loss",
    "binary_cross_entropy",
    "boundary_cross_entropy",
    "dice",
    "focal",
    "jaccard",
    "keras_categorical_cross_entropy",
    "lovasz_softmax",
    "make_loss",
    "near_boundary",
    "ohem_cross_entropy",
    "softmax_cross_entropy",
    "softmax_focal",
    "top_k_cross_entropy",
    "tversky",
]
