"""Runs of many processes: how they find each other, whether they agree, and when all of them stop."""

import json
import signal
import threading
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from deeplab_jax import config as config_lib
from deeplab_jax.errors import UserError

_MAY_DIFFER = ("data.data_dir", "data.workers")  # a machine's own affair


def start(
    coordinator: str | None, num_processes: int | None, process_id: int | None, *, heartbeat_seconds: int
) -> None:
    """Connects this process with the others; before anything uses a device.

    Args:
      coordinator: HOST:PORT of process 0; None asks the cluster (a TPU pod, SLURM or Open MPI) for it and the next two.
      num_processes: of the run.
      process_id: of this one, from 0.
      heartbeat_seconds: a process that is silent for so long is dead: the others then abort, see
        `deeplab_jax.parallel.launcher`.

    Raises:
      UserError: the others cannot be found.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # of CPU devices only
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            cluster_detection_method=None if coordinator is None else "deactivate",
            heartbeat_timeout_seconds=heartbeat_seconds,
        )
    except (RuntimeError, ValueError) as error:
        who = "this process" if process_id is None else f"process {process_id}"
        raise UserError(
            f"{who} cannot join the run at {coordinator or 'the cluster'}: {' '.join(str(error).split())}; start every "
            "process, with the same address and number of processes"
        ) from error


def is_leader() -> bool:
    """Whether this is process 0, which alone writes files that are no arrays, and reports."""
    return jax.process_index() == 0


def check_same_config(config: ConfigDict) -> None:
    """Compares the config over all processes, before they wait for each other in vain.

    Raises:
      UserError: in every process, naming one that differs and what differs.
    """
    first, *others = gather(config_lib.to_dict(config))
    for index, other in enumerate(others, start=1):
        pair = config_lib.from_dict(other), config_lib.from_dict(first)
        differences = config_lib.differences(*pair, groups=tuple(first))
        lines = [line for field, line in differences.items() if field not in _MAY_DIFFER]
        if lines:
            raise UserError(
                f"process {index} has another config than process 0 ({'; '.join(lines)}); start all of them with the "
                "same command"
            )


def check_same_step(step: int | None) -> None:
    """Compares the step of the newest checkpoint, None if there is none, over all processes.

    Raises:
      UserError: in every process, if they do not see the same.
    """
    steps = gather(step)
    if len(set(steps)) > 1:
        shown = ", ".join(f"process {index}: {value or 0}" for index, value in enumerate(steps))
        raise UserError(f"the processes would continue from different steps ({shown}); give them one shared --workdir")


def gather(value: Any) -> list[Any]:
    """The values of all processes, in order; each calls this with one that JSON can hold, and waits for the others."""
    if jax.process_count() == 1:
        return [value]
    content = json.dumps(value).encode()
    longest = np.max(multihost_utils.process_allgather(np.int32(len(content))))
    padded = np.frombuffer(content.ljust(int(longest)), np.uint8)
    return [json.loads(row.tobytes()) for row in multihost_utils.process_allgather(padded)]


class Preemption:
    """Learns that the run is to stop, from SIGTERM to any of its processes. A context manager.

    With one process the signal sets a flag. With many, JAX' coordination service has them agree on a step that none
    has passed.
    """

    def __init__(self):
        self._told, self._previous = False, None
        # JAX' service listens itself; Python's signal handlers belong to the main thread.
        self._listens = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()

    def __enter__(self) -> "Preemption":
        if self._listens:
            self._previous = signal.signal(signal.SIGTERM, self._take_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, self._previous)

    def reached(self, step: int) -> bool:
        """Whether to save and stop after this step: true in all processes at the same one. To be asked at each step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._told

    def _take_signal(self, number: int, frame: FrameType | None) -> None:
        self._told = True
