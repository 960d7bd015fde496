"""Unpacking archives: nothing is written outside the target folder, and damage is reported."""

import dataclasses
import io
import lzma
import tarfile
import zipfile
import zlib

import numpy as np
import pytest

from deeplab_jax import budget
from deeplab_jax.data import archives
from deeplab_jax.errors import UserError

CONTENT = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8).tobytes()


def unpack(archive, folder, is_needed=lambda name: True):
    archives.extract(archive, folder, is_needed=is_needed)


def files_under(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def hostile_tar(path):
    with tarfile.open(path, "w:gz") as tar:

        def add(name, kind=tarfile.REGTYPE, link=""):
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, link, 4 if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(b"text") if member.size else None)

        add("good/a.txt")
        add("../outside.txt")
        add("good/../../outside.txt")
        add(str(path.parent / "absolute.txt"))
        add("link.txt", tarfile.SYMTYPE, str(path))
        add("hard.txt", tarfile.LNKTYPE, "good/a.txt")
        add("pipe", tarfile.FIFOTYPE)
        # A link that points outside, and a file that would be written through it.
        add("way_out", tarfile.SYMTYPE, str(path.parent))
        add("way_out/through.txt")
        add("good/b.txt")
    return path


def test_nothing_is_written_outside_the_folder(tmp_path):
    archive = hostile_tar(tmp_path / "hostile.tgz")
    folder = tmp_path / "deep" / "unpacked"
    unpack(archive, folder)
    assert files_under(folder) == {"good/a.txt": b"text", "good/b.txt": b"text", "way_out/through.txt": b"text"}
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert {path.name for path in tmp_path.iterdir()} == {"hostile.tgz", "deep"}
    assert [path.name for path in folder.parent.iterdir()] == ["unpacked"]


def test_a_hostile_zip_writes_nothing_outside(tmp_path):
    archive = tmp_path / "hostile.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("good/a.txt", "../outside.txt", "good/../../outside.txt", "/absolute.txt"):
            file.writestr(name, "text")
    unpack(archive, tmp_path / "deep" / "unpacked")
    assert files_under(tmp_path / "deep") == {"unpacked/good/a.txt": b"text"}
    assert {path.name for path in tmp_path.iterdir()} == {"hostile.zip", "deep"}


def test_only_needed_files_are_unpacked(tmp_path):
    archive = hostile_tar(tmp_path / "a.tgz")
    unpack(archive, tmp_path / "out", is_needed=lambda name: name.endswith("b.txt"))
    assert files_under(tmp_path / "out") == {"good/b.txt": b"text"}


@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_a_truncated_archive_is_named(tmp_path, kept):
    path = tmp_path / "cut.tgz"
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo("random.bin")
        member.size = 100_000
        tar.addfile(member, io.BytesIO(CONTENT[: member.size]))
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(UserError, match=r"archive .*cut\.tgz cannot be unpacked"):
        unpack(path, tmp_path / "out")


# Random bytes are stored unchanged, so only the checksum differs. Repeating ones are compressed, so the decoder fails.
@pytest.mark.parametrize("payload", [CONTENT[:200_000], CONTENT[:1000] * 2000], ids=["stored", "compressed"])
@pytest.mark.parametrize("kind", ["tgz", "txz", "zip"])
def test_flipped_bytes_are_named(tmp_path, kind, payload):
    path = tmp_path / f"damaged.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("random.bin", payload)
    else:
        with tarfile.open(path, {"tgz": "w:gz", "txz": "w:xz"}[kind]) as tar:
            member = tarfile.TarInfo("random.bin")
            member.size = len(payload)
            tar.addfile(member, io.BytesIO(payload))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 300] = CONTENT[200_000:200_300]
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"archive .*damaged\.{kind} cannot be unpacked"):
        unpack(path, tmp_path / "out")


def test_a_failing_decoder_names_the_archive(tmp_path):
    path = tmp_path / "damaged.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a", CONTENT[:100] * 100)
    content = bytearray(path.read_bytes())
    content[31] = 0xFF  # after the header (30 bytes) and the name: not a valid block type of deflate
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"archive .*damaged\.zip cannot be unpacked: .*invalid block type"):
        unpack(path, tmp_path / "out")


def test_a_file_that_is_not_an_archive_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("not an archive")
    with pytest.raises(UserError, match=r"archive .*notes\.txt cannot be unpacked"):
        unpack(tmp_path / "notes.txt", tmp_path / "out")


def write_bomb(path, size):
    """An archive of zeros, which deflate compresses a thousandfold."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("zeros", bytes(size))
    else:
        with tarfile.open(path, "w:gz") as tar:
            member = tarfile.TarInfo("zeros")
            member.size = size
            tar.addfile(member, io.BytesIO(bytes(size)))


@pytest.fixture
def small_budget(monkeypatch):
    """Archives may always cost 64 kB, and a hundred times their size."""
    monkeypatch.setattr(budget, "ARCHIVE", dataclasses.replace(budget.ARCHIVE, fixed=1 << 16))


@pytest.mark.parametrize("name", ["bomb.zip", "bomb.tgz"])
def test_an_archive_bomb_is_rejected(tmp_path, small_budget, name):
    write_bomb(tmp_path / name, 20_000_000)
    with pytest.raises(UserError, match=rf"archive .*{name} expands to more than \d+ MB, .* pass the folder$"):
        unpack(tmp_path / name, tmp_path / "out")
    written = sum(len(content) for content in files_under(tmp_path / "out").values())
    assert written <= 100 * (tmp_path / name).stat().st_size


def test_thousands_of_empty_files_are_rejected(tmp_path, small_budget):
    with tarfile.open(tmp_path / "many.tgz", "w:gz") as tar:
        for i in range(2000):
            tar.addfile(tarfile.TarInfo(f"{i}"))
    with pytest.raises(UserError, match="expands to more than"):
        unpack(tmp_path / "many.tgz", tmp_path / "out")
    assert len(files_under(tmp_path / "out")) < 1000


def test_an_entry_without_a_name_is_reported_as_damage(tmp_path):
    archive = tmp_path / "archive.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.txt", "text")
    content = archive.read_bytes()
    at = content.rindex(b"a.txt")  # in the directory at the end, which is the part that is read
    archive.write_bytes(content[:at] + b"\0" + content[at + 1 :])
    with pytest.raises(UserError, match="an entry has no name$"):
        unpack(archive, tmp_path / "out")


def test_skipped_members_of_a_tar_are_counted(tmp_path, small_budget):
    write_bomb(tmp_path / "bomb.tgz", 20_000_000)
    with pytest.raises(UserError, match="expands to more than"):
        unpack(tmp_path / "bomb.tgz", tmp_path / "out", is_needed=lambda name: False)


def test_a_header_that_claims_gigabytes_is_rejected_before_it_is_read(tmp_path):
    member = tarfile.TarInfo("././@PaxHeader")
    member.type, member.size = tarfile.XHDTYPE, 8 << 30
    (tmp_path / "a.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(10_000))
    with pytest.raises(UserError, match="a.tar cannot be unpacked: a header claims 8589934592 bytes"):
        unpack(tmp_path / "a.tar", tmp_path / "out")


def test_a_sparse_member_that_claims_terabytes_is_rejected(tmp_path, small_budget):
    member = tarfile.TarInfo("zeros")
    member.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(2**43), "GNU.sparse.numblocks": "1"}
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        member.size = 1
        tar.addfile(member, io.BytesIO(b"a"))
    with pytest.raises(UserError, match="expands to more than"):
        unpack(tmp_path / "a.tar", tmp_path / "out")


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_whose_entries_expand_without_a_limit_is_rejected(tmp_path, compression):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", compression) as file:
        file.writestr("zeros", bytes(10_000_000))
    with pytest.raises(UserError, match="compression is neither deflate nor none; pack it again"):
        unpack(tmp_path / "bomb.zip", tmp_path / "out")


def test_an_xz_dictionary_of_a_gigabyte_is_rejected(tmp_path):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 20}]
    packed = bytearray(lzma.compress(content.getvalue(), check=lzma.CHECK_NONE, filters=filters))
    (tmp_path / "a.tar.xz").write_bytes(packed)
    unpack(tmp_path / "a.tar.xz", tmp_path / "out")
    at = packed.index(bytes([0x21, 1]), 12) + 2  # filter LZMA2 with one byte of properties, the size of the dictionary
    packed[at] = 40  # four gigabytes
    header = packed[12 : 12 + 4 * packed[12]]
    packed[12 + len(header) : 16 + len(header)] = zlib.crc32(header).to_bytes(4, "little")
    (tmp_path / "bomb.tar.xz").write_bytes(packed)
    with pytest.raises(UserError, match=r"bomb.tar.xz cannot be unpacked: .*[Mm]emory"):
        unpack(tmp_path / "bomb.tar.xz", tmp_path / "out")


@pytest.mark.parametrize("padding", [0, 8])
def test_an_xz_archive_of_several_streams_is_unpacked(tmp_path, padding):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        member = tarfile.TarInfo("random.bin")
        member.size = len(CONTENT)
        tar.addfile(member, io.BytesIO(CONTENT))
    whole = content.getvalue()
    parts = [lzma.compress(part, preset=0) for part in (whole[:1_000_000], whole[1_000_000:])]
    (tmp_path / "a.tar.xz").write_bytes(parts[0] + bytes(padding) + parts[1] + bytes(padding))
    unpack(tmp_path / "a.tar.xz", tmp_path / "out")
    assert files_under(tmp_path / "out") == {"random.bin": CONTENT}
