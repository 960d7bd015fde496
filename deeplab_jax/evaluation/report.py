"""The results of an evaluation: a gallery of examples, and the files in a workdir."""

import pathlib
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from deeplab_jax import config as config_lib
from deeplab_jax import data, visualization
from deeplab_jax.files import write_json
from deeplab_jax.labels import LabelSet
from deeplab_jax.parallel import processes, sharding

# Image (height, width, 3), label and prediction (height, width), all uint8.
GalleryExample = tuple[np.ndarray, np.ndarray, np.ndarray]


def gallery_examples(batch: dict[str, Any], prediction: jax.Array) -> list[GalleryExample]:
    """Returns image, label and prediction of a batch's valid examples, each at the size it is scored at.

    Args:
      batch: this process's batch of `deeplab_jax.data.eval_batches`.
      prediction: global array of predictions for the batch.
    """
    local = sharding.to_local(prediction)
    examples = []
    for i in np.flatnonzero(batch["valid"]):
        height, width = batch["size"][i].tolist()
        label, image = batch["label"][i][:height, :width], batch["image"][i]
        if batch["image"].shape[1:3] != batch["label"].shape[1:3]:  # the network saw a resized image
            image = data.resize_image(image, (height, width))
        examples.append((image[:height, :width], label, local[i][:height, :width]))
    return examples


def without_gallery(scores: dict[str, Any]) -> dict[str, Any]:
    """Returns the scores alone, which JSON can hold."""
    return {name: value for name, value in scores.items() if name != "gallery"}


def save_scores(
    workdir: pathlib.Path, scores: dict[str, Any], label_set: LabelSet, config: ConfigDict, step: int
) -> dict[str, Any]:
    """Writes `metrics.json` and `gallery.png` on process 0.

    Args:
      workdir: the folder to write to.
      scores: scores of an `Evaluator`, with their gallery.
      label_set: class names and palette of the gallery.
      config: the config of the evaluation.
      step: training step of the evaluated variables.

    Returns:
      The contents of `metrics.json`.
    """
    gallery = scores["gallery"]
    values = without_gallery(scores) | {"step": step, "config": config_lib.to_dict(config)}
    if processes.is_leader():
        write_json(workdir / "metrics.json", values)
        if gallery:
            images, labels, predictions = zip(*gallery, strict=True)
            path = workdir / "gallery.png"
            visualization.plot_segmentation_mask_gallery(images, labels, predictions, label_set=label_set, path=path)
    return values
