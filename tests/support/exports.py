"""Networks to export and the results of exported files, for the tests of every format."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
from ml_collections import ConfigDict

from deeplab_jax.config import base_config
from deeplab_jax.labels import SYNTHETIC
from deeplab_jax.models import abstract_variables, build_model
from deeplab_jax.pretrained import PretrainedNetwork

RUNTIME = pathlib.Path(__file__).with_name("exported_runtime.py")
TINY_RESNET = {"backbone": "resnet10_v1_slim"}
TINY_LRASPP = {"backbone": "mobilenet_v3_small_seg", "head": "lraspp", "output_stride": 32, "padding": "same_upper"}
SEGFORMER = {"backbone": "mit_b0", "head": "segformer", "output_stride": 32}
TINY_MOBILENET = {"backbone": "mobilenet_v2", "width_multiplier": 0.1, "decoder": "separable", "padding": "same_upper"}

# Fields of each head that keep it small.
_SMALL = {
    "deeplab": {"aspp_channels": 8, "decoder_channels": 8, "low_level_channels": 4, "atrous_rates": (2,)},
    "segformer": {"decoder_channels": 8},
    "lraspp": {"aspp_channels": 8},
}


def network(**fields) -> PretrainedNetwork:
    """A small network for six classes with random parameters of realistic size."""
    model = base_config().model
    model.update(_SMALL[fields.get("head", "deeplab")] | fields)
    return with_random_variables(PretrainedNetwork(model, {}, SYNTHETIC, "whole", (33, 47)))


def with_random_variables(network: PretrainedNetwork) -> PretrainedNetwork:
    """The network with kernels that preserve the variance, and norms that are not the identity."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            value = np.sqrt(2 / np.prod(leaf.shape[:3])) * rng.standard_normal(leaf.shape)
        elif name in ("scale", "var"):
            value = rng.uniform(0.5, 1.5, leaf.shape)
        else:
            value = rng.uniform(-0.2, 0.2, leaf.shape)
        return value.astype(np.float32)

    shapes = abstract_variables(build_model(network.model, network.label_set.num_classes))
    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    return PretrainedNetwork(network.model, variables, network.label_set, network.protocol, network.image_size)


def logits(network: PretrainedNetwork, images: np.ndarray) -> np.ndarray:
    """The logits that JAX computes in this process."""
    run = _jit_network(network.model.to_json(), network.label_set.num_classes)
    return np.concatenate([run(network.variables, images[i : i + 1].astype(np.float32)) for i in range(len(images))])


@functools.cache
def _jit_network(model_json: str, num_classes: int):
    """Compiled once per network and image size."""
    model = build_model(ConfigDict(json.loads(model_json)), num_classes)
    return jax.jit(lambda variables, images: model.apply(variables, images, train=False)[0])


def images(count: int, height: int, width: int, dtype=np.float32) -> np.ndarray:
    """Patches of random colors, which networks tell apart, unlike noise."""
    coarse = np.random.default_rng(1).integers(0, 256, (count, -(-height // 12), -(-width // 12), 3))
    return coarse.repeat(12, axis=1).repeat(12, axis=2)[:, :height, :width].astype(dtype)


def run_exported(file_format: str, path: pathlib.Path, images: np.ndarray) -> np.ndarray:
    """The result of the file in its own runtime, in a process that cannot import deeplab_jax."""
    given, result = path.with_name("images.npy"), path.with_name("result.npy")
    np.save(given, images)
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    done = subprocess.run(
        [sys.executable, str(RUNTIME), file_format, str(path), str(given), str(result)],
        capture_output=True, text=True, timeout=600, check=False, env=os.environ | {"XLA_FLAGS": flags},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return np.load(result)
