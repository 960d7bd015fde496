"""The metrics log: every step once, strict JSON, speeds without pauses, TensorBoard events, log lines and the bar."""

import contextlib
import io
import json
import math
import pathlib
import resource
import struct
import types

import numpy as np
import pytest
import rich.console
from PIL import Image
from tensorboardX.proto import event_pb2

from deeplab_jax import progress, visualization
from deeplab_jax.config import base_config
from deeplab_jax.errors import UserError
from deeplab_jax.labels import VOC
from deeplab_jax.workdir import metrics_log
from deeplab_jax.workdir.metrics_log import Writer
from deeplab_jax.workdir.tensorboard import Events
from tests.conftest import scene


def lines(workdir: pathlib.Path) -> list[dict]:
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (workdir / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def events(workdir: pathlib.Path) -> list[event_pb2.Event]:
    """The records of all event files: length, its checksum, the event, its checksum."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        content, position = path.read_bytes(), 0
        while position < len(content):
            (length,) = struct.unpack_from("<Q", content, position)
            found.append(event_pb2.Event.FromString(content[position + 12 : position + 12 + length]))
            position += length + 16
    return found


def scalars(workdir: pathlib.Path) -> dict[tuple[int, str], float]:
    return {
        (event.step, value.tag): value.simple_value
        for event in events(workdir)
        for value in event.summary.value
        if value.WhichOneof("value") == "simple_value"
    }


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test advances."""
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(metrics_log, "time", types.SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def quiet(workdir, *, tensorboard: bool = False, **options) -> Writer:
    config = base_config() if tensorboard else None
    return Writer(workdir, **{"total_steps": 40, "batch_size": 4, "config": config} | options)


def test_training_goes_to_jsonl_and_tensorboard(tmp_path, clock):
    with quiet(tmp_path / "run", tensorboard=True) as writer:
        writer.write_train(10, {"loss": 2.5, "mean_iou": None, "learning_rate": 0.1})
        clock.now += 5
        writer.write_train(20, {"loss": 1.5, "mean_iou": 0.25, "learning_rate": 0.05})
    none = {"examples_per_second": None, "steps_per_second": None}
    assert lines(tmp_path / "run") == [
        {"step": 10, **none, "loss": 2.5, "mean_iou": None, "learning_rate": 0.1},
        {
            "step": 20,
            "examples_per_second": 8.0,
            "steps_per_second": 2.0,
            "loss": 1.5,
            "mean_iou": 0.25,
            "learning_rate": 0.05,
        },
    ]
    assert scalars(tmp_path / "run") == {
        (10, "train/loss"): 2.5,
        (10, "train/learning_rate"): np.float32(0.1),  # TensorBoard holds float32
        (20, "train/loss"): 1.5,
        (20, "train/mean_iou"): 0.25,
        (20, "train/learning_rate"): np.float32(0.05),
        (20, "train/examples_per_second"): 8.0,
        (20, "train/steps_per_second"): 2.0,
    }


def test_evaluation_goes_to_jsonl_and_tensorboard_with_its_gallery(tmp_path):
    gallery = []
    for seed in (1, 2):
        image, truth = scene(seed, height=20 + 5 * seed, width=30)
        gallery.append((image, truth, np.zeros_like(truth)))
    values = {"mean_iou": 0.5, "num_images": 2, "loss": None, "per_class_iou": {"cat": 0.5, "dog": None}}
    with quiet(tmp_path, tensorboard=True) as writer:
        writer.write_evaluation(30, values | {"gallery": gallery}, VOC)
    assert lines(tmp_path) == [{"step": 30, "eval": values}]
    assert scalars(tmp_path) == {(30, "eval/mean_iou"): 0.5, (30, "eval/num_images"): 2, (30, "iou/cat"): 0.5}
    (image,) = [value for event in events(tmp_path) for value in event.summary.value if value.HasField("image")]
    assert image.tag == "eval/gallery"
    shown = np.asarray(Image.open(io.BytesIO(image.image.encoded_image_string)))
    np.testing.assert_array_equal(shown, visualization.gallery_strip(*zip(*gallery, strict=True), VOC))


def test_an_evaluation_without_images_is_written(tmp_path):
    with quiet(tmp_path, tensorboard=True) as writer:
        writer.write_evaluation(1, {"mean_iou": 0.5, "gallery": []}, VOC)
    assert lines(tmp_path) == [{"step": 1, "eval": {"mean_iou": 0.5}}]


def test_values_that_are_not_finite_become_null(tmp_path, capfd):
    with quiet(tmp_path, tensorboard=True) as writer:
        writer.write_train(1, {"loss": math.nan, "mean_iou": math.inf})
        writer.write_evaluation(1, {"loss": -math.inf, "per_class_iou": {"cat": np.float32("nan")}}, VOC)
    train, evaluation = lines(tmp_path)
    assert (train["loss"], train["mean_iou"]) == (None, None)
    assert evaluation["eval"] == {"loss": None, "per_class_iou": {"cat": None}}
    assert scalars(tmp_path) == {}
    assert capfd.readouterr() == ("", "")


def test_speed_excludes_compilation_pauses_and_evaluations(tmp_path, clock):
    def slow_strip(*arguments, **options):
        clock.now += 1000
        return np.zeros((1, 1, 3), np.uint8)

    image = (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8))
    with pytest.MonkeyPatch.context() as patch, quiet(tmp_path, tensorboard=True) as writer:
        patch.setattr(visualization, "gallery_strip", slow_strip)
        clock.now += 60  # compiling
        writer.write_train(10, {"loss": 1.0})
        clock.now += 2
        with writer.pause():
            clock.now += 500
        writer.write_evaluation(10, {"mean_iou": 0.5, "gallery": [image]}, VOC)
        clock.now += 3
        writer.write_train(20, {"loss": 1.0})
        clock.now += 20
        writer.write_train(30, {"loss": 1.0})
    speeds = [line["steps_per_second"] for line in lines(tmp_path) if "eval" not in line]
    assert speeds == [None, 2.0, 0.5]


def test_a_pause_within_a_pause_counts_once(tmp_path, clock):
    with quiet(tmp_path) as writer:
        writer.write_train(1, {"loss": 1.0})
        clock.now += 4
        with writer.pause():
            clock.now += 100
            with writer.pause():
                clock.now += 100
            clock.now += 100
        writer.write_train(2, {"loss": 1.0})
    assert lines(tmp_path)[-1]["steps_per_second"] == 0.25


def test_a_pause_that_fails_still_ends(tmp_path, clock):
    with quiet(tmp_path) as writer:
        writer.write_train(1, {"loss": 1.0})
        with contextlib.suppress(RuntimeError), writer.pause():
            clock.now += 100
            raise RuntimeError("the evaluation failed")
        clock.now += 1
        writer.write_train(2, {"loss": 1.0})
    assert lines(tmp_path)[-1]["steps_per_second"] == 1.0


def test_a_continued_run_has_every_step_once(tmp_path):
    with quiet(tmp_path) as writer:
        for step in (10, 20, 30):
            writer.write_train(step, {"loss": float(step)})
        writer.write_evaluation(20, {"mean_iou": 0.2}, VOC)
        writer.write_evaluation(30, {"mean_iou": 0.3}, VOC)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "los')  # a crash
    with quiet(tmp_path, start_step=20) as writer:
        writer.write_train(30, {"loss": 3.0})
    assert [(line["step"], line.get("loss"), "eval" in line) for line in lines(tmp_path)] == [
        (10, 10.0, False),
        (20, 20.0, False),
        (20, None, True),
        (30, 3.0, False),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize(
    ("damaged", "is_reported"),
    [(b"\xff\xfe\n", False), (b"{}\n", False), (b"[1]\n\n", True), (b'{"step": 5, "loss": "\xff"}\n{}\n', True)],
)
def test_damaged_lines_are_dropped(tmp_path, caplog, damaged, is_reported):
    with quiet(tmp_path) as writer:
        writer.write_train(10, {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(damaged)
    with quiet(tmp_path, start_step=20):
        pass
    assert [line["step"] for line in lines(tmp_path)] == [10]
    assert ("dropped 2 damaged lines, the first is line 2" in caplog.text) == is_reported


def test_a_run_from_scratch_drops_the_lines_of_a_run_without_a_checkpoint(tmp_path):
    for loss in (1.0, 2.0):
        with quiet(tmp_path) as writer:
            writer.write_train(10, {"loss": loss})
    assert [line["loss"] for line in lines(tmp_path)] == [2.0]


def test_a_finished_run_replaces_its_last_evaluation(tmp_path):
    with quiet(tmp_path) as writer:
        writer.write_train(40, {"loss": 1.0})
        writer.write_evaluation(40, {"mean_iou": 0.3}, VOC)
    with quiet(tmp_path, start_step=40) as writer:
        writer.write_evaluation(40, {"mean_iou": 0.4}, VOC)
    train, evaluation = lines(tmp_path)
    assert (train["loss"], evaluation["eval"]) == (1.0, {"mean_iou": 0.4})


def test_tensorboard_hides_repeated_steps(tmp_path):
    with quiet(tmp_path, tensorboard=True, start_step=20):
        pass
    starts = [event for event in events(tmp_path) if event.HasField("session_log")]
    assert [(event.step, event.session_log.status) for event in starts] == [(21, event_pb2.SessionLog.START)]


def test_a_run_that_repeats_an_evaluation_has_it_once(tmp_path):
    with quiet(tmp_path) as writer:
        writer.write_train(20, {"loss": 1.0})
        writer.write_evaluation(20, {"mean_iou": 0.3}, VOC)
    with quiet(tmp_path, start_step=20, repeats_evaluation=True) as writer:
        writer.write_evaluation(20, {"mean_iou": 0.4}, VOC)
    assert [line.get("eval") for line in lines(tmp_path)] == [None, {"mean_iou": 0.4}]


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_run_goes_on_without_events_if_their_disk_is_full(tmp_path, caplog):
    with quiet(tmp_path, tensorboard=True) as writer, pathlib.Path("/dev/full").open("wb", buffering=0) as full:
        (guarded,) = writer._writers
        guarded._writer.close()
        guarded._writer._file = full
        for step in range(1, 40):  # more than any queue holds
            writer.write_train(step, {"loss": 1.0})
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 40))
    folder, reason = tmp_path / "tensorboard", "No space left on device; continuing without them"
    messages = [message for message in caplog.messages if "TensorBoard" in message]
    assert messages == [f"cannot write TensorBoard events to {folder}: {reason}"]


def test_a_record_that_fits_only_in_part_ends_the_events(tmp_path, caplog):
    events = Events(tmp_path)
    (file,) = tmp_path.iterdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 5, before[1]))
    try:
        events.add_scalars("train", {"loss": 2.5}, 10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    events.add_scalars("train", {"loss": 1.5}, 20)
    assert caplog.messages == [
        f"cannot write TensorBoard events to {tmp_path}: No space left on device; continuing without them"
    ]


def test_a_run_goes_on_without_events_if_their_folder_cannot_be_created(tmp_path, caplog):
    (tmp_path / "tensorboard").write_text("")
    with quiet(tmp_path, tensorboard=True) as writer:
        writer.write_train(1, {"loss": 1.0})
    assert [line["step"] for line in lines(tmp_path)] == [1]
    assert caplog.text.count("cannot write TensorBoard events") == 1


def test_a_disabled_writer_touches_nothing(tmp_path, caplog):
    caplog.set_level("INFO")
    with Writer(tmp_path / "run", total_steps=1, batch_size=1, enabled=False) as writer:
        writer.write_train(1, {"loss": 1.0})
        with writer.pause():
            pass
        writer.write_evaluation(1, {"mean_iou": 1.0}, VOC)
    assert not (tmp_path / "run").exists()
    assert caplog.messages == []


def test_without_a_bar_each_report_is_logged(tmp_path, clock, caplog):
    caplog.set_level("INFO")
    with quiet(tmp_path) as writer:
        writer.write_train(10, {"loss": 2.5, "mean_iou": None})
        clock.now += 5
        writer.write_train(20, {"loss": 1.25, "mean_iou": 0.25, "learning_rate": 0.1})
        writer.write_evaluation(20, {"mean_iou": 0.5, "num_pixels": 9, "num_images": 7, "per_class_iou": {}}, VOC)
    assert caplog.messages == [
        "step 0/40  preparing the train step; the first report follows when its steps are done",
        "step 10/40  loss 2.5",
        "step 20/40  loss 1.25  mean_iou 0.25  8 images/s  0:00:10 left",
        "step 20/40  evaluation: mean_iou 0.5  num_images 7",
    ]


def test_lines_that_a_bar_shows_are_marked(tmp_path, clock, caplog):
    caplog.set_level("INFO")
    console = rich.console.Console(file=io.StringIO(), force_terminal=True, width=100)
    progress.show_on(console)
    try:
        with quiet(tmp_path) as writer:
            writer.write_train(10, {"loss": 2.5})
            clock.now += 5
            writer.write_train(20, {"loss": 1.25})
            with writer.pause(), progress.bar("evaluate", 3) as bar:  # bars nest
                bar.advance()
            writer.write_evaluation(20, {"mean_iou": 0.5}, VOC)
    finally:
        progress.show_on(None)
    shown = console.file.getvalue()
    assert "loss 1.25  8 images/s  0:00:10 left" in shown
    assert "20/40" in shown
    logged = {record.getMessage(): getattr(record, progress.SHOWN_IN_BAR, False) for record in caplog.records}
    assert logged == {
        "step 0/40  preparing the train step; the first report follows when its steps are done": True,
        "step 10/40  loss 2.5": True,
        "step 20/40  loss 1.25  8 images/s  0:00:10 left": True,
        "step 20/40  evaluation: mean_iou 0.5": False,
    }


def test_a_workdir_that_cannot_be_written_is_a_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl: .*; free some space"):
        quiet(tmp_path / "file" / "run").__enter__()


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_a_users_mistake(tmp_path):
    with quiet(tmp_path) as writer:
        (tmp_path / "metrics.jsonl").unlink()
        (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
        with pytest.raises(UserError, match=r"metrics\.jsonl: No space left on device"):
            writer.write_train(1, {"loss": 1.0})
