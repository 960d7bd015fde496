"""The `deeplab-jax` command."""
