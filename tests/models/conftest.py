"""Small backbones for the tests of networks."""

import pytest

from deeplab_jax.models import BACKBONES, BackboneSpec
from deeplab_jax.models.backbones.resnet_v1 import ResNetV1
from tests.models.support import SMALL


@pytest.fixture
def small_backbones(monkeypatch):
    """Adds `tiny`, of three units, and small versions of the shipped backbones as `small_...`."""
    tiny = BackboneSpec(ResNetV1, {"blocks": (1, 1, 1), "block": "basic", "width": 8})
    for name, spec in {"tiny": tiny, **{f"small_{name}": spec for name, spec in SMALL.items()}}.items():
        monkeypatch.setitem(BACKBONES, name, spec)
