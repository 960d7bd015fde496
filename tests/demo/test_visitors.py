"""What a hostile visitor of the running page gets: nothing that they did not upload. And nothing stays behind."""

import json
import os
import pathlib
import signal
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="needs the extra demo")

from tests.support.demo_server import running  # noqa: E402

META = {"meta": {"_type": "gradio.FileData"}}
REFUSED = "This image is not on the server; upload it again."


class Visitor:
    """Talks to the page as its script does."""

    def __init__(self, address: str):
        self._address = address
        config = json.loads(self.get("/config"))
        (click,) = [entry for entry in config["dependencies"] if len(entry["outputs"]) == 3]
        self._function = click["id"]
        (menu,) = [entry for entry in config["components"] if entry["type"] == "dropdown"]
        self.network = menu["props"]["choices"][0][1]

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self._address + path, timeout=120) as response:
            return response.read()

    def status(self, path: str) -> int:
        try:
            self.get(path)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code
        return 200

    def post(self, path: str, value: object) -> bytes:
        body = json.dumps(value).encode()
        request = urllib.request.Request(self._address + path, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.read()

    def upload(self, path: pathlib.Path, name: str = "photo.png") -> str:
        """Uploads a file; returns its path on the server."""
        start = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        body = start.encode() + path.read_bytes() + b"\r\n--x--\r\n"
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        request = urllib.request.Request(f"{self._address}/gradio_api/upload", body, headers)
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.loads(response.read())[0]

    def click(self, image: object) -> str:
        """Sends `image` in place of an upload; returns the report, or the error."""
        session = os.urandom(5).hex()
        event = {"data": [image, self.network], "fn_index": self._function, "session_hash": session}
        self.post("/gradio_api/queue/join", event)
        answers = self.get(f"/gradio_api/queue/data?session_hash={session}").decode().splitlines()
        messages = [json.loads(line.removeprefix("data:")) for line in answers if line.startswith("data:")]
        (done,) = [message for message in messages if message["msg"] == "process_completed"]
        return done["output"]["data"][2] if done["success"] else json.dumps(done["output"])


@pytest.fixture(scope="module")
def temporary(tmp_path_factory):
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def page(trained, temporary):
    """The running page; its networks, temporary files and memory are its own."""
    with running("--workdir", str(trained), temporary=temporary) as (address, _):
        yield address


@pytest.fixture(scope="module")
def visitor(page):
    return Visitor(page)


@pytest.fixture
def secret(tmp_path):
    """An image on the server that nobody uploaded."""
    path = tmp_path / "private.png"
    Image.new("RGB", (123, 77), (200, 10, 10)).save(path)
    return path


def test_an_upload_is_segmented(visitor, secret):
    path = visitor.upload(secret)
    for image in ({"path": path, **META}, {"path": path}):
        assert "123 x 77 pixels segmented" in visitor.click(image)


def test_files_of_the_server_are_not_opened_and_their_existence_is_not_told(visitor, secret, tmp_path):
    uploaded = pathlib.Path(visitor.upload(secret))
    files = uploaded.parents[1]
    up = os.path.relpath(tmp_path, files)
    link = files / "link.png"
    link.symlink_to(secret)
    answers = {}
    for kind, existing, missing in (
        ("absolute", secret, tmp_path / "missing.png"),
        ("with dots", files / up / "private.png", files / up / "missing.png"),
        ("relative", os.path.relpath(secret), os.path.relpath(tmp_path / "missing.png")),
        ("a link", link, files / "missing.png"),
        ("a folder", tmp_path, tmp_path / "missing"),
        ("an address", secret.as_uri(), f"{tmp_path.as_uri()}/missing.png"),
        ("odd text", f"{secret}\0", f"{tmp_path}/missing\0"),
        ("route", f"/gradio_api/file={secret}", f"/gradio_api/file={tmp_path}/missing.png"),
        ("system", "/etc/passwd", "/etc/passwdd"),
    ):
        for meta in ({}, META, {"url": str(uploaded)}, {"orig_name": "photo.png", **META}, {"is_stream": True, **META}):
            answers[kind, existing] = visitor.click({"path": str(existing), **meta})
            assert answers[kind, existing] == visitor.click({"path": str(missing), **meta}), (kind, meta)
    link.unlink()
    assert not [answer for answer in answers.values() if "segmented" in answer]
    assert not [answer for answer in answers.values() if str(tmp_path) in answer or "root:" in answer]
    assert (
        answers["absolute", secret] in (REFUSED, json.dumps({"error": None})) or REFUSED in answers["absolute", secret]
    )


@pytest.mark.parametrize("key", ["path", "url"])
def test_the_server_does_not_fetch_addresses(visitor, key):
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(3)
        called = threading.Event()

        def accept() -> None:
            try:
                other.accept()[0].close()
                called.set()
            except TimeoutError:
                return

        thread = threading.Thread(target=accept)
        thread.start()
        address = f"http://127.0.0.1:{other.getsockname()[1]}/a.png"
        assert "segmented" not in visitor.click({"path": address, key: address, **META})
        thread.join()
        assert not called.is_set()


def test_routes_serve_only_what_was_uploaded(visitor, secret, temporary):
    uploaded = visitor.upload(secret)
    assert visitor.status(f"/gradio_api/file={uploaded}") == 200
    files = pathlib.Path(uploaded).parents[1]
    for path in (secret, "/etc/passwd", files, files.parent / "page.lock", f"{files}/../page.lock", temporary):
        missing = f"{path}_missing"
        found, absent = (
            visitor.status(f"/gradio_api/file={urllib.parse.quote(str(name))}") for name in (path, missing)
        )
        assert found >= 400, path
        if files not in pathlib.Path(path).parents and path != files:
            assert found == absent, path


def test_names_of_uploads_stay_in_the_folder(visitor, secret, temporary):
    before = {path for path in temporary.rglob("*") if path.is_file()}
    for name in ("../../outside.png", str(temporary.parent / "outside.png"), "..\\outside.png", "a" * 300 + ".png"):
        path = pathlib.Path(visitor.upload(secret, name))
        assert path.is_relative_to(temporary)
        assert "123 x 77 pixels segmented" in visitor.click({"path": str(path), **META})
    assert len({path for path in temporary.rglob("*") if path.is_file()} - before) <= 8


def test_other_functions_and_the_api_are_closed(visitor, secret):
    path = visitor.upload(secret)
    data = {"data": [{"path": path, **META}, visitor.network], "session_hash": "abc"}
    for route in (
        "/gradio_api/run/predict",
        "/gradio_api/call/predict",
        "/gradio_api/run/lambda",
        "/gradio_api/call/lambda",
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            visitor.post(route, data)
        refused.value.close()
        assert refused.value.code >= 400


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_nothing_stays_behind(trained, page, secret, temporary, number):
    with running("--workdir", str(trained), temporary=temporary) as (address, server):
        visitor = Visitor(address)
        path = pathlib.Path(visitor.upload(secret))
        assert "segmented" in visitor.click({"path": str(path), **META})
        server.send_signal(number)
        code = server.wait(60)
    assert path.exists() == (number == signal.SIGKILL)
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL
        with running("--workdir", str(trained), temporary=temporary) as (address, server):
            assert not path.exists()
            server.terminate()
            server.wait(60)
    else:
        assert code == 0
    # the folder of the page that still runs was left alone
    assert len([folder for folder in temporary.iterdir() if folder.name.startswith("deeplab_jax_demo_")]) == 1
    assert "segmented" in Visitor(page).click({"path": Visitor(page).upload(secret), **META})
