"""The model card: `README.md` of a saved network, with the metadata that the Hugging Face Hub reads."""

import re
from typing import Any

import jax
import numpy as np
import yaml

from deeplab_jax.pretrained.network import PretrainedNetwork
from deeplab_jax.pretrained.provenance import Provenance, Score
from deeplab_jax.text import printable

#: Stands in the card of a folder that has not been pushed.
UNNAMED = "OWNER/NAME"

# The Hub's identifiers of licenses, but for those of texts, data and language models. All others are "other".
_HUB_LICENSES = (
    "afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 cc "
    "cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 "
    "cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 "
    "cc0-1.0 ecl-2.0 epl-1.0 epl-2.0 eupl-1.1 eupl-1.2 gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 mit "
    "mpl-2.0 ms-pl ncsa ofl-1.1 osl-3.0 postgresql unlicense wtfpl zlib "
)
_METRICS = {"mean_iou": "mean IoU", "pixel_accuracy": "pixel accuracy", "mean_accuracy": "mean class accuracy"}
_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)


def render(network: PretrainedNetwork, repo_id: str = UNNAMED) -> str:
    """Returns the model card of a network: metadata of the Hub in YAML, and Markdown for people.

    Unknown facts are left out.

    Args:
      network: the network.
      repo_id: owner and name of its repository.
    """
    facts = network.provenance
    sections = [_introduction(network), _usage(network, repo_id)]
    if network.label_set is not None:
        sections.append(_classes(network.label_set.class_names))
    if facts.scores:
        sections.append(_scores(facts.scores))
    if lines := _origin(network):
        sections.append("## Origin\n\n" + "\n".join(f"- {line}" for line in lines))
    license_text = _plain(facts.license) if facts.license else "The author has not stated a license."
    sections.append(f"## License\n\n{license_text}")
    return _join(metadata(network, repo_id), "\n\n".join(sections) + "\n")


def metadata(network: PretrainedNetwork, repo_id: str = UNNAMED) -> dict[str, Any]:
    """Returns the metadata of the Hub, see `render`."""
    facts = network.provenance
    values: dict[str, Any] = {"library_name": "deeplab_jax"}
    values |= _license_fields(facts)
    task = "image-segmentation" if network.label_set is not None else "image-feature-extraction"
    values |= {"pipeline_tag": task, "tags": [task, "jax", "flax"]}
    if network.label_set is not None:
        values["tags"].insert(1, "semantic-segmentation")
    if facts.data:
        values["datasets"] = list(facts.data)
    if facts.scores:
        name = _title(network) if repo_id == UNNAMED else repo_id.rpartition("/")[2]
        values["model-index"] = [{"name": name, "results": _results(facts.scores, task)}]
    return values


def complete(card: str, network: PretrainedNetwork, repo_id: str) -> str:
    """Returns a card that a person has edited, with the name of the repository and the metadata that it lacks.

    The metadata of the card wins, except for the license.

    Args:
      card: the content of `README.md`.
      network: the network that it describes.
      repo_id: owner and name of its repository.

    Raises:
      ValueError: the card begins with YAML that is not a mapping.
    """
    own, text = split(card.replace(f"hf://{UNNAMED}", f"hf://{repo_id}"))
    added = metadata(network, repo_id)
    if "license" in added:
        own = {name: value for name, value in own.items() if not name.startswith("license")}
    return _join(added | own, text)


def split(card: str) -> tuple[dict[str, Any], str]:
    """Splits a card into its metadata and its text.

    Raises:
      ValueError: it begins with YAML that is not a mapping.
    """
    match = _FRONT_MATTER.match(card)
    if match is None:
        return {}, card
    try:
        values = yaml.safe_load(match[1])
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"its metadata is not YAML: {str(error).partition(chr(10))[0]}") from None
    if not isinstance(values or {}, dict):
        raise ValueError("its metadata is not a YAML mapping")
    return values or {}, card[match.end() :].lstrip("\r\n")


def _join(values: dict[str, Any], text: str) -> str:
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)}---\n\n{text}"


def _license_fields(facts: Provenance) -> dict[str, str]:
    if facts.license is None:
        return {}
    name = facts.license.partition(";")[0].strip()
    if name.lower() in _HUB_LICENSES.split():
        return {"license": name.lower()}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")}


def _results(scores: tuple[Score, ...], task: str) -> list[dict[str, Any]]:
    """Returns one result for each data set and split, with all of its scores."""
    results: dict[tuple[str, str | None], dict[str, Any]] = {}
    for score in scores:
        dataset = {"type": score.data, "name": score.data} | ({"split": score.split} if score.split else {})
        result = results.setdefault(
            (score.data, score.split), {"task": {"type": task}, "dataset": dataset, "metrics": []}
        )
        result["metrics"].append(
            {"type": score.metric, "value": score.value, "name": f"{_metric(score)} ({score.protocol})"}
        )
    return list(results.values())


def _title(network: PretrainedNetwork) -> str:
    model = network.model
    if network.label_set is None:
        return model.backbone
    names = {"segformer": "SegFormer", "lraspp": "LR-ASPP"}
    plus = "DeepLabv3" if model.decoder in ("none", "torchvision") else "DeepLabv3+"
    return f"{names.get(model.head, plus)} with {model.backbone}"


def _introduction(network: PretrainedNetwork) -> str:
    count = sum(np.size(leaf) for leaf in jax.tree.leaves(network.variables.get("params", {})))
    if network.label_set is None:
        purpose = "A backbone without a classifier, to start a training from."
    else:
        purpose = f"Semantic segmentation into {network.label_set.num_classes} classes."
    size = f"{count / 1e6:.1f} million" if count >= 1e5 else f"{count:,}"
    return (
        f"# {_title(network)}\n\n{purpose} {size} parameters. The files were written by deeplab_jax, semantic "
        "segmentation in JAX and Flax."
    )


def _usage(network: PretrainedNetwork, repo_id: str) -> str:
    address = f"hf://{repo_id}"
    if network.label_set is None:
        code, command = (
            f'model, variables = deeplab_jax.from_pretrained("{address}", num_classes=21)',
            f"deeplab-jax train --config CONFIG --workdir runs/new --config.train.init_from={address}",
        )
    else:
        (low, high), channels = network.model.value_range, network.model.in_channels
        colors = " RGB" if channels == 3 else ""
        code = (
            f'predictor = deeplab_jax.Predictor.from_pretrained("{address}")\n'
            'label_map = predictor("photo.jpg").label_map  # (height, width) class ids\n\n'
            f'model, variables = deeplab_jax.from_pretrained("{address}")\n'
            "logits, endpoints = model.apply(variables, images, train=False)  "
            f"# (N, H, W, {channels}){colors}, values {low:g}-{high:g}"
        )
        command = f"deeplab-jax predict photo.jpg --preset {address} --output masks"
    return (
        f"## Use\n\n```python\nimport deeplab_jax\n\n{code}\n```\n\n```bash\n{command}\n```\n\n"
        "The address needs `pip install 'deeplab_jax[hub]'`; the path of a folder with these files works in its place."
    )


def _classes(names: tuple[str, ...]) -> str:
    rows = "\n".join(f"| {number} | {_cell(name)} |" for number, name in enumerate(names))
    return f"## Classes\n\n| id | name |\n|---|---|\n{rows}"


def _scores(scores: tuple[Score, ...]) -> str:
    rows = [
        f"| {_cell(_metric(score))} | {score.value:.4f} | {_cell(score.place)} "
        f"| {_cell(score.protocol)} | {_cell(score.source or 'not stated')} |"
        for score in scores
    ]
    return "## Scores\n\n| score | value | data | protocol | source |\n|---|---|---|---|---|\n" + "\n".join(rows)


def _origin(network: PretrainedNetwork) -> list[str]:
    facts = network.provenance
    base_license = f" (license: {facts.base_license})" if facts.base_license else ""
    size = "its own size" if network.image_size is None else "x".join(map(str, network.image_size))
    feeding = "".join(f", {path}={value}" for path, value in network.feeding.items())
    known = {
        "Author": facts.author,
        "Date": facts.date,
        "Training data": ", ".join(facts.data),
        "Weights": facts.origin,
        "Training started from": facts.base and facts.base + base_license,
        "Input": f"protocol `{network.protocol}`, {size}{feeding}" if network.label_set is not None else None,
    }
    return [f"{name}: {_plain(value)}" for name, value in known.items() if value]


def _metric(score: Score) -> str:
    return _METRICS.get(score.metric, score.metric)


def _plain(text: str) -> str:
    """Returns text from a file on one line; it cannot become HTML or an image."""
    return printable(text).replace("<", "&lt;").replace("![", "!\\[")


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")
