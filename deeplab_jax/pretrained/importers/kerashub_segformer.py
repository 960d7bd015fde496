"""KerasHub's SegFormer and its MiT encoders.

Source of the names and order of layers: keras_hub 0.32, `models/mit/mit_backbone.py`, `models/mit/mit_layers.py`,
`models/segformer/segformer_backbone.py` and `segformer_image_segmenter.py`. Its GELU is the tanh approximation, and the
epsilons of LayerNorm are 1e-6 in blocks and 1e-5 elsewhere. It takes square images only; the same weights take any
here. Its dropout of 0.1 in attention is not part of this network, which computes the same without it in inference.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deeplab_jax.errors import UserError
from deeplab_jax.pretrained.importers import mix_transformer
from deeplab_jax.pretrained.network import PretrainedNetwork, variable_shapes, voc_or_numbered_labels
from deeplab_jax.pretrained.readers import keras_h5
from deeplab_jax.pretrained.translate import KERAS, translate

_EPSILONS = (1e-6, 1e-5, 1e-5, 1e-5)
_SIDE = 512  # of the images of most presets
_EMBEDDING, _BLOCK = "overlapping_patching_and_embedding", "hierarchical_transformer_encoder"
_NAMES = {
    "embedding_conv": f"{_EMBEDDING}{{stage_suffix}}/proj",
    "embedding_norm": f"{_EMBEDDING}{{stage_suffix}}/norm",
    "norm": "layer_normalization{stage_suffix}",
    "block/norm1": f"{_BLOCK}{{block_suffix}}/norm1",
    "block/attention/query": f"{_BLOCK}{{block_suffix}}/attn/q",
    "block/attention/key": f"{_BLOCK}{{block_suffix}}/attn/k",
    "block/attention/value": f"{_BLOCK}{{block_suffix}}/attn/v",
    "block/attention/reduction_conv": f"{_BLOCK}{{block_suffix}}/attn/sr",
    "block/attention/reduction_norm": f"{_BLOCK}{{block_suffix}}/attn/norm",
    "block/attention/projection": f"{_BLOCK}{{block_suffix}}/attn/proj",
    "block/norm2": f"{_BLOCK}{{block_suffix}}/norm2",
    "block/mlp/expand": f"{_BLOCK}{{block_suffix}}/mlp/fc1",
    "block/mlp/depthwise_conv": f"{_BLOCK}{{block_suffix}}/mlp/dwconv",
    "block/mlp/project": f"{_BLOCK}{{block_suffix}}/mlp/fc2",
}
_HEAD = "layers/seg_former_backbone/layers/"
_SKIPPED = {"optimizer/.*": "optimizer state"}


def is_mix_transformer(layers: Sequence[keras_h5.Layer]) -> bool:
    """Returns True for the layers of a SegFormer or MiT."""
    return any(_BLOCK in layer.path for layer in layers)


def convert(layers: Sequence[keras_h5.Layer], config: Mapping[str, Any], *, source: str) -> PretrainedNetwork:
    """Converts the result of `keras_h5.read` to a network. Error messages name `source`.

    KerasHub normalizes images outside the model, by ImageNet's mean and standard deviation in its presets.
    """
    arrays = {}
    for layer in layers:
        arrays |= {f"{layer.path}/{leaf}": value for leaf, value in _named(layer).items()}
    classifier = "layers/conv2d"
    is_segmenter = f"{classifier}/kernel" in arrays
    encoders = {path[: path.index(_EMBEDDING)] for path in arrays if _EMBEDDING in path}
    if len(encoders) != 1 or (is_segmenter and f"{_HEAD}sequential/layers/conv2d/kernel" not in arrays):
        raise UserError(f"{source} does not have the layers of a SegFormerImageSegmenter or MiTBackbone of KerasHub")
    prefix = encoders.pop()
    kernels = [f"{prefix}{keras_h5.numbered(_EMBEDDING, i)}/proj/kernel" for i in range(len(mix_transformer.STAGES))]
    channels = [arrays[name].shape[-1] if name in arrays else 0 for name in kernels]
    queries = [value.shape[0] for name, value in arrays.items() if name.endswith("/attn/q/kernel")]
    backbone = mix_transformer.find_backbone(channels, [queries.count(count) for count in channels])
    modules = mix_transformer.layer_table(backbone, _NAMES, prefix)
    fields: dict[str, Any] = {}
    if is_segmenter:
        fields["decoder_channels"] = arrays[f"{_HEAD}sequential/layers/conv2d/kernel"].shape[-1]
        modules |= {
            "decoder/fuse": f"{_HEAD}sequential/layers/conv2d",
            "decoder/norm": f"{_HEAD}sequential/layers/batch_normalization",
            "classifier": classifier,
        }
        for n in mix_transformer.STAGES:  # from the last stage to the first
            modules[f"decoder/projection{n}"] = _HEAD + keras_h5.numbered("dense", 4 - n)
    model = mix_transformer.segformer_config(
        backbone, layer_norm_epsilons=_EPSILONS, gelu="tanh", kernel_init="glorot_uniform", **fields
    )
    num_classes = arrays[f"{classifier}/kernel"].shape[-1] if is_segmenter else None
    variables, report = translate(arrays, modules, variable_shapes(model, num_classes), KERAS, skipped=_SKIPPED)
    if not is_segmenter:
        return PretrainedNetwork(model=model, variables=variables, label_set=None, report=report)
    size = _image_size(config)
    if size is None:
        size, report = (_SIDE, _SIDE), [*report, f"assumed, not in the file: images of {_SIDE}x{_SIDE}"]
    return PretrainedNetwork(
        model=model,
        variables=variables,
        label_set=voc_or_numbered_labels(num_classes),
        protocol="squeeze",
        image_size=size,
        report=report,
    )


def _named(layer: keras_h5.Layer) -> dict[str, np.ndarray]:
    """Returns the arrays of a layer by name. Inside layers of KerasHub's own, they are only numbered."""
    names = ("kernel", "bias") if np.ndim(layer.arrays.get("0")) > 1 else ("gamma", "beta")
    return {names[int(leaf)] if leaf in ("0", "1") else leaf: value for leaf, value in layer.arrays.items()}


def _image_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    if not config:
        return None
    height, width, _ = config["config"]["backbone"]["config"]["image_encoder"]["config"]["image_shape"]
    return None if height is None or width is None else (int(height), int(width))
