"""Runs of several processes: start-up, and agreement on config and step."""

import contextlib
import functools
import hashlib
import ipaddress
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from deeplab_jax import config as config_lib
from deeplab_jax.errors import UserError
from deeplab_jax.parallel.launcher import LOOPBACK

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_PATIENCE_SECONDS = 5  # then a process says what it waits for
_RESOLVE_PAUSE = 1  # seconds between look-ups of a host name

_MAY_DIFFER = ("data.data_dir", "data.workers")  # settings of a single machine


def start(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    *,
    heartbeat_seconds: int,
    connect_seconds: int,
) -> None:
    """Connects this process to the others of its run. Call it before anything uses a device.

    Args:
      coordinator: HOST:PORT of process 0. None detects it, and the next two, from the cluster: a TPU pod, SLURM or Open
        MPI.
      num_processes: number of processes in the run.
      process_id: index of this process, from 0.
      heartbeat_seconds: seconds without a heartbeat before a process is considered dead. The others then abort, see
        `deeplab_jax.parallel.launcher`.
      connect_seconds: seconds to wait until all processes have connected.

    Raises:
      UserError: the processes cannot connect.
    """
    who = "this process" if process_id is None else f"process {process_id}"
    where = "the cluster" if coordinator is None else coordinator
    if process_id == 0:
        awaited = f"{who} waits for the other {num_processes - 1} of {num_processes} processes at {where}"
    else:
        awaited = f"{who} waits for process 0 at {where} and for the others"
    is_local = False
    if coordinator is not None:
        with _announce(awaited):
            # In Kubernetes, the name of process 0 exists only once its pod runs, which may start later.
            is_local = _is_local(coordinator, patience=0 if process_id == 0 else connect_seconds)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # for CPU devices only
    try:
        with _announce(awaited):
            jax.distributed.initialize(
                coordinator,
                num_processes,
                process_id,
                cluster_detection_method=None if coordinator is None else "deactivate",
                initialization_timeout=connect_seconds,
                heartbeat_timeout_seconds=heartbeat_seconds,
                coordinator_bind_address=coordinator if is_local else None,
            )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        if "DEADLINE_EXCEEDED" in reason or "UNAVAILABLE" in reason:
            raise UserError(
                f"{awaited}, but not all have connected within {connect_seconds} seconds; check that every process has "
                "started, that process 0 runs on that host, and that a firewall does not block the port "
                "(--config.distributed.connect_seconds sets the time)"
            ) from error
        raise UserError(
            f"{who} cannot join the run at {where}: {reason}; start every process with the same address and number of "
            "processes"
        ) from error
    if is_local:
        _bind_cpu_collectives(LOOPBACK)


def _is_local(coordinator: str, *, patience: int) -> bool:
    """True if all processes run on this machine, so nothing needs to listen on other addresses.

    Args:
      coordinator: the address.
      patience: seconds to wait until the host exists.

    Raises:
      UserError: the address is not HOST:PORT, or the host does not exist.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or int(port) >= 2**16:
        raise UserError(f"--coordinator {coordinator} is not HOST:PORT, for example 10.0.0.1:1234")
    deadline = time.monotonic() + patience
    while True:
        try:
            found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
            break
        except OSError as error:
            if time.monotonic() >= deadline:
                raise UserError(
                    f"--coordinator {coordinator}: the host name {host} does not resolve ({error.strerror}); use the "
                    "IP address of the machine of process 0"
                ) from None
        time.sleep(_RESOLVE_PAUSE)
    addresses = {info[4][0] for info in found}
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in addresses)


@contextlib.contextmanager
def _announce(text: str) -> Iterator[None]:
    """Logs what is awaited if the block takes long. Other processes than the first log nothing else, but this."""
    timer = threading.Timer(_PATIENCE_SECONDS, lambda: logger.warning("%s", text))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _bind_cpu_collectives(hostname: str) -> None:
    """Makes gloo, the CPU collectives of JAX, listen on one address.

    By default gloo resolves the machine's own name, which fails where no DNS entry or hosts file knows it. JAX has no
    option for the address, so this replaces the function that creates the collectives.
    """
    from jax._src.lib import _jax

    if hasattr(_jax, "make_gloo_tcp_collectives"):
        create = functools.partial(_jax.make_gloo_tcp_collectives, hostname=hostname)
        _jax.make_gloo_tcp_collectives = create


def is_leader() -> bool:
    """True on process 0, the only process that logs and writes files other than array checkpoints."""
    return jax.process_index() == 0


def check_same_config(config: ConfigDict) -> None:
    """Checks that all processes have the same config, before they wait for each other in vain.

    Raises:
      UserError: in every process, naming one that differs and the fields.
    """
    first, *others = gather(config_lib.to_dict(config))
    for index, other in enumerate(others, start=1):
        pair = config_lib.from_dict(other), config_lib.from_dict(first)
        differences = config_lib.differences(*pair, groups=tuple(first))
        lines = [line for field, line in differences.items() if field not in _MAY_DIFFER]
        if lines:
            raise UserError(
                f"process {index} has a different config than process 0 ({'; '.join(lines)}); start all processes with "
                "the same command"
            )


def check_same_step(step: int | None) -> None:
    """Checks that all processes see the same newest checkpoint.

    Args:
      step: step of the newest checkpoint that this process sees; None if there is none.

    Raises:
      UserError: in every process, if the steps differ.
    """
    steps = gather(step)
    if len(set(steps)) > 1:
        shown = ", ".join(f"process {index}: {value or 0}" for index, value in enumerate(steps))
        raise UserError(f"the processes would continue from different steps ({shown}); give them one shared --workdir")


def check_same_files(names: Sequence[object]) -> None:
    """Checks that all processes would work on the same files, and waits until all have looked for them.

    Raises:
      UserError: in every process, if the files differ.
    """
    if jax.process_count() == 1:
        return
    digest = hashlib.sha256("\0".join(map(str, names)).encode()).hexdigest()
    found = gather([len(names), digest])
    if any(each != found[0] for each in found):
        shown = ", ".join(f"process {index}: {count}" for index, (count, _) in enumerate(found))
        raise UserError(
            f"the processes see different inputs or results ({shown} to predict); give them the same folders on a "
            "shared disk"
        )


def share(items: Sequence[_T]) -> Sequence[_T]:
    """Returns this process's share of the items: every k-th, where k is the number of processes."""
    return items[jax.process_index() :: jax.process_count()]


def gather(value: Any) -> list[Any]:
    """Returns the values of all processes, in order.

    A collective operation: every process calls it, with a value that JSON can hold.
    """
    if jax.process_count() == 1:
        return [value]
    content = json.dumps(value).encode()
    longest = np.max(multihost_utils.process_allgather(np.int32(len(content))))
    padded = np.frombuffer(content.ljust(int(longest)), np.uint8)
    return [json.loads(row.tobytes()) for row in multihost_utils.process_allgather(padded)]
