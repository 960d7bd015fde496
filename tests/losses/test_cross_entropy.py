"""Losses against SciPy and against formulas written out pixel by pixel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from deeplab_jax.config import base_config
from deeplab_jax.errors import UserError
from deeplab_jax.losses import keras_categorical_cross_entropy, make_loss, softmax_cross_entropy, softmax_focal

BOTH = pytest.mark.parametrize("loss", [softmax_cross_entropy, keras_categorical_cross_entropy])
WEIGHTS = (1.0, 0.5, 0.0, 2.0, 3.0)


def batch(scale=2.0, dtype=np.float32):
    """Logits and labels of two images with five classes; the first two rows of the first are unlabeled."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, (2, 4, 6)).astype(np.uint8)
    labels[0, :2] = 255
    return jnp.asarray(scale * rng.normal(size=(2, 4, 6, 5)), dtype), jnp.asarray(labels)


def one_hot(labels) -> np.ndarray:
    """float64 one-hot vectors, all zero for ignored pixels."""
    return (np.asarray(labels)[..., None] == np.arange(5)).astype(np.float64)


def config(**fields):
    loss = base_config().loss
    loss.update(fields)
    return loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [(), WEIGHTS])
@pytest.mark.parametrize("partly", [False, True])
def test_softmax_cross_entropy_equals_the_weighted_sum_over_labeled_pixels(float64, smoothing, weights, partly):
    logits, labels = batch(dtype=np.float64)
    exists = np.arange(6)[None, None] < (4 if partly else 6)
    where = jnp.asarray(np.broadcast_to(exists, labels.shape)) if partly else None
    total, count = jax.jit(softmax_cross_entropy, static_argnames=("class_weights", "label_smoothing"))(
        logits, labels, class_weights=weights, label_smoothing=smoothing, where=where
    )
    targets = (1 - smoothing) * one_hot(labels) + smoothing / 5
    pixel_weights = one_hot(labels) @ np.asarray(weights or (1.0,) * 5) * exists  # 0 for ignored pixels
    losses = -(targets * scipy.special.log_softmax(logits, axis=-1)).sum(-1)
    # float64 sums of 48 terms
    np.testing.assert_allclose(total, (losses * pixel_weights).sum(), rtol=1e-12)
    np.testing.assert_allclose(count, pixel_weights.sum(), rtol=1e-12)
    assert count.dtype == (jnp.float64 if weights else jnp.int32)


@pytest.mark.parametrize(("weights", "smoothing"), [((), 0.0), ((), 0.1), (WEIGHTS, 0.0)])
@pytest.mark.parametrize("scale", [2.0, 40.0])  # the large one reaches both ends of the clip
def test_keras_cross_entropy_equals_the_clipped_sum_over_all_pixels(float64, smoothing, weights, scale):
    logits, labels = batch(dtype=np.float64, scale=scale)
    total, count = keras_categorical_cross_entropy(logits, labels, class_weights=weights, label_smoothing=smoothing)
    targets = (1 - smoothing) * one_hot(labels) + smoothing / 5
    losses = -(targets * np.log(np.clip(scipy.special.softmax(logits, axis=-1), 1e-7, 1 - 1e-7))).sum(-1)
    if weights:
        losses = losses * (one_hot(labels) @ np.asarray(weights))
    # float64; the second normalization of the probabilities moves the last digits
    np.testing.assert_allclose(total, losses.sum(), rtol=1e-10)
    assert count == labels.size
    assert count.dtype == jnp.int32


def test_keras_cross_entropy_counts_ignored_pixels_but_not_missing_ones(float64):
    logits, labels = batch(dtype=np.float64)
    where = jnp.asarray(np.broadcast_to(np.arange(6)[None, None] < 4, labels.shape))
    total, count = keras_categorical_cross_entropy(logits, labels, where=where)
    cropped, cropped_count = keras_categorical_cross_entropy(logits[:, :, :4], labels[:, :, :4])
    np.testing.assert_allclose(total, cropped, rtol=1e-12)  # the same float64 terms in another order
    assert count == cropped_count == 32


@pytest.mark.parametrize(
    ("loss", "teacher_weight"),
    [(softmax_cross_entropy, 0.0), (softmax_cross_entropy, 0.3), (keras_categorical_cross_entropy, 0.0)],
)
def test_gradients_equal_central_differences(float64, loss, teacher_weight):
    logits, labels = batch(dtype=np.float64)
    options = {"class_weights": WEIGHTS, "label_smoothing": 0.1, "where": labels != 2}
    if teacher_weight:
        options |= {"teacher_logits": logits[::-1], "teacher_weight": teacher_weight}

    def total(x):
        return loss(x, labels, **options)[0]

    direction = jnp.asarray(np.random.default_rng(1).normal(size=logits.shape))
    slope = (total(logits + 1e-5 * direction) - total(logits - 1e-5 * direction)) / 2e-5
    # The difference quotient is off by 1e-10 (third derivatives) and by rounding over the step, 1e-14 / 1e-5.
    np.testing.assert_allclose(jnp.sum(jax.grad(total)(logits) * direction), slope, rtol=1e-7)


@BOTH
def test_forward_mode_equals_reverse_mode(float64, loss):
    rng = np.random.default_rng(4)
    logits, direction = rng.normal(size=(2, 2, 3, 4, 5))
    labels = jnp.asarray(rng.integers(0, 5, (2, 3, 4)), jnp.uint8)

    def total(logits):
        return loss(logits, labels)[0]

    _, tangent = jax.jvp(total, (jnp.asarray(logits),), (jnp.asarray(direction),))
    # Sums of 120 terms in another order.
    np.testing.assert_allclose(tangent, np.sum(jax.grad(total)(jnp.asarray(logits)) * direction), rtol=1e-12)


def test_keras_gradient_vanishes_beyond_the_clip():
    labels = jnp.zeros((1, 1, 2), jnp.uint8)
    logits = jnp.array([[[[-40.0, 0.0], [1.0, 0.0]]]])
    keras = jax.grad(lambda x: keras_categorical_cross_entropy(x, labels)[0])(logits)
    softmax = jax.grad(lambda x: softmax_cross_entropy(x, labels)[0])(logits)
    np.testing.assert_array_equal(keras[0, 0, 0], 0)
    assert abs(keras[0, 0, 1, 0]) > 0.1
    assert abs(softmax[0, 0, 0, 0]) > 0.9


@BOTH
def test_extreme_logits_give_finite_values_and_gradients(loss):
    logits, labels = batch(scale=1e6)
    value, gradient = jax.value_and_grad(lambda x: loss(x, labels)[0])(logits)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@BOTH
def test_only_labeled_pixels_have_a_gradient(loss):
    logits, labels = batch()
    gradient = np.asarray(jax.grad(lambda x: loss(x, labels)[0])(logits))
    np.testing.assert_array_equal(gradient[np.asarray(labels) == 255], 0)
    assert (np.abs(gradient[np.asarray(labels) != 255]).sum(-1) > 0).all()


@BOTH
def test_a_batch_without_labeled_pixels_has_zero_loss_and_gradient(loss):
    logits, labels = batch()
    unlabeled = jnp.full_like(labels, 255)
    value, gradient = jax.value_and_grad(lambda x: loss(x, unlabeled)[0])(logits)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)
    assert loss(logits, unlabeled)[1] == (0 if loss is softmax_cross_entropy else labels.size)


@BOTH
def test_sums_and_counts_of_parts_add_up(float64, loss):
    logits, labels = batch(dtype=np.float64)
    whole = loss(logits, labels, class_weights=WEIGHTS)
    parts = [loss(logits[i : i + 1], labels[i : i + 1], class_weights=WEIGHTS) for i in range(2)]
    for i in range(2):
        np.testing.assert_allclose(whole[i], parts[0][i] + parts[1][i], rtol=1e-12)  # the order of float64 sums


@BOTH
def test_narrow_logits_are_summed_in_float32(loss):
    logits, labels = batch(dtype=jnp.bfloat16)
    total, _ = loss(logits, labels)
    assert total.dtype == jnp.float32
    assert total == loss(logits.astype(jnp.float32), labels)[0]


def test_counts_are_exact_where_float32_is_not():
    pixels = 2**24 + 1  # the first whole number that float32 does not hold
    logits = jnp.zeros((1, 1, pixels, 1), jnp.bfloat16)
    count = jax.jit(lambda x, y: softmax_cross_entropy(x, y)[1])(logits, jnp.zeros((1, 1, pixels), jnp.uint8))
    assert int(count) == pixels


@pytest.mark.parametrize(
    ("name", "function"),
    [("cross_entropy", softmax_cross_entropy), ("keras_cross_entropy", keras_categorical_cross_entropy)],
)
def test_make_loss_passes_its_options(name, function):
    logits, labels = batch()
    where = labels > 1
    made = make_loss(config(terms=name, label_smoothing=0.2, class_weights=WEIGHTS), num_classes=5)
    expected = function(logits, labels, label_smoothing=0.2, class_weights=WEIGHTS, where=where)
    assert made(logits, labels, where=where) == expected
    assert made(logits, labels)[0] not in (expected[0], function(logits, labels)[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"terms": "kears"}, r"loss\.terms='kears': term 'kears' does not exist"),
        ({"label_smoothing": 1.0}, r"loss\.label_smoothing=1\.0 must be a number of at least 0 and below 1"),
        ({"label_smoothing": -0.1}, r"loss\.label_smoothing"),
        ({"class_weights": (1.0, 2.0)}, r"loss\.class_weights has 2 values for 5 classes"),
    ],
)
def test_a_wrong_option_is_named(fields, message):
    with pytest.raises(UserError, match=message):
        make_loss(config(**fields), num_classes=5)


def test_a_teacher_has_its_share_of_the_target(float64):
    logits, labels = batch(dtype=np.float64)
    teacher_logits = jnp.asarray(np.random.default_rng(1).normal(size=logits.shape))
    compute = make_loss(config(teacher_weight=0.3), num_classes=5)
    total, count = compute(logits, labels, teacher_logits=teacher_logits)
    target = 0.7 * one_hot(labels) + 0.3 * scipy.special.softmax(np.asarray(teacher_logits), axis=-1)
    expected = -np.sum(target * scipy.special.log_softmax(np.asarray(logits), axis=-1), axis=-1)
    counted = np.asarray(labels) != 255
    np.testing.assert_allclose(total, expected[counted].sum(), rtol=1e-12)  # float64, in another order
    assert count == counted.sum()


def test_a_student_that_agrees_with_its_teacher_has_no_gradient(float64):
    logits, labels = batch(dtype=np.float64)
    compute = make_loss(config(teacher_weight=1.0), num_classes=5)
    gradient = jax.grad(lambda x: compute(x, labels, teacher_logits=logits)[0])(logits)
    np.testing.assert_allclose(gradient, 0, atol=1e-15)  # differences of numbers below 1


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_the_focal_loss_of_the_softmax_is_that_of_its_formula(float64, gamma):
    logits, labels = batch(dtype=np.float64)
    x, y = np.asarray(logits), np.asarray(labels)
    p = np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)
    p = np.take_along_axis(p, np.minimum(y, x.shape[-1] - 1)[..., None].astype(int), axis=-1)[..., 0][y != 255]
    total, count = softmax_focal(logits, labels, gamma=gamma)
    assert count == (y != 255).sum()
    np.testing.assert_allclose(total, np.sum(-((1 - p) ** gamma) * np.log(p)), rtol=1e-12)  # float64 in another order
