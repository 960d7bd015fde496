"""Fields that a config sets without an effect."""

import pytest

from deeplab_jax.config import base_config, iterate_fields, list_configs, load_config, unused_fields


def test_defaults_are_never_unused():
    assert unused_fields(base_config()) == []


@pytest.mark.parametrize(
    ("values", "unused"),
    [
        ({"optimizer.milestones": (0.9,)}, "optimizer.milestones (needs optimizer.schedule=step)"),
        ({"optimizer.milestones": (0.9,), "optimizer.schedule": "step"}, None),
        ({"optimizer.warmup_rule": "constant"}, "optimizer.warmup_rule (needs optimizer.warmup)"),
        ({"optimizer.warmup_rule": "constant", "optimizer.warmup": "5%"}, None),
        ({"optimizer.clip_norm": 1.0}, "optimizer.clip_norm (needs optimizer.clip=per_variable or global)"),
        ({"optimizer.clip_norm": 1.0, "optimizer.clip": "global"}, None),
        ({"data.short_side": 512}, "data.short_side (needs data.resize=scale_crop)"),
        ({"data.short_side": 512, "data.resize": "scale_crop"}, None),
        ({"eval.window": (65, 65)}, "eval.window (needs eval.protocol=windows)"),
        ({"eval.window": (65, 65), "eval.protocol": "windows"}, None),
        ({"loss.teacher_flip": True}, "loss.teacher_flip (needs loss.teacher)"),
        ({"unlabeled.threshold": 0.9}, "unlabeled.threshold (needs unlabeled.split)"),
        ({"unlabeled.threshold": 0.9, "unlabeled.split": "unlabeled"}, None),
        ({"data.copy_paste_share": 0.25}, "data.copy_paste_share (needs data.copy_paste_classes)"),
        ({"data.copy_paste_share": 0.25, "data.copy_paste_classes": (1,)}, None),
    ],
)
def test_a_field_without_what_it_needs_is_named(values, unused):
    config = base_config()
    config.update_from_flattened_dict(values)
    assert unused_fields(config) == ([] if unused is None else [unused])


def test_what_a_field_needs_exists_and_is_legal():
    fields = dict(iterate_fields())
    for path, field in fields.items():
        if field.need is not None:
            assert field.need.path != path
            other = fields[field.need.path]
            assert set(field.need.values) <= set(other.choices), path


def test_no_built_in_config_sets_a_field_without_an_effect():
    unused = {each.name: unused_fields(load_config(each.name)) for each in list_configs()}
    assert {name: lines for name, lines in unused.items() if lines} == {}
