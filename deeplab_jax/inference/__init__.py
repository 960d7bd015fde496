"""Prediction: images, videos, scales and windows."""
