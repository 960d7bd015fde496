"""Small valid weight files and networks, and how each is damaged and read."""

import io
import json
import pathlib
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable

import h5py
import numpy as np
import safetensors.numpy

from deeplab_jax.labels import SYNTHETIC
from deeplab_jax.pretrained import PretrainedNetwork, Provenance, Score, bundle, import_file
from deeplab_jax.pretrained.network import model_config, variable_shapes
from deeplab_jax.pretrained.readers import keras_h5, tf_checkpoint
from deeplab_jax.pretrained.readers.torch_file import read_torch_file
from deeplab_jax.workdir import layout
from tests.fuzz.mutations import mutate_bytes, mutate_gzip, mutate_json, random_pickle
from tests.fuzz.target import Target, make_target
from tests.pretrained.importers.keras_files import fill_legacy, fill_weights, write_archive
from tests.pretrained.readers import tf_checkpoint_writer

TORCH_FILES = pathlib.Path(__file__).parents[1] / "pretrained" / "readers" / "data"


def write_torch(folder: pathlib.Path) -> list[Target]:
    targets = []
    for name in ("zip.pth", "legacy.pth", "protocol4.pth", "nested_zip.pth", "nested_legacy.pth"):
        path = folder / name
        path.write_bytes((TORCH_FILES / name).read_bytes())
        targets.append(make_target("torch", path, mutate_bytes, read_torch_file))
        if not name.endswith("legacy.pth"):
            targets.append(make_target("torch", path, _mutate_torch_zip, read_torch_file))
    for file_format in ("torchvision", "smp", "timm", "efficientnet-lite"):
        path = folder / f"{file_format}.pth"
        path.write_bytes((TORCH_FILES / "zip.pth").read_bytes())
        read = lambda path, file_format=file_format: import_file(path, file_format)  # noqa: E731
        targets.append(make_target("torch", path, _mutate_torch_zip, read))
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


def write_safetensors(folder: pathlib.Path) -> list[Target]:
    path = folder / "a.safetensors"
    arrays = {"a.weight": np.ones((2, 3), np.float32), "a.count": np.asarray(3), "b": np.zeros(4, np.float16)}
    safetensors.numpy.save_file(arrays, path)
    return [make_target("safetensors", path, mutate, read_torch_file) for mutate in (mutate_bytes, _mutate_header)]


def _mutate_header(rng: random.Random, content: bytes) -> bytes:
    """Changes the JSON of the header, with the right length."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = mutate_json(rng, content[8:end])
    return struct.pack("<Q", len(header)) + header + content[end:]


def write_keras(folder: pathlib.Path) -> list[Target]:
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
    targets = [make_target("keras", path, mutate_bytes, keras_h5.read) for path in sorted(folder.iterdir())]
    archive = folder / "a.keras"
    targets.append(make_target("keras", archive, _mutate_keras_zip, lambda path: import_file(path, "kerascv")))
    return targets


def _mutate_keras_zip(rng: random.Random, content: bytes) -> bytes:
    def change(name: str, entry: bytes) -> bytes:
        return (mutate_json if name.endswith(".json") else mutate_bytes)(rng, entry)

    return _rewrite_zip(content, change)


def write_tflite(folder: pathlib.Path) -> list[Target]:
    targets = []
    for name in ("float.tflite", "uint8.tflite"):
        path = folder / name
        path.write_bytes((TORCH_FILES / name).read_bytes())
        targets.append(make_target("tflite", path, mutate_bytes, lambda path: import_file(path, "tflite")))
    return targets


def write_tensorflow(folder: pathlib.Path) -> list[Target]:
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

    targets = [make_target("tensorflow", path, mutate_bytes, read) for path in (index, data)]
    targets.append(make_target("tensorflow", index, mutate_blocks, read))
    with tarfile.open(folder / "a.tar.gz", "w:gz") as tar:
        for path in (index, data):
            tar.add(path, path.name)
    targets.append(
        make_target("tensorflow", folder / "a.tar.gz", mutate_gzip, lambda path: import_file(path, "tf-deeplab"))
    )
    return targets


# ---- Networks of this package ----


def write_bundle(folder: pathlib.Path) -> list[Target]:
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
        make_target("bundle", network / "config.json", mutate_json, read),
        make_target("bundle", network / "model.safetensors", _mutate_header, read),
    ]


def write_workdir(folder: pathlib.Path) -> list[Target]:
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

    targets = [make_target("workdir", run / name, mutate_json, read) for name in ("config.json", "labels.json")]
    for path in sorted(path for path in step.rglob("*") if path.is_file()):
        targets.append(make_target("workdir", path, mutate_json if _is_json(path) else mutate_bytes, read))
    return targets


def _is_json(path: pathlib.Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True
