"""Networks on the Hugging Face Hub: `hf://owner/name`, downloaded and cached by huggingface_hub.

Only the files that are read are downloaded. An address can end with `@revision`, a branch, tag or commit. Whatever it
names, all files come from the commit that it stands for at that moment, and the commit is logged.
"""

import contextlib
import dataclasses
import logging
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from deeplab_jax import progress
from deeplab_jax.errors import UserError, from_os_error
from deeplab_jax.files import file_digest, read_json
from deeplab_jax.pretrained import bundle, model_card
from deeplab_jax.pretrained.formats import import_file
from deeplab_jax.pretrained.network import PretrainedNetwork
from deeplab_jax.pretrained.provenance import NVIDIA_LICENSE

logger = logging.getLogger(__name__)

#: Start of an address.
PREFIX = "hf://"

_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_ADDRESS = re.compile(
    rf"hf://(?P<repo_id>{_NAME}/{_NAME})(?:@(?P<revision>[A-Za-z0-9_][\w.-]{{0,254}}))?(?:/(?P<file>[\w./-]+))?",
    re.ASCII,
)
_MOST_SHARDS = 100
_MAX_CARD_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Address:
    """The parsed form of `hf://owner/name[@revision][/file]`.

    Attributes:
      repo_id: owner and name of a repository.
      revision: branch, tag or commit; None for the main branch.
      file: path of a file in the repository; None for a saved network.
    """

    repo_id: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"{PREFIX}{self.repo_id}{revision}" + ("" if self.file is None else f"/{self.file}")


def is_address(name: object) -> bool:
    """Returns True for text that begins like an address of the Hub."""
    return isinstance(name, str) and name.startswith(PREFIX)


def parse(text: str) -> Address:
    """Parses an address.

    Raises:
      UserError: it has another form.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or ".." in text or "--" in match["repo_id"]:
        raise UserError(f"{text!r} is not an address of the form {PREFIX}owner/name or {PREFIX}owner/name@revision")
    return Address(match["repo_id"], match["revision"], match["file"])


def check_repo_id(repo_id: str) -> None:
    """Checks the name of a repository.

    Raises:
      UserError: it is not of the form `owner/name`.
    """
    if not re.fullmatch(f"{_NAME}/{_NAME}", repo_id) or ".." in repo_id or "--" in repo_id:
        raise UserError(f"{repo_id!r} is not the name of a repository, owner/name")


def load(text: str, file_format: str | None = None) -> PretrainedNetwork:
    """Downloads a network that deeplab_jax saved, or a SegFormer of transformers, and loads it.

    Args:
      text: the address.
      file_format: "deeplab_jax" or "transformers" (default: as its config says).

    Raises:
      UserError: huggingface_hub is not installed, the repository cannot be read, or it contains something else.
    """
    address = parse(text)
    if address.file is not None:
        raise UserError(f"{address} names a file; import it with `deeplab-jax convert --from FORMAT {address}`")
    try:
        config_path = _download(address, bundle.CONFIG_FILE)
    except FileNotFoundError:
        raise UserError(
            f"{address} has no {bundle.CONFIG_FILE}, so it is not a network of deeplab_jax; if it has weights of "
            f"another format that `deeplab-jax convert --help` lists, run "
            f"`deeplab-jax convert --from FORMAT {address}/FILE`"
        ) from None
    folder = config_path.parent
    pinned = dataclasses.replace(address, revision=folder.name)
    logger.info("%s is at commit %s", address, pinned.revision)
    config = read_json(config_path)
    found = "deeplab_jax" if config.get("format") == bundle.FORMAT else None
    found = "transformers" if config.get("model_type") == "segformer" else found
    if found is not None and file_format not in (None, found):
        raise UserError(f"{address} has the format {found}; to import another file, name it: {address}/FILE")
    if found == "deeplab_jax":
        _require(pinned, bundle.WEIGHTS_FILE)
        network, facts = import_file(folder, "deeplab_jax"), {}
    elif found == "transformers":
        _download_transformers(pinned, folder)
        network, facts = import_file(folder, "transformers"), _card_facts(pinned)
    else:
        raise UserError(_describe_foreign(pinned, config))
    return dataclasses.replace(network, provenance=dataclasses.replace(network.provenance, origin=str(pinned), **facts))


def download_file(text: str) -> pathlib.Path:
    """Downloads one file of a repository and returns its path in the cache.

    Args:
      text: the address of a file.

    Raises:
      UserError: it cannot be downloaded.
    """
    address = parse(text)
    if address.file is None:
        raise UserError(f"{address} names no file; add its path, such as {address}/{bundle.WEIGHTS_FILE}")
    path = _require(dataclasses.replace(address, file=None), address.file)
    logger.info("Downloaded %s to %s", address, path)
    return path


def import_hub() -> Any:
    """Returns the module `huggingface_hub`, which takes a while to import.

    Raises:
      UserError: it is not installed.
    """
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError:
        raise UserError("the Hugging Face Hub needs a package; run `pip install 'deeplab_jax[hub]'`") from None
    return huggingface_hub


@contextlib.contextmanager
def explain_errors(repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Translates the errors of huggingface_hub into one line, and shows its progress bars where ours are shown.

    Raises:
      UserError: what went wrong, and how to fix it.
      FileNotFoundError: the repository has no file of this name.
    """
    hub = import_hub()
    errors, utils = hub.errors, hub.utils
    hides_bars = not progress.is_shown() and not utils.are_progress_bars_disabled()
    if hides_bars:
        utils.disable_progress_bars()
    try:
        yield
    except errors.LocalEntryNotFoundError as error:  # the server did not answer, and the cache lacks the file
        raise UserError(_unreachable(hub, repo_id, error.__cause__ or error)) from None
    except errors.EntryNotFoundError as error:
        raise FileNotFoundError(str(error)) from None
    except errors.HFValidationError as error:
        raise UserError(f"{PREFIX}{repo_id}: {_first_line(error)}") from None
    except errors.HfHubHTTPError as error:
        raise UserError(_refusal(hub, repo_id, revision, error)) from None
    except (errors.HTTPError, errors.OfflineModeIsEnabled, errors.FileMetadataError, ConnectionError) as error:
        raise UserError(_unreachable(hub, repo_id, error)) from None
    except ValueError as error:  # metadata of a model card that the Hub refuses
        raise UserError(f"{PREFIX}{repo_id}: {' '.join(str(error).split())[:300]}") from None
    except OSError as error:
        if error.errno is None:  # huggingface_hub raises them too: a size that is not the announced one
            raise UserError(f"{PREFIX}{repo_id}: {_first_line(error)}; run the command again") from None
        raise from_os_error(error) from None
    finally:
        if hides_bars:
            utils.enable_progress_bars()


def _download(address: Address, file: str) -> pathlib.Path:
    """Downloads a file, unless the cache has it. Raises FileNotFoundError if the repository has no such file."""
    with explain_errors(address.repo_id, address.revision):
        download = import_hub().hf_hub_download
        path = pathlib.Path(download(address.repo_id, file, revision=address.revision, library_name="deeplab_jax"))
    _verify(path)
    return path


def _verify(path: pathlib.Path) -> None:
    """Checks a large file of the cache: a link to a file whose name is its SHA-256."""
    digest = pathlib.PurePath(os.readlink(path)).name if path.is_symlink() else ""
    if re.fullmatch("[0-9a-f]{64}", digest) and file_digest(path) != digest:
        raise UserError(f"{path} is damaged: its checksum is not {digest}; remove it and {path.resolve()}")


def _require(address: Address, file: str) -> pathlib.Path:
    try:
        return _download(address, file)
    except FileNotFoundError:
        raise UserError(f"{address} has no file {file}") from None


def _find(address: Address, file: str) -> pathlib.Path | None:
    try:
        return _download(address, file)
    except FileNotFoundError:
        return None


def _download_transformers(address: Address, folder: pathlib.Path) -> None:
    """Downloads what the format `transformers` reads, next to the config."""
    _find(address, "preprocessor_config.json")
    for name in ("model.safetensors", "pytorch_model.bin"):
        if _find(address, name):
            return
        if index := _find(address, f"{name}.index.json"):
            places = read_json(index).get("weight_map")
            shards = sorted(set(places.values())) if isinstance(places, Mapping) else []
            if not 1 <= len(shards) <= _MOST_SHARDS or not all(re.fullmatch(_NAME, str(shard)) for shard in shards):
                raise UserError(f"{address}/{name}.index.json is damaged: it does not name the files of the weights")
            for shard in shards:
                _require(address, shard)
            return
    raise UserError(f"{address} has neither model.safetensors nor pytorch_model.bin")


def _card_facts(address: Address) -> dict[str, Any]:
    """Returns what the model card of another project's repository states about the weights."""
    facts: dict[str, Any] = {"author": address.repo_id.partition("/")[0]}
    path = _find(address, bundle.CARD_FILE)
    values: dict[str, Any] = {}
    if path is not None and path.stat().st_size <= _MAX_CARD_BYTES:
        try:
            values, _ = model_card.split(path.read_text(encoding="utf-8", errors="replace"))
        except ValueError as error:
            logger.warning("the model card of %s is not used: %s", address, error)
    license_name = values.get("license_name") or values.get("license")
    if isinstance(license_name, str) and license_name not in ("other", "unknown"):
        facts["license"] = license_name[:200]
    if address.repo_id.startswith("nvidia/"):
        facts["license"] = NVIDIA_LICENSE
    if isinstance(values.get("datasets"), list):
        facts["data"] = tuple(str(name)[:200] for name in values["datasets"][:20])
    return facts


def _describe_foreign(address: Address, config: Mapping[str, Any]) -> str:
    """Says which project's network a repository has, and how to import it if that is possible."""
    weights = f"{address}/{bundle.WEIGHTS_FILE}"
    if "pretrained_cfg" in config:
        project, file_format = f"timm ({str(config.get('architecture'))[:80]!r})", "timm"
    elif "encoder_name" in config:
        project, file_format = "segmentation_models.pytorch", "smp"
    elif "registered_name" in config:  # KerasHub's serialized Keras objects
        project, file_format, weights = "KerasHub", "kerashub", f"{address}/model.weights.h5"
    elif "model_type" in config:
        return (
            f"{address} is a model of transformers of type {str(config['model_type'])[:80]!r}; of those, only "
            "segformer can be loaded"
        )
    else:
        return f"{address} is not a network of deeplab_jax: its {bundle.CONFIG_FILE} has another format"
    return (
        f"{address} is a network of {project}; import it with `deeplab-jax convert --from {file_format} {weights} "
        "--output FOLDER` and use that folder"
    )


def _refusal(hub: Any, repo_id: str, revision: str | None, error: Exception) -> str:
    """Explains an answer of the server that is not a file."""
    name, errors = f"{PREFIX}{repo_id}", hub.errors
    log_in = "run `hf auth login`, or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        place = f"{hub.constants.ENDPOINT}/{repo_id}"
        return f"{name} is gated: accept its terms at {place}, then {log_in}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name} has no revision {revision!r}; choose a branch, a tag or a commit"
    status, request = error.response.status_code, error.response.request
    is_anonymous = status == 401 and "authorization" not in request.headers
    if is_anonymous and request.method == "POST":
        return f"{name}: only its owner can write to it; {log_in}"
    if is_anonymous or isinstance(error, errors.RepositoryNotFoundError):
        return f"{name} does not exist, or it is private; check the name, or, for a private one, {log_in}"
    if isinstance(error, errors.DisabledRepoError):
        return f"{name} has been disabled by the Hub"
    if status in (401, 403):
        return f"{name}: the token has no permission for this ({_server_message(error)}); {log_in} with another one"
    return f"{name}: the server answers {status} ({_server_message(error)}); try again later"


def _server_message(error: Any) -> str:
    return str(error.server_message or error.response.reason_phrase).partition("\n")[0][:200]


def _unreachable(hub: Any, repo_id: str, error: BaseException) -> str:
    if isinstance(error, hub.errors.OfflineModeIsEnabled) or hub.constants.HF_HUB_OFFLINE:
        return f"{PREFIX}{repo_id} is not in the cache, and HF_HUB_OFFLINE forbids to download it; unset it"
    if isinstance(error, hub.errors.HfHubHTTPError):
        return _refusal(hub, repo_id, None, error)
    fix = "check the network and run the command again"
    if "/xet-" in str(error):
        fix += "; for a server without Xet storage, set HF_HUB_DISABLE_XET=1"
    return (
        f"{PREFIX}{repo_id}: {hub.constants.ENDPOINT} cannot be reached, or the connection broke off "
        f"({_first_line(error)}); {fix}"
    )


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:300] or type(error).__name__
