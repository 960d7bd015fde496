"""Class weights that a training counts, and a run with several terms: what it logs, records and resumes from."""

import json

import pytest

from deeplab_jax.config import base_config, read_saved
from deeplab_jax.training.class_weights import with_class_weights
from deeplab_jax.training.loop import train
from tests.data.test_sampling import Source


def test_given_weights_are_kept_without_reading_labels():
    config = base_config()
    config.loss.class_weights = (1.0, 2.0)
    assert with_class_weights(config, None) is config


@pytest.mark.parametrize(
    ("rule", "weights"),
    # Of 200 labeled pixels (8 images of 25), class 0 has 179, class 1 has 20 in four images, class 2 one.
    [
        ("inverse_frequency", (0.3724, 3.333, 66.67)),
        ("median_frequency", (0.2235, 1.0, 5.0)),
        # (1 - .999^n) / .001 is 7.972, 3.994 and 1; three divided by the sum of their inverses is 2.181.
        ("effective_number", (2.181 / 7.972, 2.181 / 3.994, 2.181)),
    ],
)
def test_a_rule_becomes_weights_of_four_digits(rule, weights):
    config = base_config()
    config.loss.class_weight_rule = rule
    resolved = with_class_weights(config, Source())
    assert resolved.loss.class_weights == pytest.approx(weights, rel=1e-3)
    assert all(float(f"{weight:.4g}") == weight for weight in resolved.loss.class_weights)
    assert resolved.loss.class_weight_rule == "given"
    assert config.loss.class_weights == ()


@pytest.mark.slow
def test_a_run_records_its_weights_and_logs_each_term(tiny_config, tmp_path):
    tiny_config.loss.update(terms="cross_entropy + 0.5 * dice", class_weight_rule="median_frequency")
    tiny_config.log.every_steps, tiny_config.train.precise_norm_batches = 1, 2
    scores = train(tiny_config, tmp_path)
    saved = read_saved(tmp_path / "config.json").loss
    assert (saved.class_weight_rule, saved.terms) == ("given", "cross_entropy + 0.5 * dice")
    assert len(saved.class_weights) == 6
    assert min(saved.class_weights) < max(saved.class_weights)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval" not in line] == [1, 2]
    for values in (*(line.get("eval", line) for line in lines), scores):
        assert set(values["loss_terms"]) == {"cross_entropy", "dice"}
        assert values["loss"] == pytest.approx(sum(values["loss_terms"].values()))
        assert 0 < values["loss_terms"]["dice"] <= 0.5
    assert train(tiny_config, tmp_path) == scores  # the same command continues the run
