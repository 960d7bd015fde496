"""A network of random values, and a Hub on this machine to push it to."""

import time

import numpy as np
import pytest
from flax import traverse_util

from deeplab_jax.pretrained import PretrainedNetwork
from deeplab_jax.pretrained.network import model_config, variable_shapes
from tests.support.hub_facts import FACTS, LABELS
from tests.support.hub_server import TOKEN, serving


@pytest.fixture(scope="session")
def network():
    """A network of random values that was never trained."""
    model = model_config(backbone="mobilenet_v2", width_multiplier=0.25, aspp="none", decoder="none")
    rng = np.random.default_rng(0)
    flat = {path: rng.normal(size=shape).astype(np.float32) for path, shape in variable_shapes(model, 3).items()}
    return PretrainedNetwork(model, traverse_util.unflatten_dict(flat, sep="/"), LABELS, provenance=FACTS)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The server, as HF_ENDPOINT names it to a process that has not imported huggingface_hub yet; and no cache."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    from huggingface_hub import constants

    with serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the server speaks the LFS protocol
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server
    huggingface_hub.close_session()


@pytest.fixture
def no_waiting(monkeypatch):
    """huggingface_hub waits longer before each further attempt."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
