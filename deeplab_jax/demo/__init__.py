"""The page of `deeplab-jax demo`."""
