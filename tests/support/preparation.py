"""Checks of a preparation that fails."""

import pytest

from deeplab_jax.data.prepare import prepare
from deeplab_jax.data.prepared import prepared_folder
from deeplab_jax.errors import UserError


def assert_nothing_left(name, data_dir):
    """Neither a prepared data set nor a temporary file."""
    assert not prepared_folder(name, data_dir).exists()
    assert not [path for path in data_dir.rglob("*") if path.is_file()] if data_dir.exists() else True


def assert_fails(match, name, data_dir, **options):
    with pytest.raises(UserError, match=match) as caught:
        prepare(name, data_dir=data_dir, **options)
    assert "\n" not in str(caught.value)
    assert_nothing_left(name, data_dir)
