"""Downloads are resumed and verified, and do not disturb each other."""

import contextlib
import hashlib
import logging
import multiprocessing
import re
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from deeplab_jax import progress
from deeplab_jax.data.download import download, has_digest
from deeplab_jax.errors import UserError
from deeplab_jax.files import file_digest
from tests.support.file_server import serving

CONTENT = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8).tobytes()
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
CUT = 1_700_000


@pytest.fixture
def server():
    with serving(**{"data.tgz": CONTENT}) as server:
        yield server


def fetch(server_or_url, path, digest=MD5, size=None, timeout=10):
    url = server_or_url if isinstance(server_or_url, str) else f"{server_or_url.url}/data.tgz"
    otherwise = "download it yourself and pass --source FILE"
    download(url, path, digest=digest, size=size, otherwise=otherwise, timeout=timeout)


@pytest.fixture
def shown(monkeypatch):
    """The last update of the progress bar: completed and total bytes."""
    updates = {}

    class Bar:
        def update(self, **values):
            updates.update(values)

    @contextlib.contextmanager
    def bar(description, total=None, *, is_bytes=False):
        assert is_bytes
        yield Bar()

    monkeypatch.setattr(progress, "bar", bar)
    return updates


def ranges_asked_for(server):
    return [header for _, header in server.requests]


@pytest.mark.parametrize("digest", [MD5, SHA256, SHA256[: len("sha256:") + 8]], ids=["md5", "sha256", "prefix"])
def test_a_complete_download_gets_its_name(server, tmp_path, digest, shown):
    path = tmp_path / "downloads" / "data.tgz"
    fetch(server, path, digest, size=len(CONTENT))
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]
    assert shown == {"completed": len(CONTENT), "total": len(CONTENT)}


def test_an_interrupted_download_is_continued(server, tmp_path, shown):
    path = tmp_path / "data.tgz"
    server.breaks_off_at = CUT
    with pytest.raises(
        UserError, match=r"data\.tgz (was interrupted|cannot be reached.*); run the command again to continue"
    ):
        fetch(server, path)
    assert not path.exists()
    part = tmp_path / "data.tgz.part"
    assert part.read_bytes() == CONTENT[:CUT]
    server.breaks_off_at = None
    fetch(server, path)
    assert path.read_bytes() == CONTENT
    assert not part.exists()
    assert ranges_asked_for(server) == [None, f"bytes={CUT}-"]
    assert shown == {"completed": len(CONTENT), "total": len(CONTENT)}


def test_a_stalled_download_times_out_and_is_continued(server, tmp_path):
    server.stalls_at = CUT
    with pytest.raises(
        UserError, match=r"data\.tgz cannot be reached \(timed out\); run the command again to continue"
    ):
        fetch(server, tmp_path / "data.tgz", timeout=0.5)
    assert (tmp_path / "data.tgz.part").read_bytes() == CONTENT[:CUT]
    server.stalls_at = None
    fetch(server, tmp_path / "data.tgz")
    assert (tmp_path / "data.tgz").read_bytes() == CONTENT


@pytest.mark.parametrize("announces_length", [True, False])
def test_a_server_without_ranges_starts_over(server, tmp_path, announces_length):
    server.ranges, server.announces_length = False, announces_length
    (tmp_path / "data.tgz.part").write_bytes(b"x" * 1000)
    fetch(server, tmp_path / "data.tgz")
    assert (tmp_path / "data.tgz").read_bytes() == CONTENT


def test_a_part_that_is_already_complete_gets_its_name(server, tmp_path):
    (tmp_path / "data.tgz.part").write_bytes(CONTENT)
    fetch(server, tmp_path / "data.tgz")
    assert (tmp_path / "data.tgz").read_bytes() == CONTENT
    assert not (tmp_path / "data.tgz.part").exists()


def test_a_part_of_the_known_size_needs_no_server(tmp_path):
    (tmp_path / "data.tgz.part").write_bytes(CONTENT)
    fetch("http://127.0.0.1:9/data.tgz", tmp_path / "data.tgz", size=len(CONTENT))
    assert (tmp_path / "data.tgz").read_bytes() == CONTENT


def test_redirects_are_followed_when_continuing(server, tmp_path):
    server.redirects["/latest.tgz"] = "/data.tgz"
    (tmp_path / "data.tgz.part").write_bytes(CONTENT[:CUT])
    fetch(f"{server.url}/latest.tgz", tmp_path / "data.tgz")
    assert (tmp_path / "data.tgz").read_bytes() == CONTENT
    assert server.requests == [("/latest.tgz", f"bytes={CUT}-"), ("/data.tgz", f"bytes={CUT}-")]


@pytest.mark.parametrize("part", [b"", b"another file's beginning"])
def test_a_wrong_checksum_removes_the_download(server, tmp_path, part):
    if part:
        (tmp_path / "data.tgz.part").write_bytes(part)
    with pytest.raises(UserError, match="wrong checksum"):
        fetch(server, tmp_path / "data.tgz", MD5 if part else f"md5:{'0' * 32}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("announces_length", [True, False])
@pytest.mark.parametrize("part", [0, CUT])
def test_a_longer_file_is_rejected(server, tmp_path, announces_length, part):
    """Without an announced length, only the known size stops a server that never stops sending."""
    server.files["/data.tgz"] = CONTENT + b"more"
    server.announces_length = announces_length
    if part:
        (tmp_path / "data.tgz.part").write_bytes(CONTENT[:part])
    with pytest.raises(
        UserError, match=r"data\.tgz does not have 3000000 bytes, so it is another file now; download it your"
    ):
        fetch(server, tmp_path / "data.tgz", size=len(CONTENT))
    assert not list(tmp_path.iterdir())


def test_a_shorter_file_is_rejected(server, tmp_path):
    server.files["/data.tgz"] = CONTENT[:-1]
    with pytest.raises(UserError, match="does not have 3000000 bytes"):
        fetch(server, tmp_path / "data.tgz", size=len(CONTENT))
    assert not list(tmp_path.iterdir())


def test_an_unreachable_server_is_named(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/data.tgz"
        with pytest.raises(UserError, match=f"{url} cannot be reached .*--source FILE"):
            fetch(url, tmp_path / "data.tgz")
    assert not list(tmp_path.iterdir())


def test_a_missing_file_is_named(server, tmp_path):
    with pytest.raises(UserError, match="gone answers 404 Not Found; download it yourself and pass --source FILE"):
        fetch(f"{server.url}/gone", tmp_path / "data.tgz")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_reported_and_the_download_continued(server, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (CUT, limits[1]))  # no file may grow further, as on a full disk
    try:
        with pytest.raises(
            UserError, match=r"cannot write .*/data\.tgz: File too large; check the folder and the disk"
        ):
            fetch(server, tmp_path / "data.tgz")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert 0 < (tmp_path / "data.tgz.part").stat().st_size <= CUT
    fetch(server, tmp_path / "data.tgz")
    assert (tmp_path / "data.tgz").read_bytes() == CONTENT


def test_a_folder_that_cannot_be_created_is_named(server, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match=r"cannot write .*/file/data\.tgz: File exists; check the folder"):
        fetch(server, tmp_path / "file" / "data.tgz")


def test_a_killed_download_leaves_a_part_that_is_continued(server, tmp_path):
    path, part = tmp_path / "data.tgz", tmp_path / "data.tgz.part"
    server.stalls_at = CUT
    script = f"""
        import pathlib
        from deeplab_jax.data.download import download
        path, digest = pathlib.Path({str(path)!r}), {MD5!r}
        download({server.url + "/data.tgz"!r}, path, digest=digest, otherwise="")
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    wait_until(lambda: part.exists() and part.stat().st_size > CUT // 2, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(tmp_path.iterdir()) == [part]
    server.stalls_at = None
    fetch(server, path)
    assert path.read_bytes() == CONTENT
    assert re.fullmatch(r"bytes=\d+-", ranges_asked_for(server)[-1])
    assert list(tmp_path.iterdir()) == [path]


def wait_until(condition, process=None):
    for _ in range(3000):
        if condition():
            return
        assert process is None or process.poll() is None
        time.sleep(0.01)
    raise AssertionError("timed out after 30 seconds")


def test_concurrent_downloads_wait_for_the_first_one(server, tmp_path, caplog):
    """The server is asked once, and everyone gets the file. Locks treat threads like processes."""
    caplog.set_level(logging.INFO, "deeplab_jax")
    path = tmp_path / "data.tgz"
    server.stalls_at = CUT
    outcomes = []
    threads = [threading.Thread(target=lambda: outcomes.append(fetch(server, path))) for _ in range(4)]
    threads[0].start()
    wait_until(lambda: (tmp_path / "data.tgz.part").exists() and server.requests)
    for thread in threads[1:]:
        thread.start()
    time.sleep(0.3)
    assert len(server.requests) == 1
    assert not path.exists()
    server.go_on.set()
    for thread in threads:
        thread.join()
    assert path.read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [path]
    assert len(server.requests) == 1
    assert len(outcomes) == 4
    assert caplog.messages == ["Waiting for another process that downloads data.tgz"] * 3


def test_a_download_that_waited_for_a_failed_one_starts_over(server, tmp_path, caplog):
    caplog.set_level(logging.INFO, "deeplab_jax")
    path = tmp_path / "data.tgz"
    server.files["/data.tgz"] = CONTENT[::-1]
    server.stalls_at = CUT
    outcomes = []

    def fetch_or_fail():
        try:
            outcomes.append(fetch(server, path))
        except UserError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=fetch_or_fail) for _ in range(2)]
    threads[0].start()
    wait_until(lambda: server.requests)
    server.files["/data.tgz"] = CONTENT
    threads[1].start()
    time.sleep(0.3)
    server.go_on.set()
    for thread in threads:
        thread.join()
    assert "wrong checksum" in str(outcomes[0])
    assert outcomes[1] is None
    assert caplog.messages == ["Waiting for another process that downloads data.tgz"]
    assert path.read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [path]


def fetch_in_process(url, path, barrier):
    barrier.wait()
    fetch(url, path, timeout=30)


def test_processes_that_download_at_once_all_succeed(server, tmp_path):
    path = tmp_path / "data.tgz"
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    processes = [
        context.Process(target=fetch_in_process, args=(f"{server.url}/data.tgz", path, barrier)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert path.read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [path]


def test_digests_have_an_algorithm_and_at_least_eight_digits(tmp_path):
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    # Examples of FIPS 180-4 (SHA-256) and RFC 1321 (MD5).
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_digest(path) == sha256
    assert has_digest(path, f"sha256:{sha256}")
    assert has_digest(path, f"sha256:{sha256[:8]}")
    assert has_digest(path, "md5:900150983cd24fb0d6963f7d28e17f72")
    assert not has_digest(path, f"sha256:{sha256[:-1]}0")
    assert not has_digest(path, f"sha256:{sha256[:7]}0")
    for malformed in (f"sha256:{sha256[:7]}", sha256, f"crc32:{sha256}", f"sha256:{sha256.upper()}", "sha256:"):
        with pytest.raises(ValueError, match="is not a digest"):
            has_digest(path, malformed)
