"""Every built-in config is valid, builds a network, has a header, and round-trips through JSON."""

import ast
import dataclasses
import json
import math
import pathlib

import pytest
from ml_collections import ConfigDict

from deeplab_jax import pretrained
from deeplab_jax.config import (
    base_config,
    config_folders,
    describe_config,
    differences,
    duration_steps,
    from_dict,
    list_configs,
    load_config,
    to_dict,
    validate,
)
from deeplab_jax.data.protocol import protocol_for
from deeplab_jax.errors import UserError
from deeplab_jax.models import build_model
from deeplab_jax.parallel.mesh import MESH_AXES, validate_mesh
from deeplab_jax.pretrained import bundle
from tests.support import exports

CONFIG_FILES = sorted(file for folder in config_folders() for file in folder.glob("*.py"))


@pytest.fixture(params=CONFIG_FILES, ids=lambda file: file.stem)
def config_file(request) -> pathlib.Path:
    return request.param


def test_the_package_has_configs():
    assert {"quickstart", "kerascv_guide"} <= {file.stem for file in CONFIG_FILES}


def check(config):
    """Validates a config on the fewest devices it needs."""
    validate(config)
    protocol = protocol_for(config)
    validate_mesh(
        config,
        devices=math.prod(max(config.mesh[axis], 1) for axis in MESH_AXES),
        processes=1,
        input_sizes=protocol.input_sizes,
        can_split_rows=protocol.can_split_rows,
    )


def test_every_config_is_valid_and_builds_a_network(config_file):
    config = load_config(str(config_file))
    check(config)
    model = build_model(config.model, num_classes=21, compute_dtype=config.train.compute_dtype)
    assert model.backbone == config.model.backbone
    sizes = {"batch_size": config.data.batch_size, "num_examples": 10_000}
    total_steps = duration_steps(config.train.duration, field="train.duration", **sizes)
    assert total_steps > 0
    assert (
        duration_steps(config.optimizer.warmup, field="optimizer.warmup", total_steps=total_steps, **sizes) or 0
    ) >= 0


def test_every_config_has_the_fields_and_types_of_the_schema(config_file):
    config, schema = load_config(str(config_file)), base_config()
    assert _types(config).keys() == _types(schema).keys()
    for field, kind in _types(config).items():
        assert kind == _types(schema)[field], field


def _types(config: ConfigDict, path: str = "") -> dict[str, type]:
    types = {}
    for key in config:
        value = config.get_oneway_ref(key).get() if config.get(key) is not None else None
        if isinstance(value, ConfigDict):
            types |= _types(value, f"{path}{key}.")
        else:
            types[path + key] = config.get_type(key)
    return types


def test_every_config_has_a_training_command(config_file):
    described = describe_config(config_file)
    command = next(command for command in described.commands if "deeplab-jax train" in command)
    assert f" --config {config_file.stem}" in command
    assert " --workdir " in command


def test_every_config_has_a_short_header_with_its_score(config_file):
    described = describe_config(config_file)
    assert len(ast.get_docstring(ast.parse(config_file.read_text())).splitlines()) <= 15
    assert described.name == config_file.stem
    assert described.summary.endswith(".")
    assert described.arguments.startswith("Arguments")
    assert described.data
    assert described.score
    assert bool(described.hardware) == bool(described.commit)
    assert described.hardware or described.score.startswith("not run")


def test_built_in_configs_are_listed_by_name():
    assert [described.name for described in list_configs()] == [file.stem for file in CONFIG_FILES]


def test_every_config_round_trips_through_json(config_file):
    config = load_config(str(config_file))
    values = json.loads(json.dumps(to_dict(config)))
    again = from_dict(values)
    assert to_dict(again) == values
    assert differences(config, again, groups=tuple(config)) == {}
    assert isinstance(again.data.image_size, tuple)
    check(again)


def test_finetuning_builds_the_network_it_starts_from(tmp_path):
    network = exports.network(**exports.TINY_MOBILENET, backbone_norm_epsilon=0.5)
    bundle.save(network, tmp_path / "network")
    of_backbone = {group: {"backbone": tree["backbone"]} for group, tree in network.variables.items()}
    bundle.save(dataclasses.replace(network, label_set=None, variables=of_backbone), tmp_path / "backbone")
    whole, backbone = (load_config("finetune_folder", init=str(tmp_path / name)) for name in ("network", "backbone"))
    assert whole.train.init_from == str(tmp_path / "network")
    assert whole.model.to_dict() == network.model.to_dict() | {"zero_unreached_taps": True}
    assert (backbone.model.width_multiplier, backbone.model.backbone_norm_epsilon) == (0.1, 0.5)
    assert backbone.model.aspp_channels == base_config().model.aspp_channels  # the rest is the config's own
    default = load_config("finetune_folder")
    assert default.train.init_from == pretrained.DEFAULT_PRESET
    assert (default.optimizer.name, default.optimizer.learning_rate) == ("sgd", 0.02)
    assert load_config("finetune_folder", rate=0.1).optimizer.learning_rate == 0.1
    with pytest.raises(UserError, match="^init is empty, but fine-tuning starts from a network"):
        load_config("finetune_folder", init="")


def test_finetuning_gives_a_mix_transformer_its_head_and_optimizer(tmp_path):
    network = exports.network(**exports.SEGFORMER, gelu="tanh")
    bundle.save(network, tmp_path / "network")
    of_backbone = {"params": {"backbone": network.variables["params"]["backbone"]}, "batch_stats": {}}
    bundle.save(dataclasses.replace(network, label_set=None, variables=of_backbone), tmp_path / "backbone")
    for name in ("network", "backbone"):
        config = load_config("finetune_folder", init=str(tmp_path / name))
        model = config.model
        assert (model.head, model.backbone, model.output_stride, model.gelu) == ("segformer", "mit_b0", 32, "tanh")
        assert (config.optimizer.name, config.optimizer.weight_decay_rule) == ("adam", "decoupled_kernels")
        check(config)


@pytest.mark.parametrize(
    ("name", "arguments", "sides"),
    [
        ("segformer_ade20k", {}, (512, 2048)),
        ("segformer_ade20k", {"variant": "b5"}, (640, 2048)),
        ("segformer_cityscapes", {}, (1024, 2048)),
        ("segformer_voc", {}, (512, 2048)),
    ],
)
def test_segformer_is_trained_on_images_as_published(name, arguments, sides):
    """NVlabs/SegFormer, local_configs; MMSegmentation's for VOC."""
    data = load_config(name, **arguments).data
    assert data.image_size == (sides[0], sides[0])
    assert (data.short_side, data.max_long_side) == sides
    assert (data.resize, data.scale_range, data.scale_step) == ("scale_crop", (0.5, 2.0), 0.0)
    assert (data.cat_max_ratio, data.random_flip, data.photometric_distortion) == (0.75, "horizontal", True)
    assert (data.color_jitter, data.random_rotation, data.random_blur) == (0.0, 0.0, 0.0)


def test_the_small_segformer_sees_less_variation():
    data = load_config("segformer_camvid").data
    assert (data.image_size, data.scale_range, data.color_jitter) == ((192, 192), (0.5, 1.25), 0.3)
    assert (data.short_side, data.max_long_side) == (0, 0)
    assert (data.cat_max_ratio, data.photometric_distortion) == (1.0, False)
