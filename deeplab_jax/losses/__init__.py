"""Losses: pure functions of logits and labels that return a sum and a count of pixels."""

from deeplab_jax.losses.cross_entropy import (
    LOSSES,
    Loss,
    keras_categorical_cross_entropy,
    make_loss,
    softmax_cross_entropy,
)

__all__ = ["LOSSES", "Loss", "keras_categorical_cross_entropy", "make_loss", "softmax_cross_entropy"]
