"""Tests of training compile small networks of plain operations, each once per session."""

import numpy as np
import pytest

from deeplab_jax.evaluation import evaluator
from deeplab_jax.models import PARTS
from deeplab_jax.ops.operations import SWITCH
from deeplab_jax.training import step
from tests.support import toy_network


@pytest.fixture(scope="package", autouse=True)
def plain_operations(compilation_cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH, "xla")
        yield


@pytest.fixture(scope="module")
def toy_models():
    """Whatever the config says, the network is the toy network, which compiles in no time."""

    def build(config, num_classes, *args, **options):
        return toy_network.ToyNetwork(
            num_classes,
            dtype=np.dtype(config.train.compute_dtype),
            freeze_norm_statistics=config.model.freeze_norm_statistics,
        )

    with pytest.MonkeyPatch.context() as patch:
        for module in (step, evaluator):
            patch.setattr(module, "build_for_mesh", build)
        patch.setattr(step, "PARTS", (*PARTS, *toy_network.PARTS))
        yield
