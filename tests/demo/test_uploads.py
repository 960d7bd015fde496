"""The folder of a page: only its own files are found in it, and it goes when the page ends."""

import os
import signal
import subprocess
import sys
import tempfile

import pytest

from deeplab_jax.demo import page, uploads


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files of this process."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_the_folder_is_deleted_with_its_files(temporary):
    with uploads.open_folder() as files:
        assert files.is_dir()
        assert files.parent.stat().st_mode & 0o077 == 0
        (files / "a").mkdir()
        (files / "a" / "photo.png").write_text("x")
    assert list(temporary.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), uploads.open_folder():
        raise KeyboardInterrupt
    assert list(temporary.iterdir()) == []


def test_the_next_page_deletes_the_files_of_a_killed_one_but_not_of_a_running_one(temporary):
    code = "from deeplab_jax.demo import uploads\nwith uploads.open_folder() as f:\n print(f, flush=True)\n input()"
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, env=environment
    ) as page:
        folder = os.path.dirname(page.stdout.readline().strip())
        with uploads.open_folder():
            assert os.path.isdir(folder)
        page.send_signal(signal.SIGKILL)
    assert os.path.isdir(folder)
    with uploads.open_folder() as files:
        assert not os.path.exists(folder)
        assert list(temporary.iterdir()) == [files.parent]


def test_a_link_in_place_of_an_abandoned_folder_is_not_followed(temporary, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "page.lock").touch()
    (temporary / "deeplab_jax_demo_x").symlink_to(precious)
    uploads.remove_abandoned()
    assert (precious / "page.lock").exists()


def test_only_files_in_the_folder_are_found(temporary, tmp_path):
    with uploads.open_folder() as files:
        inside, outside = files / "a" / "photo.png", tmp_path / "private.png"
        inside.parent.mkdir()
        inside.write_text("x")
        outside.write_text("x")
        (files / "link.png").symlink_to(outside)
        (files / "loop.png").symlink_to(files / "loop.png")
        assert uploads.find_upload(files, str(inside)) == inside
        assert uploads.find_upload(files, f"{files}/b/../a/photo.png") is None  # there is no b
        for name in (
            None, "", ".", str(outside), f"{files}/../page.lock", f"{files}_/photo.png", f"{files}/link.png",
            f"{files}/a", f"{files}/loop.png", "/etc/passwd", "/dev/zero", f"{inside}\0", f"file://{inside}",
            "http://127.0.0.1/a.png", "a" * 9999,
        ):  # fmt: skip
            assert uploads.find_upload(files, name) is None, name


def test_nohup_keeps_the_page_when_the_terminal_closes():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.getsignal(signal.SIGTERM)
    try:
        with page._interrupt_on_signals():
            signal.raise_signal(signal.SIGHUP)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
        assert (signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGTERM)) == (signal.SIG_IGN, before[1])
    finally:
        signal.signal(signal.SIGHUP, before[0])
