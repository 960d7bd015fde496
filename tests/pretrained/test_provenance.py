"""What is known about a network: kept by saved folders, stated by model cards, read from runs and presets."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import yaml
from flax import traverse_util

import deeplab_jax
from deeplab_jax.errors import UserError
from deeplab_jax.labels import LabelSet
from deeplab_jax.pretrained import PretrainedNetwork, Provenance, Score, average, bundle, load, model_card
from deeplab_jax.pretrained.importers import workdir as workdir_importer
from deeplab_jax.pretrained.network import model_config, variable_shapes
from deeplab_jax.pretrained.presets import list_presets
from deeplab_jax.pretrained.provenance import NVIDIA_LICENSE, TRAINING_RUN, forbids_copies

FACTS = Provenance(
    author="Ada: <b>Lovelace</b>",
    data=("fields", "weeds | seeds"),
    date="2026-01-02",
    license="Apache-2.0; see its README.md for the data",
    origin=TRAINING_RUN,
    base="resnet50",
    base_license="BSD-3-Clause",
    scores=(
        Score(metric="mean_iou", value=0.5, data="fields", split="val", protocol="one scale", source="Ada"),
        Score(metric="pixel_accuracy", value=0.75, data="fields", split="val", protocol="one scale"),
    ),
)


@pytest.fixture(scope="module")
def network():
    """A network of zeros."""
    model = model_config(backbone="mobilenet_v2", width_multiplier=0.25, aspp="none", decoder="none")
    flat = {path: np.zeros(shape, np.float32) for path, shape in variable_shapes(model, 2).items()}
    labels = LabelSet.from_names(["ground", "weed | ![x](y) <b>"])
    return PretrainedNetwork(model, traverse_util.unflatten_dict(flat, sep="/"), labels, provenance=FACTS)


@pytest.fixture
def folder(network, tmp_path):
    bundle.save(network, tmp_path / "net")
    return tmp_path / "net"


# ---- Saved networks ----


def test_facts_are_kept(network, folder, tmp_path):
    assert load(folder).provenance == FACTS
    model, variables = deeplab_jax.from_pretrained(folder)
    deeplab_jax.save_pretrained(tmp_path / "again", model, variables, network.label_set, provenance=FACTS)
    assert load(tmp_path / "again").provenance == FACTS
    assert (tmp_path / "again" / "README.md").read_bytes() == (folder / "README.md").read_bytes()


def test_a_folder_of_an_earlier_version_has_none(folder):
    values = json.loads((folder / "config.json").read_text())
    del values["provenance"]
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "README.md").unlink()
    assert load(folder).provenance == Provenance()


@pytest.mark.parametrize(
    ("provenance", "message"),
    [
        ([], "provenance is not an object"),
        ({"author": 3}, "provenance.author is not a text of at most 1000 characters"),
        ({"license": "x" * 2000}, "provenance.license is not a text of at most 1000 characters"),
        ({"data": "fields"}, "provenance.data and provenance.scores must be lists of at most 100 items"),
        ({"data": ["x"] * 200}, "provenance.data and provenance.scores must be lists of at most 100 items"),
        ({"scores": [3]}, "a score is not an object"),
        ({"scores": [{"metric": "a", "data": "b", "protocol": "c", "value": "1"}]}, "value of a score is not a number"),
        (
            {"scores": [{"metric": "a", "data": "b", "protocol": "c", "value": 1e300}]},
            "value of a score is not a number",
        ),
        ({"scores": [{"metric": "a", "data": "b", "value": 1}]}, "a score has no protocol"),
    ],
)
def test_damaged_facts_are_named(folder, provenance, message):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"provenance": provenance}))
    with pytest.raises(UserError, match=f"config.json is damaged: ValueError: .*{message}"):
        load(folder)


def test_a_mean_of_networks_keeps_what_they_share(network):
    other = dataclasses.replace(network, provenance=dataclasses.replace(FACTS, author="Grace"))
    assert average([network, other]).provenance == dataclasses.replace(FACTS, author=None, scores=())
    assert average([network]).provenance == FACTS


# ---- Model cards ----


def test_the_metadata_is_that_of_the_hub(folder):
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard.load(folder / "README.md")
    data = card.data
    assert (data.library_name, data.license, data.pipeline_tag) == ("deeplab_jax", "apache-2.0", "image-segmentation")
    assert data.datasets == ["fields", "weeds | seeds"]
    found = [(r.task_type, r.dataset_name, r.dataset_split, r.metric_type, r.metric_value) for r in data.eval_results]
    assert found == [
        ("image-segmentation", "fields", "val", "mean_iou", 0.5),
        ("image-segmentation", "fields", "val", "pixel_accuracy", 0.75),
    ]


def test_text_from_files_cannot_become_markup(folder):
    _, text = model_card.split((folder / "README.md").read_text())
    assert "| 1 | weed \\| !\\[x](y) &lt;b> |" in text
    assert "- Author: Ada: &lt;b>Lovelace&lt;/b>" in text
    assert "<" not in text.replace("&lt;", "")


def test_unknown_facts_are_left_out(network):
    unknown = dataclasses.replace(network, provenance=Provenance())
    values, text = model_card.split(model_card.render(unknown))
    assert set(values) == {"library_name", "pipeline_tag", "tags"}
    assert "The author has not stated a license." in text
    assert "Scores" not in text
    assert "Author" not in text


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("MIT", {"license": "mit"}),
        ("BSD-3-Clause", {"license": "bsd-3-clause"}),
        ("A License of Ours, v2", {"license": "other", "license_name": "a-license-of-ours-v2"}),
        (None, {}),
    ],
)
def test_licenses_have_the_names_of_the_hub(network, name, fields):
    values = model_card.metadata(dataclasses.replace(network, provenance=Provenance(license=name)))
    assert {key: value for key, value in values.items() if key.startswith("license")} == fields


def test_a_backbone_has_a_card_of_its_own(network):
    backbone = dataclasses.replace(network, label_set=None, provenance=Provenance())
    values, text = model_card.split(model_card.render(backbone, "ada/backbone"))
    assert values["pipeline_tag"] == "image-feature-extraction"
    assert 'from_pretrained("hf://ada/backbone", num_classes=21)' in text
    assert "Predictor" not in text


def test_an_edited_card_is_completed(network):
    card = "---\nlanguage: en\ntags: [fields]\nlicense: mit\n---\n# Mine\n\n`hf://OWNER/NAME`\n"
    values, text = model_card.split(model_card.complete(card, network, "ada/fields"))
    assert text == "# Mine\n\n`hf://ada/fields`\n"
    assert (values["language"], values["tags"], values["license"]) == ("en", ["fields"], "apache-2.0")
    assert values["model-index"][0]["name"] == "fields"
    assert model_card.split(model_card.complete("# Mine\n", network, "a/b"))[1] == "# Mine\n"
    for damaged in ("---\n[1]\n---\n", "---\na: [\n---\n", "---\na: !!python/object:os.system {}\n---\n"):
        with pytest.raises(ValueError, match="its metadata is not "):
            model_card.complete(damaged, network, "ada/fields")


def test_metadata_is_plain_yaml(network):
    text = model_card.render(network).split("---\n")[1]
    assert yaml.safe_load(text) == model_card.metadata(network)


# ---- Presets and runs ----


@pytest.mark.parametrize("preset", list_presets(), ids=lambda preset: preset.name)
def test_facts_of_a_preset_are_those_of_the_table(preset):
    facts = preset.provenance
    assert facts.origin == f"preset {preset.name}"
    assert facts.license == (None if preset.license == "not stated" else preset.license)
    assert forbids_copies(facts.license) == (preset.author == "NVIDIA") == (preset.license == NVIDIA_LICENSE)
    assert len(facts.scores) == (preset.score is not None)
    for score in facts.scores:
        assert f"{100 * score.value:.2f}".rstrip("0").rstrip(".") in preset.score
        assert 0 < score.value < 1
        assert score.protocol == preset.score


def test_a_run_records_its_data_day_and_scores(workdir, caplog):
    facts = load(workdir).provenance
    metrics = json.loads((workdir / "metrics.json").read_text())
    assert (facts.origin, facts.data, facts.license, facts.base) == (TRAINING_RUN, ("synthetic",), None, None)
    assert facts.date is not None
    assert [(score.metric, score.value) for score in facts.scores] == [
        ("mean_iou", metrics["mean_iou"]),
        ("pixel_accuracy", metrics["pixel_accuracy"]),
    ]
    score = facts.scores[0]
    assert score.split == metrics["config"]["data"]["eval_split"]
    assert score.protocol.startswith(f"{metrics['num_images']} images; protocol guide at 32x32; one scale; ")
    evaluation = metrics["config"] | {"eval": metrics["config"]["eval"] | {"protocol": "windows", "window": [24, 16]}}
    (workdir / "metrics.json").write_text(json.dumps(metrics | {"config": evaluation}))
    assert "; protocol windows at 24x16; " in load(workdir).provenance.scores[0].protocol
    (workdir / "metrics.json").write_text(json.dumps(metrics | {"step": metrics["step"] - 1}))
    assert load(workdir).provenance.scores == facts.scores  # those during training: the file is of another checkpoint
    (workdir / "metrics.jsonl").unlink()
    assert load(workdir).provenance.scores == ()
    (workdir / "metrics.json").write_text(json.dumps(metrics | {"config": {}}))
    assert load(workdir).provenance.scores == ()
    assert caplog.messages[-1].startswith(f"the scores in {workdir / 'metrics.json'} are left out, since the file is ")
    (workdir / "metrics.json").write_text(json.dumps(metrics).replace(repr(metrics["mean_iou"]), "1e999"))
    assert load(workdir).provenance.scores == ()


def test_a_run_passes_on_how_it_feeds_images(workdir):
    assert load(workdir).feeding == {}
    values = json.loads((workdir / "config.json").read_text())
    values["eval"] |= {"size_multiple": 32, "scale_to": [24, 48]}
    (workdir / "config.json").write_text(json.dumps(values))
    assert load(workdir).feeding == {"eval.size_multiple": 32, "eval.scale_to": (24, 48)}


def test_a_run_records_where_it_started(folder, tmp_path):
    find = workdir_importer._base
    assert find(None) == {}
    assert find(str(folder)) == {"base": "net", "base_license": FACTS.license}
    assert find("mit-b0") == {"base": "mit-b0", "base_license": NVIDIA_LICENSE}
    assert find("hf://ada/fields") == {"base": "hf://ada/fields"}
    shutil.rmtree(folder)
    assert find(str(folder)) == {"base": "net"}
