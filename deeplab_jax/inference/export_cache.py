"""Exported networks on disk, beside the compiled programs: each is exported once per input size.

A file is named after everything that decides its content. It ends with the SHA-256 of the rest, so a damaged file is
found and replaced. Processes that need the same file at the same time wait for the first one, which exports it.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import logging
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from deeplab_jax import models, ops
from deeplab_jax.data.eval_protocol import Size
from deeplab_jax.errors import UserError
from deeplab_jax.files import create_folder, write_atomically
from deeplab_jax.models import BACKBONES, SegmentationNetwork
from deeplab_jax.storage.local_copies import program_folder

if TYPE_CHECKING:
    from deeplab_jax.inference.runtime import Runtime

logger = logging.getLogger(__name__)

_MOST_BYTES = 4 << 30  # the files that were not used for the longest time are removed beyond it
_DIGEST_BYTES = hashlib.sha256().digest_size
# Attributes of a network that do not change its function.
_NOT_EXPORTED = ("ops", "remat", "published_order", "parent", "name")


@dataclasses.dataclass(frozen=True, eq=False)
class NetworkIdentity:
    """A network and its variables, with a digest of both that is computed when it is first needed.

    Attributes:
      model: the network.
      variables: its variables.
    """

    model: SegmentationNetwork
    variables: Any

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the code of all networks, of this network's attributes, and of its variables."""
        digest = hashlib.sha256(_code_digest().encode())
        names = [field.name for field in dataclasses.fields(self.model) if field.name not in _NOT_EXPORTED]
        values = {name: getattr(self.model, name) for name in names}
        digest.update(json.dumps([type(self.model).__qualname__, values], sort_keys=True, default=str).encode())
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.variables):
            array = np.asarray(leaf)
            digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        if not self._is_own_code:
            digest.update(self._lowered().encode())
        return digest.hexdigest()

    @property
    def _is_own_code(self) -> bool:
        parts = (type(self.model), BACKBONES[self.model.backbone].build)
        return all(part.__module__.startswith("deeplab_jax.") for part in parts)

    def _lowered(self) -> str:
        """The program of a backbone of the user, whose code can be anywhere."""
        model = self.model.clone(ops=ops.XLA)
        images = jax.ShapeDtypeStruct((1, 64, 64, model.in_channels), np.float32)
        return jax.jit(lambda v, x: model.apply(v, x, train=False)[0]).lower(self.variables, images).as_text()


@functools.cache
def _code_digest() -> str:
    """SHA-256 of the modules that define and export networks, and of the one with the version."""
    digest = hashlib.sha256()
    package = pathlib.Path(models.__file__).parents[1]
    files = [path for part in ("export", "models", "ops") for path in sorted((package / part).rglob("*.py"))]
    for path in [package / "__init__.py", *files]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def exported(runtime: "Runtime", identity: NetworkIdentity, size: Size) -> bytes:
    """Returns a network that is exported to a runtime: from the disk, or exported now and kept there.

    Raises:
      UserError: the network cannot be exported.
    """
    path = _path(identity, size, f"{runtime.name} {runtime.version()}", runtime.name)
    if path is None:
        return _export(runtime, identity, size)
    with _locked(path):
        content = _read(path)
        if content is None:
            content = _export(runtime, identity, size)
            _write(path, content)
        return content


def is_exported(runtime: "Runtime", identity: NetworkIdentity, size: Size) -> bool:
    """Returns True if the disk has the exported network, which may be damaged."""
    path = _path(identity, size, f"{runtime.name} {runtime.version()}", runtime.name)
    return path is not None and path.exists()


def read_times(identity: NetworkIdentity, size: Size, conditions: str) -> dict[str, float] | None:
    """Returns the times that `write_times` recorded; None if it did not, or if the file is damaged."""
    path = _path(identity, size, conditions, "times")
    content = None if path is None else _read(path)
    return None if content is None else json.loads(content)


def write_times(identity: NetworkIdentity, size: Size, conditions: str, milliseconds: dict[str, float]) -> None:
    """Records how long the network takes in each runtime.

    Args:
      identity: the network.
      size: (height, width) of its input.
      conditions: everything else that the times depend on.
      milliseconds: median time of an image, by the name of the runtime.
    """
    path = _path(identity, size, conditions, "times")
    if path is not None:
        with _locked(path):
            _write(path, json.dumps(milliseconds).encode())


def _path(identity: NetworkIdentity, size: Size, conditions: str, suffix: str) -> pathlib.Path | None:
    """The file of a network, named for people who look into the folder, too; None if the cache is off."""
    folder = program_folder("exported")
    if folder is None:
        return None
    key = json.dumps([identity.digest, size, conditions])
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    return folder / f"{identity.model.backbone}-{size[0]}x{size[1]}-{name}.{suffix}"


def _export(runtime: "Runtime", identity: NetworkIdentity, size: Size) -> bytes:
    logger.info("Exporting %s for images of %dx%d pixels to %s", identity.model.backbone, *size, runtime.name)
    return runtime.export(identity.model.clone(ops=ops.XLA), identity.variables, size)


def _read(path: pathlib.Path) -> bytes | None:
    """Returns the content of a file; None if it does not exist or is damaged."""
    try:
        whole = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        logger.warning("cannot read %s: %s; exporting the network again", path, error.strerror)
        return None
    content, digest = whole[:-_DIGEST_BYTES], whole[-_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        logger.warning("%s is damaged; writing it again", path)
        return None
    with contextlib.suppress(OSError):  # a folder that is read-only
        path.touch()  # used now, see `_make_room`
    return content


def _write(path: pathlib.Path, content: bytes) -> None:
    """Writes a file. A disk that is full or read-only costs time in the next process, but no result in this one."""
    try:
        write_atomically(path, content + hashlib.sha256(content).digest())
        _make_room(path)
    except (UserError, OSError) as error:
        logger.warning("%s; the next process has to do this again", error)


def _make_room(path: pathlib.Path) -> None:
    """Removes the files that were not used for the longest time until all of them fit. The newest one stays."""
    others = []
    for other in path.parent.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process has just removed it
            if other != path and other.suffix != ".lock":
                others.append((other.stat().st_mtime, other.stat().st_size, other))
    total = path.stat().st_size + sum(size for _, size, _ in others)
    for _, size, other in sorted(others):
        if total <= _MOST_BYTES:
            break
        other.unlink(missing_ok=True)
        total -= size


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    """Holds the lock of a file: another process that needs it waits. Does nothing where files cannot be written."""
    with contextlib.ExitStack() as stack:
        try:
            create_folder(path.parent, "the cache of exported networks")
            lock = stack.enter_context(path.with_suffix(".lock").open("ab"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        except (UserError, OSError) as error:
            logger.debug("no lock on %s: %s", path, error)
        yield
