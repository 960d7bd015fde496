"""Kills a training on a GPU, continues it, and compares the result with an uninterrupted one.

`python -m benchmarks.gpu_resume TASK` prints one line of JSON, see `benchmarks.worker`. XLA chooses among algorithms by
timing them, and some add in an order that varies, so both runs have `--xla_gpu_deterministic_ops=true`.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np

from benchmarks import worker
from benchmarks.ours import PACKAGES
from deeplab_jax.parallel import mesh as mesh_lib
from deeplab_jax.training.step import build_program
from deeplab_jax.workdir import layout
from deeplab_jax.workdir.checkpoint import Checkpoints

_POLL_SECONDS = 0.005


def main() -> None:
    """Runs the task on the command line."""
    task, seconds = worker.read_task(), {}
    deadline = time.monotonic() + task["seconds"]
    folder = pathlib.Path(task["folder"])
    straight, killed = folder / "straight", folder / "killed"
    start = time.monotonic()
    _finish(_start(straight, task), deadline)
    seconds["straight"] = time.monotonic() - start
    step = _kill_after_checkpoint(killed, task, deadline)
    start = time.monotonic()
    _finish(_start(killed, task), deadline)
    seconds["continued"] = time.monotonic() - start
    one, other = _final_state(straight), _final_state(killed)
    differing = [name for name in one if one[name].tobytes() != other[name].tobytes()]
    log = {name: _logged(path) for name, path in (("straight", straight), ("killed", killed))}
    facts = {
        "killed_at_step": step,
        "steps": task["steps"],
        "arrays": len(one),
        "differing_arrays": len(differing) + len(one.keys() ^ other.keys()),
        "same_log": log["straight"] == log["killed"],
    }
    worker.report({name: [value] for name, value in seconds.items()}, packages=PACKAGES, memory=0, facts=facts)


def _steps_between_checkpoints(task: dict) -> int:
    return max(1, task["steps"] // 5)


def _start(workdir: pathlib.Path, task: dict) -> subprocess.Popen:
    """Starts `deeplab-jax train` on generated scenes, with a checkpoint every fifth of the training."""
    every = _steps_between_checkpoints(task)
    command = [sys.executable, "-m", "deeplab_jax", "train", "--workdir", str(workdir)]
    command += ["--config", f"quickstart:steps={task['steps']},size={task['size']}"]
    command += [f"--config.checkpoint.every={every}steps", f"--config.log.every_steps={every}"]
    command += ["--config.log.tensorboard=False", "--config.eval.every=100%"]
    flags = os.environ.get("XLA_FLAGS", "")
    if not task["toy"]:
        flags += " --xla_gpu_deterministic_ops=true"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_COMPILATION_CACHE_DIR": f"{task['folder']}/compiled"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _finish(process: subprocess.Popen, deadline: float) -> None:
    """Waits for a training. Kills it at the deadline, since nothing else would if this process was killed itself."""
    try:
        _, errors = process.communicate(timeout=max(0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        _end(process)
        raise SystemExit("the trainings took too long") from None
    if process.returncode:
        raise SystemExit((errors.strip().splitlines() or [f"a training ended with code {process.returncode}"])[-1])


def _end(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def _kill_after_checkpoint(workdir: pathlib.Path, task: dict, deadline: float) -> int:
    """Starts a training, kills it after its second checkpoint, and returns the step of its newest checkpoint."""
    process = _start(workdir, task)
    second = 2 * _steps_between_checkpoints(task)
    while process.poll() is None and max(_saved_steps(workdir), default=0) < second:
        if time.monotonic() > deadline:
            break
        time.sleep(_POLL_SECONDS)
    if process.poll() is not None:
        _finish(process, deadline)
        raise SystemExit("the training ended before it could be killed; give it more steps")
    _end(process)
    if time.monotonic() > deadline:
        raise SystemExit("the trainings took too long")
    return max(_saved_steps(workdir))


def _saved_steps(workdir: pathlib.Path) -> list[int]:
    """The steps of finished checkpoints; unfinished ones have longer names."""
    return [int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal()]


def _final_state(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint, by its path."""
    config, classes = layout.read_config(workdir), layout.read_labels(workdir).num_classes
    program = build_program(config, classes, mesh_lib.make_mesh(config.mesh), total_steps=1)
    with Checkpoints(workdir, read_only=True) as checkpoints:
        variables, training, _ = checkpoints.restore(**program.shapes.to_items())
    leaves = jax.tree_util.tree_leaves_with_path({"variables": variables, "training": training})
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def _logged(workdir: pathlib.Path) -> list[dict]:
    """The lines of the metrics log without rates."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.endswith("_per_second")} for row in rows]


if __name__ == "__main__":
    main()
