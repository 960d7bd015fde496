"""Small valid files of every kind, and how each is damaged and read."""

import dataclasses
import gzip
import importlib.util
import io
import json
import pathlib
import random
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable

import h5py
import numpy as np
import safetensors.numpy
from PIL import Image

from deeplab_jax.data import archives, channels, images, read_mask
from deeplab_jax.data.annotation_import import import_annotations
from deeplab_jax.data.sources import folder as folder_source
from deeplab_jax.data.sources.sbd import read_class_mask
from deeplab_jax.errors import UserError
from deeplab_jax.labels import SYNTHETIC, VOC
from deeplab_jax.pretrained import PretrainedNetwork, Provenance, Score, bundle, import_file
from deeplab_jax.pretrained.network import model_config, variable_shapes
from deeplab_jax.pretrained.readers import keras_h5, tf_checkpoint
from deeplab_jax.pretrained.readers.torch_file import read_torch_file
from deeplab_jax.workdir import layout
from tests.conftest import scene, write_index_png, write_sbd_mat
from tests.data.formats import exports
from tests.data.test_pixel_values import write_tiff
from tests.fuzz.mutations import mutate_bytes, mutate_json, mutate_png, random_pickle
from tests.pretrained.importers.keras_files import fill_legacy, fill_weights, write_archive
from tests.pretrained.readers import tf_checkpoint_writer

TORCH_FILES = pathlib.Path(__file__).parents[1] / "pretrained" / "readers" / "data"
Mutate = Callable[[random.Random, bytes], bytes]


@dataclasses.dataclass(frozen=True)
class Target:
    """A file to damage, and what reads it.

    Attributes:
      reader: the name under which results are counted.
      path: the file that is replaced by damaged content.
      content: its valid content.
      mutate: damages the content.
      read: reads the file or the folder around it.
    """

    reader: str
    path: pathlib.Path
    content: bytes
    mutate: Mutate
    read: Callable[[], object]


def make_targets(folder: pathlib.Path) -> list[Target]:
    """Writes the valid files to a folder."""
    targets = []
    for make in (
        _torch,
        _safetensors,
        _keras,
        _tflite,
        _tensorflow,
        _bundle,
        _workdir,
        _images,
        _annotations,
        _exports,
        _archives,
    ):
        place = folder / make.__name__
        place.mkdir()
        targets += make(place)
    return targets


def _target(reader: str, path: pathlib.Path, mutate: Mutate, read: Callable[[pathlib.Path], object]) -> Target:
    return Target(reader, path, path.read_bytes(), mutate, lambda: read(path))


# ---- Weights ----


def _torch(folder: pathlib.Path) -> list[Target]:
    targets = []
    for name in ("zip.pth", "legacy.pth", "protocol4.pth", "nested_zip.pth", "nested_legacy.pth"):
        path = folder / name
        path.write_bytes((TORCH_FILES / name).read_bytes())
        targets.append(_target("torch", path, mutate_bytes, read_torch_file))
        if not name.endswith("legacy.pth"):
            targets.append(_target("torch", path, _mutate_torch_zip, read_torch_file))
    for file_format in ("torchvision", "smp", "timm", "efficientnet-lite"):
        path = folder / f"{file_format}.pth"
        path.write_bytes((TORCH_FILES / "zip.pth").read_bytes())
        read = lambda path, file_format=file_format: import_file(path, file_format)  # noqa: E731
        targets.append(_target("torch", path, _mutate_torch_zip, read))
    return targets


def _mutate_torch_zip(rng: random.Random, content: bytes) -> bytes:
    """Damages the pickle inside a valid archive."""

    def change(name: str, entry: bytes) -> bytes:
        return random_pickle(rng, entry) if name.endswith("data.pkl") else entry

    return _rewrite_zip(content, change)


def _rewrite_zip(content: bytes, change: Callable[[str, bytes], bytes]) -> bytes:
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(result, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return result.getvalue()


def _safetensors(folder: pathlib.Path) -> list[Target]:
    path = folder / "a.safetensors"
    arrays = {"a.weight": np.ones((2, 3), np.float32), "a.count": np.asarray(3), "b": np.zeros(4, np.float16)}
    safetensors.numpy.save_file(arrays, path)
    return [_target("safetensors", path, mutate, read_torch_file) for mutate in (mutate_bytes, _mutate_header)]


def _mutate_header(rng: random.Random, content: bytes) -> bytes:
    """Changes the JSON of the header, with the right length."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = mutate_json(rng, content[8:end])
    return struct.pack("<Q", len(header)) + header + content[end:]


def _keras(folder: pathlib.Path) -> list[Target]:
    rows = [
        ("layers/conv2d", "conv1", "0", "conv1/kernel", (3, 3, 1, 2)),
        ("layers/conv2d", "conv1", "1", "conv1/bias", (2,)),
    ]
    rows += [("layers/batch_normalization", "bn", str(i), f"bn/{i}", (2,)) for i in range(4)]
    values = {path: np.ones(shape, np.float32) for *_, path, shape in rows}
    with h5py.File(folder / "a.weights.h5", "w") as file:
        fill_weights(file, rows, values)
    with h5py.File(folder / "old.h5", "w") as file:
        fill_legacy(file, rows, values)
    write_archive(folder / "a.keras", {"config": {"backbone": {"config": {}}}}, rows, values)
    targets = [_target("keras", path, mutate_bytes, keras_h5.read) for path in sorted(folder.iterdir())]
    archive = folder / "a.keras"
    targets.append(_target("keras", archive, _mutate_keras_zip, lambda path: import_file(path, "kerascv")))
    return targets


def _mutate_keras_zip(rng: random.Random, content: bytes) -> bytes:
    def change(name: str, entry: bytes) -> bytes:
        return (mutate_json if name.endswith(".json") else mutate_bytes)(rng, entry)

    return _rewrite_zip(content, change)


def _tflite(folder: pathlib.Path) -> list[Target]:
    targets = []
    for name in ("float.tflite", "uint8.tflite"):
        path = folder / name
        path.write_bytes((TORCH_FILES / name).read_bytes())
        targets.append(_target("tflite", path, mutate_bytes, lambda path: import_file(path, "tflite")))
    return targets


def _tensorflow(folder: pathlib.Path) -> list[Target]:
    prefix = folder / "model.ckpt"
    variables = {f"scope/{name}": np.ones((2, 3), np.float32) for name in "abcdef"}
    tf_checkpoint_writer.write_checkpoint(prefix, variables, blocks=2)
    index, data = (prefix.with_name(f"model.ckpt.{end}") for end in ("index", "data-00000-of-00001"))
    entries = {
        name: tf_checkpoint_writer.entry(np.ones(6, np.float32), offset=0, size=24, crc=b"\0\0\0\0")
        for name in (b"a", b"b")
    }

    def mutate_entries(rng: random.Random, _: bytes) -> bytes:
        """An index with valid checksums and damaged entries."""
        damaged = {b"": tf_checkpoint_writer.field(1, 1)} | {
            key: mutate_bytes(rng, value) for key, value in entries.items()
        }
        block = tf_checkpoint_writer.with_trailer(mutate_bytes(rng, tf_checkpoint_writer.block_of(damaged)))
        return tf_checkpoint_writer.table_of(
            [block] * rng.choice((1, 1, 3)), last_keys=[bytes([i]) for i in range(3)][:3]
        )

    def mutate_blocks(rng: random.Random, _: bytes) -> bytes:
        damaged = {b"": tf_checkpoint_writer.field(1, 1)} | {
            key: mutate_bytes(rng, value) for key, value in entries.items()
        }
        block = tf_checkpoint_writer.with_trailer(tf_checkpoint_writer.block_of(damaged))
        return tf_checkpoint_writer.table_of([block], last_keys=[b"z"])

    def read(_: pathlib.Path) -> object:
        return tf_checkpoint.read(prefix)

    targets = [_target("tensorflow", path, mutate_bytes, read) for path in (index, data)]
    targets.append(_target("tensorflow", index, mutate_blocks, read))
    with tarfile.open(folder / "a.tar.gz", "w:gz") as tar:
        for path in (index, data):
            tar.add(path, path.name)
    targets.append(
        _target("tensorflow", folder / "a.tar.gz", _mutate_gzip, lambda path: import_file(path, "tf-deeplab"))
    )
    return targets


def _mutate_gzip(rng: random.Random, content: bytes) -> bytes:
    """Damages what is compressed, so that the checksum is right."""
    return gzip.compress(mutate_bytes(rng, gzip.decompress(content)), 1)


# ---- Networks of this package ----


def _bundle(folder: pathlib.Path) -> list[Target]:
    model = model_config(backbone="resnet10_v1_slim", atrous_rates=(1, 2))
    model.aspp_channels = model.decoder_channels = model.low_level_channels = 8
    variables: dict = {}
    for path, shape in variable_shapes(model, SYNTHETIC.num_classes).items():
        *parents, leaf = path.split("/")
        group = variables
        for parent in parents:
            group = group.setdefault(parent, {})
        group[leaf] = np.zeros(shape, np.float32)
    network = folder / "network"
    score = Score(metric="mean_iou", value=0.5, data="fields", split="val", protocol="one scale")
    facts = Provenance(author="Ada", data=("fields",), license="MIT", scores=(score,))
    saved = PretrainedNetwork(model, variables, SYNTHETIC, "guide", (32, 32), provenance=facts)
    bundle.save(saved, network, half=True)
    read = lambda path: import_file(path.parent, "deeplab_jax")  # noqa: E731
    return [
        _target("bundle", network / "config.json", mutate_json, read),
        _target("bundle", network / "model.safetensors", _mutate_header, read),
    ]


def _workdir(folder: pathlib.Path) -> list[Target]:
    from deeplab_jax import config as config_lib
    from deeplab_jax import files
    from deeplab_jax.workdir.checkpoint import Checkpoints

    run = folder / "run"
    run.mkdir()
    config = config_lib.load_config("quickstart", steps=2)
    layout.write_config(run, config, SYNTHETIC, {"train": {}, "evaluate": {}})
    variables = {"params": {"a": {"kernel": np.ones((3, 2), np.float32)}}, "batch_stats": {}}
    with Checkpoints(run) as checkpoints:
        checkpoints.save(1, variables=variables, training={"step": np.asarray(1)})
    step = run / "checkpoints" / "1"

    def read(_: pathlib.Path) -> object:
        # Digests detect damage; whoever writes a hostile checkpoint writes its digests too.
        files.write_digests(step, exclude=("_CHECKPOINT_METADATA", "digests.json"))
        return import_file(run, "workdir")

    targets = [_target("workdir", run / name, mutate_json, read) for name in ("config.json", "labels.json")]
    for path in sorted(path for path in step.rglob("*") if path.is_file()):
        targets.append(_target("workdir", path, mutate_json if _is_json(path) else mutate_bytes, read))
    return targets


def _is_json(path: pathlib.Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


# ---- Images, annotations, archives ----


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
        targets.append(_target("images", path, mutate_bytes, read))
        if path.suffix == ".png":
            targets.append(_target("images", path, mutate_png, read))
    targets += _bands(folder / "bands", image)
    masks = folder / "masks"
    write_index_png(masks / "palette.png", label)
    Image.fromarray(label).save(masks / "gray.png")
    Image.fromarray(VOC.color_table()[label].astype(np.uint8)).save(masks / "color.png")
    for path in sorted(masks.iterdir()):
        for mutate in (mutate_bytes, mutate_png):
            targets.append(_target("masks", path, mutate, lambda path: read_mask(path, VOC)))
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
    return [_target("images", path, mutate_bytes, channels.read_channels) for path in sorted(folder.iterdir())]


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
        _target("annotations", folder / "a.mat", mutate_bytes, read_class_mask),
        _target("annotations", root / "classes.txt", mutate_bytes, read),
        _target("annotations", root / "train.txt", mutate_bytes, read),
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
            targets.append(_target("exports", path, mutate_bytes, read))
            if path.suffix == ".json":
                targets.append(_target("exports", path, mutate_json, read))
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

    targets = [_target("archives", path, mutate_bytes, read) for path in sorted(folder.iterdir())]
    targets.append(_target("archives", folder / "a.tar.gz", _mutate_gzip, read))
    return targets
