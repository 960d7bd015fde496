"""Preparing a data set: fetch or open its source, check every example, write ArrayRecord."""

import pathlib
import shutil
import tempfile

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from deeplab_jax.data import archives, default_data_dir
from deeplab_jax.data.builder import Layout, prepared_folder, write_dataset
from deeplab_jax.data.download import download
from deeplab_jax.data.sources import camvid, folder, sbd, voc2012_segmentation
from deeplab_jax.errors import UserError, suggest

#: By name, the module of a data set and its TFDS builder.
PREPARABLE = {
    "sbd": (sbd, sbd.Sbd),
    "voc2012_segmentation": (voc2012_segmentation, voc2012_segmentation.Voc2012Segmentation),
    "camvid": (camvid, camvid.Camvid),
    "folder": (folder, folder.Folder),
}


def prepare(
    name: str,
    *,
    source: pathlib.Path | None = None,
    sbd_source: pathlib.Path | None = None,
    data_dir: pathlib.Path | None = None,
    val_fraction: float | None = None,
    console: Console | None = None,
) -> pathlib.Path:
    """Prepares a data set, whole or not at all; one that is prepared already is left as it is.

    Args:
      name: a key of `PREPARABLE`.
      source: a folder or an archive of the data set; default: its publisher's address, for those that have one.
      sbd_source: of `voc2012_segmentation`: an SBD folder or archive, for the split `trainaug`.
      data_dir: where to; default: `default_data_dir`.
      val_fraction: of `folder` without lists: the share of `val`.
      console: shows progress on it.

    Returns:
      The folder of the prepared data set.

    Raises:
      UserError: the source is missing or wrong; the message names the file.
    """
    module, builder_class = _find(name)
    options = {}
    if sbd_source is not None:
        if module is not voc2012_segmentation:
            raise UserError("--sbd-source belongs to voc2012_segmentation")
        options["sbd_root"] = sbd_source
    if val_fraction is not None:
        if module is not folder:
            raise UserError("--val-fraction belongs to folder")
        options["val_fraction"] = val_fraction
    data_dir = default_data_dir() if data_dir is None else data_dir
    target = prepared_folder(name, data_dir)
    console = console or Console(quiet=True)
    if target.is_dir():
        console.print(f"{name} is prepared already in {target}; remove this folder to prepare it anew", soft_wrap=True)
        return target
    for left_over in data_dir.glob("unpacked.*"):  # of a preparation that was killed
        shutil.rmtree(left_over)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"data folder {data_dir} cannot be made: {error.strerror}") from None
    with progress_bar(console) as progress, tempfile.TemporaryDirectory(dir=data_dir, prefix="unpacked.") as scratch:
        root = _root(name, source, data_dir, pathlib.Path(scratch) / name, progress)
        if sbd_source is not None:
            options["sbd_root"] = _root("sbd", sbd_source, data_dir, pathlib.Path(scratch) / "sbd", progress)
        layout = module.read_layout(root, **options)
        write_dataset(builder_class, layout, data_dir, progress)
    counts = ", ".join(f"{split} {len(records)}" for split, records in layout.splits.items())
    console.print(f"{name} prepared in {target}: {counts}", soft_wrap=True)
    return target


def read_raw(name: str, source: pathlib.Path) -> Layout:
    """The layout of a raw data set's folder, for checking it before it is prepared.

    Raises:
      UserError: no such data set or folder, or another layout.
    """
    module, _ = _find(name)
    if not source.is_dir():
        raise UserError(f"--source {source} is no folder")
    return module.read_layout(source)


def _find(name: str):
    if name == "synthetic":
        raise UserError("synthetic is drawn while it is read: there is nothing to prepare")
    if name not in PREPARABLE:
        raise UserError(f"data set {name!r} does not exist{suggest(name, PREPARABLE)}")
    return PREPARABLE[name]


def _root(
    name: str, source: pathlib.Path | None, data_dir: pathlib.Path, scratch: pathlib.Path, progress: Progress
) -> pathlib.Path:
    """A folder with the raw data: the source itself, or what its archive or its publisher's holds."""
    module, _ = PREPARABLE[name]
    if source is not None and source.is_dir():
        return source
    if source is not None and not source.is_file():
        raise UserError(f"--source {source} does not exist")
    published = source is None
    if published:
        if not hasattr(module, "URL"):
            raise UserError(f"{name} has no public address here; say where it lies with --source FOLDER_OR_ARCHIVE")
        source = _fetch(module.URL, module.MD5, data_dir, progress)
    archives.extract(source, scratch, wanted=getattr(module, "wanted", lambda _: True), progress=progress)
    if published and module is sbd:
        noval = _fetch(sbd.NOVAL_URL, sbd.NOVAL_MD5, data_dir, progress)
        shutil.copy(noval, next(scratch.glob("**/train.txt")).parent)
    children = list(scratch.iterdir()) if scratch.is_dir() else []
    # An archive of a folder holds that folder, one of its contents does not.
    return children[0] if len(children) == 1 and children[0].is_dir() else scratch


def _fetch(url: str, md5: str, data_dir: pathlib.Path, progress: Progress) -> pathlib.Path:
    path = data_dir / "downloads" / url.rsplit("/", 1)[-1]
    if not path.is_file():
        otherwise = "fetch it yourself and pass --source FILE"
        download(url, path, digest=f"md5:{md5}", otherwise=otherwise, progress=progress)
    return path


def progress_bar(console: Console) -> Progress:
    """A progress bar that counts examples and tells the time left."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Into a log file, Rich would write an empty line for a bar that never was.
    return Progress(*columns, console=console, disable=not (console.is_terminal or console.is_jupyter))
