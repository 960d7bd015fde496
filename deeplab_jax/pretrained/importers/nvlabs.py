"""SegFormer and its ImageNet encoders, as NVlabs published them.

Source of the layout: NVlabs/SegFormer@65fa8cfa, `mmseg/models/backbones/mix_transformer.py` and
`mmseg/models/decode_heads/segformer_head.py`. The linear layer of keys and values is one. Segmentation files also
contain a classifier `conv_seg` that the network does not use.
"""

import pathlib
from collections.abc import Mapping

import numpy as np

from deeplab_jax.errors import UserError
from deeplab_jax.pretrained.importers import mix_transformer
from deeplab_jax.pretrained.importers.torchvision import abridge
from deeplab_jax.pretrained.network import PretrainedNetwork, variable_shapes, voc_or_numbered_labels
from deeplab_jax.pretrained.readers.torch_file import read_torch_file
from deeplab_jax.pretrained.translate import TORCH, translate

_CLASSIFIER = "decode_head.linear_pred"
_SKIPPED = {
    r".*\.num_batches_tracked": "batch counters",
    r"decode_head\.conv_seg\.(weight|bias)": "classifier that the network does not use",
    r"head\.(weight|bias)": "ImageNet classifier",
}


def load(path: pathlib.Path) -> PretrainedNetwork:
    """Reads a network from a file, see `from_state_dict`.

    Raises:
      UserError: the file cannot be read or contains another network.
    """
    return from_state_dict(read_torch_file(path))


def from_state_dict(foreign: Mapping[str, np.ndarray]) -> PretrainedNetwork:
    """Converts a state dict to a network.

    Args:
      foreign: state dict of a segmentation network, or of a classification network `mit_b0` to `mit_b5`, which becomes
        a backbone.

    Raises:
      UserError: the state dict is of another network.
    """
    prefix = "backbone." if "backbone.patch_embed1.proj.weight" in foreign else ""
    kernels = [f"{prefix}patch_embed{n}.proj.weight" for n in mix_transformer.STAGES]
    if not all(name in foreign for name in kernels):
        raise UserError(f"the file is not a SegFormer of NVlabs; it has {abridge(foreign)}")
    blocks = mix_transformer.count_blocks(foreign, rf"^{prefix}block(?P<stage>\d)\.(?P<block>\d+)\.")
    backbone = mix_transformer.find_backbone([foreign[name].shape[0] for name in kernels], blocks)
    is_segmenter = f"{_CLASSIFIER}.weight" in foreign
    fields, table = {}, mix_transformer.layer_table(backbone, mix_transformer.NVLABS, prefix)
    if is_segmenter:
        fields["decoder_channels"] = foreign["decode_head.linear_fuse.conv.weight"].shape[0]
        table |= {
            "decoder/fuse": "decode_head.linear_fuse.conv",
            "decoder/norm": "decode_head.linear_fuse.bn",
            "classifier": _CLASSIFIER,
        } | {f"decoder/projection{n}": f"decode_head.linear_c{n}.proj" for n in mix_transformer.STAGES}
    model = mix_transformer.segformer_config(backbone, **fields)
    num_classes = foreign[f"{_CLASSIFIER}.weight"].shape[0] if is_segmenter else None
    label_set = voc_or_numbered_labels(num_classes) if is_segmenter else None
    arrays, packed = mix_transformer.split_keys_and_values(foreign)
    variables, report = translate(arrays, table, variable_shapes(model, num_classes), TORCH, skipped=_SKIPPED)
    return PretrainedNetwork(model, variables, label_set, report=report + packed)
