"""Overlays, galleries of masks, training curves, and plots of evaluations."""

from deeplab_jax.visualization.curves import plot_curves, plot_learning_rate
from deeplab_jax.visualization.evaluation_plots import plot_confusion_matrix, plot_reliability, plot_trimap_curves
from deeplab_jax.visualization.figures import new_figure
from deeplab_jax.visualization.galleries import gallery_strip, plot_segmentation_mask_gallery
from deeplab_jax.visualization.overlays import (
    ClassShare,
    add_legend,
    class_name,
    class_shares,
    colorize,
    mark_errors,
    overlay,
    save_image,
    save_palette_png,
)

__all__ = [
    "ClassShare",
    "add_legend",
    "class_name",
    "class_shares",
    "colorize",
    "gallery_strip",
    "new_figure",
    "mark_errors",
    "overlay",
    "plot_confusion_matrix",
    "plot_curves",
    "plot_learning_rate",
    "plot_reliability",
    "plot_segmentation_mask_gallery",
    "plot_trimap_curves",
    "save_image",
    "save_palette_png",
]
