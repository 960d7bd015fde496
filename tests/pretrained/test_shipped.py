"""The presets whose weights ship with the package, on real images."""

import json

import numpy as np
import pytest
from matplotlib import cbook

from deeplab_jax import Predictor
from deeplab_jax.cli import main as cli
from deeplab_jax.labels import VOC
from deeplab_jax.pretrained.presets import find_preset

SHIPPED = ("deeplab_v3_plus_efficientnet_lite0_pascalvoc", "deeplab_v3_plus_efficientnet_lite2_pascalvoc")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_portrait_shows_a_person(name):
    portrait = cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)  # public domain, in the wheel of matplotlib
    predictor = Predictor.from_pretrained(name)
    assert predictor.label_set == VOC
    result = predictor(portrait, confidence=True)
    person = result.label_map == VOC.class_names.index("person")
    assert person.shape == (600, 512)
    assert person[250:, 150:350].mean() > 0.9  # face and chest
    assert person[:60].mean() < 0.2  # the flag and the wall above
    assert result.confidence[person].mean() > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_the_scores_of_the_table_are_reproduced(name, shared, tmp_path, monkeypatch):
    stated = find_preset(name).score
    monkeypatch.setenv("DEEPLAB_JAX_DATA", str(tmp_path / "data"))
    scores = tmp_path / "scores.json"
    commands = [
        ["data", "prepare", "voc2012_segmentation", "--source", str(shared / "data/voc_subset")],
        ["evaluate", "--preset", name, "--data", "voc2012_segmentation", "--json", str(scores)],
    ]
    for command in commands:
        with pytest.raises(SystemExit) as done:
            cli.main(command)
        assert done.value.code == 0
    found = json.loads(scores.read_text())
    assert found["num_images"] == 449
    # Processors round differently: a few pixels on class borders change.
    shown = [float(word) for word in stated.replace(",", "").split() if word.replace(".", "").isdigit()]
    np.testing.assert_allclose([100 * found["mean_iou"], 100 * found["pixel_accuracy"]], shown[:2], atol=0.05)
