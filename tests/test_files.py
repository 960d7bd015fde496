"""Files written whole or not at all."""

import errno
import json
import os
import pathlib
import re
import sys

import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.files import create_folder, find_damage, local_path, open_path, read_json, write_json


def test_json_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"loss": 1.5})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"loss": float("nan")})
    assert json.loads(path.read_text()) == {"loss": 1.5}
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]


def test_links_and_pipes_are_not_replaced(tmp_path):
    """As root, `--json /dev/stdout` replaced the device by a file."""
    (tmp_path / "file.json").write_text("{}")
    link, pipe = tmp_path / "link.json", tmp_path / "pipe"
    link.symlink_to("file.json")
    write_json(link, {"loss": 1})
    assert link.is_symlink()
    assert read_json(tmp_path / "file.json") == {"loss": 1}
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_json(pipe, {"loss": 2})
    assert json.loads(os.read(reader, 100)) == {"loss": 2}
    os.close(reader)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.json", "link.json", "pipe"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_json_that_cannot_be_written_is_one_line_and_leaves_the_old_file(tmp_path, monkeypatch, number):
    path = tmp_path / "metrics.json"
    write_json(path, {"loss": 1.5})

    def full(self, *_, **__):
        self.touch()
        raise OSError(number, "No room")

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    with pytest.raises(UserError, match=f"^cannot write {path}: No room"):
        write_json(path, {"loss": 2.5})
    monkeypatch.undo()
    assert json.loads(path.read_text()) == {"loss": 1.5}
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]


def test_json_for_a_folder_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match="^cannot write .*scores.json: No such file or directory"):
        write_json(tmp_path / "none" / "scores.json", {})


# ---- Reading JSON ----


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged: not valid JSON"),
        (b"{", "is damaged: not valid JSON"),
        (b"[1]", "is damaged: it is not a JSON object"),
        (b"\xff\xfe{\x00}\x00", "is damaged: byte 0 is not UTF-8"),
        (b'{"a": ' * 100_000, "is damaged: its JSON is nested more than 64 levels deep"),
        (b'{"a": ' + b"[" * 100_000, "is damaged: its JSON is nested more than 64 levels deep"),
        (b'{"a": NaN}', "is damaged: not valid JSON .NaN is not a JSON number"),
        (b'{"a": -Infinity}', "is damaged: not valid JSON .-Infinity is not a JSON number"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "is damaged: not valid JSON .the name 'c' appears twice"),
        (b'{"a": ' + b"1" * 10_000 + b"}", "is damaged: not valid JSON"),  # Python limits the digits of an integer
    ],
)
def test_json_that_is_damaged_names_its_file(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path} {message}") as caught:
        read_json(path)
    assert len(str(caught.value)) < 1000


def test_json_of_any_size_is_not_read_into_memory(tmp_path):
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole, which takes no space
    with pytest.raises(UserError, match=f"^{path} is larger than 8 MiB, the limit for JSON files$"):
        read_json(path)


def test_json_that_is_missing_or_a_folder_or_a_pipe_is_named(tmp_path):
    with pytest.raises(UserError, match="none.json is missing$"):
        read_json(tmp_path / "none.json")
    with pytest.raises(UserError, match="is not a file$"):
        read_json(tmp_path)
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(UserError, match="pipe.json is not a file$"):
        read_json(tmp_path / "pipe.json")


# ---- Digests ----


@pytest.mark.parametrize("name", ["/dev/zero", "../../../../../../../../dev/zero", "pipe", "zero"])
def test_digests_name_only_files_of_their_folder(tmp_path, name):
    """Reading one of the others would never end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "digests.json").write_text(json.dumps({name: "0" * 64}))
    assert re.search("outside the folder$|cannot be read: it is not a regular file$", find_damage(tmp_path))


# ---- Paths ----


@pytest.mark.parametrize("address", ["hf://owner/name", "https://host/a.png", "file:///a", "ftp://b/c"])
def test_an_address_is_not_a_path(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (address, pathlib.Path(address)):
        with pytest.raises(
            UserError, match="is an address, but only files, folders and buckets .gs://, s3://. are supported"
        ):
            local_path(path)
        with pytest.raises(UserError, match="is an address"):
            create_folder(pathlib.Path(path), "--output")
        with pytest.raises(UserError, match="is an address"):
            write_json(pathlib.Path(path), {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("address", "extra"), [("gs://bucket/a", "gcs"), ("s3://bucket/a", "s3"), ("GS://b/c", "gcs")])
def test_an_address_of_a_bucket_needs_an_extra(address, extra, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for package in ("gcsfs", "s3fs"):
        monkeypatch.setitem(sys.modules, package, None)  # as if it was not installed
    message = rf"^(gs|s3)://.* needs the package (gcsfs|s3fs); install the extra: pip install 'deeplab_jax\[{extra}\]'$"
    for path in (address, pathlib.Path(address)):
        for action in (open_path, lambda path: create_folder(pathlib.Path(path), "--output"), read_json):
            with pytest.raises(UserError, match=message):
                action(pathlib.Path(path))
        with pytest.raises(UserError, match="is in a bucket, but this has to be a local file or folder"):
            local_path(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("address", ["s3://", "s3:/", "GS:///"])
def test_an_address_needs_a_bucket(address):
    with pytest.raises(UserError, match=r"names no bucket; an address is (gs|s3)://bucket/folder"):
        open_path(address)


@pytest.mark.parametrize("path", ["runs/a", "/runs/a", "a:b", "C:/data", r"C:\data", "12:30/a", "~/data"])
def test_other_paths_are_local(path):
    assert local_path(path) == pathlib.Path(path)


def test_a_file_where_a_folder_is_expected_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="^cannot create --output .*: Not a directory; a part of the path is a file"):
        create_folder(tmp_path / "file" / "out", "--output")
    with pytest.raises(UserError, match="^cannot write .*: Not a directory; a part of the path is a file"):
        write_json(tmp_path / "file" / "scores.json", {})
    with pytest.raises(UserError, match="^cannot write .*: File name too long; choose a shorter name"):
        write_json(tmp_path / ("a" * 300), {})
