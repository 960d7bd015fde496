"""One process of a run that saves and restores a state whose parts are on all processes, in a bucket."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from deeplab_jax.storage import BucketPath
from deeplab_jax.workdir import layout
from deeplab_jax.workdir.bucket_checkpoints import open_checkpoints


def main(address: str, port: str, count: str, index: str) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", int(count), int(index))
    mesh = jax.make_mesh((int(count),), ("data",))
    whole = np.arange(8 * 3, dtype=np.float32).reshape(8, 3)
    split = jax.make_array_from_callback(
        whole.shape, NamedSharding(mesh, PartitionSpec("data")), lambda part: whole[part]
    )
    step = jax.make_array_from_callback(
        (), NamedSharding(mesh, PartitionSpec()), lambda part: np.asarray(7, np.int32)[part]
    )
    workdir = BucketPath(address)
    with layout.lock(workdir) as check_lock, open_checkpoints(workdir, check_lock=check_lock) as checkpoints:
        assert checkpoints.latest_step() is None
        checkpoints.save(7, variables={"a": split}, training={"step": step}, notes={"window": None})
        checkpoints.wait()
    jax.experimental.multihost_utils.sync_global_devices("saved")
    with open_checkpoints(workdir) as checkpoints:
        variables, training, notes = checkpoints.restore(variables={"a": split}, training={"step": step})
        assert variables["a"].sharding == split.sharding
        (own,) = variables["a"].addressable_shards
        np.testing.assert_array_equal(own.data, whole[own.index])
        assert int(training["step"]) == 7
        assert notes == {"best": None, "window": None}
        np.testing.assert_array_equal(checkpoints.saved_variables()["a"], whole)
    assert bool(jnp.all(variables["a"] == split))


if __name__ == "__main__":
    import jax.experimental.multihost_utils

    main(*sys.argv[1:])
