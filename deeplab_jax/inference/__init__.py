"""Prediction for images and videos: any size, several scales, sliding windows."""

from deeplab_jax.inference.prediction import Prediction
from deeplab_jax.inference.predictor import Predictor

__all__ = ["Prediction", "Predictor"]
