"""Which files are images: the accepted formats, and the images of a folder."""

import importlib.util
import os
import pathlib
from collections import defaultdict
from collections.abc import Iterable

from PIL import features

from deeplab_jax.errors import UserError

#: Suffixes of HEIC images, the format of iPhones, which the optional package pillow-heif decodes.
HEIC_SUFFIXES = (".heic", ".heif")


def _has_heic() -> bool:
    """Whether Pillow decodes HEIC. Registers the decoder, whose import takes some milliseconds."""
    if importlib.util.find_spec("pillow_heif") is None:
        return False
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False, depth_images=False)
    return True


_HAS_HEIC = _has_heic()
_HAS_AVIF = importlib.util.find_spec("PIL.AvifImagePlugin") is not None and bool(features.check("avif"))

#: Pillow's names of the formats that are decoded, whatever a file's suffix says. Pillow knows many more; some of them
#: start other programs (EPS starts Ghostscript).
IMAGE_FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "BMP",
    "TIFF",
    "GIF",
    *(("AVIF",) if _HAS_AVIF else ()),
    *(("HEIF",) if _HAS_HEIC else ()),
)

#: Suffixes of files that are read as images, in lower case.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
    *((".avif",) if _HAS_AVIF else ()),
    *(HEIC_SUFFIXES if _HAS_HEIC else ()),
)

# Files and folders that operating systems and file servers leave in folders of images, in lower case.
_CLUTTER = ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir")

_NAMED = 3  # names per kind in `describe_left_out`


def is_image_name(name: str) -> bool:
    """Whether a file of this name is read as an image: by its suffix, in any case."""
    return pathlib.PurePath(name).suffix.lower() in IMAGE_SUFFIXES


def is_clutter(name: str) -> bool:
    """Whether a file or folder of this name is ignored: hidden ones (such as `._a.jpg`), `__MACOSX`, `Thumbs.db`."""
    return name.startswith(".") or name.lower() in _CLUTTER


def list_images(folder: pathlib.Path, *, recursive: bool = False) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """Lists the images of a folder, and what else is in it.

    A file is an image by its name, see `is_image_name`. Hidden files and clutter are in neither list, see
    `is_clutter`. Links are followed; a folder that links lead to twice is listed once.

    Args:
      folder: the folder.
      recursive: also list the images of its subfolders.

    Returns:
      The images, sorted by folder and name; and what is left out: other files, and the subfolders if not `recursive`.

    Raises:
      UserError: a folder cannot be read.
    """
    images, left_out = [], []
    waiting, seen = [folder], set()
    while waiting:
        current = waiting.pop()
        real = os.path.realpath(current)
        if real in seen:
            continue
        seen.add(real)
        folders = []
        try:
            for path in sorted(path for path in current.iterdir() if not is_clutter(path.name)):
                if path.is_dir():
                    (folders if recursive else left_out).append(path)
                elif is_image_name(path.name) and (path.is_file() or not path.exists()):  # no pipe, but broken links
                    images.append(path)
                else:
                    left_out.append(path)
        except OSError as error:
            raise UserError(f"cannot read folder {current}: {error.strerror}") from None
        waiting += reversed(folders)
    return images, left_out


def describe_left_out(left_out: Iterable[pathlib.Path]) -> str:
    """Describes what `list_images` left out, for a message: how many of which kind, with the first names of each.

    Returns:
      For example "2 .psd files (a.psd, b.psd) and 1 folder (old)".
    """
    kinds = defaultdict(list)
    for path in left_out:
        if path.is_dir():
            kind = ("folder", "folders")
        elif path.suffix:
            kind = (f"{path.suffix.lower()} file", f"{path.suffix.lower()} files")
        else:
            kind = ("file without suffix", "files without suffix")
        kinds[kind].append(path.name)
    parts = []
    for (singular, plural), names in kinds.items():
        if singular.split()[0] in HEIC_SUFFIXES:  # without pillow-heif
            plural, singular = f"{plural} that need deeplab_jax[heic]", f"{singular} that needs deeplab_jax[heic]"
        more = ", ..." if len(names) > _NAMED else ""
        parts.append(f"{len(names)} {singular if len(names) == 1 else plural} ({', '.join(names[:_NAMED])}{more})")
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
