"""Publishing networks on the Hugging Face Hub: which files go there, whether they may, and the upload."""

import contextlib
import dataclasses
import logging
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from deeplab_jax.errors import UserError
from deeplab_jax.files import read_json
from deeplab_jax.models import SegmentationNetwork
from deeplab_jax.pretrained import bundle, hub, model_card
from deeplab_jax.pretrained.loading import load, split_checkpoint
from deeplab_jax.pretrained.network import PretrainedNetwork
from deeplab_jax.pretrained.provenance import TRAINING_RUN, Provenance, check_license, forbids_copies
from deeplab_jax.workdir import layout

#: Folder of a workdir or a saved network with an evaluation report, which is uploaded along with it.
REPORT_FOLDER = "report"
#: File of a report with the scores and the step of the checkpoint.
REPORT_SCORES_FILE = "scores.json"

logger = logging.getLogger(__name__)

_MOST_REPORT_FILES, _MAX_REPORT_BYTES = 2000, 500 << 20


@dataclasses.dataclass(frozen=True)
class Upload:
    """The files that `push_to_hub` uploads.

    Attributes:
      repo_id: owner and name of the repository.
      files: local files by their path in the repository.
      provenance: what the model card states.
      notes: facts that are not known and therefore not in the model card.
    """

    repo_id: str
    files: Mapping[str, pathlib.Path]
    provenance: Provenance
    notes: tuple[str, ...]


def push_to_hub(
    source: str | pathlib.Path | PretrainedNetwork | SegmentationNetwork,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    license: str | None = None,
    author: str | None = None,
    half: bool = False,
    message: str | None = None,
    **model_options: Any,
) -> str:
    """Publishes a network on the Hugging Face Hub, in one commit: config, weights, model card and evaluation report.

    The repository is created if necessary. `hf auth login` or HF_TOKEN says who you are. HF_ENDPOINT names another
    server that speaks the Hub's API.

    Args:
      source: a saved folder, a workdir, the name of a preset, a loaded network, or a model with its `variables` and
        `label_set` as further arguments.
      repo_id: owner and name of the repository.
      private: create a repository that only its owner can see. An existing one keeps its visibility.
      revision: branch to commit to, created if necessary (default: the main branch).
      token: access token (default: the one of this machine).
      license: license of the weights; needed if they are not from a training run of yours.
      author: who trained the network, for the model card.
      half: store kernels as float16, at half the size.
      message: message of the commit.
      **model_options: further arguments of `save_pretrained` if `source` is a model.

    Returns:
      The address of the commit, `hf://owner/name@commit`, which `from_pretrained` accepts.

    Raises:
      UserError: there is nothing to load, the license of the weights is unknown or forbids it, or the Hub cannot be
        reached or refuses it.
    """
    options = {"license": license, "author": author, "half": half}
    with prepare_upload(source, repo_id, **options, **model_options) as upload:
        return send(upload, private=private, revision=revision, token=token, message=message)


@contextlib.contextmanager
def prepare_upload(
    source: str | pathlib.Path | PretrainedNetwork | SegmentationNetwork,
    repo_id: str,
    *,
    license: str | None = None,
    author: str | None = None,
    half: bool = False,
    **model_options: Any,
) -> Iterator[Upload]:
    """Writes the files of an upload to a temporary folder, for the duration of a `with` block. Needs no network.

    Args:
      source: see `push_to_hub`.
      repo_id: see `push_to_hub`.
      license: see `push_to_hub`.
      author: see `push_to_hub`.
      half: see `push_to_hub`.
      **model_options: see `push_to_hub`.

    Raises:
      UserError: there is nothing to load, or the license of the weights is unknown or forbids it.
    """
    hub.check_repo_id(repo_id)
    with tempfile.TemporaryDirectory(prefix="deeplab_jax_push_") as temporary:
        staging, folder = pathlib.Path(temporary) / "network", None
        if isinstance(source, str | pathlib.Path):
            if not hub.is_address(source):
                folder, _ = split_checkpoint(source)
            network = load(source)
        elif isinstance(source, PretrainedNetwork):
            network = source
        else:
            bundle.save_pretrained(pathlib.Path(temporary) / "model", source, **model_options)
            network = load(pathlib.Path(temporary) / "model")
            model_options = {}
        if model_options:
            raise TypeError(f"only a model takes the argument {min(model_options)!r}")
        facts = _permitted(network.provenance, license, author)
        named = dataclasses.replace(network, provenance=facts)
        bundle.save(named, staging, half=half)
        (staging / bundle.CARD_FILE).write_text(_card(network, named, folder, repo_id), encoding="utf-8")
        files = {path.name: path for path in sorted(staging.iterdir())}
        if folder is not None:
            files |= _report_files(folder, network.step)
        yield Upload(repo_id, files, facts, tuple(_notes(facts)))


def send(
    upload: Upload,
    *,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    message: str | None = None,
) -> str:
    """Uploads prepared files. See `push_to_hub` for the arguments, the result and the errors."""
    huggingface_hub = hub.import_hub()
    api = huggingface_hub.HfApi(token=token, library_name="deeplab_jax")
    operations = [huggingface_hub.CommitOperationAdd(name, str(path)) for name, path in upload.files.items()]
    try:
        with hub.explain_errors(upload.repo_id, revision):
            api.create_repo(upload.repo_id, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(upload.repo_id, branch=revision, exist_ok=True)
            commit = api.create_commit(
                upload.repo_id,
                operations,
                commit_message=message or "Upload a network of deeplab_jax",
                revision=revision,
            )
    except FileNotFoundError as error:
        raise UserError(f"{hub.PREFIX}{upload.repo_id} cannot be written: {str(error).partition(chr(10))[0]}") from None
    except RuntimeError as error:
        if error.__cause__ is None:  # of hf_xet
            reason = str(error).partition("\n")[0][:300]
            raise UserError(
                f"{hub.PREFIX}{upload.repo_id}: the upload failed ({reason}); run the command again"
            ) from None
        with hub.explain_errors(upload.repo_id, revision):  # huggingface_hub wraps the error of a thread
            raise error.__cause__ from None
    return str(hub.Address(upload.repo_id, commit.oid))


def _permitted(facts: Provenance, license: str | None, author: str | None) -> Provenance:
    """Returns what the card will state, if these weights may be published."""
    if forbids_copies(facts.license):
        raise UserError(
            f"the license of these weights ({facts.license}) does not allow to publish copies; name their publisher's "
            f"repository instead of a copy (they are from {facts.origin or facts.author or 'elsewhere'})"
        )
    given = None if license is None else check_license(license)
    stated = given or facts.license
    if stated is None and facts.origin != TRAINING_RUN:
        raise UserError(
            f"the license of these weights is unknown (they are from {facts.origin or 'elsewhere'}); find out whether "
            "you may publish them, and name their license with --license (`license=` in Python)"
        )
    base_is_free = facts.base is None or (facts.base_license is not None and not forbids_copies(facts.base_license))
    if stated is None and not base_is_free:
        raise UserError(
            f"the training started from {facts.base}, whose license is {facts.base_license or 'unknown'}; find out "
            "under which license you may publish the result, and name it with --license (`license=` in Python)"
        )
    return dataclasses.replace(facts, license=stated, author=author or facts.author)


def _card(network: PretrainedNetwork, named: PretrainedNetwork, folder: pathlib.Path | None, repo_id: str) -> str:
    """Returns the model card: that of the folder if somebody has edited it, otherwise a new one."""
    path = None if folder is None else folder / bundle.CARD_FILE
    if path is None or not bundle.is_bundle(folder) or not path.is_file():
        return model_card.render(named, repo_id)
    try:
        text = path.read_text(encoding="utf-8")
        if text == model_card.render(network):
            return model_card.render(named, repo_id)
        return model_card.complete(text, named, repo_id)
    except ValueError as error:
        raise UserError(f"{path} is not a model card: {error}") from None


def _report_files(folder: pathlib.Path, step: int | None) -> dict[str, pathlib.Path]:
    """Returns the files of an evaluation report by their path in the repository. Hidden files and links stay here.

    Args:
      folder: a workdir, or a saved network, whose report is its own.
      step: the step of a workdir's checkpoint. A report of another one stays here.
    """
    report = folder / REPORT_FOLDER
    if step is not None:
        candidates = (folder / f"{REPORT_FOLDER}{layout.results_of_checkpoint(step)}", report)
        report = next((candidate for candidate in candidates if _reported_step(candidate) == step), None)
        if report is None:
            return {}
    files = {
        f"{REPORT_FOLDER}/{path.relative_to(report).as_posix()}": path
        for path in sorted(report.rglob("*"))
        if path.is_file() and not any(_is_private(part) for part in _chain(path, folder))
    }
    size = sum(path.stat().st_size for path in files.values())
    if len(files) > _MOST_REPORT_FILES or size > _MAX_REPORT_BYTES:
        raise UserError(
            f"{report} has {len(files)} files and {size / 1e6:.0f} MB; at most {_MOST_REPORT_FILES} files and "
            f"{_MAX_REPORT_BYTES >> 20} MiB are uploaded: remove what nobody needs"
        )
    return files


def _reported_step(report: pathlib.Path) -> int | None:
    """Returns the step of the checkpoint that a report is of; None if the report is missing or does not say so."""
    path = report / REPORT_SCORES_FILE
    if not path.is_file():
        return None
    try:
        return read_json(path).get("step")
    except UserError as error:
        logger.warning("the report in %s is not uploaded: %s", report, error)
        return None


def _chain(path: pathlib.Path, folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns a file and the folders around it, up to `folder`."""
    return [path, *(parent for parent in path.parents if parent.is_relative_to(folder) and parent != folder)]


def _is_private(path: pathlib.Path) -> bool:
    return path.is_symlink() or path.name.startswith(".")


def _notes(facts: Provenance) -> list[str]:
    unknown = {
        "license": (
            facts.license,
            "without one, others may not know whether they can use them; name it with --license",
        ),
        "author": (facts.author, "name it with --author"),
        "scores": (facts.scores, "evaluate the training run, then push its workdir"),
        "training data": (facts.data, "edit README.md in a saved folder"),
    }
    return [
        f"the {name} of the network {_verb(name)} unknown: {fix}" for name, (value, fix) in unknown.items() if not value
    ]


def _verb(name: str) -> str:
    return "are" if name == "scores" else "is"
