"""A run of several processes whose workdir is in a bucket."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np

from deeplab_jax.workdir.bucket_checkpoints import open_checkpoints
from tests.support import bucket_process, runs


def test_two_processes_save_a_split_state_that_one_reads(bucket, tmp_path):
    workdir, port = bucket / "run", str(runs.free_port())
    words = [sys.executable, bucket_process.__file__, str(workdir), port, "2"]
    environment = runs.environment(1) | {"DEEPLAB_JAX_CACHE": str(tmp_path / "cache")}
    started = [
        subprocess.Popen([*words, str(index)], env=environment, stderr=subprocess.PIPE, text=True) for index in range(2)
    ]
    for process in started:
        _, err = process.communicate(timeout=600)
        assert process.returncode == 0, err[-3000:]
    with open_checkpoints(workdir, read_only=True) as checkpoints:
        like = {"variables": {"a": jnp.zeros((8, 3))}, "training": {"step": jnp.zeros((), jnp.int32)}}
        variables, training, _ = checkpoints.restore(**like)
    np.testing.assert_array_equal(variables["a"], np.arange(24, dtype=np.float32).reshape(8, 3))
    assert int(training["step"]) == 7
