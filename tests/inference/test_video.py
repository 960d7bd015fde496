"""Videos: every frame once and in order, and one-line errors in every stage."""

import contextlib
import pathlib
import threading
import time

import cv2
import numpy as np
import pytest

from deeplab_jax.cli import main
from deeplab_jax.errors import UserError
from deeplab_jax.inference import video
from deeplab_jax.labels import LabelSet

LABELS = LabelSet(("dark", "bright"), ((255, 0, 0), (0, 0, 255)))
SIZE = (32, 48)


def gray(value: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.full((*size, 3), value, np.uint8)


def write_video(path: pathlib.Path, frames: list[np.ndarray], rate: float = 10.0) -> pathlib.Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), rate, frames[0].shape[1::-1])
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


def read_video(path: pathlib.Path) -> list[np.ndarray]:
    """Frames in RGB."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
    return frames


def by_brightness(frame: np.ndarray) -> np.ndarray:
    return (frame[..., 0] > 127).astype(np.uint8)


@pytest.fixture
def source(tmp_path) -> pathlib.Path:
    """Twelve gray frames, alternating dark and bright, at 10 frames per second."""
    return write_video(tmp_path / "street.mp4", [gray(value) for value in (40, 200) * 6])


@pytest.fixture(autouse=True)
def _no_threads_are_left():
    before = threading.active_count()
    yield
    assert threading.active_count() <= before


@pytest.mark.parametrize("codec", video.CODECS)
def test_every_frame_is_tinted_in_order_at_its_size_and_rate(source, tmp_path, codec):
    path = tmp_path / "out.mp4"
    report = video.label_video(by_brightness, source, path, LABELS, codec=codec)
    frames = read_video(path)
    assert len(frames) == report.frames == 12
    for i, frame in enumerate(frames):
        assert frame.shape == (*SIZE, 3)
        # 0.4 of the gray and 0.6 of the class color; the codec changes colors a little
        value, color = ((40, (255, 0, 0)), (200, (0, 0, 255)))[i % 2]
        np.testing.assert_allclose(
            frame.mean(axis=(0, 1)), 0.4 * value + 0.6 * np.array(color), atol=20, err_msg=f"frame {i}"
        )
    assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS) == 10
    assert not report.interrupted
    assert report.frames_per_second > 0
    assert set(report.milliseconds) == {"decode", "compute", "encode"}


def test_an_odd_row_and_column_are_cropped(tmp_path, monkeypatch):
    class Odd:
        def __init__(self):
            self.frames = [gray(200, (33, 49))] * 3  # OpenCV cannot write such a video

        def read(self):
            return (True, self.frames.pop()) if self.frames else (False, None)

    monkeypatch.setattr(video, "_open", lambda source: contextlib.nullcontext((Odd(), 10.0)))
    video.label_video(by_brightness, tmp_path / "odd.mov", tmp_path / "out.mp4", LABELS)
    assert [frame.shape for frame in read_video(tmp_path / "out.mp4")] == [(32, 48, 3)] * 3


def test_stages_overlap(tmp_path, monkeypatch):
    """Each stage waits 20 ms per frame. Without overlap they would take three times as long."""
    source = write_video(tmp_path / "long.mp4", [gray(200)] * 20)
    overlay = video.visualization.overlay

    def slow_label(frame):
        time.sleep(0.02)
        return by_brightness(frame)

    def slow_overlay(*arguments):
        time.sleep(0.02)
        return overlay(*arguments)

    monkeypatch.setattr(video.visualization, "overlay", slow_overlay)
    report = video.label_video(slow_label, source, tmp_path / "out.mp4", LABELS)
    assert report.milliseconds["compute"] + report.milliseconds["encode"] > 40
    assert report.seconds < 0.85 * 19 * 0.04


class Camera:
    """Thirty frames of rising brightness, one every ten milliseconds; then it is unplugged."""

    def __init__(self):
        self.count = 0

    def read(self):
        time.sleep(0.01)
        self.count += 1
        return (self.count <= 30, gray(min(255, 8 * self.count)))


def test_a_slow_network_skips_frames_of_a_camera_and_the_file_keeps_time(tmp_path, monkeypatch):
    camera = Camera()
    monkeypatch.setattr(video, "_open", lambda source: contextlib.nullcontext((camera, 100.0)))
    seen, delays = [], []

    def slow_label(frame):
        seen.append(int(frame[0, 0, 0]) // 8)
        delays.append(camera.count - seen[-1])
        time.sleep(0.04)
        return by_brightness(frame)

    report = video.label_video(slow_label, 0, tmp_path / "out.mp4", LABELS)
    assert seen == sorted(set(seen))
    assert report.frames == len(seen) < 25
    assert np.median(delays) <= 1  # the newest frame is labeled
    assert len(read_video(tmp_path / "out.mp4")) == seen[-1] - seen[0] + 1


# ---- Errors ----


@pytest.mark.parametrize("content", [b"", b"not a video" * 100])
def test_a_damaged_file_is_named_and_no_output_remains(tmp_path, content):
    (tmp_path / "bad.mp4").write_bytes(content)
    with pytest.raises(UserError, match=r"^cannot read video .*bad.mp4: it is damaged or not a video$"):
        video.label_video(by_brightness, tmp_path / "bad.mp4", tmp_path / "out.mp4", LABELS)
    assert not list(tmp_path.glob("out*"))


def test_a_missing_camera_is_named(tmp_path):
    with pytest.raises(UserError, match="^cannot read camera 77"):
        video.label_video(by_brightness, 77, tmp_path / "out.mp4", LABELS)


def test_an_error_of_the_network_ends_all_stages_and_no_output_remains(source, tmp_path):
    def broken(frame):
        if frame[0, 0, 0] > 127:
            raise UserError("the network is broken")
        return by_brightness(frame)

    with pytest.raises(UserError, match="^the network is broken$"):
        video.label_video(broken, source, tmp_path / "out.mp4", LABELS)
    assert not list(tmp_path.glob("out*"))


def test_an_encoding_error_is_raised_in_the_calling_thread(source, tmp_path):
    with pytest.raises(UserError, match="cannot write .*none/out.part.mp4 as mp4v video"):
        video.label_video(by_brightness, source, tmp_path / "none" / "out.mp4", LABELS)


def test_missing_frames_of_the_output_are_detected(source, tmp_path, monkeypatch):
    writer_of = cv2.VideoWriter

    class FullDisk:
        def __init__(self, *arguments):
            self._writer, self._count = writer_of(*arguments), 0

        def write(self, frame):
            self._count += 1
            if self._count <= 7:
                self._writer.write(frame)

        def __getattr__(self, name):
            return getattr(self._writer, name)

    monkeypatch.setattr(video.cv2, "VideoWriter", FullDisk)
    with pytest.raises(UserError, match="out.part.mp4 has only 7 of 12 frames; is the disk full"):
        video.label_video(by_brightness, source, tmp_path / "out.mp4", LABELS)
    assert not list(tmp_path.glob("out*"))


def test_after_an_interrupt_the_file_has_the_frames_so_far(source, tmp_path):
    count = 0

    def interrupted(frame):
        nonlocal count
        count += 1
        if count == 6:
            raise KeyboardInterrupt
        return by_brightness(frame)

    report = video.label_video(interrupted, source, tmp_path / "out.mp4", LABELS)
    assert report.interrupted
    assert len(read_video(tmp_path / "out.mp4")) == report.frames == 5


def test_the_overlay_is_named_after_its_source(source, tmp_path):
    assert video.overlay_path(source, tmp_path) == tmp_path / "street_overlay.mp4"
    assert video.overlay_path(2, tmp_path) == tmp_path / "camera2_overlay.mp4"
    with pytest.raises(UserError, match="none.mp4 does not exist"):
        video.overlay_path(tmp_path / "none.mp4", tmp_path)


# ---- The command ----


def test_the_command_labels_a_video_and_an_image(trained, source, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "a.png"), gray(100))
    arguments = [
        "predict", str(source), str(tmp_path / "a.png"), "--workdir", str(trained), "--output", str(tmp_path / "out"),
        "--size", "32x48", "--smooth", "0.5",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as done:
        main.main(arguments)
    lines = capsys.readouterr().err.splitlines()
    assert done.value.code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "street_overlay.mp4", "a_mask.png", "a_overlay.png",
    }  # fmt: skip
    assert len(read_video(tmp_path / "out" / "street_overlay.mp4")) == 12
    assert lines[-1].startswith(f"Wrote 12 frames to {tmp_path / 'out' / 'street_overlay.mp4'} at ")
    assert "per second (decode" in lines[-1]
    with pytest.raises(SystemExit) as done:
        main.main(arguments)
    assert done.value.code == 1
    assert "a_mask.png exists; use --skip-existing" in capsys.readouterr().err


def test_an_older_overlay_stays_if_the_new_one_fails(tmp_path):
    (tmp_path / "out.mp4").write_bytes(b"mine")
    (tmp_path / "bad.mp4").write_bytes(b"not a video")
    with pytest.raises(UserError, match="bad.mp4"):
        video.label_video(by_brightness, tmp_path / "bad.mp4", tmp_path / "out.mp4", LABELS)
    assert (tmp_path / "out.mp4").read_bytes() == b"mine"


def test_the_command_goes_on_after_a_damaged_video(source, tmp_path, capsys, monkeypatch):
    class Brightness:
        label_set = LABELS

        def start_video(self, *, smoothing):
            return by_brightness

    monkeypatch.setattr("deeplab_jax.cli.predict._load_predictor", lambda args: Brightness())
    bad, out = tmp_path / "bad.mp4", tmp_path / "out"
    bad.write_bytes(b"not a video")
    arguments = ["predict", str(bad), str(source), "--output", str(out)]
    for options, message in (
        ([], f"deeplab-jax: 1 of 2 inputs failed ({bad}): cannot read video {bad}: it is damaged or not a video; "),
        (["--skip-existing"], f"deeplab-jax: cannot read video {bad}: it is damaged or not a video"),
    ):
        with pytest.raises(SystemExit) as done:
            main.main(arguments + options)
        assert done.value.code == 1
        assert capsys.readouterr().err.splitlines()[-1].startswith(message)
        assert [path.name for path in out.iterdir()] == ["street_overlay.mp4"]


def test_videos_of_the_same_name_are_both_named(source, tmp_path, capsys):
    other = tmp_path / "street.avi"
    other.write_bytes(source.read_bytes())
    with pytest.raises(SystemExit) as done:
        main.main(["predict", str(source), str(other), "--output", str(tmp_path / "out")])
    assert done.value.code == 1
    assert f"videos {source} and {other} have the same name" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
