"""A strict merge: everything that fits is taken, and what is not is said."""

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


def test_networks_of_the_same_shapes_are_taken_whole():
    merged, report = merge(make_variables(3), make_variables(3, value=1.0), reinitialize=("classifier",))
    assert values_of(merged) == {1.0}
    assert report == "5 of 5 variables taken"


def test_other_classes_begin_anew_and_the_report_says_so():
    merged, report = merge(make_variables(3), make_variables(7, value=1.0), reinitialize=("classifier",))
    assert values_of(merged["params"]["classifier"]) == {0.0}
    assert merged["params"]["classifier"]["kernel"].shape == (4, 3)
    assert values_of({"rest": merged["params"]["backbone"], "statistics": merged["batch_stats"]}) == {1.0}
    assert report == "3 of 5 variables taken; newly initialized: classifier"


def test_a_part_that_is_taken_in_part_is_named_by_what_was_not():
    foreign = make_variables(3, value=1.0)
    foreign["params"]["classifier"]["kernel"] = jnp.ones((9, 3))
    merged, report = merge(make_variables(3), foreign, reinitialize=("classifier",))
    assert values_of(merged["params"]["classifier"]) == {0.0, 1.0}
    assert report == "4 of 5 variables taken; newly initialized: params/classifier/kernel"


def test_shapes_that_differ_elsewhere_are_refused_with_their_paths():
    with pytest.raises(UserError, match="^the networks differ: ") as caught:
        merge(make_variables(3), make_variables(3, width=5), reinitialize=("classifier",))
    assert "params/backbone/conv1/kernel has shape (3, 5) there, (3, 4) here" in str(caught.value)
    assert "batch_stats/backbone/norm1/mean has shape (5,) there, (4,) here" in str(caught.value)
    assert "classifier" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_exceptions_the_classifier_has_to_fit_too():
    with pytest.raises(UserError, match="params/classifier/bias has shape .7,. there, .3,. here"):
        merge(make_variables(3), make_variables(7))


def test_missing_and_unused_variables_are_refused_with_their_paths():
    variables, foreign = make_variables(3), make_variables(3)
    foreign["params"]["backbone"]["conv9"] = foreign["params"]["backbone"].pop("conv1")
    with pytest.raises(UserError) as caught:
        merge(variables, foreign, reinitialize=("classifier",))
    assert "params/backbone/conv1/kernel is missing there" in str(caught.value)
    assert "params/backbone/conv9/kernel is unused here" in str(caught.value)


def test_long_lists_of_differences_are_cut_and_counted():
    variables, foreign = make_variables(3), make_variables(3)
    foreign["params"]["backbone"] |= {f"extra{i}": {"kernel": jnp.zeros(1)} for i in range(8)}
    with pytest.raises(UserError, match="extra4/kernel is unused here and 3 more; make config.model the same$"):
        merge(variables, foreign)


def test_values_keep_the_dtype_and_the_place_of_the_network():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    variables = jax.device_put(make_variables(3), everywhere)
    merged, _ = merge(variables, make_variables(3, value=0.5, dtype=jnp.bfloat16))
    for leaf in jax.tree.leaves(merged):
        assert leaf.dtype == jnp.float32
        assert leaf.sharding == everywhere
    assert values_of(merged) == {0.5}
