"""Layer tables of Mix Transformer and SegFormer, which several projects store under names of their own."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from deeplab_jax.errors import UserError
from deeplab_jax.models import BACKBONES
from deeplab_jax.pretrained.network import model_config
from deeplab_jax.pretrained.readers.keras_h5 import numbered

STAGES = (1, 2, 3, 4)

#: What each of our layers is called in NVlabs/SegFormer, `mix_transformer.py`, after `split_keys_and_values`. `{n}` is
#: the number of the stage from 1, `{i}` from 0; `{j}` is the number of the block in its stage from 0.
NVLABS = {
    "embedding_conv": "patch_embed{n}.proj",
    "embedding_norm": "patch_embed{n}.norm",
    "norm": "norm{n}",
    "block/norm1": "block{n}.{j}.norm1",
    "block/attention/query": "block{n}.{j}.attn.q",
    "block/attention/key": "block{n}.{j}.attn.k",
    "block/attention/value": "block{n}.{j}.attn.v",
    "block/attention/reduction_conv": "block{n}.{j}.attn.sr",
    "block/attention/reduction_norm": "block{n}.{j}.attn.norm",
    "block/attention/projection": "block{n}.{j}.attn.proj",
    "block/norm2": "block{n}.{j}.norm2",
    "block/mlp/expand": "block{n}.{j}.mlp.fc1",
    "block/mlp/depthwise_conv": "block{n}.{j}.mlp.dwconv.dwconv",
    "block/mlp/project": "block{n}.{j}.mlp.fc2",
}


def find_backbone(channels: Sequence[int], blocks: Sequence[int]) -> str:
    """Returns the backbone with these numbers of channels and blocks in its four stages.

    Raises:
      UserError: there is none.
    """
    for name, spec in BACKBONES.items():
        arguments = spec.arguments
        if "layer_norm_epsilons" in spec.options and (
            tuple(arguments["channels"]), tuple(arguments["blocks"])
        ) == (tuple(channels), tuple(blocks)):  # fmt: skip
            return name
    raise UserError(
        f"no Mix Transformer has {tuple(channels)} channels and {tuple(blocks)} blocks in its stages; mit_b0 to mit_b5 "
        "are supported"
    )


def count_blocks(names: Iterable[str], pattern: str) -> list[int]:
    """Counts the blocks of each stage.

    Args:
      names: names of arrays.
      pattern: a regular expression with the groups `stage`, numbered from the lowest, and `block`.
    """
    found = {(int(match["stage"]), int(match["block"])) for name in names if (match := re.search(pattern, name))}
    first = min((stage for stage, _ in found), default=0)
    return [sum(stage == first + i for stage, _ in found) for i in range(len(STAGES))]


def layer_table(backbone: str, names: Mapping[str, str], prefix: str = "") -> dict[str, str]:
    """Returns the foreign name of each layer of a backbone.

    Args:
      backbone: one of `find_backbone`.
      names: a table such as `NVLABS`. In it, `{stage_suffix}` and `{block_suffix}` are the numbers of the stage and of
        the block in the whole backbone in Keras' layout: nothing, `_1`, `_2`...
      prefix: text before every foreign name.
    """
    table, total = {}, 0
    for i, count in enumerate(BACKBONES[backbone].arguments["blocks"]):
        stage = {"i": i, "n": i + 1, "stage_suffix": numbered("", i)}
        for ours, theirs in names.items():
            part, is_block, layer = ours.partition("block/")
            if not is_block:
                table[f"backbone/stage{i + 1}_{part}"] = prefix + theirs.format(**stage)
                continue
            for j in range(count):
                foreign = theirs.format(**stage, j=j, block_suffix=numbered("", total + j))
                table[f"backbone/stage{i + 1}_block{j + 1}/{layer}"] = prefix + foreign
        total += count
    return table


def split_keys_and_values(foreign: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Splits the layers `kv`, whose first half of outputs are keys and whose second half are values, into `k` and `v`.

    Returns:
      The arrays with new names, and the lines of a report.

    Raises:
      UserError: a layer cannot be split.
    """
    arrays, count = {}, 0
    for name, value in foreign.items():
        layer, packed, leaf = name.partition(".attn.kv.")
        if not packed:
            arrays[name] = value
            continue
        if np.ndim(value) == 0 or len(value) % 2:
            raise UserError(f"{name} has shape {np.shape(value)}, which cannot be split into keys and values")
        arrays[f"{layer}.attn.k.{leaf}"], arrays[f"{layer}.attn.v.{leaf}"] = np.split(np.asarray(value), 2)
        count += 1
    return arrays, [f"{count} arrays split into keys and values"] if count else []


def segformer_config(backbone: str, **fields: Any) -> ConfigDict:
    """Returns `config.model` of SegFormer as NVlabs trained it, with these fields changed."""
    wide = BACKBONES[backbone].arguments["blocks"] != BACKBONES["mit_b1"].arguments["blocks"]  # B2 to B5
    return model_config(
        **{
            "backbone": backbone,
            "head": "segformer",
            "output_stride": 32,
            "decoder_channels": 768 if wide else 256,
            "drop_path": 0.1,
            "classifier_dropout": 0.1,
        }
        | fields
    )
