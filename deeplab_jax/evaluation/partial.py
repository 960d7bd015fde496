"""An evaluation that a signal stopped: its counts so far, which the next one of the same kind continues from.

All counts are sums over batches in order, so a continued evaluation equals an uninterrupted one bit for bit.
"""

import contextlib
import json
import logging
import pathlib
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from deeplab_jax import config as config_lib
from deeplab_jax import data
from deeplab_jax.errors import UserError
from deeplab_jax.evaluation import metrics
from deeplab_jax.evaluation.details import Details, decode_array, encode_array
from deeplab_jax.evaluation.report import GalleryExample
from deeplab_jax.files import create_folder, read_json, write_atomically
from deeplab_jax.parallel import processes

logger = logging.getLogger(__name__)

_MAX_BYTES = 1 << 30  # the gallery and the worst images, as PNGs
_GROUPS = ("model", "data", "loss", "eval", "mesh")


class EvaluationState:
    """The counts of an evaluation after a number of batches.

    Args:
      num_classes: number of classes.
      details: sums up what a report shows, or None.

    Attributes:
      totals: counts of the split so far, of all processes.
      details: details of this process's images so far.
      gallery: examples for the gallery so far.
      num_batches: number of batches that are counted.
      num_images: number of images of this process that are counted.
    """

    def __init__(self, num_classes: int, details: Details | None):
        self.totals, self.details = metrics.Totals(num_classes), details
        self.gallery: list[GalleryExample] = []
        self.num_batches = self.num_images = 0

    def add(self, batch: dict[str, Any], result: dict[str, jax.Array]) -> None:
        """Adds a batch and the result of its step. Waits for the step."""
        self.totals.add(result)
        if self.details is not None:
            self.details.add_batch(batch, result)
        self.num_batches += 1
        self.num_images += int(np.sum(batch["valid"]))

    def to_json(self) -> dict[str, Any]:
        """Returns the state as values that JSON holds without loss."""
        return {
            "totals": self.totals.to_json(),
            "details": None if self.details is None else self.details.to_json(),
            "gallery": [list(map(encode_array, example)) for example in self.gallery],
            "num_batches": self.num_batches,
            "num_images": self.num_images,
        }

    def restore(self, values: dict[str, Any]) -> None:
        """Sets the state to the values that `to_json` returned."""
        self.totals = metrics.Totals.from_json(values["totals"])
        if self.details is not None:
            self.details.restore(values["details"])
        self.gallery = [tuple(map(decode_array, example)) for example in values["gallery"]]
        self.num_batches, self.num_images = values["num_batches"], values["num_images"]


class PartialResult:
    """The file, one per process, that holds the state of a stopped evaluation.

    It is used only by an evaluation of the same checkpoint, data, config, devices and versions.

    Args:
      folder: the folder of the files, in the workdir.
      identity: see `describe_evaluation`.
    """

    def __init__(self, folder: pathlib.Path, identity: dict[str, Any]):
        self.folder, self._identity = folder, identity
        self._path = folder / f"process_{jax.process_index()}_of_{jax.process_count()}.json"

    def load(self, state: EvaluationState) -> None:
        """Restores the state if all processes have one of this evaluation after the same number of batches."""
        values = self._read()
        found = processes.gather(None if values is None else values["state"]["num_batches"])
        if values is not None and found == [found[0]] * len(found):
            state.restore(values["state"])
            logger.info("Continuing the evaluation after %d batches", state.num_batches)

    def save(self, state: EvaluationState) -> None:
        """Saves a state.

        Raises:
          UserError: the file cannot be written.
        """
        create_folder(self.folder, "the folder of a partial evaluation")
        write_atomically(self._path, json.dumps({"identity": self._identity, "state": state.to_json()}).encode())

    def remove(self) -> None:
        """Removes the files, also those of other numbers of processes, when the evaluation is complete."""
        if processes.is_leader():
            for path in self.folder.glob("process_*"):
                path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # a bucket has no empty folders
                self.folder.rmdir()

    def _read(self) -> dict[str, Any] | None:
        if not self._path.exists():
            return None
        try:
            values = read_json(self._path, max_bytes=_MAX_BYTES)
        except UserError as error:
            logger.warning("%s; evaluating from the beginning", error)
            return None
        if values.get("identity") == self._identity:
            return values
        logger.info("The partial evaluation in %s is of other settings, data or weights; starting over", self.folder)
        return None


def describe_evaluation(
    config: ConfigDict, source: data.Source, *, checkpoint: str, num_worst: int | None
) -> dict[str, Any]:
    """Returns everything that the counts of an evaluation depend on, as values that JSON can hold.

    Args:
      config: the config of the evaluation.
      source: the split.
      checkpoint: digest of the checkpoint.
      num_worst: see `deeplab_jax.evaluation.evaluator.Evaluator`.
    """
    values = config_lib.to_dict(config)
    described = {
        "checkpoint": checkpoint,
        "split": source.split,
        "data": data.fingerprint(source),
        "config": {group: values[group] for group in _GROUPS} | {"compute_dtype": config.train.compute_dtype},
        "num_worst": num_worst,
        "devices": [jax.device_count(), jax.devices()[0].device_kind],
        "jax": jax.__version__,
    }
    return json.loads(json.dumps(described))  # as it is when it is read: lists for tuples
