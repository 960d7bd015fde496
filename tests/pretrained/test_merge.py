"""Strict merge: every variable is loaded or accounted for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.pretrained import merge


def make_variables(classes: int, width: int = 4, value: float = 0.0, dtype=jnp.float32) -> dict:
    """Variables in the layout of a network, all of one value."""
    shapes = {
        "params": {
            "backbone": {"conv1": {"kernel": (3, width)}, "norm1": {"scale": (width,)}},
            "classifier": {"kernel": (width, classes), "bias": (classes,)},
        },
        "batch_stats": {"backbone": {"norm1": {"mean": (width,)}}},
    }
    return jax.tree.map(lambda shape: jnp.full(shape, value, dtype), shapes, is_leaf=lambda x: isinstance(x, tuple))


def values_of(tree) -> set[float]:
    return {float(value) for leaf in jax.tree.leaves(tree) for value in np.unique(np.asarray(leaf))}


def test_networks_of_the_same_shapes_are_loaded_completely():
    merged, report = merge(make_variables(3), make_variables(3, value=1.0), reinitialize=("classifier",))
    assert values_of(merged) == {1.0}
    assert report == "loaded 5 of 5 variables"


def test_a_classifier_with_other_classes_keeps_its_values():
    merged, report = merge(make_variables(3), make_variables(7, value=1.0), reinitialize=("classifier",))
    assert values_of(merged["params"]["classifier"]) == {0.0}
    assert merged["params"]["classifier"]["kernel"].shape == (4, 3)
    assert values_of({"rest": merged["params"]["backbone"], "statistics": merged["batch_stats"]}) == {1.0}
    assert report == "loaded 3 of 5 variables; newly initialized: classifier"


def test_a_partly_loaded_part_is_reported_by_its_other_variables():
    foreign = make_variables(3, value=1.0)
    foreign["params"]["classifier"]["kernel"] = jnp.ones((9, 3))
    merged, report = merge(make_variables(3), foreign, reinitialize=("classifier",))
    assert values_of(merged["params"]["classifier"]) == {0.0, 1.0}
    assert report == "loaded 4 of 5 variables; newly initialized: params/classifier/kernel"


def test_other_shapes_are_refused_with_their_paths():
    with pytest.raises(UserError, match="^the networks differ: ") as caught:
        merge(make_variables(3), make_variables(3, width=5), reinitialize=("classifier",))
    assert "params/backbone/conv1/kernel has shape (3, 5) in the loaded network and (3, 4) in the model" in str(
        caught.value
    )
    assert "batch_stats/backbone/norm1/mean has shape (5,) in the loaded network and (4,) in the model" in str(
        caught.value
    )
    assert "classifier" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_classifier_must_fit_unless_it_is_reinitialized():
    with pytest.raises(
        UserError, match="params/classifier/bias has shape .7,. in the loaded network and .3,. in the model"
    ):
        merge(make_variables(3), make_variables(7))


def test_missing_and_unused_variables_are_refused_with_their_paths():
    variables, foreign = make_variables(3), make_variables(3)
    foreign["params"]["backbone"]["conv9"] = foreign["params"]["backbone"].pop("conv1")
    with pytest.raises(UserError) as caught:
        merge(variables, foreign, reinitialize=("classifier",))
    assert "params/backbone/conv1/kernel is missing in the loaded network" in str(caught.value)
    assert "params/backbone/conv9/kernel is unused by the model" in str(caught.value)


def test_long_lists_of_differences_are_abridged():
    variables, foreign = make_variables(3), make_variables(3)
    foreign["params"]["backbone"] |= {f"extra{i}": {"kernel": jnp.zeros(1)} for i in range(8)}
    with pytest.raises(UserError, match="extra4/kernel is unused by the model and 3 more; use the same config.model$"):
        merge(variables, foreign)


def test_dtypes_and_shardings_of_the_model_are_kept():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    variables = jax.device_put(make_variables(3), everywhere)
    merged, _ = merge(variables, make_variables(3, value=0.5, dtype=jnp.bfloat16))
    for leaf in jax.tree.leaves(merged):
        assert leaf.dtype == jnp.float32
        assert leaf.sharding == everywhere
    assert values_of(merged) == {0.5}
