"""Names of images and masks: finding the file that a text names, and the mask of an image."""

import pathlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from deeplab_jax.data.image_files import is_image_name
from deeplab_jax.errors import UserError

_SEPARATORS = r"_\-. "
_LAST_WORD = re.compile(rf"[{_SEPARATORS}][A-Za-z][A-Za-z0-9]*$")
_FIRST_WORD = re.compile(rf"^[A-Za-z]+[{_SEPARATORS}]")
_MEANS_MASK = re.compile(r"mask|label|lbl|gt|seg|annot|truth|manual", re.IGNORECASE)
_IS_MASK = re.compile(rf"[{_SEPARATORS}]?masks?[{_SEPARATORS}]?", re.IGNORECASE)

Files = Mapping[str, pathlib.Path]


def normalize(name: str) -> str:
    """A name with its accents as macOS, Windows and Linux agree on (NFC), and `/` between folders."""
    return unicodedata.normalize("NFC", name).replace("\\", "/")


def name_of(path: pathlib.Path, folder: pathlib.Path) -> str:
    """The name of an image or mask: its path in a folder, without suffix."""
    return normalize(path.relative_to(folder).with_suffix("").as_posix())


class Index:
    """Finds files by what people write in lists: with or without folder, suffix and quotation marks."""

    def __init__(self, files: Files, folder: str):
        """Indexes files.

        Args:
          files: the files by name, see `name_of`.
          folder: name of the folder that contains them.
        """
        self._files, self._folder = files, folder
        self._by_last_part = defaultdict(list)
        for name in files:
            self._by_last_part[name.rsplit("/", 1)[-1]].append(name)

    def find_exact(self, text: str) -> str | None:
        """The name of the file that `text` is the name of, in its folder or in the data folder."""
        return self._find("/".join(self._split(text)))

    def find(self, text: str) -> str | None:
        """The name of the file that a path on any machine refers to."""
        parts = self._split(text)
        for start in range(len(parts)):
            name = self._find("/".join(parts[start:]))
            if name is not None:
                return name
        candidates = self._find_by_last_part(parts)
        return candidates[0] if len(candidates) == 1 else None

    def find_several(self, text: str) -> list[str]:
        """The names of the files in different folders that `text` fits; empty if it fits one or none."""
        candidates = self._find_by_last_part(self._split(text))
        return candidates if len(candidates) > 1 else []

    def _find_by_last_part(self, parts: list[str]) -> list[str]:
        last = parts[-1] if parts else ""
        return self._by_last_part.get(last) or self._by_last_part.get(_without_suffix(last), [])

    def _split(self, text: str) -> list[str]:
        """The parts of a path, without `images` or `masks`, which `name_of` leaves out, too."""
        parts = normalize(text.strip().strip("\"'")).split("/")
        return [part for part in parts if part not in ("", ".", self._folder)]

    def _find(self, name: str) -> str | None:
        if name in self._files:
            return name
        name = _without_suffix(name)
        return name if name in self._files else None


def match_masks(images: Files, masks: Files) -> dict[str, str]:
    """The name of the mask of each image: the same name, or one with words added that are the same for all images.

    `p0.jpg` can have `p0.png`, `p0_mask.png` or `mask_p0.png`, and `104_sat.jpg` can have `104_mask.png`.

    Returns:
      The names of the masks by the names of the images. Images without a mask are missing.

    Raises:
      UserError: several masks fit each image.
    """
    exact = {name: name for name in images if name in masks}
    if exact:
        others = {name: name for name in images if name not in exact}
        unused = {name: path for name, path in masks.items() if name not in exact}
        return exact | (_match_with_words(others, unused, pattern=_MEANS_MASK) if others else {})
    found = _match_with_words({name: name for name in images}, masks)
    if not found:
        cores = _without_common_word(images)
        found = _match_with_words(cores, masks, pattern=_MEANS_MASK) if cores else {}
    return found


def _match_with_words(cores: dict[str, str], masks: Files, pattern: re.Pattern = re.compile("")) -> dict[str, str]:
    """Matches by the words that most masks have around the name of their image."""
    by_folder = defaultdict(list)
    for mask in masks:
        folder, _, stem = mask.rpartition("/")
        by_folder[folder].append(stem)
    counts = Counter()
    for core in list(cores.values())[:20]:  # enough to find the words
        folder, _, stem = core.rpartition("/")
        for mask in by_folder[folder]:
            before, found, after = mask.partition(stem)
            if found and _is_boundary(before[-1:], stem[0]) and _is_boundary(stem[-1], after[:1]):
                counts[before, after] += 1
    choices = []
    for (before, after), _ in counts.most_common(20):
        found = {}
        for name, core in cores.items():
            folder, slash, stem = core.rpartition("/")
            mask = f"{folder}{slash}{before}{stem}{after}"
            if mask in masks:
                found[name] = mask
        if 2 * len(found) >= len(cores) and pattern.search(before + after):
            choices.append((before, after, found))
    plain = [choice for choice in choices if _IS_MASK.fullmatch(choice[0] + choice[1])]
    if len(choices) > 1 and len(plain) != 1:
        first = next(iter(cores))
        names = ", ".join(masks[choice[2].get(first, next(iter(choice[2].values())))].name for choice in choices[:3])
        raise UserError(
            f"the masks folder has several masks per image ({names}); keep those with class ids, or name them like "
            "the images"
        )
    chosen = plain or choices
    return chosen[0][2] if chosen else {}


def _without_common_word(names: Iterable[str]) -> dict[str, str]:
    """The names without a last or first word that all of them share; empty if there is none."""
    names = list(names)
    for word in (_LAST_WORD, _FIRST_WORD):
        found = [word.search(name.rpartition("/")[2]) for name in names]
        if all(found) and len({match[0] for match in found}) == 1:
            cores = {}
            for name in names:
                folder, slash, stem = name.rpartition("/")
                cores[name] = f"{folder}{slash}{word.sub('', stem)}"
            return cores
    return {}


def _is_boundary(left: str, right: str) -> bool:
    """Whether a name can end between two characters: not within a word or a number."""
    return not (left and right and (left.isdigit() and right.isdigit() or left.isalpha() and right.isalpha()))


def _without_suffix(name: str) -> str:
    return name.rsplit(".", 1)[0] if is_image_name(name) else name
