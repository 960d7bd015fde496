"""Tests of training compile small networks of plain operations, each once per session."""

import pytest

from deeplab_jax.ops.operations import SWITCH


@pytest.fixture(scope="package", autouse=True)
def plain_operations(compilation_cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH, "xla")
        yield
