"""What a user has to fix is one line: no permission, no connection, no credentials."""

import http.server
import threading

import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.storage import BucketPath, client
from tests.support import buckets, runs


class Refusing(http.server.BaseHTTPRequestHandler):
    """Answers every request with one status, in the form of the server that the libraries expect."""

    status, body = 403, b""

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_GET = do_PUT = do_POST = do_DELETE = answer

    def log_message(self, *arguments) -> None:
        pass


FORBIDDEN = {
    "gs": b'{"error": {"code": 403, "message": "ada does not have storage.objects.list access"}}',
    "s3": b"<Error><Code>AccessDenied</Code><Message>ada is not authorized: s3:ListBucket</Message></Error>",
}


@pytest.fixture(params=["gs", "s3"])
def storage(request, monkeypatch):
    """A function that leads the libraries to a server."""
    if buckets.missing_packages(request.param):
        pytest.skip("needs pip install 'deeplab_jax[storage-test]'")

    def lead(address):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "tests")
        client._bucket.cache_clear()
        return BucketPath(f"{request.param}://bucket/run")

    yield lead
    client._bucket.cache_clear()


def test_no_permission(storage, monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    path = storage(f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(Refusing, "body", FORBIDDEN[path.parts[0][:2]])
    with pytest.raises(UserError) as error:
        path.exists()
    server.shutdown()
    server.server_close()
    line = str(error.value)
    assert line.startswith(f"no permission for {path.parts[0]}//bucket: ")
    assert "ada" in line
    assert "; check the permissions of the bucket and the credentials: run `" in line
    assert "\n" not in line


def test_no_connection(storage):
    path = storage(f"http://127.0.0.1:{runs.free_port()}")
    with pytest.raises(UserError, match=r"^cannot reach (S3|Google Cloud Storage) for .*; check the network and \w+$"):
        path.exists()


def test_a_server_that_is_away_for_a_moment_is_asked_again(bucket, monkeypatch, caplog):
    """The bucket was reached before, so a request is repeated until it works, or for a limited time."""
    (bucket / "a").write_bytes(b"1")
    fs = client._open(bucket / "a")[0]
    answers, cat_file = iter([ConnectionResetError("connection lost"), TimeoutError()]), fs.cat_file

    def flaky(key):
        if (error := next(answers, None)) is not None:
            raise error
        return cat_file(key)

    monkeypatch.setattr(client.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(fs, "cat_file", flaky)
    assert (bucket / "a").read_bytes() == b"1"
    assert [message.partition(" for ")[0].split()[:2] for message in caplog.messages] == [["cannot", "reach"]] * 2
    monkeypatch.setattr(client, "PATIENCE", -1)
    answers = iter([ConnectionResetError("connection lost")])
    with pytest.raises(UserError, match="^cannot reach"):
        (bucket / "a").read_bytes()
