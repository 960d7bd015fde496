"""The web page of `deeplab-jax demo`."""
