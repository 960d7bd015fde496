"""The results of an evaluation: a gallery of examples, and the files in a workdir."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from deeplab_jax import config as config_lib
from deeplab_jax import data, visualization
from deeplab_jax.evaluation import report_files
from deeplab_jax.files import readable_name, write_json
from deeplab_jax.labels import LabelSet
from deeplab_jax.parallel import processes, sharding

# Entries of an `Evaluator`'s scores that JSON cannot hold.
_ARRAYS = ("gallery", "details", "confusion")

# Image (height, width, 3), label and prediction (height, width), all uint8.
GalleryExample = tuple[np.ndarray, np.ndarray, np.ndarray]


def gallery_examples(
    batch: dict[str, Any], prediction: jax.Array, draw: Callable[[np.ndarray], np.ndarray] = data.to_rgb
) -> list[GalleryExample]:
    """Returns image, label and prediction of a batch's valid examples, each at the size it is scored at.

    Args:
      batch: this process's batch of `deeplab_jax.data.eval_batches`.
      prediction: global array of predictions for the batch.
      draw: draws an image as 8-bit RGB.
    """
    local = sharding.to_local(prediction)
    examples = []
    for i in np.flatnonzero(batch["valid"]):
        height, width = batch["size"][i].tolist()
        label, image = batch["label"][i][:height, :width], batch["image"][i]
        if "extent" in batch:  # the network saw a view of its own size
            image = image[: batch["extent"][i, 0], : batch["extent"][i, 1]]
            image = data.resize_image(image, (height, width))
        elif batch["image"].shape[1:3] != batch["label"].shape[1:3]:  # the network saw a resized image
            image = data.resize_image(image, (height, width))
        examples.append((draw(image[:height, :width]), label, local[i][:height, :width]))
    return examples


def save_gallery(examples: list[GalleryExample], label_set: LabelSet, path: pathlib.Path) -> None:
    """Draws images, labels and predictions; nothing if there are none.

    Raises:
      UserError: the file cannot be written.
    """
    if examples:
        images, labels, predictions = zip(*examples, strict=True)
        visualization.plot_segmentation_mask_gallery(images, labels, predictions, label_set=label_set, path=path)


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of an evaluation.

    Attributes:
      name: preset, folder or workdir of the network.
      scores: scores of an `Evaluator`, with their gallery and details.
      label_set: class names and palette.
      config: the config of the evaluation.
      split: the split that was scored.
      workdir: the workdir to save to, if the network comes from one.
      step: training step of the evaluated variables, if they come from a workdir.
      suffix: end of the names of the files, see `results_suffix`.
    """

    name: str
    scores: dict[str, Any]
    label_set: LabelSet
    config: ConfigDict
    split: str
    workdir: pathlib.Path | None = None
    step: int | None = None
    suffix: str = ""

    @property
    def values(self) -> dict[str, Any]:
        """The contents of the JSON file."""
        values = {name: value for name, value in self.scores.items() if name not in _ARRAYS}
        if self.step is not None:
            values["step"] = self.step
        return values | {"config": config_lib.to_dict(self.config)}

    @property
    def names(self) -> tuple[str, str]:
        """The names of the JSON file and the gallery."""
        return f"metrics{self.suffix}.json", f"gallery{self.suffix}.png"

    def save(self, report_folder: pathlib.Path | None = None) -> None:
        """Writes the scores and the gallery to the workdir, if there is one, on process 0.

        Args:
          report_folder: also write a report to this folder; needs the details of an `Evaluator`.

        Raises:
          UserError: the files cannot be written.
        """
        if not processes.is_leader():
            return
        if self.workdir is not None:
            self._save_scores()
        if report_folder is not None:
            report_files.write_report(report_folder, self)

    def _save_scores(self) -> None:
        json_file, gallery_file = (self.workdir / name for name in self.names)
        write_json(json_file, self.values)
        save_gallery(self.scores["gallery"], self.label_set, gallery_file)


# Groups whose fields change the scores, but for some.
_SCORED_GROUPS = ("model", "data", "loss", "eval")
_UNSCORED_FIELDS = (
    "data.eval_split", "data.batch_size", "data.display_channels", "data.workers", "data.unreadable",
    "eval.batch_size", "eval.every", "eval.before_training",
)  # fmt: skip


def results_suffix(config: ConfigDict, own_config: ConfigDict, *, split: str | None = None) -> str:
    """Names an evaluation by what differs from the one at the end of the training, which has the suffix "".

    Args:
      config: the config of the evaluation.
      own_config: the config of the run.
      split: the split that is scored, if not `data.eval_split`.

    Returns:
      For example "-eval.scales=0.5,1.0" or "-split=train". Long or ambiguous names end with a digest.
    """
    changed = config_lib.differences(config, own_config, groups=_SCORED_GROUPS)
    parts = {field: _value(config, field) for field in changed if field not in _UNSCORED_FIELDS}
    if config.train.compute_dtype != own_config.train.compute_dtype:
        parts["train.compute_dtype"] = config.train.compute_dtype
    scored_split = split or config.data.eval_split
    if scored_split != own_config.data.eval_split:
        parts["split"] = scored_split
    if not parts:
        return ""
    return "-" + readable_name(";".join(f"{field}={value}" for field, value in parts.items()))


def _value(config: ConfigDict, field: str) -> str:
    value = config_lib.get_field(config, field)
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
