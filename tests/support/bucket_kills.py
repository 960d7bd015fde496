"""Kills the writers of a run at random moments: the lease, `metrics.jsonl` and checkpoints in a bucket.

Each life is a fork of a process that has imported everything, so that it takes a second and not the ten of a training.
"""

import json
import os
import random
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.storage import BucketPath, client
from deeplab_jax.workdir import layout, metrics_log
from deeplab_jax.workdir.bucket_checkpoints import open_checkpoints

STEPS = 12


def after(state: np.ndarray, step: int) -> np.ndarray:
    return state * 0.5 + step


def live(workdir: BucketPath) -> None:
    """Takes all steps, from the newest checkpoint on, as the training loop does."""
    with layout.lock(workdir) as check_lock, open_checkpoints(workdir, keep=2, check_lock=check_lock) as checkpoints:
        state, first = jnp.zeros(1000), 0
        if checkpoints.latest_step() is not None:
            like = {"variables": {"a": state}, "training": {"step": jnp.zeros((), jnp.int32)}}
            variables, training, _ = checkpoints.restore(**like)
            state, first = variables["a"], int(training["step"])
        with metrics_log.Writer(workdir, total_steps=STEPS, batch_size=1, start_step=first) as writer:
            for step in range(first + 1, STEPS + 1):
                state = jnp.asarray(after(np.asarray(state), step))
                writer.write_train(step, {"loss": float(state[0])})
                if step % 2 == 0:
                    checkpoints.record_score(step, 1 / abs(step - 5.9))
                    checkpoints.save(step, variables={"a": state}, training={"step": jnp.asarray(step, jnp.int32)})
                    checkpoints.wait()


def in_child(function, *arguments) -> int:
    child = os.fork()
    if child == 0:
        try:
            function(*arguments)
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    return child


def check(workdir: BucketPath) -> None:
    """Exits with 1 unless the run is as if it had not been interrupted."""
    state, losses = np.zeros(1000, np.float32), []
    for step in range(1, STEPS + 1):
        state = after(state, step).astype(np.float32)
        losses.append({"step": step, "loss": float(state[0])})
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    found = [{name: value for name, value in line.items() if not name.endswith("_per_second")} for line in lines]
    assert found == losses, f"{found} != {losses}"
    assert layout.checkpoint_steps(workdir) == [12, 10, 6], layout.checkpoint_steps(workdir)
    objects = {entry.name.split("/")[0] for entry in client.list_files(workdir / "checkpoints")}
    assert objects == {"12", "10", "6"}, objects
    with open_checkpoints(workdir, read_only=True) as checkpoints:
        assert checkpoints.saved_variables()["a"].tobytes() == state.tobytes()


def main(address: str, kills: int, seed: int) -> None:
    rng, done, rounds, seconds = random.Random(seed), 0, 0, None
    while done < kills:
        workdir = BucketPath(f"{address}/{rounds}")
        while True:
            begin = time.monotonic()
            child = in_child(live, workdir)
            if seconds is not None and done < kills:
                time.sleep(rng.uniform(0.1, 0.9) * seconds)
                os.kill(child, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if status == 0:
                seconds = min(seconds or 1e9, time.monotonic() - begin)  # machines are slow at times
                break
            assert status == -signal.SIGKILL, f"exit code {status}"
            done += 1
        assert os.waitstatus_to_exitcode(os.waitpid(in_child(check, workdir), 0)[1]) == 0
        rounds += 1
        print(f"{done} kills in {rounds} runs, 0 differences", flush=True)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
