"""A checkpoint of a training run."""

import datetime
import logging
import pathlib
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax.config import from_saved, to_dict
from deeplab_jax.data import describe_protocol, protocol_for
from deeplab_jax.errors import UserError
from deeplab_jax.files import DIGESTS_FILE, open_path, read_json
from deeplab_jax.pretrained import bundle, presets
from deeplab_jax.pretrained.network import PretrainedNetwork, first_line, read_feeding
from deeplab_jax.pretrained.provenance import TRAINING_RUN, UNKNOWN, Provenance, Score
from deeplab_jax.workdir import layout
from deeplab_jax.workdir.choice import choose_step
from deeplab_jax.workdir.metrics_log import METRICS_FILE, read_evaluations
from deeplab_jax.workdir.runs import SCORES_FILE

logger = logging.getLogger(__name__)

_METRICS = ("mean_iou", "pixel_accuracy")


def load(path: pathlib.Path, checkpoint: str | None = None) -> PretrainedNetwork:
    """Reads the network of a workdir, with averaged parameters if the run has them.

    Args:
      path: the workdir; that of a training in stages means its last stage.
      checkpoint: "newest", "best" or a step; default: the run's `checkpoint.use`.

    Raises:
      UserError: the folder is not a workdir, or has no checkpoint yet, or not the chosen one.
    """
    # importing Orbax takes a third of a second, so only workdirs pay for it
    from deeplab_jax.workdir.bucket_checkpoints import open_checkpoints

    path = layout.last_stage(path)
    config = layout.read_config(path)
    chosen = choose_step(path, checkpoint or config.checkpoint.use)
    with open_checkpoints(path, read_only=True, step=chosen) as checkpoints:
        step = checkpoints.latest_step()
        if step is None:
            raise UserError(f"{path} has no checkpoint yet; wait until `deeplab-jax train` has written one")
        variables = checkpoints.saved_variables()
    label_set, image_size = layout.read_labels(path), protocol_for(config).saved_size
    provenance = Provenance(
        data=(config.data.name,),
        date=_date(path / layout.CHECKPOINTS / str(step) / DIGESTS_FILE),
        origin=TRAINING_RUN,
        scores=_scores(path, step, config),
        **_base(config.train.init_from),
    )
    return PretrainedNetwork(
        config.model,
        variables,
        label_set,
        config.eval.protocol,
        image_size,
        provenance=provenance,
        feeding=read_feeding(config),
        step=step,
    )


def _date(digests: pathlib.Path) -> str:
    """Returns the day on which a checkpoint was written, by its last file."""
    return datetime.datetime.fromtimestamp(digests.stat().st_mtime, datetime.UTC).date().isoformat()


def _base(init_from: str | None) -> dict[str, str]:
    """Returns `base` and `base_license` of a training that started from `train.init_from`."""
    if init_from is None:
        return {}
    if init_from.startswith("hf://"):
        return {"base": init_from}
    folder = open_path(init_from)
    if layout.last_stage(folder.parent) != folder.parent and layout.is_workdir(folder):  # an earlier stage of the run
        return _base(layout.read_config(folder).train.init_from)
    if bundle.is_bundle(folder):
        try:
            facts = Provenance.from_json(read_json(folder / bundle.CONFIG_FILE).get("provenance", {}))
        except (UserError, ValueError):  # it has changed since; then its license is unknown
            facts = UNKNOWN
        name, license_name = folder.name, facts.license
    elif init_from in presets.load_table():
        name, license_name = init_from, presets.find_preset(init_from).provenance.license
    else:
        name, license_name = folder.name, None
    return {"base": name} | ({"base_license": license_name} if license_name else {})


def _scores(workdir: pathlib.Path, step: int, config: ConfigDict) -> tuple[Score, ...]:
    """Returns the scores of a step: of an evaluation of its own, or else of the evaluation during training."""
    for name in (SCORES_FILE, f"metrics{layout.results_of_checkpoint(step)}.json"):
        path = workdir / name
        if path.is_file() and (scores := _saved_scores(path, step)):
            return scores
    for values in read_evaluations(workdir):
        if values["step"] == step:
            return _stated_scores(values | {"config": to_dict(config)}, workdir / METRICS_FILE)
    return ()


def _saved_scores(path: pathlib.Path, step: int) -> tuple[Score, ...]:
    """Returns the scores in a JSON file of an evaluation; none if it was of another step."""
    try:
        values = read_json(path)
    except UserError as error:
        logger.warning("the scores in %s are left out, since the file is damaged: %s", path, first_line(error))
        return ()
    return _stated_scores(values, path) if values.get("step") == step else ()


def _stated_scores(values: dict[str, Any], path: pathlib.Path) -> tuple[Score, ...]:
    """Returns the scores of an evaluation with its config, which are in a file."""
    try:
        config = values["config"]
        facts = {
            "data": str(config["data"]["name"]),
            "split": str(config["data"]["eval_split"]),
            "protocol": _protocol(values),
            "source": "measured with deeplab_jax",
        }
        scores = [{"metric": metric, "value": values[metric], **facts} for metric in _METRICS if metric in values]
        return Provenance.from_json({"scores": scores}).scores
    except (UserError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        # The weights are as good as before, and most uses need no scores.
        logger.warning("the scores in %s are left out, since the file is damaged: %s", path, first_line(error))
        return ()


def _protocol(values: dict[str, Any]) -> str:
    config = from_saved(values["config"])  # it states no version; migrations only rename what is there
    ignored = "excluded" if config.eval.ignored_pixels == "exclude" else "counted"
    return "; ".join([f"{values['num_images']} images", *describe_protocol(config), f"ignored pixels {ignored}"])
