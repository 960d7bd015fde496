"""Backbones. docs/adding_backbones.md shows how to add one, in this folder or in a module of your own."""

from deeplab_jax.models.backbones.registry import BACKBONES, OPTIONS, BackboneSpec, register_backbone

__all__ = ["BACKBONES", "OPTIONS", "BackboneSpec", "register_backbone"]
