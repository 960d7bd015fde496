"""Downloads that continue, and archives that stay inside their folder."""

import contextlib
import hashlib
import http.server
import io
import re
import socket
import tarfile
import threading
import zipfile

import numpy as np
import pytest
from rich.console import Console
from rich.progress import Progress

from deeplab_jax.data import archives
from deeplab_jax.errors import UserError

CONTENT = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8).tobytes()
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; the server's attributes say whether with ranges, and after how many bytes it hangs up."""

    def do_GET(self):
        self.server.requests.append(self.headers.get("Range"))
        if self.path != "/data.tgz":
            self.send_error(404)
            return
        start = 0
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if wanted and self.server.ranges:
            start = int(wanted[1])
            if start >= len(CONTENT):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : self.server.breaks_off_at])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests, server.ranges, server.breaks_off_at = [], True, None
        server.url = f"http://127.0.0.1:{server.server_port}/data.tgz"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@contextlib.contextmanager
def quiet_progress():
    with Progress(console=Console(quiet=True)) as progress:
        yield progress


def fetch(url, path, md5=MD5):
    with quiet_progress() as progress:
        archives.download(url, path, md5=md5, progress=progress, timeout=10)
        return progress.tasks[0] if progress.tasks else None


def test_a_whole_download_gets_its_name(server, tmp_path):
    path = tmp_path / "downloads" / "data.tgz"
    task = fetch(server.url, path)
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]
    assert task.completed == task.total == len(CONTENT)


def test_a_download_that_broke_off_is_continued(server, tmp_path):
    path = tmp_path / "data.tgz"
    server.breaks_off_at = 1_700_000
    with pytest.raises(UserError, match=r"data\.tgz (broke off|cannot be reached.*); run again to continue"):
        fetch(server.url, path)
    assert not path.exists()
    part = tmp_path / "data.tgz.part"
    assert part.read_bytes() == CONTENT[:1_700_000]
    server.breaks_off_at = None
    task = fetch(server.url, path)
    assert path.read_bytes() == CONTENT
    assert not part.exists()
    assert server.requests == [None, "bytes=1700000-"]
    assert task.completed == task.total == len(CONTENT)


def test_a_server_without_ranges_starts_anew(server, tmp_path):
    server.ranges = False
    (tmp_path / "data.tgz.part").write_bytes(CONTENT[:1000])
    fetch(server.url, tmp_path / "data.tgz")
    assert (tmp_path / "data.tgz").read_bytes() == CONTENT


def test_a_part_that_is_whole_already_gets_its_name(server, tmp_path):
    (tmp_path / "data.tgz.part").write_bytes(CONTENT)
    fetch(server.url, tmp_path / "data.tgz")
    assert (tmp_path / "data.tgz").read_bytes() == CONTENT
    assert not (tmp_path / "data.tgz.part").exists()


@pytest.mark.parametrize("part", [b"", b"another file's beginning"])
def test_a_wrong_checksum_removes_the_download(server, tmp_path, part):
    if part:
        (tmp_path / "data.tgz.part").write_bytes(part)
    with pytest.raises(UserError, match="wrong checksum"):
        fetch(server.url, tmp_path / "data.tgz", md5=MD5 if part else "0" * 32)
    assert not list(tmp_path.iterdir())


def test_a_server_that_cannot_be_reached_is_named(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/data.tgz"
        with pytest.raises(UserError, match=f"{url} cannot be reached .*--source FILE"):
            fetch(url, tmp_path / "data.tgz")
    assert not (tmp_path / "data.tgz").exists()


def test_an_address_without_the_file_is_named(server, tmp_path):
    with pytest.raises(UserError, match="gone answers 404 Not Found; fetch it yourself and pass --source FILE"):
        fetch(server.url.replace("data.tgz", "gone"), tmp_path / "data.tgz")
    assert not list(tmp_path.iterdir())


def unpack(archive, folder, wanted=lambda name: True):
    with quiet_progress() as progress:
        archives.extract(archive, folder, wanted=wanted, progress=progress)


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
        # A link to the outside, and a file that would be written through it.
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


def test_only_wanted_files_are_unpacked(tmp_path):
    archive = hostile_tar(tmp_path / "a.tgz")
    unpack(archive, tmp_path / "out", wanted=lambda name: name.endswith("b.txt"))
    assert files_under(tmp_path / "out") == {"good/b.txt": b"text"}


@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_a_damaged_archive_is_named(tmp_path, kept):
    path = tmp_path / "cut.tgz"
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo("random.bin")
        member.size = 100_000
        tar.addfile(member, io.BytesIO(CONTENT[: member.size]))
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(UserError, match=r"archive .*cut\.tgz cannot be unpacked"):
        unpack(path, tmp_path / "out")


# Random bytes are stored as they are: only the checksum tells. Repeating ones are compressed: the decoder stumbles.
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


def test_a_decoder_that_stumbles_is_named(tmp_path):
    path = tmp_path / "damaged.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a", CONTENT[:100] * 100)
    content = bytearray(path.read_bytes())
    content[31] = 0xFF  # after a header of 30 bytes and the name: deflate has no block of this type
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"archive .*damaged\.zip cannot be unpacked: .*invalid block type"):
        unpack(path, tmp_path / "out")


def test_a_file_that_is_no_archive_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("no archive")
    with pytest.raises(UserError, match=r"archive .*notes\.txt cannot be unpacked"):
        unpack(tmp_path / "notes.txt", tmp_path / "out")
