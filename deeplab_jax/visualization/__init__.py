"""Labels made visible: overlays, galleries, and the curves of a training run."""

from deeplab_jax.visualization.curves import plot_curves, plot_learning_rate
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
    "overlay",
    "plot_curves",
    "plot_learning_rate",
    "plot_segmentation_mask_gallery",
    "save_image",
    "save_palette_png",
]
