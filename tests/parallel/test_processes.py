"""Runs of several real processes on this machine: equal numbers, one agreed stop, and one line if a process dies."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.config import to_dict
from deeplab_jax.errors import UserError
from deeplab_jax.evaluation.evaluator import evaluate
from deeplab_jax.parallel import launcher, processes
from tests.conftest import scene
from tests.support import runs


@pytest.fixture(scope="module")
def single(tmp_path_factory, compilation_cache):
    """The workdir of ten steps in one process with four devices."""
    workdir = tmp_path_factory.mktemp("single") / "run"
    code, err = runs.run(workdir, devices=4)
    assert code == 0, err
    return workdir


def assert_close(workdir, other):
    """Counts are equal. Sums in another order differ by float32 rounding, amplified over ten steps."""
    for mine, theirs in zip(runs.lines(workdir), runs.lines(other), strict=True):
        assert mine["step"] == theirs["step"]
        scores, expected = mine.get("eval", mine), theirs.get("eval", theirs)
        for name in ("num_images", "num_pixels"):
            assert scores.get(name) == expected.get(name)
        np.testing.assert_allclose(scores["loss"], expected["loss"], rtol=1e-3)
        np.testing.assert_allclose(scores["mean_iou"], expected["mean_iou"], atol=2e-3)
    mine, theirs = runs.state(workdir), runs.state(other)
    assert mine.keys() == theirs.keys()
    worst = 0.0
    for path, leaf in mine.items():
        if np.issubdtype(leaf.dtype, np.integer):
            np.testing.assert_array_equal(leaf, theirs[path], err_msg=path)
        else:
            worst = max(worst, float(np.abs(leaf - theirs[path]).max() / max(np.abs(theirs[path]).max(), 1e-6)))
    print(f"largest difference of a leaf, relative to its largest value: {worst:.2e}")
    assert worst < 0.02


def check_processes(count, single, workdir):
    code, err = runs.run(workdir, "--local-processes", str(count), devices=4 // count)
    assert code == 0, err
    assert_close(workdir, single)
    # Only process 0 reports: one line for each that is logged, beside the last with the scores.
    assert sum(line.startswith("step 10/10  loss") for line in err) == 1
    assert sum(line.startswith("mean IoU") for line in err) == 1


@pytest.mark.slow
def test_two_processes_match_one(single, tmp_path):
    check_processes(2, single, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["num_images"] == 200


@pytest.mark.slow
def test_four_processes_match_one(single, tmp_path):
    check_processes(4, single, tmp_path / "run")


def stop_when_logging(workdir, *arguments, devices, child=None):
    """SIGTERM to the command, or to one of its processes alone, once the first line is logged."""
    process = runs.start(workdir, *arguments, devices=devices)
    runs.wait_for(lambda: runs.has_logged(workdir))
    if child is None:
        process.send_signal(signal.SIGTERM)
    else:
        os.kill(runs.children(process.pid)[child], signal.SIGTERM)
    code, err = runs.finish(process)
    assert code == 75, err
    assert sum("stopped by SIGTERM at step" in line for line in err) == 1
    return max(int(path.name) for path in (workdir / "checkpoints").iterdir())


@pytest.mark.slow
def test_sigterm_to_one_of_two_saves_one_step_that_one_process_continues(single, tmp_path):
    step = stop_when_logging(tmp_path / "run", "--local-processes", "2", devices=2, child=1)
    assert 3 <= step < 10
    code, err = runs.run(tmp_path / "run", devices=4)
    assert code == 0, err
    assert any(f"from step {step} of 10" in line for line in err)
    assert_close(tmp_path / "run", single)


@pytest.mark.slow
def test_one_process_continues_a_run_of_four_and_vice_versa(single, tmp_path):
    stop_when_logging(tmp_path / "four", "--local-processes", "4", devices=1)
    code, err = runs.run(tmp_path / "four", devices=4)
    assert code == 0, err
    assert_close(tmp_path / "four", single)
    stop_when_logging(tmp_path / "one", devices=4)
    code, err = runs.run(tmp_path / "one", "--local-processes", "4", devices=1)
    assert code == 0, err
    assert_close(tmp_path / "one", single)


@pytest.mark.slow
def test_a_killed_process_is_reported_in_one_line_and_the_others_are_terminated(single, tmp_path):
    process = runs.start(tmp_path / "run", "--local-processes", "2", devices=2)
    runs.wait_for(lambda: runs.has_logged(tmp_path / "run"))
    pids = runs.children(process.pid)
    assert len(pids) == 2
    os.kill(pids[1], signal.SIGKILL)
    begin = time.monotonic()
    code, err = runs.finish(process)
    assert time.monotonic() - begin < 30  # the heartbeat is 100
    assert code == 1
    assert err[-1] == (
        "deeplab-jax: process 1 of 2 was killed by SIGKILL; terminated the 1 waiting for it; run the same command "
        "again to continue from the newest checkpoint"
    )
    assert not any("Traceback" in line for line in err)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_process_is_noticed_by_its_silence(single, tmp_path, stopped):
    heartbeat = "--config.distributed.heartbeat_seconds=10"
    process = runs.start(tmp_path / "run", "--local-processes", "2", heartbeat, devices=2)
    runs.wait_for(lambda: runs.has_logged(tmp_path / "run"))
    os.kill(runs.children(process.pid)[stopped], signal.SIGSTOP)
    begin = time.monotonic()
    code, err = runs.finish(process)
    assert 5 < time.monotonic() - begin < 90
    assert code == 1
    assert err[-1].startswith(
        f"deeplab-jax: process {1 - stopped} of 2 was killed by SIGABRT after it lost another process"
    )


@pytest.mark.slow
def test_an_error_of_one_process_is_shown_and_the_others_are_terminated(single, tmp_path):
    arguments = ["--local-processes", "2", "--config.data.workers=1"]
    process = runs.start(tmp_path / "run", *arguments, devices=2)
    runs.wait_for(lambda: runs.has_logged(tmp_path / "run"))
    (worker,) = runs.data_workers(runs.children(process.pid)[1])
    os.kill(worker, signal.SIGKILL)
    code, err = runs.finish(process)
    assert code == 1
    # Python's own warnings about the memory that the killed worker shared may be in between.
    first, second = (line for line in err if line.startswith("deeplab-jax: "))
    assert first.startswith("deeplab-jax: a data worker process died")
    assert second == "deeplab-jax: process 1 of 2 failed with exit code 1; terminated the 1 waiting for it"


def disagreeing(tmp_path, *others):
    """Two processes of one run, the second with other arguments; the lines of the first."""
    coordinator = f"127.0.0.1:{runs.free_port()}"
    processes = []
    for index, arguments in enumerate([[], *others]):
        place = ["--coordinator", coordinator, "--num-processes", "2", "--process-id", str(index)]
        processes.append(runs.start(tmp_path / "run", *place, *arguments, devices=1))
    results = [runs.finish(process) for process in processes]
    assert [code for code, _ in results] == [1, 1], results
    return results[0][1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("eval.every", "4 steps", "'4 steps' / '5 steps'"),
        ("data.batch_size", 7, "7 / 8"),
    ],  # one of its own right, one that is wrong
)
def test_processes_with_different_configs_say_what_differs(compilation_cache, tmp_path, field, value, shown):
    err = disagreeing(tmp_path, [f"--config.{field}={value}"])
    assert err[-1] == (
        f"deeplab-jax: process 1 has a different config than process 0 ({field}: {shown}); start all processes with "
        "the same command"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_processes_with_different_checkpoints_say_so(single, tmp_path):
    err = disagreeing(tmp_path, ["--workdir", str(single)])
    assert "the processes would continue from different steps (process 0: 0, process 1: 10)" in err[-1]


@pytest.mark.slow
def test_slurm_variables_identify_the_processes(single, tmp_path):
    """Two tasks on one node, in the variables that srun sets."""
    job = {"SLURM_JOB_ID": "4321", "SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "127.0.0.1"}
    processes = [
        runs.start(
            tmp_path / "run",
            "--cluster",
            devices=2,
            variables=job | {"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)},
        )
        for task in range(2)
    ]
    results = [runs.finish(process) for process in processes]
    assert [code for code, _ in results] == [0, 0], results
    assert_close(tmp_path / "run", single)
    assert not any(line.startswith("step") for line in results[1][1])


_GATHER = """
import sys
from deeplab_jax.parallel import launcher, processes
index = int(sys.argv[3].partition("=")[2])
processes.start(sys.argv[1].partition("=")[2], 2, index, heartbeat_seconds=100, connect_seconds=100)
print(processes.gather(index), flush=True)
"""


def can_rename_this_machine() -> bool:
    return subprocess.run(["unshare", "--uts", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(shutil.which("unshare") is None or not can_rename_this_machine(), reason="needs unshare --uts")
@pytest.mark.filterwarnings("ignore:os.fork")
def test_local_processes_connect_where_the_machines_own_name_does_not_resolve(capfd):
    renamed = ["unshare", "--uts", "sh", "-c", 'hostname nowhere.invalid && exec "$0" "$@"']
    commands = [[*renamed, sys.executable, "-c", _GATHER, *launch] for launch in launcher.local_launches(2)]
    assert launcher.run(commands, runs.environment(1)) == (0, None)
    assert capfd.readouterr().out.splitlines()[-1] == "[0, 1]"


@pytest.mark.parametrize(
    ("coordinator", "message"),
    [
        ("nowhere.invalid:1234", "the host name nowhere.invalid does not resolve .*; use the IP address"),
        ("10.0.0.1", "is not HOST:PORT, for example 10.0.0.1:1234"),
        ("10.0.0.1:http", "is not HOST:PORT"),
        (":1234", "is not HOST:PORT"),
    ],
)
def test_an_address_that_cannot_be_right_is_named(coordinator, message):
    with pytest.raises(UserError, match=f"^--coordinator {coordinator}.*{message}"):
        processes.start(coordinator, 2, 0, heartbeat_seconds=10, connect_seconds=10)


def test_the_name_of_process_0_may_begin_to_resolve_later(monkeypatch):
    """As in Kubernetes, where a pod has a name only once it runs."""
    original, looks = socket.getaddrinfo, []

    def resolve(host, *args, **options):
        looks.append(host)
        if len(looks) < 3:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return original("127.0.0.1", *args, **options)

    monkeypatch.setattr(processes, "_RESOLVE_PAUSE", 0.01)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert processes._is_local("pod-0.run:1234", patience=60)
    assert looks == ["pod-0.run"] * 3
    looks.clear()
    with pytest.raises(UserError, match="the host name pod-0.run does not resolve"):
        processes._is_local("pod-0.run:1234", patience=0)


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_processes_that_never_connect_are_reported_soon(tmp_path, index):
    coordinator = f"127.0.0.1:{runs.free_port()}"
    place = ["--coordinator", coordinator, "--num-processes", "2", "--process-id", str(index)]
    process = runs.start(tmp_path / "run", *place, "--config.distributed.connect_seconds=8", devices=1)
    code, err = runs.finish(process, seconds=60)
    assert code == 1
    awaited = {
        0: f"process 0 waits for the other 1 of 2 processes at {coordinator}",
        1: f"process 1 waits for process 0 at {coordinator} and for the others",
    }[index]
    assert f"warning: {awaited}" in err
    assert err[-1].startswith(f"deeplab-jax: {awaited}, but not all have connected within 8 seconds; check that")
    assert not any("Traceback" in line for line in err)


_LISTENING = (
    _GATHER
    + """
import os, pathlib
from deeplab_jax.parallel import sharding
sockets = {os.readlink(path) for path in pathlib.Path("/proc/self/fd").iterdir() if path.exists() or path.is_symlink()}
for table in ("tcp", "tcp6"):
    for line in pathlib.Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
        _, local, _, state, *_, inode = line.split()[:10]
        if state == "0A" and f"socket:[{inode}]" in sockets:
            print("listens", local.partition(":")[0], flush=True)
processes.gather(0)
"""
)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/net/tcp")
@pytest.mark.filterwarnings("ignore:os.fork")
def test_local_processes_listen_on_the_loopback_address_alone(capfd):
    commands = [[sys.executable, "-c", _LISTENING, *launch] for launch in launcher.local_launches(2)]
    assert launcher.run(commands, runs.environment(1)) == (0, None)
    listening = {line.split()[1] for line in capfd.readouterr().out.splitlines() if line.startswith("listens")}
    # 127.0.0.1, and the same address in IPv6
    assert listening
    assert listening <= {"0100007F", "0000000000000000FFFF00000100007F"}


def test_fields_that_processes_must_agree_on_are_named(monkeypatch, tiny_config):
    other = tiny_config.copy_and_resolve_references()
    monkeypatch.setattr(processes, "gather", lambda values: [values, to_dict(other)])
    other.data.data_dir, other.data.workers = "/elsewhere", 3
    processes.check_same_config(tiny_config)  # settings of a single machine
    other.train.seed, other.optimizer.learning_rate = 11, 0.5
    with pytest.raises(UserError, match="^process 1 has a different config than process 0") as caught:
        processes.check_same_config(tiny_config)
    assert "(optimizer.learning_rate: 0.5 / 0.02; train.seed: 11 / 0)" in str(caught.value)


def test_processes_do_not_continue_from_different_steps(monkeypatch):
    monkeypatch.setattr(processes, "gather", lambda step: [step, 6])
    processes.check_same_step(6)
    with pytest.raises(UserError, match=r"different steps \(process 0: 0, process 1: 6\); give them one shared"):
        processes.check_same_step(None)


@pytest.mark.slow
def test_evaluation_by_two_processes_counts_every_example_once(single, tmp_path):
    arguments = ["--local-processes", "2", "--json", str(tmp_path / "scores.json"), "--report", str(tmp_path / "two")]
    code, err = runs.evaluate(single, *arguments, devices=2)
    assert code == 0, err
    scores = json.loads((tmp_path / "scores.json").read_text())
    expected = evaluate(single, report_folder=tmp_path / "one")
    assert scores["num_images"] == expected["num_images"] == 200
    assert scores["num_pixels"] == expected["num_pixels"]
    np.testing.assert_allclose(scores["loss"], expected["loss"], rtol=1e-5)
    # Predictions may differ where two classes tie.
    np.testing.assert_allclose(scores["mean_boundary_iou"], expected["mean_boundary_iou"], atol=2e-3)
    assert scores["trimap"]["labels"]["num_pixels"] == expected["trimap"]["labels"]["num_pixels"]
    assert sum(scores["calibration"]["pixels"]) == scores["num_pixels"]
    names = [
        sorted(line.split(",")[0] for line in (tmp_path / folder / "images.csv").read_text().splitlines()[1:])
        for folder in ("one", "two")
    ]
    assert names[0] == names[1]
    assert len(set(names[1])) == 200


def predict(workdir, images, output, *arguments, devices):
    words = [sys.executable, "-m", "deeplab_jax", "predict", str(images), "--workdir", str(workdir)]
    words += ["--output", str(output), *arguments]
    return subprocess.Popen(
        words, env=runs.environment(devices), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.png")}


@pytest.mark.slow
def test_two_processes_share_the_images_of_a_prediction_and_continue_it(single, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for i in range(400):
        Image.fromarray(scene(i, *[(40, 56), (64, 30)][i % 5 == 2])[0]).save(images / f"{i:03d}.png")
    code, err = runs.finish(predict(single, images, tmp_path / "one", devices=1))
    assert code == 0, err
    straight = contents(tmp_path / "one")
    assert len(straight) == 800
    arguments = ("--local-processes", "2", "--batch-size", "2")
    process = predict(single, images, tmp_path / "two", *arguments, devices=4)
    runs.wait_for(lambda: any((tmp_path / "two").rglob("*_overlay.png")))
    process.send_signal(signal.SIGTERM)
    code, err = runs.finish(process)
    assert code == 75, err
    done = contents(tmp_path / "two")
    assert 0 < len(done) < 800
    stopped = f"stopped by SIGTERM after {len(done) // 2} of 400 images, whose results are written; add --skip-existing"
    assert stopped in err[-1]
    code, err = runs.finish(predict(single, images, tmp_path / "two", *arguments, "--skip-existing", devices=4))
    assert code == 0, err
    assert err[-1] == f"Wrote {400 - len(done) // 2} masks and overlays to {tmp_path / 'two'}"
    assert contents(tmp_path / "two") == straight
