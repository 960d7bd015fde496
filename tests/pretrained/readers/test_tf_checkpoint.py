"""TensorFlow checkpoints: every value of files that TensorFlow wrote; damaged files are refused."""

import io
import pathlib
import shutil
import tarfile

import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.pretrained.readers import tf_checkpoint
from tests.goldens import formula
from tests.pretrained.readers import tf_checkpoint_writer as writer

DATA = pathlib.Path(__file__).parent / "data"
VALUES = {"a/kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "a/bias": np.ones(4), "step": np.array(3)}


def bitwise_crc32c(content):
    register = 0xFFFFFFFF
    for byte in content:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


@pytest.fixture
def prefix(tmp_path):
    """A good checkpoint of `VALUES`."""
    writer.write_checkpoint(tmp_path / "model.ckpt", VALUES)
    return tmp_path / "model.ckpt"


def refusal(path):
    with pytest.raises(UserError) as caught:
        tf_checkpoint.read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- Files that TensorFlow wrote ----


def test_a_checkpoint_with_two_data_files_is_read():
    variables = tf_checkpoint.read(DATA / "small.ckpt")
    assert len(variables) == 46
    for i in range(40):
        name = f"scope/block{i}/unit/weights"
        assert variables[name].dtype == np.float32
        assert np.array_equal(variables[name], formula.uniform(name, (2, 3)))
    assert (variables["global_step"], variables["global_step"].dtype) == (7, np.int64)
    assert variables["empty"].shape == (0, 3)
    for name, dtype in {"a/half": np.float16, "a/double": np.float64, "a/int": np.int32}.items():
        assert variables[name].dtype == dtype
        assert np.array_equal(variables[name], formula.uniform(name, (5,), -9, 9).astype(dtype))
    brain, exact = variables["a/brain"], formula.uniform("a/brain", (5,), -9, 9)
    assert brain.dtype == np.float32
    assert np.all(brain.view(np.uint32) & 0xFFFF == 0)
    np.testing.assert_allclose(brain, exact, rtol=2**-8)


def test_partitioned_variables_are_refused():
    assert "variable whole/part is partitioned" in refusal(DATA / "partitioned.ckpt")


@pytest.mark.parametrize("content", [b"", b"1", b"123456789", bytes(32), bytes(range(256)) * 21 + b"end"])
def test_the_checksum_equals_a_bitwise_crc32c(content):
    assert tf_checkpoint.crc32c(np.frombuffer(content, np.uint8)) == bitwise_crc32c(content)


def test_the_checksum_equals_the_examples_of_rfc_3720():
    for content, value in ((bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E)):
        assert tf_checkpoint.crc32c(np.frombuffer(content, np.uint8)) == value


# ---- Paths ----


def test_a_checkpoint_is_read_by_prefix_index_folder_and_archive(prefix, tmp_path):
    archive = tmp_path / "model.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        for path in sorted(tmp_path.glob("model.ckpt.*")):
            file.add(path, f"deeplab/{path.name}")
        file.add(DATA / "small.ckpt.index", "deeplab/frozen_inference_graph.pb")
    for path in (prefix, tmp_path / "model.ckpt.index", tmp_path, archive):
        variables = tf_checkpoint.read(path)
        assert sorted(variables) == sorted(VALUES)
        assert all(np.array_equal(variables[name], value) for name, value in VALUES.items())


def test_paths_without_a_checkpoint_or_with_several_are_refused(prefix, tmp_path):
    assert refusal(tmp_path / "other.ckpt").endswith(f"there is no file {tmp_path / 'other.ckpt'}.index")
    shutil.copy(tmp_path / "model.ckpt.index", tmp_path / "later.ckpt.index")
    assert "contains 2 checkpoints" in refusal(tmp_path)
    assert "later.ckpt.data-00000-of-00001 cannot be read: No such file" in refusal(tmp_path / "later.ckpt")
    (tmp_path / "empty").mkdir()
    assert "has no checkpoint (files named *.index)" in refusal(tmp_path / "empty")


def test_archives_are_not_unpacked(prefix, tmp_path):
    folder = tmp_path / "here"
    folder.mkdir()
    archive = folder / "model.tar"
    with tarfile.open(archive, "w") as file:
        for name in ("model.ckpt.index", "model.ckpt.data-00000-of-00001"):
            file.add(tmp_path / name, f"../../{name}")
        link = tarfile.TarInfo("link.index")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    assert sorted(tf_checkpoint.read(archive)) == sorted(VALUES)
    assert sorted(tmp_path.rglob("*")) == before


def test_damaged_archives_are_refused(prefix, tmp_path):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as file:
        for path in sorted(tmp_path.glob("model.ckpt.*")):
            file.add(path, path.name)
        noise = tarfile.TarInfo("noise")
        noise.size = 4000
        file.addfile(noise, io.BytesIO(np.random.default_rng(0).bytes(4000)))
    archive = tmp_path / "model.tgz"
    archive.write_bytes(stream.getvalue()[:-1000])
    assert f"archive {archive} cannot be read" in refusal(archive)
    with tarfile.open(archive, "w:gz") as file:
        file.add(tmp_path / "model.ckpt.index", "model.ckpt.index")
    assert "has no file model.ckpt.data-00000-of-00001" in refusal(archive)


# ---- Contents ----


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_an_index_may_have_several_blocks(tmp_path, blocks):
    writer.write_checkpoint(tmp_path / "model.ckpt", VALUES, blocks=blocks)
    variables = tf_checkpoint.read(tmp_path / "model.ckpt")
    assert all(np.array_equal(variables[name], value) for name, value in VALUES.items())


def test_checksums_detect_changed_bytes(prefix, tmp_path):
    for name in ("model.ckpt.index", "model.ckpt.data-00000-of-00001"):
        path = tmp_path / name
        content = path.read_bytes()
        for place in range(0, 56, 7):  # the first block of the index is longer, and so are the data
            path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
            assert "wrong checksum" in refusal(prefix)
        path.write_bytes(content)


def test_truncated_files_are_refused(prefix, tmp_path):
    for name in ("model.ckpt.index", "model.ckpt.data-00000-of-00001"):
        path = tmp_path / name
        content = path.read_bytes()
        for size in (0, 1, 30, len(content) - 1):
            path.write_bytes(content[:size])
            assert f"checkpoint {prefix} is damaged" in refusal(prefix)
        path.write_bytes(content)


def test_blocks_compressed_with_snappy_are_refused(tmp_path):
    block = writer.with_trailer(writer.block_of({b"": writer.field(1, 1)}), compression=1)
    (tmp_path / "model.ckpt.index").write_bytes(writer.table_of([block], last_keys=[b""]))
    assert "compressed with Snappy" in refusal(tmp_path / "model.ckpt")


@pytest.mark.parametrize(
    "entry",
    [
        writer.varint(5) + writer.varint(1) + writer.varint(0) + b"x",  # shares more than the previous key has
        writer.varint(0) + writer.varint(1) + writer.varint(9) + b"x",  # has a value beyond the block
    ],
)
def test_entries_that_reach_beyond_their_block_are_refused(tmp_path, entry):
    block = writer.with_trailer(entry + b"\0\0\0\0" + b"\1\0\0\0")
    (tmp_path / "model.ckpt.index").write_bytes(writer.table_of([block], last_keys=[b"x"]))
    assert "an entry of the block at 0 reaches beyond it" in refusal(tmp_path / "model.ckpt")


@pytest.mark.parametrize(
    ("header", "fields", "message"),
    [
        (writer.field(1, 1), {"offset": 4}, "variable x of shape .* has 8 of 12 bytes"),
        (writer.field(1, 1), {"offset": -4}, "has 0 of 12 bytes"),
        (writer.field(1, 1), {"size": 8}, "has 8 of 8 bytes"),
        (writer.field(1, 1), {"size": -1}, "bytes"),
        (writer.field(1, 1), {"crc": b"\0\0\0\0"}, "variable x has a wrong checksum"),
        (writer.field(1, 1), {"kind": 7}, "variable x has the non-numeric type 7"),
        (writer.field(1, 1), {"kind": 2}, "has 12 of 12 bytes"),
        (writer.field(1, 0), {}, "0 data files"),
        (writer.field(1, 1) + writer.field(2, 1), {}, "byte order 1"),
        (writer.field(1, 1) + b"\x0b", {}, "wire type 3"),
        (writer.field(1, 1) + b"\x1a\x05", {}, "a message is truncated"),
        (writer.field(1, 1) + b"\xff" * 12, {}, "more than ten bytes"),
        (writer.field(1, 3), {}, "model.ckpt.data-00000-of-00003 cannot be read"),
    ],
)
def test_entries_that_do_not_fit_are_refused(tmp_path, header, fields, message):
    value = np.arange(3, dtype=np.float32)
    options = {"offset": 0, "size": 12, "crc": writer.checksum(value.tobytes())} | fields
    entries = {b"": header, b"x": writer.entry(value, **options)}
    writer.write_files(tmp_path / "model.ckpt", entries, value.tobytes())
    with pytest.raises(UserError, match=message):
        tf_checkpoint.read(tmp_path / "model.ckpt")


def test_random_bytes_with_right_checksums_raise_only_user_errors(tmp_path):
    value, rng, refused = np.arange(3, dtype=np.float32), np.random.default_rng(0), 0
    entry = writer.entry(value, offset=0, size=12, crc=writer.checksum(value.tobytes()))
    (tmp_path / "model.ckpt.data-00000-of-00001").write_bytes(value.tobytes())
    for _ in range(150):
        block = bytearray(writer.block_of({b"": writer.field(1, 1), b"x": entry, b"xy": entry}))
        for place in rng.integers(len(block), size=2):
            block[place] = rng.integers(256)
        table = writer.table_of([writer.with_trailer(bytes(block))], last_keys=[b"xy"])
        (tmp_path / "model.ckpt.index").write_bytes(table)
        try:
            tf_checkpoint.read(tmp_path / "model.ckpt")
        except UserError:
            refused += 1
    assert refused > 75
