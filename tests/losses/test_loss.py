"""A loss of several terms: names, weights, parts of a batch, and the auxiliary head."""

import jax
import numpy as np
import pytest

from deeplab_jax.config import base_config
from deeplab_jax.errors import UserError
from deeplab_jax.losses import add_auxiliary, dice, make_loss, softmax_cross_entropy
from tests.losses.test_cross_entropy import batch


def loss_of(terms, **fields):
    config = base_config().loss
    config.update(terms=terms, **fields)
    return make_loss(config, num_classes=5)


def test_a_term_that_appears_twice_has_two_names_and_options():
    loss = loss_of("dice + 0.5 * dice(smooth=1) + lovasz")
    assert list(loss.terms) == ["dice", "dice_2", "lovasz"]
    assert [(term.weight, term.options.get("smooth")) for term in loss.terms.values()] == [(1, 0), (0.5, 1), (1, None)]


def test_several_terms_add_their_means_and_the_auxiliary_head_adds_to_each(float64):
    logits, labels = batch(dtype=np.float64)
    loss = loss_of("cross_entropy + 0.5 * dice")

    @jax.jit
    def compute(logits, labels):
        main, other = loss.report(logits, labels), loss.report(-logits, labels)
        whole = loss.counts(labels)
        parts = [loss.report(logits[i : i + 1], labels[i : i + 1], whole=whole) for i in range(2)]
        expected = [
            total / count
            for x in (logits, -logits)
            for total, count in (softmax_cross_entropy(x, labels), dice(x, labels))
        ]
        return main, add_auxiliary(main, other, 0.4), parts, expected

    main, both, parts, (entropy, overlap, other_entropy, other_overlap) = compute(logits, labels)
    assert main["loss_count"] == both["loss_count"] == 2
    # Float64 sums in another order, here and below.
    np.testing.assert_allclose(main["loss_sum"] / 2, entropy + 0.5 * overlap, rtol=1e-12)
    expected = entropy + 0.5 * overlap + 0.4 * (other_entropy + 0.5 * other_overlap)
    np.testing.assert_allclose(both["loss_sum"] / 2, expected, rtol=1e-12)
    means = {name: total / count for name, (total, count) in both["loss_terms"].items()}
    np.testing.assert_allclose(sum(means.values()), expected, rtol=1e-12)
    for name in ("loss_sum", "loss_count"):
        np.testing.assert_allclose(main[name], parts[0][name] + parts[1][name], rtol=1e-12)


def test_a_rule_that_nobody_counted_is_named():
    with pytest.raises(UserError, match="^loss.class_weight_rule='median_frequency' counts the labels of a training"):
        loss_of("cross_entropy", class_weight_rule="median_frequency")
