"""The table of presets, and their files: found or downloaded, and always verified."""

import dataclasses
import functools
import importlib.metadata
import importlib.resources
import logging
import os
import pathlib
import re
import tomllib
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING

from deeplab_jax.data.download import download, has_digest
from deeplab_jax.errors import UserError, suggest
from deeplab_jax.files import create_folder, file_digest, write_atomically
from deeplab_jax.pretrained import bundle
from deeplab_jax.pretrained.provenance import Provenance, Score
from deeplab_jax.storage.local_copies import cache_folder

if TYPE_CHECKING:  # only `presets_table` needs it
    from rich.table import Table

logger = logging.getLogger(__name__)

_SCORE = re.compile(r"(mIoU|top-1) (\d+(?:\.\d+)?) %")
_METRICS = {"mIoU": "mean_iou", "top-1": "top_1_accuracy"}

_NO_LICENSE = "not stated"  # as `license`
_OWN_PACKAGE = "deeplab_jax"  # as `package`: the file is a folder in `shipped`, next to this file


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Preset:
    """An entry of presets.toml.

    Attributes:
      name: the name that `from_pretrained` accepts.
      format: a key of `pretrained.FORMATS`: how to read the file.
      task: "segmentation on Pascal VOC", on another data set, or "ImageNet backbone".
      backbone: its name in `deeplab_jax.models`.
      license: as its publisher states it.
      source: who states the address, size and digest.
      file: name of the file in the cache, in a mirror or in the package; of a folder if the package is this one.
      url: where the file is published; None if a Python package contains it.
      package: name of that package.
      classes: number of classes; None for a backbone.
      size: size of the file in bytes; None if nobody states it.
      approximate_size: approximate size in bytes if nobody states it exactly.
      digest: checksum in the format of `has_digest`; None if nobody states one.
      score: published score and the data it was measured on.
      score_source: who states the score.
      notes: remarks for users.
      author: who trained the network.
      data: the data sets that it was trained on.
      date: the day it was trained or published, `YYYY-MM-DD`.
    """

    name: str
    format: str
    task: str
    backbone: str
    license: str
    source: str
    file: str
    url: str | None = None
    package: str | None = None
    classes: int | None = None
    size: int | None = None
    approximate_size: int | None = None
    digest: str | None = None
    score: str | None = None
    score_source: str | None = None
    notes: str | None = None
    author: str | None = None
    data: tuple[str, ...] = ()
    date: str | None = None

    def __repr__(self) -> str:
        details = (self.task, self.score, self.size_text)
        return f"Preset({self.name}: {', '.join(text for text in details if text is not None)})"

    @property
    def size_text(self) -> str:
        """The size for people, such as `94.7 MB`, `about 8 MB` or `size unknown`."""
        if self.size is not None:
            return f"{self.size / 1e6:.1f} MB"
        return f"about {self.approximate_size / 1e6:.0f} MB" if self.approximate_size is not None else "size unknown"

    @property
    def provenance(self) -> Provenance:
        """The facts of the table, as a saved network records them."""
        scores = ()
        if match := _SCORE.match(self.score or ""):
            data = self.task.removeprefix("segmentation on ") if self.classes is not None else "ImageNet"
            scores = (
                Score(
                    metric=_METRICS[match[1]],
                    value=round(float(match[2]) / 100, 6),
                    data=data,
                    protocol=self.score,
                    source=self.score_source,
                ),
            )
        return Provenance(
            author=self.author,
            data=self.data,
            date=self.date,
            license=None if self.license == _NO_LICENSE else self.license,
            origin=f"preset {self.name}",
            scores=scores,
        )


def list_presets() -> list[Preset]:
    """Returns all presets: networks that `from_pretrained` loads by name."""
    return list(load_table().values())


@functools.cache
def load_table() -> dict[str, Preset]:
    """Returns all presets by name, in the order of presets.toml."""
    text = importlib.resources.files(__package__).joinpath("presets.toml").read_text(encoding="utf-8")
    presets = {}
    for entry in tomllib.loads(text)["preset"]:
        if "url" in entry:
            entry.setdefault("file", pathlib.PurePosixPath(urllib.parse.urlsplit(entry["url"]).path).name)
        entry["data"] = tuple(entry.get("data", ()))
        presets[entry["name"]] = Preset(**entry)
    return presets


def find_preset(name: str) -> Preset:
    """Returns the preset with this name.

    Raises:
      UserError: there is none; the message suggests the nearest name.
    """
    table = load_table()
    if name not in table:
        raise UserError(f"preset {name!r} does not exist{suggest(name, table)}")
    return table[name]


def fetch_preset(preset: Preset) -> pathlib.Path:
    """Returns the verified local file of a preset, downloading it if necessary.

    Looks in the cache, in the installed package that contains the file, and in the mirror, then downloads it from its
    publisher. $DEEPLAB_JAX_MIRROR replaces all publishers: a folder (or file: address) whose files are used in place,
    or an http(s) address. Every use checks the digest, so a truncated or modified file is never loaded.

    A file without a published digest is never downloaded, because nothing could verify it. The user puts it into the
    cache or a mirror folder. Its digest is recorded in the cache at the first use and checked from then on.

    Raises:
      UserError: the file is not available (the message says what to fetch and where to put it), or is not the right
        file.
    """
    path = find_file(preset)
    if path is not None:
        return _verify(path, preset)
    cached, mirror = cache_folder() / preset.file, os.environ.get("DEEPLAB_JAX_MIRROR")
    if mirror and not _is_web_address(mirror):
        path = _mirror_folder(mirror) / preset.file
        raise UserError(f"DEEPLAB_JAX_MIRROR={mirror} has no {preset.file}; {_manual_fix(preset, path)}")
    if preset.package is not None and not mirror:
        raise UserError(f"preset {preset.name} needs a package that is not installed; {_manual_fix(preset, cached)}")
    if preset.digest is None:
        raise UserError(
            f"preset {preset.name} has no published checksum and is not downloaded automatically; "
            f"{_manual_fix(preset, cached)}, or import it with `deeplab-jax convert --from {preset.format}`"
        )
    url = f"{mirror.rstrip('/')}/{preset.file}" if mirror else preset.url
    logger.info("Downloading %s (%s) to %s", url, preset.size_text, cached.parent)
    otherwise = f"{_manual_fix(preset, cached)}, or set DEEPLAB_JAX_MIRROR to a folder or address that has it"
    download(url, cached, digest=preset.digest, size=preset.size, otherwise=otherwise)
    return cached


def find_file(preset: Preset) -> pathlib.Path | None:
    """Returns the local file of a preset, unverified: from the cache, its package or a mirror folder. None without one.

    Raises:
      UserError: $DEEPLAB_JAX_MIRROR is neither a folder nor an address.
    """
    cached = cache_folder() / preset.file
    if cached.is_file():
        return cached
    if preset.package is not None and (path := _find_package_file(preset)):
        return path
    mirror = os.environ.get("DEEPLAB_JAX_MIRROR")
    if mirror and not _is_web_address(mirror) and (path := _mirror_folder(mirror) / preset.file).is_file():
        return path
    return None


def presets_table() -> "Table":
    """Returns a table of the presets: task, published score and its source, download size, license."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Presets")
    table.add_column("preset", no_wrap=True)  # names are copied whole
    for heading in ("task", "score", "file"):
        table.add_column(heading, overflow="fold")
    for preset in list_presets():
        score, source = (preset.score, f"\n{preset.score_source}") if preset.score else ("none", "")
        table.add_row(
            preset.name,
            Text.assemble(preset.task, (f"\n{preset.backbone} ({preset.format})", "dim")),
            Text.assemble(score, (source, "dim")),
            Text.assemble(f"{_availability(preset)}, {preset.size_text}", (f"\n{preset.license}", "dim")),
        )
    return table


def _availability(preset: Preset) -> str:
    if preset.package is not None:
        return "installed" if _find_package_file(preset) else f"pip install {preset.package}"
    if (cache_folder() / preset.file).is_file():
        return "cached"
    return "download" if preset.digest is not None else "manual download"


def _verify(path: pathlib.Path, preset: Preset) -> pathlib.Path:
    """Returns `path` if it is the preset's file."""
    if preset.digest is None:
        return _verify_against_first_use(path, preset)
    file = path / bundle.WEIGHTS_FILE if preset.package == _OWN_PACKAGE else path
    size = file.stat().st_size
    if preset.size not in (None, size):
        problem = f"has {size} bytes instead of {preset.size}"
    elif not has_digest(file, preset.digest):
        problem = f"has the wrong checksum (expected {preset.digest})"
    else:
        return path
    fix = f"run `pip install --force-reinstall {preset.package}`" if preset.package is not None else "remove it"
    raise UserError(f"{file} {problem}: it is damaged or another file; {fix}")


def _verify_against_first_use(path: pathlib.Path, preset: Preset) -> pathlib.Path:
    record = cache_folder() / f"{preset.file}.sha256"
    digest = f"sha256:{file_digest(path)}"
    if not record.is_file():
        create_folder(record.parent, "the cache folder (DEEPLAB_JAX_CACHE)")
        write_atomically(record, f"{digest}\n".encode())
        logger.warning("%s has no published checksum; recorded %s in %s", path, digest, record)
    elif record.read_text().strip() != digest:
        raise UserError(
            f"{path} has changed since its first use, recorded in {record}; if the new file is right, remove the record"
        )
    return path


def _is_web_address(mirror: str) -> bool:
    return urllib.parse.urlsplit(mirror).scheme in ("http", "https")


def _mirror_folder(mirror: str) -> pathlib.Path:
    address = urllib.parse.urlsplit(mirror)
    if address.scheme == "file":
        return pathlib.Path(urllib.request.url2pathname(address.path))
    folder = pathlib.Path(mirror).expanduser()
    if not folder.is_dir():
        raise UserError(f"DEEPLAB_JAX_MIRROR={mirror} is neither a folder nor an http(s) or file address")
    return folder


def _manual_fix(preset: Preset, path: pathlib.Path) -> str:
    if preset.package is not None:
        return f"run `pip install {preset.package}`"
    digest = f", {preset.digest}" if preset.digest else ""
    size = f"{preset.size} bytes" if preset.size is not None else preset.size_text
    return f"download {preset.url} ({size}{digest}) yourself and put it at {path}"


def _find_package_file(preset: Preset) -> pathlib.Path | None:
    if preset.package == _OWN_PACKAGE:
        return pathlib.Path(__file__).parent / "shipped" / preset.file
    try:
        files = importlib.metadata.files(preset.package) or ()
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = (pathlib.Path(file.locate()) for file in files if file.name == preset.file)
    return next((path for path in paths if path.is_file()), None)
