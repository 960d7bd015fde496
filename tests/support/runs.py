"""Runs of `tiny_experiment.py` in separate processes, and the results they write, for tests that kill them."""

import collections
import contextlib
import fcntl
import json
import os
import pathlib
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

from deeplab_jax.ops.operations import SWITCH

CONFIG = pathlib.Path(__file__).with_name("tiny_experiment.py")


def command(workdir: pathlib.Path, *arguments: str, config: str = "") -> list[str]:
    name = f"{CONFIG}:{config}" if config else str(CONFIG)
    return [sys.executable, "-m", "deeplab_jax", "train", "--workdir", str(workdir), "--config", name, *arguments]


def environment(devices: int) -> dict[str, str]:
    """The environment of a process with this many devices and plain operations. It shares the compilation cache."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    return os.environ | {"XLA_FLAGS": flags, SWITCH: "xla"}


def start(
    workdir: pathlib.Path,
    *arguments: str,
    devices: int = 1,
    config: str = "",
    variables: dict[str, str] | None = None,
    new_session: bool = False,
) -> subprocess.Popen:
    return subprocess.Popen(
        command(workdir, *arguments, config=config),
        env=environment(devices) | (variables or {}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=new_session,
    )


def finish(process: subprocess.Popen, seconds: float = 300) -> tuple[int, list[str]]:
    """The exit code and the lines on standard error."""
    try:
        _, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, err.splitlines()


def run(workdir: pathlib.Path, *arguments: str, devices: int = 1, config: str = "") -> tuple[int, list[str]]:
    return finish(start(workdir, *arguments, devices=devices, config=config))


def wait_for(condition, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def logged_steps(workdir: pathlib.Path) -> list[int]:
    path = workdir / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def has_logged(workdir: pathlib.Path) -> bool:
    path = workdir / "metrics.jsonl"
    return path.exists() and path.stat().st_size > 0


def is_saving(workdir: pathlib.Path) -> bool:
    return any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def children(pid: int) -> list[int]:
    """The ids of the children that a process started from its main thread, in order."""
    return sorted(int(id) for id in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def data_workers(pid: int) -> list[int]:
    """The ids of the data workers of a training process."""
    started = [
        int(id) for path in pathlib.Path(f"/proc/{pid}/task").glob("*/children") for id in path.read_text().split()
    ]
    return [id for id in started if b"spawn_main" in pathlib.Path(f"/proc/{id}/cmdline").read_bytes()]


def is_running(pid: int) -> bool:
    """False for a process that has ended, also while its parent has not noticed."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def processes_with(variable: str) -> list[int]:
    """The ids of the processes that were started with an environment variable, and of their children."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            names = [line.partition(b"=")[0] for line in (path / "environ").read_bytes().split(b"\0")]
            if variable.encode() in names and is_running(int(path.name)):
                found.append(int(path.name))
    return found


def abandoned_memory() -> list[str]:
    """The names of shared memory of data workers whose run has died, for which no process holds a lock."""
    folder = pathlib.Path("/dev/shm")
    by_owner = collections.defaultdict(list)
    for name in os.listdir(folder):
        if match := re.match(r"(?:sem\.)?(deeplab_jax-[0-9a-f]{8})", name):
            by_owner[match[1]].append(name)
    return [name for owner, names in by_owner.items() if not _is_locked(folder / owner) for name in names]


def _is_locked(path: pathlib.Path) -> bool:
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False


# Makes standard input the terminal of this session and becomes the command. JAX does not allow a `preexec_fn`.
_IN_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """A training in the foreground of a terminal of its own, where Ctrl-C can be pressed.

    Attributes:
      process: the training.
      output: what it has printed so far.
    """

    def __init__(self, words: list[str], variables: dict[str, str]):
        self._fd, terminal = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _IN_TERMINAL, *words],
            env=variables,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)
        self.output = ""
        threading.Thread(target=self._read, daemon=True).start()

    def wait_for(self, condition) -> None:
        """Waits while the training runs; fails if it ends."""
        wait_for(lambda: condition() or self.process.poll() is not None)
        assert self.process.poll() is None, self.output

    def press_ctrl_c(self) -> None:
        os.write(self._fd, b"\x03")

    def close(self) -> None:
        """Closes the terminal's window: the kernel sends SIGHUP."""
        os.close(self._fd)

    def _read(self) -> None:
        while True:
            try:
                read = os.read(self._fd, 2**16)
            except OSError:  # the process has ended
                return
            if not read:
                return
            self.output += read.decode(errors="replace")


def start_in_terminal(workdir: pathlib.Path, *arguments: str, config: str = "", devices: int = 1) -> Terminal:
    return Terminal(command(workdir, *arguments, config=config), environment(devices) | {"COLUMNS": "200"})


def kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def state(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Every leaf of the newest checkpoint, by its path."""
    handlers = {item: ocp.StandardCheckpointHandler() for item in ("variables", "training")}
    options = ocp.CheckpointManagerOptions(read_only=True)
    with ocp.CheckpointManager(workdir.absolute() / "checkpoints", options=options, item_handlers=handlers) as manager:
        step = manager.latest_step()
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = {
            item: jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
                manager.item_metadata(step)[item].tree,
            )
            for item in handlers
        }
        restored = manager.restore(
            step, args=ocp.args.Composite(**{item: ocp.args.StandardRestore(tree) for item, tree in like.items()})
        )
    leaves = jax.tree_util.tree_leaves_with_path({item: restored[item] for item in handlers})
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same_state(workdir: pathlib.Path, other: pathlib.Path) -> None:
    """Bit for bit."""
    mine, theirs = state(workdir), state(other)
    assert mine.keys() == theirs.keys()
    different = [path for path in mine if mine[path].tobytes() != theirs[path].tobytes()]
    assert not different, f"{len(different)} of {len(mine)} leaves differ: {different[:5]}"


def lines(workdir: pathlib.Path) -> list[dict]:
    """metrics.jsonl without its timing fields."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.endswith("_per_second")} for row in rows]


def evaluate(workdir: pathlib.Path, *arguments: str, devices: int = 1) -> tuple[int, list[str]]:
    words = [sys.executable, "-m", "deeplab_jax", "evaluate", "--workdir", str(workdir), *arguments]
    done = subprocess.run(words, env=environment(devices), capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stderr.splitlines()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
