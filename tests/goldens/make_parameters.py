"""Writes parameters.txt: the path and shape of every parameter of every backbone and head.

    python -m tests.goldens.make_parameters > tests/goldens/parameters.txt

The file guards checkpoints: a change of a line breaks every saved network of that kind.
"""

import dataclasses
import hashlib

import flax.traverse_util

from deeplab_jax import models
from deeplab_jax.config import base_config
from deeplab_jax.models import BACKBONES, abstract_variables, build_model

CLASSES = 5
SLIM = "resnet10_v1_slim"
HEADS = {
    **{decoder: {"decoder": decoder} for decoder in ("paper", "separable", "kerascv", "torchvision", "smp", "none")},
    "separable aspp": {"decoder": "smp", "aspp_separable": True, "separable_norm": False},
    "separable aspp with norms": {"decoder": "separable", "aspp_separable": True},
    "no pooling, no bias": {"decoder": "paper", "image_pooling": False, "classifier_bias": False},
}
# Their paths are listed; of the others a digest is enough.
LISTED = ("resnet50_v2_kerascv", "mobilenet_v2", "mit_b0", *(f"{SLIM}, {head}" for head in HEADS))


def networks() -> dict[str, dict]:
    """The fields of `config.model` of each network by its name."""
    backbones = {name: {"backbone": name} for name in BACKBONES if not name.startswith("mit_")}
    segformer = {"head": "segformer", "output_stride": 32}
    backbones |= {name: {"backbone": name} | segformer for name in BACKBONES if name.startswith("mit_")}
    backbones["mobilenet_v2 of width 0.5"] = {"backbone": "mobilenet_v2", "width_multiplier": 0.5}
    backbones["mobilenet_v2_full of width 1.4"] = {"backbone": "mobilenet_v2_full", "width_multiplier": 1.4}
    heads = {f"{SLIM}, {name}": {"backbone": SLIM} | fields for name, fields in HEADS.items()}
    lraspp = {"backbone": "mobilenet_v3_small", "head": "lraspp", "auxiliary_channels": 4}
    return backbones | heads | {"mobilenet_v3_small, lraspp": lraspp | {"auxiliary_features": "mid_level_features"}}


def lines(fields: dict) -> list[str]:
    """`path shape dtype` of each variable of a network."""
    model = base_config().model
    taken = {field.name for field in dataclasses.fields(models.HEADS[fields.get("head", "deeplab")])}
    widths = {"aspp_channels": 16, "decoder_channels": 16, "low_level_channels": 8}
    model.update({name: width for name, width in widths.items() if name in taken} | fields)
    flat = flax.traverse_util.flatten_dict(abstract_variables(build_model(model, CLASSES)), sep="/")
    return [f"{path} {'x'.join(map(str, leaf.shape))} {leaf.dtype}" for path, leaf in sorted(flat.items())]


def digest(listed: list[str]) -> str:
    """Of the lines of a network."""
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()[:16]


if __name__ == "__main__":
    for name, fields in networks().items():
        listed = lines(fields)
        print(f"# {name}: {len(listed)} {digest(listed)}")
        if name in LISTED:
            print("\n".join(listed))
