"""The names of results of evaluations that differ from the one at the end of the training."""

import pytest

from deeplab_jax.evaluation.report import results_suffix


@pytest.mark.parametrize(
    ("changes", "split", "suffix"),
    [
        ({}, None, ""),
        ({}, "val", ""),
        ({"eval.batch_size": 3, "data.workers": 2, "mesh.data": 2, "eval.every": "5 steps"}, None, ""),
        ({}, "train", "-split=train"),
        ({"data.eval_split": "train"}, None, "-split=train"),
        ({"eval.scales": (0.5, 1.0), "eval.flip": True}, None, "-eval.flip=True;eval.scales=0.5,1.0"),
        ({"train.compute_dtype": "bfloat16"}, None, "-train.compute_dtype=bfloat16"),
        ({"data.data_dir": "/data/new"}, None, "-data.data_dir=datanew-3484365d"),
    ],
)
def test_the_name_tells_what_differs(tiny_config, changes, split, suffix):
    config = tiny_config.copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    assert results_suffix(config, tiny_config, split=split) == suffix


def test_long_and_ambiguous_names_stay_short_and_different(tiny_config):
    names = set()
    for folder in ("/a/b", "/ab", "/" + 300 * "c", "/" + 301 * "c"):
        config = tiny_config.copy_and_resolve_references()
        config.data.data_dir = folder
        names.add(results_suffix(config, tiny_config))
    assert len(names) == 4
    assert max(map(len, names)) < 120
