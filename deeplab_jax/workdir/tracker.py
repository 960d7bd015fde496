"""The journal of a run on an experiment tracker: a run that continues is the same run there, with every step once."""

import json
import pathlib

from deeplab_jax.files import read_json, write_atomically


class Journal:
    """The identifier of a run on a tracker, and the last step that the tracker has, by group of values.

    It is a JSON file in the workdir. A run that starts from scratch, or is sent elsewhere than before,
    starts a new one.

    Args:
      path: the file.
      target: where the run is sent, such as the name of a project.
      start_step: step of the checkpoint that the run continues from; 0 starts from scratch.

    Attributes:
      run_id: the identifier on the tracker; None until `start`.
    """

    def __init__(self, path: pathlib.Path, *, target: str, start_step: int):
        self._path, self._target = path, target
        self.run_id: str | None = None
        self._last_steps: dict[str, int] = {}
        saved = read_json(path) if start_step and path.exists() else {}
        if saved.get("target") == target:
            self.run_id, self._last_steps = str(saved["run_id"]), dict(saved["last_steps"])

    def start(self, run_id: str) -> None:
        """Stores the identifier of a new run."""
        self.run_id = run_id
        self._save()

    def is_new(self, group: str, step: int) -> bool:
        """True if the tracker does not have the values of a group, such as `train`, at `step`."""
        return step > self._last_steps.get(group, -1)

    def record(self, group: str, step: int) -> None:
        """Stores that the tracker has the values of a group at `step`."""
        self._last_steps[group] = step
        self._save()

    def _save(self) -> None:
        values = {"target": self._target, "run_id": self.run_id, "last_steps": self._last_steps}
        write_atomically(self._path, json.dumps(values, indent=1).encode() + b"\n")
