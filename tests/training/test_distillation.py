"""Distillation: the logits a teacher adds to a batch, and the networks that can teach."""

import json

import jax
import numpy as np
import pytest

from deeplab_jax import config as config_lib
from deeplab_jax import pretrained
from deeplab_jax.errors import UserError
from deeplab_jax.labels import LabelSet
from deeplab_jax.models import build_model
from deeplab_jax.parallel import mesh as mesh_lib
from deeplab_jax.parallel import sharding
from deeplab_jax.training.distillation import Teacher
from deeplab_jax.training.loop import train


@pytest.fixture
def label_set(trained):
    values = json.loads((trained / "labels.json").read_text())
    return LabelSet(tuple(values["class_names"]), tuple(tuple(color) for color in values["palette"]))


def taught(config, teacher, **fields):
    config = config.copy_and_resolve_references()
    config.loss.teacher = str(teacher)
    config.loss.update(fields)
    return config


def test_a_teacher_adds_the_logits_of_its_own_evaluation(trained, tiny_config, label_set):
    mesh = mesh_lib.make_mesh(tiny_config.mesh)
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3)).astype(np.uint8)
    arrays = sharding.to_global({"image": images, "label": images[..., 0]}, mesh)
    batch = Teacher(taught(tiny_config, trained), label_set, mesh)(arrays)
    assert set(batch) == {"image", "label", "teacher_logits"}
    network = pretrained.load(trained)
    model = build_model(network.model, label_set.num_classes)
    expected, _ = jax.jit(lambda variables: model.apply(variables, images, train=False))(network.variables)
    np.testing.assert_allclose(batch["teacher_logits"], expected, rtol=1e-5, atol=1e-5)  # compiled apart, float32


@pytest.mark.slow
def test_a_teacher_may_see_the_view_enlarged_and_mirrored(trained, tiny_config, label_set):
    mesh = mesh_lib.make_mesh(tiny_config.mesh)
    images = np.random.default_rng(0).integers(0, 256, (8, 33, 33, 3)).astype(np.uint8)
    arrays = sharding.to_global({"image": images, "label": images[..., 0]}, mesh)
    config = taught(tiny_config, trained, teacher_scales=(1.0, 1.5), teacher_flip=True)
    found = jax.nn.softmax(Teacher(config, label_set, mesh)(arrays)["teacher_logits"])
    network = pretrained.load(trained)
    model = build_model(network.model, label_set.num_classes)

    def probabilities(variables, photos):
        logits, _ = model.apply(variables, photos, train=False)
        return jax.nn.softmax(jax.image.resize(logits, (8, 33, 33, logits.shape[-1]), "linear", antialias=False))

    @jax.jit
    def mean_of_four(variables):
        views = (images, jax.image.resize(images.astype(np.float32), (8, 49, 49, 3), "linear"))
        plain = sum(probabilities(variables, view) for view in views)
        return (plain + sum(probabilities(variables, view[:, :, ::-1])[:, :, ::-1] for view in views)) / 4

    np.testing.assert_allclose(found, mean_of_four(network.variables), atol=1e-5)  # compiled apart, float32


def test_a_teacher_changes_the_steps(trained, tiny_config, tmp_path):
    train(taught(tiny_config, trained, teacher_weight=1.0), tmp_path / "taught")
    variables = pretrained.load(tmp_path / "taught").variables["params"]
    alone = pretrained.load(trained).variables["params"]
    assert any(
        not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(variables), jax.tree.leaves(alone), strict=True)
    )


def test_a_teacher_of_other_classes_is_refused(trained, tiny_config):
    mesh = mesh_lib.make_mesh(tiny_config.mesh)
    with pytest.raises(
        UserError,
        match=r"^loss.teacher=.* was trained on different classes than data set synthetic \(6 classes instead of 2\)",
    ):
        Teacher(taught(tiny_config, trained), LabelSet.from_names(("a", "b")), mesh)
    renamed = LabelSet.from_names(("background", "disk", "hoop", "triangle", "star", "bar"))
    with pytest.raises(UserError, match=r"\(class 2 is 'ring' instead of 'hoop'\)"):
        Teacher(taught(tiny_config, trained), renamed, mesh)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"terms": "dice"}, "^loss.teacher needs the term cross_entropy in loss.terms .they are 'dice'."),
        ({"teacher_weight": 0.0}, "^loss.teacher_weight=0.0 must be a number above 0 and at most 1"),
        ({"teacher_scales": ()}, "^loss.teacher_scales=.. must be factors above 0"),
        ({"teacher_scales": (1.0, 0.0)}, "^loss.teacher_scales=.1.0, 0.0.* must be"),
    ],
)
def test_the_fields_of_a_teacher_are_checked(tiny_config, fields, line):
    with pytest.raises(UserError, match=line):
        config_lib.validate(taught(tiny_config, "somewhere", **fields))


def test_fractions_of_the_augmentation_are_checked(tiny_config):
    for field, value in (("color_jitter", 1.0), ("copy_paste_share", 1.5), ("repeat_threshold", -0.1)):
        config = tiny_config.copy_and_resolve_references()
        config.data[field] = value
        with pytest.raises(UserError, match=f"^data.{field}={value} must be"):
            config_lib.validate(config)
