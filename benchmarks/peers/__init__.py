"""One worker for each peer; a worker imports its own framework and `benchmarks.worker`, nothing of deeplab_jax."""
