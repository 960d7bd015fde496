"""Images that are in a training split and in a split to score on."""

import re
from collections.abc import Mapping, Sequence

_NAMED = 5  # shared ids that a line names; the rest is counted

# trainval is train and val by construction, so it is neither a training split for val nor a split to score on.
_TRAINING = re.compile(r"train(?!_?val)|unlabeled")
_SCORING = re.compile(r"val|test")


def is_training(split: str) -> bool:
    """Whether a split of this name is for training."""
    return _TRAINING.match(split) is not None


def is_scoring(split: str) -> bool:
    """Whether a split of this name is for scores."""
    return _SCORING.match(split) is not None


def find_leaks(ids: Mapping[str, Sequence[str]], advice: str = "") -> list[str]:
    """Describes shared images in one line per pair of splits.

    Args:
      ids: the ids of the images of each split; the keys are `data set/split`.
      advice: the end of each line.
    """
    lines = []
    for training, training_ids in ids.items():
        for scoring, scoring_ids in ids.items():
            if not (is_training(training.split("/")[1]) and is_scoring(scoring.split("/")[1])):
                continue
            shared = sorted(set(training_ids) & set(scoring_ids))
            if shared:
                count = "1 image" if len(shared) == 1 else f"{len(shared)} images"
                lines.append(f"{training} and {scoring} share {count}: {', '.join(shared[:_NAMED])}{advice}")
    return lines
