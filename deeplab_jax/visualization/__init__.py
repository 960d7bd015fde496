"""Overlays, galleries of masks, and training curves."""

from deeplab_jax.visualization.curves import plot_curves, plot_learning_rate
from deeplab_jax.visualization.figures import new_figure
from deeplab_jax.visualization.galleries import gallery_strip, plot_segmentation_mask_gallery
from deeplab_jax.visualization.overlays import (
    ClassShare,
    add_legend,
    class_shares,
    colorize,
    overlay,
    save_image,
    save_palette_png,
)

__all__ = [
    "ClassShare",
    "add_legend",
    "class_shares",
    "colorize",
    "gallery_strip",
    "new_figure",
    "overlay",
    "plot_curves",
    "plot_learning_rate",
    "plot_segmentation_mask_gallery",
    "save_image",
    "save_palette_png",
]
