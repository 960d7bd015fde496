"""SegFormer of Hugging Face transformers.

Source of the layout: transformers 5.24, `models/segformer/modeling_segformer.py`, `configuration_segformer.py` and
`conversion_mapping.py`. Files keep the names of earlier versions; `state_dict()` of version 5 has others, and both are
read. All LayerNorms have PyTorch's epsilon 1e-5: the `layer_norm_eps` of the config is not used.
"""

import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from deeplab_jax.errors import UserError
from deeplab_jax.files import read_json
from deeplab_jax.labels import LabelSet
from deeplab_jax.pretrained.importers import mix_transformer
from deeplab_jax.pretrained.importers.torchvision import abridge
from deeplab_jax.pretrained.network import PretrainedNetwork, variable_shapes, voc_or_numbered_labels
from deeplab_jax.pretrained.readers.torch_file import read_torch_file
from deeplab_jax.pretrained.translate import TORCH, translate, with_background

_ENCODER, _HEAD = "segformer.encoder", "decode_head"
_CLASSIFIER = f"{_HEAD}.classifier"
_NAMES = {
    "embedding_conv": "patch_embeddings.{i}.proj",
    "embedding_norm": "patch_embeddings.{i}.layer_norm",
    "norm": "layer_norm.{i}",
    "block/norm1": "block.{i}.{j}.layer_norm_1",
    "block/attention/query": "block.{i}.{j}.attention.self.query",
    "block/attention/key": "block.{i}.{j}.attention.self.key",
    "block/attention/value": "block.{i}.{j}.attention.self.value",
    "block/attention/reduction_conv": "block.{i}.{j}.attention.self.sr",
    "block/attention/reduction_norm": "block.{i}.{j}.attention.self.layer_norm",
    "block/attention/projection": "block.{i}.{j}.attention.output.dense",
    "block/norm2": "block.{i}.{j}.layer_norm_2",
    "block/mlp/expand": "block.{i}.{j}.mlp.dense1",
    "block/mlp/depthwise_conv": "block.{i}.{j}.mlp.dwconv.dwconv",
    "block/mlp/project": "block.{i}.{j}.mlp.dense2",
}
# Names of transformers 5 and the earlier ones that its files keep.
_RENAMED = {
    "attention.q_proj": "attention.self.query",
    "attention.k_proj": "attention.self.key",
    "attention.v_proj": "attention.self.value",
    "attention.sequence_reduction.sequence_reduction": "attention.self.sr",
    "attention.sequence_reduction.layer_norm": "attention.self.layer_norm",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "mlp.dense1",
    "mlp.fc2": "mlp.dense2",
    "layernorm_before": "layer_norm_1",
    "layernorm_after": "layer_norm_2",
}
_SKIPPED = {
    r".*\.num_batches_tracked": "batch counters",
    r"classifier\.(weight|bias)": "image classifier",
}
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_GELU = {"gelu": "exact", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
# Fields that neither the weights nor `config.model` tell.
_REQUIRED = {"num_attention_heads": [1, 2, 5, 8], "strides": [4, 2, 2, 2]}


def load(path: pathlib.Path) -> PretrainedNetwork:
    """Reads a network from a folder of `save_pretrained`, or from one file of weights.

    The classes, the activation and the rates of dropout come from the `config.json` in the folder or next to the file,
    the size and normalization of images from `preprocessor_config.json`. Without the first, the defaults of NVlabs are
    assumed; without the second, ImageNet's normalization and, if there is a `config.json`, images squeezed to 512x512,
    the default of `SegformerImageProcessor`.

    Raises:
      UserError: the folder or file cannot be read or contains another network.
    """
    folder = path if path.is_dir() else path.parent
    foreign = _read_folder(path) if path.is_dir() else read_torch_file(path)
    config_path, preprocessor_path = folder / "config.json", folder / "preprocessor_config.json"
    if not config_path.is_file():
        if path.is_dir():
            raise UserError(f"{path} has no config.json; expected a folder of save_pretrained")
        return from_state_dict(foreign)
    config = read_json(config_path)
    if config.get("model_type") != "segformer":
        raise UserError(
            f"{config_path} describes a model of type {config.get('model_type')!r}; only segformer is supported"
            + ("" if path.is_dir() else f"; if it does not belong to {path.name}, move it to a folder of its own")
        )
    preprocessor = read_json(preprocessor_path) if preprocessor_path.is_file() else {}
    return from_state_dict(foreign, config=config, preprocessor=preprocessor)


def from_state_dict(
    foreign: Mapping[str, np.ndarray],
    *,
    config: Mapping[str, Any] | None = None,
    preprocessor: Mapping[str, Any] | None = None,
) -> PretrainedNetwork:
    """Converts a state dict to a network. One of a single class becomes one of two: the background has the logit 0.

    Args:
      foreign: state dict of `SegformerForSemanticSegmentation`, or of `SegformerModel` or
        `SegformerForImageClassification`, which become backbones.
      config: the content of its `config.json`.
      preprocessor: the content of its `preprocessor_config.json`.

    Raises:
      UserError: the state dict or the config is of another network.
    """
    arrays = {_published_name(name): value for name, value in foreign.items()}
    kernels = [f"{_ENCODER}.patch_embeddings.{i}.proj.weight" for i in range(len(mix_transformer.STAGES))]
    if len(arrays) != len(foreign) or not all(name in arrays for name in kernels):
        raise UserError(f"the file is not a SegFormer of transformers; it has {abridge(foreign)}")
    blocks = mix_transformer.count_blocks(arrays, rf"^{_ENCODER}\.block\.(?P<stage>\d)\.(?P<block>\d+)\.")
    backbone = mix_transformer.find_backbone([arrays[name].shape[0] for name in kernels], blocks)
    fields = {"in_channels": arrays[kernels[0]].shape[1]} | _config_fields(config) | _normalization(preprocessor)
    table = mix_transformer.layer_table(backbone, _NAMES, f"{_ENCODER}.")
    label_set, report = None, []
    if f"{_CLASSIFIER}.weight" in arrays:
        fields["decoder_channels"] = arrays[f"{_HEAD}.linear_fuse.weight"].shape[0]
        table |= {
            "decoder/fuse": f"{_HEAD}.linear_fuse",
            "decoder/norm": f"{_HEAD}.batch_norm",
            "classifier": _CLASSIFIER,
        } | {f"decoder/projection{n}": f"{_HEAD}.linear_c.{n - 1}.proj" for n in mix_transformer.STAGES}
        label_set = _label_set(config, arrays[f"{_CLASSIFIER}.weight"].shape[0])
        if arrays[f"{_CLASSIFIER}.weight"].shape[0] == 1:
            arrays = with_background(arrays, _CLASSIFIER)
            label_set = LabelSet.from_names(("background", *label_set.class_names))
            report.append("one class became two: the background has the logit 0")
    model = mix_transformer.segformer_config(backbone, layer_norm_epsilons=(1e-5,) * 4, **fields)
    shapes = variable_shapes(model, label_set.num_classes if label_set else None)
    variables, translated = translate(arrays, table, shapes, TORCH, skipped=_SKIPPED)
    squeezed = label_set is not None and config is not None
    return PretrainedNetwork(
        model=model,
        variables=variables,
        label_set=label_set,
        protocol="squeeze" if squeezed else "whole",
        image_size=_image_size(preprocessor or {}) if squeezed else None,
        report=translated + report,
    )


def _published_name(name: str) -> str:
    """Returns the name that files have, for a name of any version, with or without the prefix of the encoder."""
    short = re.sub(r"^(segformer\.)?(encoder\.)?(stages\.(?=\d))?", "", name)
    if match := re.fullmatch(r"(\d+)\.(patch_embeddings|layer_norm)\.(.+)", short):
        short = f"{match[2]}.{match[1]}.{match[3]}"
    elif match := re.fullmatch(r"(\d+)\.blocks\.(.+)", short):
        short = f"block.{match[1]}.{match[2]}"
    for new, old in _RENAMED.items():
        short = short.replace(f".{new}.", f".{old}.")
    if re.match(r"(patch_embeddings|block|layer_norm)\.\d", short):
        return f"{_ENCODER}.{short}"
    return short.replace(f"{_HEAD}.linear_projections.", f"{_HEAD}.linear_c.")


def _read_folder(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the weights of a folder, which may be split over several files."""
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return read_torch_file(folder / name, unwrap=False)
        if (folder / f"{name}.index.json").is_file():
            return dict(_read_shards(folder, folder / f"{name}.index.json"))
    raise UserError(f"{folder} has neither {_WEIGHTS[0]} nor {_WEIGHTS[1]}")


def _read_shards(folder: pathlib.Path, index: pathlib.Path) -> Iterator[tuple[str, np.ndarray]]:
    places = read_json(index)["weight_map"]
    for file in sorted(set(places.values())):
        if file != pathlib.PurePath(file).name:
            raise UserError(f"{index} names the file {file!r:.80}, which is outside its folder")
        arrays = read_torch_file(folder / file, unwrap=False)
        if missing := [name for name, place in places.items() if place == file and name not in arrays]:
            raise UserError(f"{folder / file} has no array {missing[0]}, which {index.name} expects there")
        yield from arrays.items()


def _config_fields(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the fields of `config.model` that a config sets, and refuses configs of other networks."""
    if config is None:
        return {}
    for name, wanted in _REQUIRED.items():
        if list(config.get(name, wanted)) != wanted:
            raise UserError(f"its config.json has {name}={config[name]}; only {wanted} is supported")
    activation = config.get("hidden_act", "gelu")
    if activation not in _GELU:
        raise UserError(f"its config.json has hidden_act={activation!r}; only {', '.join(_GELU)} are supported")
    return {
        "gelu": _GELU[activation],
        "drop_path": float(config.get("drop_path_rate", 0.1)),
        "classifier_dropout": float(config.get("classifier_dropout_prob", 0.1)),
    }


def _normalization(preprocessor: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the normalization of images of range 0-255."""
    if not preprocessor:
        return {}
    # `do_rescale` brings images to the range 0-1; without it, mean and std are those of images of range 0-255.
    factor = preprocessor.get("rescale_factor", 1 / 255) if preprocessor.get("do_rescale", True) else 1
    mean = preprocessor.get("image_mean", (0.485, 0.456, 0.406))
    std = preprocessor.get("image_std", (0.229, 0.224, 0.225))
    if not preprocessor.get("do_normalize", True):
        mean, std = [0.0] * len(mean), [1.0] * len(std)
    # Six digits: 255 * 0.406 is 103.53 and a rounding error.
    return {
        "input_mean": tuple(round(float(value) / factor, 6) for value in mean),
        "input_std": tuple(round(float(value) / factor, 6) for value in std),
    }


def _image_size(preprocessor: Mapping[str, Any]) -> tuple[int, int] | None:
    """Returns height and width to which images are squeezed; None if they keep their sizes."""
    if not preprocessor.get("do_resize", True):
        return None
    size = preprocessor.get("size", 512)
    if isinstance(size, Mapping):
        return int(size["height"]), int(size["width"])
    return (int(size), int(size))


def _label_set(config: Mapping[str, Any] | None, num_classes: int) -> LabelSet:
    names = {} if config is None else {int(number): str(name) for number, name in config.get("id2label", {}).items()}
    if all(re.fullmatch(r"LABEL_\d+", name) for name in names.values()):
        return voc_or_numbered_labels(num_classes)
    if sorted(names) != list(range(num_classes)):
        raise UserError(f"its config.json names {len(names)} classes, but the classifier has {num_classes}")
    return LabelSet.from_names(tuple(names[number].strip() for number in range(num_classes)))
