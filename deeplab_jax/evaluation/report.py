"""What an evaluation leaves in a workdir."""

import pathlib
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax import config as config_lib
from deeplab_jax import visualization
from deeplab_jax.files import write_json
from deeplab_jax.labels import LabelSet
from deeplab_jax.parallel import processes


def save_scores(
    workdir: pathlib.Path, scores: dict[str, Any], label_set: LabelSet, config: ConfigDict, step: int
) -> dict[str, Any]:
    """Writes `metrics.json` and `gallery.png`, in process 0, and returns what the former holds."""
    gallery = scores["gallery"]
    values = {name: value for name, value in scores.items() if name != "gallery"}
    values |= {"step": step, "config": config_lib.to_dict(config)}
    if processes.is_leader():
        write_json(workdir / "metrics.json", values)
        if gallery:
            images, truths, predictions = zip(*gallery, strict=True)
            path = workdir / "gallery.png"
            visualization.plot_segmentation_mask_gallery(images, truths, predictions, label_set=label_set, path=path)
    return values
