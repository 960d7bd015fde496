"""Files that claim or repeat more than they hold cost one line, not the memory or the evening.

Each of them hung a reader, killed its process, or would need gigabytes. `tests.fuzz` looks for more.
"""

import dataclasses
import io
import json
import signal
import struct
import tarfile
import zipfile

import h5py
import numpy as np
import pytest
import safetensors.numpy

from deeplab_jax import budget, files
from deeplab_jax.errors import UserError
from deeplab_jax.pretrained.network import voc_or_numbered_labels
from deeplab_jax.pretrained.readers import keras_h5, tf_checkpoint, tflite_file
from deeplab_jax.pretrained.readers.torch_file import read_torch_file
from tests.pretrained.readers import tf_checkpoint_writer as writer
from tests.pretrained.readers.torch_writer import save_pickle


@pytest.fixture(autouse=True)
def alarm():
    """Ends a test that hangs."""

    def stop(*_: object) -> None:
        pytest.fail("the reader hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def small_budget(monkeypatch):
    """Arrays may take 64 kB, and four times the size of the file."""
    monkeypatch.setattr(budget, "ARRAYS", dataclasses.replace(budget.ARRAYS, fixed=1 << 16))


def assert_refused(read, path, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 600


# ---- PyTorch ----

_PICKLES = {
    "a key whose hash takes for ever": (b"}()" + b"q\x01h\x01\x86" * 60 + b"K\x01u.", "a key of type tuple"),
    "a key nested too deep to hash": (b"}()" + b"\x85" * 40_000 + b"K\x01u.", "a key of type tuple"),
    "a set of such keys": (b"\x8f()" + b"q\x01h\x01\x86" * 60 + b"\x90.", "needs a set"),
    "lists nested too deep to print": (b"}X\x01\0\0\0a" + b"]" * 20_000 + b"a" * 19_999 + b"s.", "is not a tensor"),
    "names nested too deep to print": (b"()" + b"\x85" * 20_000 + b"U\x01a\x93.", "name of a function is not a string"),
    "a dictionary inside itself": (b"}q\x01U\x05modelh\x01s.", "entry 'model' is not a tensor"),
    "endless instructions": (b"N0" * 30_000 + b".", "more than 50000 instructions"),
    "a list that is unpacked again and again": (
        b"(" + b"N" * 20_000 + b"tq\x01ctorch\nSize\nq\x02(" + b"h\x02h\x01R" * 9000 + b"t.",
        "20000 arguments",
    ),
    "a list that is copied again and again": (
        b"]q\x01(" + b"N" * 20_000 + b"ectorch\nSize\nq\x02h\x01\x85q\x03(" + b"h\x02h\x03R" * 9000 + b"t.",
        "impossible shape",
    ),
    "a dictionary that is copied again and again": (
        b"](" + b"K\x01N\x86" * 5000 + b"eq\x01ccollections\nOrderedDict\nq\x02h\x01\x85q\x03("
        b"h\x02h\x03Rh\x02h\x03R" + b"h\x02h\x03R" * 9000 + b"t.",
        "does not contain a state dict",
    ),
    "an integer of a megabyte": (b"\x8b\0\0\x10\0" + b"\x7f" * (1 << 20) + b".", "an integer of 8388607 bits"),
    "keys whose hashes are equal": (
        b"}(" + b"".join(b"\x8a\x10" + (k * (2**61 - 1)).to_bytes(16, "little") + b"N" for k in range(5000)) + b"u.",
        "a key of type int",
    ),
    "a persistent id of many items": (b"(" + b"N" * 20_000 + b"tQ.", "persistent id is not a short tuple"),
}


@pytest.mark.parametrize("kind", _PICKLES)
def test_pickles(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(budget, "PICKLE_INSTRUCTIONS", 50_000)  # so that the type checks of the tests take no time
    content, match = _PICKLES[kind]
    assert_refused(read_torch_file, save_pickle(tmp_path / "a.pth", b"\x80\x02" + content), match)


def test_a_dictionary_shared_by_many_keys_is_searched_once(tmp_path):
    values = b"}q\x01(" + b"".join(b"J" + struct.pack("<i", i) + b"N" for i in range(5000)) + b"u"
    keys = b"".join(b"J" + struct.pack("<i", i) + b"h\x01" for i in range(5000))
    content = b"\x80\x02" + values + b"0}(" + keys + b"u."
    assert_refused(read_torch_file, save_pickle(tmp_path / "a.pth", content), "is not a tensor")


def test_tensors_that_share_their_numbers_are_counted(tmp_path, small_budget):
    number = np.zeros(10_000, np.float32)
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuJ"
        + struct.pack("<i", 10_000) + b"tQK\x00J" + struct.pack("<i", 10_000) + b"\x85K\x01\x85tR"
    )  # fmt: skip
    names = b"".join(b"U\x03%03dh\x01" % i for i in range(100))
    path = save_pickle(tmp_path / "a.pth", b"\x80\x02" + tensor + b"q\x010}(" + names + b"u.", [number])
    assert_refused(read_torch_file, path, "expands to more than")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (struct.pack("<Q", 1 << 40) + bytes(100), "header claims 1099511627776 bytes"),
        (struct.pack("<Q", 200_000) + b"[" * 200_000, "nested more than 64 levels deep|recursion|not JSON|Expecting"),
        (struct.pack("<Q", 9 << 20) + b" " * (9 << 20), "larger than 8 MiB"),
    ],
)
def test_safetensors_headers(tmp_path, content, match):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    assert_refused(read_torch_file, path, match)


# ---- Keras ----


def write_h5(path, fill):
    with h5py.File(path, "w") as file:
        fill(file.create_group("layers/conv2d/vars"))
    return path


def in_itself(group):
    group.parent["more"] = group.parent


def deep_groups(group):
    group = group.parent
    for _ in range(3000):
        group = group.create_group("a")


_H5 = {
    "an array of terabytes": (lambda group: group.create_dataset("0", (2**40,), "f4"), "expands to more than"),
    "a chunk of gigabytes": (
        lambda group: group.create_dataset("0", (10,), "f4", chunks=(2**29,), maxshape=(None,)),
        "expands to more than",
    ),
    "a compressed array": (
        lambda group: group.create_dataset("0", data=np.zeros(10**6), compression="gzip"),
        "is compressed; store it plainly",
    ),
    "a link to another file": (
        lambda group: group.__setitem__("0", h5py.ExternalLink("/etc/passwd", "/a")),
        "link to another place",
    ),
    "a link to another name": (lambda group: group.__setitem__("0", h5py.SoftLink("/a")), "link to another place"),
    "text": (lambda group: group.create_dataset("0", data=["text"]), "not an array of numbers"),
    "groups nested deeply": (deep_groups, "deeply nested groups"),
    "a group inside itself": (in_itself, "deeply nested groups"),
    "a table": (lambda group: group.create_dataset("0", data=np.zeros(3, "f4,f4")), "not an array of numbers"),
}


@pytest.mark.parametrize("kind", _H5)
def test_hdf5(tmp_path, kind):
    fill, match = _H5[kind]
    assert_refused(keras_h5.read, write_h5(tmp_path / "a.weights.h5", fill), match)


@pytest.mark.parametrize("entry", ["config.json", "model.weights.h5"])
def test_keras_archives_that_expand(tmp_path, small_budget, entry):
    path = tmp_path / "a.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}" if entry != "config.json" else " " * 10**7)
        archive.writestr("model.weights.h5", bytes(10**7))
    assert_refused(keras_h5.read, path, "expands to more than")


# ---- TFLite ----


def tables(*counts: int) -> bytes:
    """A model whose field 1 is a vector of this many tables, all the same one."""
    (count,) = counts
    root = struct.pack("<I", 16) + b"TFL3" + struct.pack("<HHHH", 8, 8, 0, 4) + struct.pack("<iI", 8, 4)
    return root + struct.pack("<I", count) + b"".join(struct.pack("<i", -(8 + 4 * i)) for i in range(count))


def test_a_tflite_file_of_too_many_tables(tmp_path):
    path = tmp_path / "a.tflite"
    path.write_bytes(tables(100_000))
    assert_refused(tflite_file.read, path, "a list has 100000 items; at most 16384 are read")


# ---- TensorFlow ----


def index_of(block: bytes, *, copies: int = 1) -> bytes:
    """A table whose index has several handles of one block."""
    content = writer.with_trailer(block)
    handle = writer.varint(0) + writer.varint(len(block))
    meta, index = writer.block_of({}), writer.block_of({b"%04d" % i: handle for i in range(copies)})
    footer = b""
    for part in (meta, index):
        footer += writer.varint(len(content)) + writer.varint(len(part))
        content += writer.with_trailer(part)
    return content + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def write_index(path, content):
    path.with_name(f"{path.name}.index").write_bytes(content)
    path.with_name(f"{path.name}.data-00000-of-00001").write_bytes(bytes(24))
    return path


def test_an_index_whose_blocks_overlap(tmp_path):
    content = index_of(writer.block_of({b"": writer.field(1, 1), b"a": bytes(1000)}), copies=50)
    assert_refused(tf_checkpoint.read, write_index(tmp_path / "a.ckpt", content), "the blocks of the index overlap")


def test_an_index_whose_keys_grow(tmp_path, small_budget):
    entries = b"".join(writer.varint(i) + b"\x01\x00a" for i in range(20_000))
    block = entries + struct.pack("<II", 0, 1)
    assert_refused(tf_checkpoint.read, write_index(tmp_path / "a.ckpt", index_of(block)), "expands to more than")


def test_variables_that_share_their_bytes_are_counted(tmp_path, small_budget):
    value = np.zeros(10_000, np.float32)
    entry = writer.entry(value, offset=0, size=value.nbytes, crc=writer.checksum(value.tobytes()))
    writer.write_files(
        tmp_path / "a.ckpt", {b"": writer.field(1, 1)} | {b"%03d" % i: entry for i in range(100)}, value.tobytes()
    )
    assert_refused(tf_checkpoint.read, tmp_path / "a.ckpt", "expands to more than")


@pytest.mark.parametrize("extent", [b"text", 2**63])
def test_a_shape_that_is_no_shape(tmp_path, extent):
    shape = writer.field(2, writer.field(2, writer.field(1, extent)) * 2)
    entry = writer.field(1, 1) + shape + writer.field(5, 24)
    writer.write_files(tmp_path / "a.ckpt", {b"": writer.field(1, 1), b"a": entry}, bytes(24))
    assert_refused(tf_checkpoint.read, tmp_path / "a.ckpt", "is damaged: ")


def test_an_archive_of_a_checkpoint_that_expands(tmp_path, small_budget):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("model.ckpt.data-00000-of-00001")
        member.size = 10**7
        tar.addfile(member, io.BytesIO(bytes(10**7)))
    assert_refused(tf_checkpoint.read, tmp_path / "a.tar.gz", "expands to more than")


# ---- Shared ----


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b"[" * 64 + b"]" * 64, b" " * (9 << 20), b"NaN", b"9" * 5000, b"\xff"]
)
def test_json(content):
    with pytest.raises(UserError, match="^a.json is (damaged|larger)"):
        files.parse_json(b'{"a": ' + content + b"}", "a.json")
    assert files.parse_json(b'{"a": ' + b"[" * 60 + b"]" * 60 + b"}", "a.json")


def test_a_network_of_a_billion_classes():
    with pytest.raises(UserError, match="the network has 1000000000 classes; 1 to 255 are supported"):
        voc_or_numbered_labels(10**9)


def test_arrays_of_safetensors_lie_in_the_file(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(4, np.float32)}, path)
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["a"]["shape"] = [2**40]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[end:])
    assert_refused(read_torch_file, path, "a.safetensors is damaged: ")
