"""`python -m deeplab_jax` is the `deeplab-jax` command."""

from deeplab_jax.cli import main

if __name__ == "__main__":
    main()
