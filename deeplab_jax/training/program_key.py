"""The part of a config that its compiled programs are made from."""

import json
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax import config as config_lib

# Groups and fields that the compiled train step does not contain, since the loop around it reads them or the step takes
# their values as inputs. Which inputs there are is compared separately.
_LOOP_FIELDS = (
    "checkpoint", "distributed", "log", "stages",
    "data.data_dir", "data.workers", "data.train_split", "data.eval_split", "data.num_examples", "data.unreadable",
    "train.duration", "train.patience", "train.seed", "train.init_from", "train.precise_norm_batches",
    "eval.every", "eval.before_training",
    "unlabeled.split", "unlabeled.photometric_distortion", "unlabeled.grayscale", "unlabeled.blur",
)  # fmt: skip
_INPUT_FIELDS = (
    "optimizer.learning_rate", "optimizer.poly_power", "optimizer.milestones", "optimizer.milestone_factor",
    "optimizer.warmup", "optimizer.warmup_learning_rate", "optimizer.momentum", "optimizer.clip_norm",
    "optimizer.weight_decay", "optimizer.learning_rate_multipliers", "optimizer.bias_multiplier",
    "loss.auxiliary_weight", "train.ema_decay", "unlabeled.threshold", "unlabeled.weight",
)  # fmt: skip


def train_key(config: ConfigDict, *others: Any) -> str:
    """Returns a text that two configs share if their train steps are the same program with other inputs.

    Args:
      config: a whole config.
      *others: what else the programs depend on, such as the number of classes; values of JSON.
    """
    return _key(config, (*_LOOP_FIELDS, *_INPUT_FIELDS), others)


def eval_key(config: ConfigDict, *others: Any) -> str:
    """Returns a text that two configs share if they are evaluated with the same program, see `train_key`."""
    return _key(config, (*_LOOP_FIELDS, "optimizer", "train", "unlabeled"), others)


def _key(config: ConfigDict, without: Sequence[str], others: Sequence[Any]) -> str:
    """Returns a text that two configs share if they differ in some groups and fields only."""
    values = config_lib.to_dict(config)
    for path in without:
        group, _, field = path.partition(".")
        if field:
            del values[group][field]
        else:
            values.pop(group, None)
    return json.dumps([values, others], sort_keys=True)
