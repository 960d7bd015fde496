"""Small networks with random variables."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from deeplab_jax.config import base_config
from deeplab_jax.models import BackboneSpec, abstract_variables
from deeplab_jax.models.backbones.efficientnet_lite import scaled_stages
from deeplab_jax.models.backbones.inverted_residual import InvertedResidualNetwork
from deeplab_jax.models.backbones.mobilenet_v2 import STAGES as MOBILENET_STAGES
from deeplab_jax.models.backbones.mobilenet_v3 import VARIANTS as MOBILENET_V3_VARIANTS
from deeplab_jax.models.backbones.resnet_v1 import ResNetV1
from deeplab_jax.models.backbones.resnet_v2 import ResNetV2
from deeplab_jax.models.backbones.xception import Xception, xception_blocks

CLASSES = 5


def small_model_config(backbone="resnet10_v1_slim", **fields) -> ConfigDict:
    model = base_config().model
    model.backbone = backbone
    model.aspp_channels = model.decoder_channels = 16
    model.low_level_channels = 8
    for name, value in fields.items():
        model[name] = value
    return model


def random_variables(model, seed=0):
    """Random variables of a network, batch statistics included, so that a skipped normalization shows."""
    return random_values(abstract_variables(model), seed)


def random_values(shapes, seed=0):
    """Random values of variables, made by numpy, which compiles nothing."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("var", "scale"):
            value = rng.uniform(0.5, 1.5, leaf.shape)
        elif name in ("mean", "bias"):
            value = rng.normal(0, 0.1, leaf.shape)
        else:
            value = np.sqrt(2 / np.prod(leaf.shape[:3])) * rng.standard_normal(leaf.shape)
        return jnp.asarray(value, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def evaluate(model, variables, images):
    """Logits and endpoints, compiled: op by op takes far longer."""
    return jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)


def train(model, variables, images, **rngs):
    """Logits, endpoints and the updated batch statistics of training mode."""
    apply = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"], rngs=rngs))
    (logits, endpoints), updates = apply(variables, images)
    return logits, endpoints, updates["batch_stats"]


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def narrow(stages):
    """The stages with at most two units of eight channels each."""
    return tuple(
        stage._replace(
            features=8,
            units=min(2, stage.units),
            expansion=min(2, stage.expansion),
            expanded=tuple(min(16, width) for width in stage.expanded),
        )
        for stage in stages
    )


def narrow_resnet(build, units, width=4, **arguments):
    """A ResNet of four stages with `units` each."""
    arguments |= {"blocks": (units,) * 4, "width": width}
    return BackboneSpec(build, arguments, options=("multi_grid", "cascade_blocks"), last_stage_units=units)


def narrow_blocks(blocks):
    """The blocks with at most two units and eight to thirteen channels."""
    return tuple(
        block._replace(features=tuple(8 + features % 10 for features in block.features), units=min(2, block.units))
        for block in blocks
    )


# Backbones of few narrow units, by the shipped ones that they stand for.
SMALL = {
    "resnet10_v1_slim": narrow_resnet(ResNetV1, 1, block="basic", stem="deep", width=8),
    "resnet50_v1_beta": narrow_resnet(ResNetV1, 2, stem="deep", strided_unit="last"),
    "resnet50_v2": narrow_resnet(ResNetV2, 2),
    "resnet50_v2_kerascv": narrow_resnet(ResNetV2, 2, strided_unit="last", final_norm=False),
    "mobilenet_v2": BackboneSpec(InvertedResidualNetwork, {"stem_features": 8, "stages": narrow(MOBILENET_STAGES)}),
    "mobilenet_v3_small": BackboneSpec(
        InvertedResidualNetwork,
        {
            "stem_features": 8,
            # Without squeeze-and-excitation, whose means over a denser grid are others.
            "stages": tuple(stage._replace(squeeze=False) for stage in narrow(MOBILENET_V3_VARIANTS["small"][0])),
            "final_features": 16,
            "activation": "hard_swish",
            "taps": "depthwise",
        },
    ),
    "efficientnet_lite0": BackboneSpec(
        InvertedResidualNetwork, {"stem_features": 8, "stages": narrow(scaled_stages(1.0, 1.0))}
    ),
    "xception71": BackboneSpec(
        Xception,
        {"blocks": narrow_blocks(xception_blocks(16, long_entry=True)), "stem_features": (8, 9)},
        options=("multi_grid",),
        last_stage_units=3,
    ),
}
