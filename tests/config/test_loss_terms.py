"""The expression of `loss.terms`: what it means, and how mistakes in it are explained."""

import pytest

from deeplab_jax.config import LossTerm, base_config, load_config, parse_loss_terms, validate
from deeplab_jax.errors import UserError


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("cross_entropy", [("cross_entropy", 1.0, {})]),
        (" 2*lovasz ", [("lovasz", 2.0, {})]),
        (
            "cross_entropy + 0.5 * dice(smooth=1) + 1e-1*dice",
            [("cross_entropy", 1.0, {}), ("dice", 0.5, {"smooth": 1}), ("dice", 0.1, {"smooth": 0.0})],
        ),
        ("focal(alpha=0.5)", [("focal", 1.0, {"gamma": 2.0, "alpha": 0.5})]),
        ("top_k_cross_entropy(fraction=.25, gradual_steps=100)",
         [("top_k_cross_entropy", 1.0, {"fraction": 0.25, "gradual_steps": 100})]),
    ],
)  # fmt: skip
def test_an_expression_is_a_sum_of_weighted_terms(text, terms):
    assert parse_loss_terms(text) == tuple(LossTerm(*term) for term in terms)


def test_the_default_is_the_cross_entropy():
    assert parse_loss_terms(base_config().loss.terms) == (LossTerm("cross_entropy", 1.0, {}),)


@pytest.mark.parametrize(
    "text",
    ["", "dice 0.5", "cross_entropy - dice", "dice * 0.5", "2 + dice", "dice(1)", "dice(**x)", "dice(smooth=x)",
     "a.dice", "dice(smooth='1')", "dice(smooth=True)", "'x' * dice", "dice()()", "-dice", "dice\0", "x" * 2000,
     "(" * 400 + "dice" + ")" * 400],
)  # fmt: skip
def test_anything_else_is_explained_with_an_example(text):
    with pytest.raises(UserError, match=r"^loss.terms=.* is not a sum of terms; write for example 'cross_") as caught:
        parse_loss_terms(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cross_entropy + dise", "term 'dise' does not exist; did you mean dice?"),
        ("-1 * dice", "weight -1 must be a number above 0"),
        ("0 * dice", "weight 0 must be a number above 0"),
        ("1e999 * dice", "weight inf must be a number above 0"),
        ("dice(smoth=1)", "dice has no option 'smoth'; did you mean smooth?"),
        ("lovasz(smooth=1)", "lovasz has no option 'smooth'; it has no options"),
        ("top_k_cross_entropy(fraction=0)", "fraction=0 of top_k_cross_entropy must be a number above 0 and at most 1"),
        ("boundary_cross_entropy(width=1.5)", "width=1.5 of boundary_cross_entropy must be an integer between"),
    ],
)
def test_a_mistake_in_a_term_is_named(text, message):
    with pytest.raises(UserError) as caught:
        parse_loss_terms(text)
    assert str(caught.value).startswith(f"loss.terms={text!r}: {message}")


def test_validation_reads_the_terms_and_refuses_weights_by_both_ways():
    config = load_config("quickstart")
    config.loss.terms = "dise"
    with pytest.raises(UserError, match="'dise' does not exist"):
        validate(config)
    config.loss.update(terms="dice", class_weights=(1.0, 2.0), class_weight_rule="median_frequency")
    with pytest.raises(UserError, match="^loss.class_weights and loss.class_weight_rule='median_frequency' are both"):
        validate(config)
