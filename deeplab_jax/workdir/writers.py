"""The writers that show a run elsewhere than in its own log: TensorBoard, Weights & Biases and MLflow."""

import importlib
import importlib.util
import logging
import pathlib
from collections.abc import Callable
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from ml_collections import ConfigDict

from deeplab_jax.errors import UserError
from deeplab_jax.workdir.tensorboard import Events
from deeplab_jax.workdir.tracker import Journal

#: How a run ended: all its steps are done, a signal stopped it, or an error did.
Status = Literal["finished", "stopped", "failed"]

TENSORBOARD_FOLDER = "tensorboard"

logger = logging.getLogger(__name__)

# The writers that need a package of their own, by field of `config.log` and extra: the package, and the class.
_TRACKERS = {
    "wandb": ("wandb", "deeplab_jax.workdir.wandb_writer", "WandbWriter"),
    "mlflow": ("mlflow", "deeplab_jax.workdir.mlflow_writer", "MlflowWriter"),
}


@runtime_checkable
class MetricsWriter(Protocol):
    """Receives what a run reports. Each method may raise any exception; see `open_writers`.

    Attributes:
      replays: when a run continues, the writer also gets the values that the log of the run holds. It ignores those
        that it has already.
    """

    replays: bool

    def add_config(self, config: ConfigDict) -> None:
        """Shows the config of the run."""

    def add_scalars(self, group: str, values: dict[str, float], step: int) -> None:
        """Adds finite numbers by name, such as `loss` of the group `train` or `cat` of the group `iou`, all at once."""

    def add_image(self, name: str, image: np.ndarray, step: int) -> None:
        """Adds an image: uint8 (height, width, 3)."""

    def close(self, status: Status) -> None:
        """Sends what is still to be sent."""


def check_installed(config: ConfigDict) -> None:
    """Checks that the packages of the writers in `config.log` are installed, without importing them.

    Raises:
      UserError: one is missing. The message names the extra to install.
    """
    for name, (package, _, _) in _TRACKERS.items():
        if config.log[name] is not None and importlib.util.find_spec(package) is None:
            raise UserError(
                f"log.{name}={config.log[name]!r} needs the package {package}; install the extra: "
                f"pip install 'deeplab_jax[{name}]', or unset log.{name}"
            )


def open_writers(config: ConfigDict, workdir: pathlib.Path, *, start_step: int) -> list[MetricsWriter]:
    """Opens the writers of `config.log` and gives them the config.

    A writer that fails, on a full disk or because its server is away, never stops the training: the error is logged
    once, and the run continues without this writer.

    Args:
      config: the config of the run.
      workdir: its workdir.
      start_step: step of the checkpoint that the run continues from; 0 starts from scratch.
    """
    writers = []
    if config.log.tensorboard:
        purge_step = start_step + 1 if start_step else None
        writers.append(_Guarded("TensorBoard", lambda: Events(workdir / TENSORBOARD_FOLDER, purge_step=purge_step)))
    for name, (package, module, class_name) in _TRACKERS.items():
        if (target := config.log[name]) is not None:

            def make(package=package, module=module, class_name=class_name, target=target) -> MetricsWriter:
                journal = Journal(workdir / f"{package}.json", target=target, start_step=start_step)
                return getattr(importlib.import_module(module), class_name)(target, workdir, journal)

            writers.append(_Guarded(f"log.{name}={target}", make))
    for writer in writers:
        writer.add_config(config)
    return writers


class _Guarded:
    """A writer whose first error ends it, with a warning."""

    def __init__(self, name: str, make: Callable[[], MetricsWriter]):
        self._name, self._writer = name, None
        self._writer = self._call(make)

    @property
    def replays(self) -> bool:
        """See `MetricsWriter`."""
        return self._writer is not None and self._writer.replays

    def add_config(self, config: ConfigDict) -> None:
        """See `MetricsWriter`."""
        self._forward("add_config", config)

    def add_scalars(self, group: str, values: dict[str, float], step: int) -> None:
        """See `MetricsWriter`."""
        self._forward("add_scalars", group, values, step)

    def add_image(self, name: str, image: np.ndarray, step: int) -> None:
        """See `MetricsWriter`."""
        self._forward("add_image", name, image, step)

    def close(self, status: Status) -> None:
        """See `MetricsWriter`."""
        self._forward("close", status)

    def _forward(self, method: str, *arguments: object) -> None:
        if self._writer is not None:
            self._call(getattr(self._writer, method), *arguments)

    def _call(self, function: Callable, *arguments: object):
        try:
            return function(*arguments)
        except Exception as error:  # the code of other projects, networks and servers: any exception may come
            self._writer = None
            text = " ".join(str(error).split()) or type(error).__name__
            logger.warning("cannot write to %s: %s; the run continues without it", self._name, text)
            return None
