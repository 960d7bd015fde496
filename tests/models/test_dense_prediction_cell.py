"""The dense prediction cell: rates, order of computation, dropout. tests/pretrained compares it with the original."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax import ops
from deeplab_jax.errors import UserError
from deeplab_jax.models import Layers, abstract_variables, build_model
from deeplab_jax.models.dense_prediction_cell import DensePredictionCell
from tests.models.support import CLASSES, random_images, random_values, random_variables, small_model_config

pytestmark = pytest.mark.usefixtures("small_backbones")


def test_rates_are_stated_for_stride_16_and_scale_with_the_output_stride():
    model = build_model(small_model_config("small_mobilenet_v2", aspp="dpc", output_stride=8), CLASSES)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.uint8)
    program = str(jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False)[0])(abstract_variables(model), images))
    for rates in ("(2, 12)", "(36, 30)", "(12, 6)", "(12, 42)"):
        assert program.count(f"rhs_dilation={rates}") == 1


def test_a_stride_without_whole_rates_is_refused():
    with pytest.raises(UserError, match="model.aspp='dpc' has no rates for model.output_stride=32; set it to 16 or"):
        build_model(small_model_config("small_mobilenet_v2", aspp="dpc", output_stride=32), CLASSES)


def test_adding_up_projections_equals_projecting_the_concatenation():
    with jax.enable_x64(True):
        model = build_model(small_model_config("tiny", aspp="dpc", decoder="none"), CLASSES, compute_dtype="float64")
        variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), random_variables(model))
        images = random_images(1, 65, 97, 3)

        @jax.jit
        def run(variables, images):
            orders = model, model.clone(published_order=True)
            return [model.apply(variables, images, train=False)[0] for model in orders]

        logits, published = run(variables, images)
        # float64: what is left is the rounding of sums in another order.
        np.testing.assert_allclose(logits, published, rtol=1e-9, atol=1e-9)


def test_dropout_precedes_the_projection():
    layers = Layers(
        padding="symmetric",
        kernel_init="he_normal",
        norm_epsilon=1e-5,
        norm_decay=0.9,
        use_running_average=True,
        dtype=jnp.float32,
        ops=ops.XLA,
    )
    cell = DensePredictionCell(layers, channels=8, rates=((1, 1),) * 5, dropout=1.0, deterministic=False)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 5, 6, 4)), jnp.float32)
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = random_values(jax.eval_shape(lambda: cell.init(rngs, x)))
    # Nothing is left to project, so that every pixel has the value of the normalization: not zero everywhere.
    result = np.asarray(cell.apply(variables, x, rngs={"dropout": jax.random.key(1)}))
    assert np.ptp(result, axis=(1, 2)).max() == 0
    assert result.max() > 0
