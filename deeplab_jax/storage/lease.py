"""A lease on a folder in a bucket, which has no file locks.

The lease is an object that its holder renews. Each write replaces exactly the version that was read, so two processes
cannot both take it. A holder that stops renewing loses it: after `LEASE_SECONDS` by the clock of the server, or at once
if it was a process of this machine that has ended. Clocks of other machines do not matter.
"""

import json
import logging
import os
import pathlib
import secrets
import socket
import threading
import time
from typing import Any

from deeplab_jax.errors import UserError
from deeplab_jax.storage import client
from deeplab_jax.storage.bucket_path import BucketPath
from deeplab_jax.storage.versions import Version

logger = logging.getLogger(__name__)

#: Seconds after the last renewal at which another process may take the lease.
LEASE_SECONDS = 60
_RENEWALS = 4  # in this time


class Lease:
    """A lease that this process holds between `acquire` and `release`.

    Args:
      path: the object.
      seconds: see `LEASE_SECONDS`.
    """

    def __init__(self, path: BucketPath, *, seconds: float | None = None):
        self._path, self._seconds = path, LEASE_SECONDS if seconds is None else seconds
        self._owner = {"host": socket.gethostname(), "process": os.getpid(), "machine": _machine()}
        self._owner["started"] = _start_time(os.getpid())
        self._owner |= {"token": secrets.token_hex(8), "seconds": self._seconds, "released": False}
        self._version: str | None = None
        self._renewals, self._renewed = 0, 0.0
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._lost_to: str | None = None

    def acquire(self) -> None:
        """Takes the lease, and renews it in the background. Waits for a lease that is not renewed to expire.

        Raises:
          UserError: another process renews it.
        """
        seen: Version | None = None
        while True:
            found = client.read_version(self._path)
            if found is None or _is_free(found):
                if self._replace(None if found is None else found.version):
                    break
                continue  # another process was faster; it will renew
            if seen is None:
                seen = found
                left = _seconds(found) - found.age
                logger.info("waiting up to %.0f s for %s, which holds %s, to renew its lease", left, _name(found),
                            self._path.parent)  # fmt: skip
            elif found.version != seen.version:
                raise UserError(
                    f"another training is running in {self._path.parent} ({_name(found)}); stop it, or choose another "
                    "--workdir"
                )
            time.sleep(_seconds(found) / _RENEWALS / 5)
        threading.Thread(target=self._keep, daemon=True).start()

    def check(self) -> None:
        """Checks that the lease is still held. Renews it if the background thread is late.

        Raises:
          UserError: another process has taken it.
        """
        if self._lost_to is None and time.monotonic() - self._renewed > self._seconds / 2:
            self._renew()
        if self._lost_to is not None:
            raise UserError(
                f"another training has taken over {self._path.parent} ({self._lost_to}), since this one could not "
                "renew its lease; let that one run, or stop it and run the same command again"
            )

    def release(self) -> None:
        """Gives the lease back, so that the next process does not wait for it to expire."""
        self._stopped.set()
        with self._lock:
            if self._lost_to is None and self._version is not None:
                content = json.dumps(self._owner | {"released": True}).encode()
                client.replace_version(self._path, content, self._version)

    def _keep(self) -> None:
        while not self._stopped.wait(self._seconds / _RENEWALS):
            try:
                self._renew()
            except UserError as error:  # `check` tries again, where the run can be stopped
                logger.warning("the lease on %s is not renewed: %s", self._path.parent, error)
            if self._lost_to is not None:
                return

    def _renew(self) -> None:
        with self._lock:
            if self._stopped.is_set() or self._replace(self._version):
                return
            found = client.read_version(self._path)
            self._lost_to = "it has removed the lease" if found is None else _name(found)

    def _replace(self, version: str | None) -> bool:
        begin = time.monotonic()
        self._renewals += 1  # S3's versions are digests of the content, which must differ each time
        content = json.dumps(self._owner | {"renewals": self._renewals}).encode()
        new = client.replace_version(self._path, content, version)
        if new is None:
            return False
        self._version, self._renewed = new, begin
        return True


def is_held(path: BucketPath) -> bool:
    """Returns True if a process holds the lease."""
    found = client.read_version(path)
    return found is not None and not _is_free(found)


def _is_free(found: Version) -> bool:
    owner = _owner(found)
    return bool(owner.get("released")) or found.age > _seconds(found) or _has_ended(owner)


def _has_ended(owner: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that has ended."""
    machine, process = owner.get("machine"), owner.get("process")
    if not machine or machine != _machine() or not isinstance(process, int):
        return False
    return _start_time(process) != owner.get("started")


def _start_time(process: int) -> str | None:
    """Returns when a process of this machine started, in the kernel's unit; None if it has ended."""
    try:
        fields = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]  # fields 3 and 22 of the whole line


def _machine() -> str | None:
    """Names the machine and the numbering of its processes (containers have their own); None if unknown."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return None


def _owner(found: Version) -> dict[str, Any]:
    try:
        owner = json.loads(found.content)
    except ValueError:
        owner = None
    return owner if isinstance(owner, dict) else {}


def _seconds(found: Version) -> float:
    seconds = _owner(found).get("seconds")
    return float(seconds if isinstance(seconds, int | float) else LEASE_SECONDS)


def _name(found: Version) -> str:
    owner = _owner(found)
    return f"process {owner.get('process')} of {owner.get('host')}"
