"""Small valid files of every kind, and how each is damaged and read."""

import importlib.util
import io
import pathlib
import shutil
import tarfile
import zipfile
from collections.abc import Callable

import numpy as np
from PIL import Image

from deeplab_jax.data import archives, channels, images, read_mask
from deeplab_jax.data.annotation_import import import_annotations
from deeplab_jax.data.sources import folder as folder_source
from deeplab_jax.data.sources.sbd import read_class_mask
from deeplab_jax.errors import UserError
from deeplab_jax.labels import VOC
from tests.conftest import scene, write_index_png, write_sbd_mat
from tests.data.formats import exports
from tests.data.test_pixel_values import write_tiff
from tests.fuzz import weight_files
from tests.fuzz.mutations import mutate_bytes, mutate_gzip, mutate_json, mutate_png
from tests.fuzz.target import Target, make_target


def make_targets(folder: pathlib.Path) -> list[Target]:
    """Writes the valid files to a folder."""
    targets = []
    for make in (
        weight_files.write_torch,
        weight_files.write_safetensors,
        weight_files.write_keras,
        weight_files.write_tflite,
        weight_files.write_tensorflow,
        weight_files.write_bundle,
        weight_files.write_workdir,
        _images,
        _annotations,
        _exports,
        _archives,
    ):
        place = folder / make.__name__
        place.mkdir()
        targets += make(place)
    return targets


def _images(folder: pathlib.Path) -> list[Target]:
    image, label = scene(3, height=20, width=24)
    rgb, exif = Image.fromarray(image), Image.Exif()
    exif[0x0112] = 6
    for name in ("a.jpg", "a.png", "a.webp", "a.bmp", "a.tiff"):
        rgb.save(folder / name, **({"exif": exif} if name == "a.jpg" else {}))
    Image.fromarray(image[..., 0].astype(np.uint16) * 256).save(folder / "deep.png")
    Image.fromarray(image[..., 0].astype(np.float32)).save(folder / "float.tiff")
    rgb.save(folder / "lzw.tiff", compression="tiff_lzw")
    rgb.convert("RGBA").save(folder / "alpha.png")

    def read(path: pathlib.Path) -> None:
        content = path.read_bytes()
        readers = [
            lambda: images.read_image(path),
            lambda: images.encode_image(path),
            lambda: channels.read_channels(path),
            lambda: images.decode_image(content, "a"),
            lambda: images.decode_mask(content, "a"),
            lambda: images.encoded_size(content, "a"),
        ]
        _try_all(readers)

    targets = []
    for path in sorted(folder.iterdir()):
        targets.append(make_target("images", path, mutate_bytes, read))
        if path.suffix == ".png":
            targets.append(make_target("images", path, mutate_png, read))
    targets += _bands(folder / "bands", image)
    masks = folder / "masks"
    write_index_png(masks / "palette.png", label)
    Image.fromarray(label).save(masks / "gray.png")
    Image.fromarray(VOC.color_table()[label].astype(np.uint8)).save(masks / "color.png")
    for path in sorted(masks.iterdir()):
        for mutate in (mutate_bytes, mutate_png):
            targets.append(make_target("masks", path, mutate, lambda path: read_mask(path, VOC)))
    return targets


def _bands(folder: pathlib.Path, image: np.ndarray) -> list[Target]:
    """TIFFs of five bands; without tifffile, all are refused."""
    folder.mkdir()
    values = np.dstack([image, image[..., :2]]).astype(np.uint16) * 16
    write_tiff(folder / "strips.tif", values, t262=1)
    if importlib.util.find_spec("imagecodecs") and importlib.util.find_spec("tifffile"):
        import tifffile

        options = {"photometric": "minisblack", "compression": "zlib", "predictor": True}
        tifffile.imwrite(folder / "tiles.tif", values, planarconfig="contig", tile=(16, 16), **options)
        tifffile.imwrite(folder / "pages.tif", values.transpose(2, 0, 1), bigtiff=True, **options)
    return [make_target("images", path, mutate_bytes, channels.read_channels) for path in sorted(folder.iterdir())]


def _try_all(readers: list[Callable[[], object]]) -> None:
    """Calls all; raises the last user error if all refuse."""
    refused = []
    for read in readers:
        try:
            read()
        except UserError as error:
            refused.append(error)
    if len(refused) == len(readers):
        raise refused[-1]


def _annotations(folder: pathlib.Path) -> list[Target]:
    write_sbd_mat(folder / "a.mat", scene(3, height=20, width=24)[1])
    root = folder / "own"
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for name in ("a", "b"):
        Image.new("RGB", (4, 4)).save(root / "images" / f"{name}.png")
        Image.new("L", (4, 4)).save(root / "masks" / f"{name}.png")
    (root / "classes.txt").write_text("ground 0 0 0\ncrop 0 255 0\nweed 255 0 0\n")
    (root / "train.txt").write_text("a\nb\n")
    read = lambda _: folder_source.read_raw(root)  # noqa: E731
    return [
        make_target("annotations", folder / "a.mat", mutate_bytes, read_class_mask),
        make_target("annotations", root / "classes.txt", mutate_bytes, read),
        make_target("annotations", root / "train.txt", mutate_bytes, read),
    ]


# The files of an export to damage: JSON by its structure, all by their bytes. Masks are targets of their own.
_EXPORT_SUFFIXES = (".json", ".xml", ".txt", ".csv", ".yaml")


def _exports(folder: pathlib.Path) -> list[Target]:
    """What annotation tools write."""
    targets = []
    for name, make in exports.EXPORTS.items():
        root = folder / name
        make(root)

        def read(_: pathlib.Path, name: str = exports.format_of(name), root: pathlib.Path = root) -> None:
            try:
                import_annotations(name, root, folder / "imported", keep_empty=True)
            finally:
                shutil.rmtree(folder / "imported", ignore_errors=True)

        for path in sorted(path for path in root.rglob("*") if path.suffix in _EXPORT_SUFFIXES):
            targets.append(make_target("exports", path, mutate_bytes, read))
            if path.suffix == ".json":
                targets.append(make_target("exports", path, mutate_json, read))
    return targets


def _archives(folder: pathlib.Path) -> list[Target]:
    members = {name: name.encode() * 20 for name in ("a/b.txt", "a/c.txt", "d.txt")}
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    for kind in ("", "gz", "bz2", "xz"):
        with tarfile.open(folder / f"a.tar.{kind or 'plain'}", f"w:{kind}") as file:
            for name, content in members.items():
                member = tarfile.TarInfo(name)
                member.size, member.pax_headers = len(content), {"comment": "x" * 50}
                file.addfile(member, io.BytesIO(content))

    def read(path: pathlib.Path) -> None:
        archives.extract(path, folder.parent / "unpacked", is_needed=lambda _: True)

    targets = [make_target("archives", path, mutate_bytes, read) for path in sorted(folder.iterdir())]
    targets.append(make_target("archives", folder / "a.tar.gz", mutate_gzip, read))
    return targets
