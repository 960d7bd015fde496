"""Paths in buckets behave like paths on a disk, where a bucket can."""

import inspect
import io
import json
import pathlib
import pickle

import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.storage import BucketPath, bucket_path, client, is_bucket_address


@pytest.mark.parametrize("address", ["gs://bucket/runs/a", "s3://bucket/runs/a"])
def test_pure_operations_keep_the_address(address):
    path = BucketPath(address)
    assert isinstance(path, pathlib.Path)
    assert str(path) == address
    assert str(path / "checkpoints" / "5") == f"{address}/checkpoints/5"
    assert str(path.with_name("b.png").with_suffix(".jpg")) == address[:-1] + "b.jpg"
    assert str(path.parent.parent) == address.removesuffix("/runs/a")
    assert path.relative_to(path.parent.parent).as_posix() == "runs/a"
    assert pickle.loads(pickle.dumps(path)) == path
    assert path == BucketPath(address) != BucketPath(address + "b")
    assert path.is_absolute()
    assert path.absolute() is path.resolve() is path


@pytest.mark.parametrize(
    ("text", "expected"), [("gs://b/a", True), ("S3://b", True), ("runs/gs", False), ("hf://a", False)]
)
def test_addresses_of_buckets(text, expected):
    assert is_bucket_address(text) == expected


def test_no_method_of_pathlib_reaches_the_local_disk():
    """Every public method is pure, or has its own version for buckets, also in newer versions of Python."""
    pure = {name for name in dir(pathlib.PurePath) if not name.startswith("_")} - {"is_absolute"}
    built_on_others = {"read_text", "write_text", "cwd", "home", "from_uri", "as_uri", "info", "is_relative_to"}
    names = {name for name, _ in inspect.getmembers(pathlib.Path) if not name.startswith("_")}
    missing = {name for name in names - pure - built_on_others if name not in vars(BucketPath)}
    assert not missing
    for name in bucket_path.UNSUPPORTED:
        with pytest.raises(io.UnsupportedOperation, match="is in a bucket, which has no"):
            getattr(BucketPath("gs://b/a"), name)()


def test_files_appear_whole_when_they_are_closed(bucket):
    path = bucket / "runs" / "a.txt"
    assert not path.exists()
    with path.open("w") as file:
        file.write("grün")
        assert not path.exists()
    assert path.read_bytes() == "grün".encode()
    assert path.read_text("utf-8") == "grün"
    with path.open("a") as file:
        file.write("\n")
    assert path.read_text() == "grün\n"

    def fail(mode, half):
        with path.open(mode) as file:
            file.write(half)
            raise ZeroDivisionError

    for mode, half in (("w", "half"), ("wb", b"half")):
        with pytest.raises(ZeroDivisionError):
            fail(mode, half)
    assert path.read_text() == "grün\n"
    assert path.write_bytes(b"123") == 3
    assert path.stat().st_size == 3
    assert path.stat().st_mtime > 1.7e9
    with path.open("rb") as file:
        assert file.read() == b"123"
    with pytest.raises(FileExistsError):
        path.open("x")


def test_folders_exist_as_long_as_files_are_in_them(bucket):
    folder = bucket / "runs"
    assert not folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("b/c.txt", "a.txt", "a.txt.part", "b/d/e.json"):
        (folder / name).write_text(name)
    assert folder.is_dir()
    assert folder.exists()
    assert not folder.is_file()
    assert (folder / "a.txt").is_file()
    assert not (folder / "a").exists()
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt", "a.txt.part", "b"]
    assert [path.name for path in folder.glob("*.txt")] == ["a.txt"]
    assert [path.relative_to(folder).as_posix() for path in folder.rglob("*.*")] == [
        "a.txt", "a.txt.part", "b/c.txt", "b/d/e.json",
    ]  # fmt: skip
    with pytest.raises(FileExistsError):
        (folder / "a.txt").mkdir(exist_ok=True)
    with pytest.raises(IsADirectoryError):
        folder.read_bytes()
    client.delete(folder.rglob("*"))
    assert not folder.exists()
    with pytest.raises(FileNotFoundError):
        folder.iterdir()
    with pytest.raises(FileNotFoundError):
        (folder / "a.txt").unlink()
    (folder / "a.txt").unlink(missing_ok=True)


def test_other_processes_are_seen_at_once(bucket, server, scheme):
    """Listings are not cached."""
    folder = bucket / "runs"
    (folder / "a").write_text("1")
    assert len(list(folder.iterdir())) == 1
    client._bucket.cache_clear()  # as another process would
    (folder / "b").write_text("2")
    (folder / "a").unlink()
    client._bucket.cache_clear()
    assert [path.name for path in folder.iterdir()] == ["b"]


def test_a_missing_bucket_is_one_line(bucket):
    path = BucketPath(f"{bucket.parts[0]}//no-such-bucket") / "runs"
    for action in (path.exists, lambda: path.write_bytes(b"1"), lambda: list(path.iterdir()), path.mkdir):
        with pytest.raises(UserError, match=r"^the bucket (gs|s3)://no-such-bucket does not exist; create it, or"):
            action()


def test_a_version_is_replaced_once(bucket):
    path = bucket / "lease"
    assert client.read_version(path) is None
    first = client.replace_version(path, b"1", None)
    assert first is not None
    assert client.replace_version(path, b"2", None) is None
    second = client.replace_version(path, b"3", first)
    assert second not in (None, first)
    assert client.replace_version(path, b"4", first) is None
    assert client.replace_version(path, b"3", first) == second  # the answer to a request was lost
    found = client.read_version(path)
    assert found[:2] == (b"3", second)
    assert 0 <= found.age < 60
    assert json.loads(path.read_bytes()) == 3
