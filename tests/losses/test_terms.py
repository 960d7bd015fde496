"""What every term of a loss keeps: ignored pixels, parts of a batch, narrow types, and its gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.config import base_config
from deeplab_jax.losses import LOSSES, make_loss
from tests.losses.test_cross_entropy import batch

WEIGHTS = (1.0, 0.5, 1.5, 2.0, 3.0)
# Each term with class weights, which some ignore; a term that changes; and one term of each kind of count without them.
CASES = [(name, WEIGHTS) for name in (*LOSSES, "top_k_cross_entropy(gradual_steps=8)")]
CASES += [("focal", ()), ("ohem_cross_entropy(threshold=0.05, min_fraction=0.5)", ())]
TERMS = pytest.mark.parametrize(
    ("terms", "weights"), CASES, ids=lambda value: "" if isinstance(value, tuple) else value
)
STEP = 2


@functools.cache
def compiled(terms, weights):
    """A jitted function of logits, labels and existing pixels: sum, count, gradient, and the count of labels alone."""
    config = base_config().loss
    config.update(terms=terms, class_weights=weights)
    loss = make_loss(config, num_classes=5)
    (term,) = loss.terms.values()

    def compute(logits, labels, where):
        call = functools.partial(loss, labels=labels, where=where, step=STEP)
        (total, count), gradient = jax.value_and_grad(call, has_aux=True)(logits)
        return total, count, gradient, term.count_only(labels, where=where, step=STEP)

    return jax.jit(compute)


def all_of(labels):
    return jnp.ones(labels.shape, bool)


@TERMS
def test_a_term_is_a_sum_over_images_of_existing_labeled_pixels(float64, terms, weights):
    compute = compiled(terms, weights)
    logits, labels = batch(dtype=np.float64)
    total, count, gradient, label_count = compute(logits, labels, all_of(labels))
    assert float(total) > 0
    assert 0 < float(count) <= labels.size * max(weights or (1,))
    np.testing.assert_allclose(count, label_count, rtol=1e-12)  # float64 sums in another order, here and below
    if terms != "keras_cross_entropy":  # ignored pixels have a loss of 0, which label smoothing does not change either
        np.testing.assert_array_equal(gradient[np.asarray(labels) == 255], 0)

    images = jnp.arange(2).reshape(2, 1, 1)
    parts = [compute(logits, labels, all_of(labels) & (images == i)) for i in range(2)]
    for i, value in enumerate((total, count, gradient)):
        np.testing.assert_allclose(value, parts[0][i] + parts[1][i], rtol=1e-12, atol=1e-15)

    exists = all_of(labels) & (jnp.arange(6).reshape(1, 1, 6) < 4)
    padded = compute(logits, labels, exists)
    cut = compute(logits[:, :, :4], labels[:, :, :4], all_of(labels[:, :, :4]))
    np.testing.assert_allclose(padded[2][:, :, :4], cut[2], rtol=1e-12, atol=1e-15)
    for i in (0, 1, 3):
        np.testing.assert_allclose(padded[i], cut[i], rtol=1e-12)


@TERMS
def test_the_gradient_equals_central_differences(float64, terms, weights):
    compute = compiled(terms, weights)
    logits, labels = batch(dtype=np.float64)
    exists = all_of(labels)
    direction = jnp.asarray(np.random.default_rng(1).normal(size=logits.shape))
    above, below = (compute(logits + sign * 1e-6 * direction, labels, exists)[0] for sign in (1, -1))
    gradient = compute(logits, labels, exists)[2]
    # The difference quotient is off by rounding over the step: 1e-14 / 1e-6. The step is too small to change an order.
    np.testing.assert_allclose(jnp.sum(gradient * direction), (above - below) / 2e-6, rtol=1e-6)


@TERMS
def test_no_labels_and_extreme_logits_give_finite_values_and_narrow_logits_those_of_float32(terms, weights):
    compute = compiled(terms, weights)
    logits, labels = batch()
    exists = all_of(labels)
    total, _, gradient, _ = compute(logits, jnp.full_like(labels, 255), exists)
    assert total == 0
    np.testing.assert_array_equal(gradient, 0)
    for scale in (1e6, 0.0):  # certain, and all classes equal
        total, _, gradient, _ = compute(logits * scale, labels, exists)
        assert np.isfinite(total)
        assert np.isfinite(gradient).all()
    narrow = logits.astype(jnp.bfloat16)
    total = compute(narrow, labels, exists)[0]
    assert total.dtype == jnp.float32
    assert total == compute(narrow.astype(jnp.float32), labels, exists)[0]


@pytest.mark.parametrize("terms", ["dice", "lovasz", "focal", "softmax_focal", "jaccard", "binary_cross_entropy"])
def test_a_certain_prediction_has_no_loss_where_it_is_right(terms):
    compute = compiled(terms, WEIGHTS)
    labels = jnp.asarray(np.random.default_rng(0).integers(0, 5, (2, 4, 6)), jnp.uint8)
    logits = jnp.asarray(60.0 * (np.asarray(labels)[..., None] == np.arange(5)) - 30, jnp.float32)
    total, count, _, _ = compute(logits, labels, all_of(labels))
    assert abs(total / count) < 1e-6  # float32: sums of probabilities of 1
    wrong, _, _, _ = compute(jnp.roll(logits, 1, axis=-1), labels, all_of(labels))
    assert wrong / count > 0.3
