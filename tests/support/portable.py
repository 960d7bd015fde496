"""Functions for tests of other processes. This module imports little, because each process imports it."""

import os

from deeplab_jax.errors import UserError


def square(value):
    """The square, and the process that computed it."""
    return value * value, os.getpid()


def fail_at_nine(value):
    if value == 9:
        raise UserError("nine")
    return value


def die_at_nine(value):
    if value == 9:
        os._exit(3)
    return value
