"""One worker per peer. A worker imports its own framework and `benchmarks.worker`, nothing of deeplab_jax."""
