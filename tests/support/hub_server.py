"""A server on this machine that speaks the parts of the Hugging Face Hub's API that downloads and uploads use.

It answers like the Hub where clients depend on it: errors carry `X-Error-Code`; files of Git LFS are uploaded with the
LFS protocol and, for downloads, redirected to another address with `X-Linked-Etag` and `X-Linked-Size`; small files are
served in place; a commit is one request, and either all of its files exist afterwards or none.
"""

import base64
import contextlib
import dataclasses
import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any

#: The token that may write and that may read private repositories.
TOKEN = "hf_a_token_of_the_tests"


@dataclasses.dataclass
class Repository:
    """A repository: its branches, and the files of each commit.

    Attributes:
      private: only `TOKEN` can read it.
      gated: nobody has accepted its terms.
      branches: name to commit.
      commits: commit to files by path.
      messages: commit to its message.
    """

    private: bool = False
    gated: bool = False
    branches: dict[str, str] = dataclasses.field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
    messages: dict[str, str] = dataclasses.field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes], message: str = "") -> str:
        """Adds files to a branch and returns the commit."""
        before = self.commits.get(self.branches.get(branch, ""), {})
        after = before | files
        seed = repr([len(self.commits), sorted((name, hashlib.sha1(data).hexdigest()) for name, data in after.items())])
        oid = hashlib.sha1(seed.encode()).hexdigest()
        self.commits[oid], self.messages[oid], self.branches[branch] = after, message, oid
        return oid

    def find(self, revision: str) -> str | None:
        """Returns the commit that a branch or commit names."""
        return self.branches.get(revision, revision if revision in self.commits else None)


class HubServer(http.server.ThreadingHTTPServer):
    """The server.

    Attributes:
      repositories: by owner and name.
      blobs: uploaded files of Git LFS by SHA-256.
      requests: method and path of every request.
      breaks_off: (method, pattern of a path) of requests during which the server hangs up.
      rejects_metadata: what is wrong with every README.md, if anything.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.breaks_off: tuple[str, str] | None = None
        self.rejects_metadata: str | None = None

    def paths(self, method: str, pattern: str) -> list[str]:
        """Returns the paths of the requests with this method that match a pattern."""
        return [path for name, path in self.requests if name == method and re.search(pattern, path)]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self._answer_file()

    def do_GET(self):
        self._answer_file()

    def do_PUT(self):
        path, body = self._begin()
        if match := re.fullmatch(r"/lfs/upload/([0-9a-f]{64})", path):
            if hashlib.sha256(body).hexdigest() == match[1]:
                self.server.blobs[match[1]] = body
                return self._send(200)
            return self._send(400)
        return self._send(404)

    def do_POST(self):
        path, body = self._begin()
        if path == "/api/validate-yaml":
            problem = self.server.rejects_metadata
            answer = {"errors": [{"message": problem}] if problem else [], "warnings": []}
            return self._send_json(answer, 400 if problem else 200)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send_error(401, "", "Invalid username or password.")
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit|branch)/(.+)", path):
            repository = self.server.repositories.get(match[1])
            if repository is None:
                return self._send_error(404, "RepoNotFound", "Repository not found")
            return getattr(self, f"_{match[2]}")(match[1], repository, match[3], body)
        if re.fullmatch(r"/[^/]+/[^/]+\.git/info/lfs/objects/batch", path):
            return self._send_json(
                {"transfer": "basic", "objects": [*map(self._lfs_object, json.loads(body)["objects"])]}
            )
        if path == "/lfs/verify":
            return self._send(200 if json.loads(body)["oid"] in self.server.blobs else 404)
        return self._send(404)

    def _begin(self) -> tuple[str, bytes]:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.server.requests.append((self.command, path))
        breaks_off = self.server.breaks_off
        if breaks_off and breaks_off[0] == self.command and re.search(breaks_off[1], path):
            self.close_connection = True
            self.connection.close()
            raise ConnectionAbortedError
        return path, self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _create(self, values: dict[str, Any]) -> None:
        name = f"{values['organization']}/{values['name']}"
        if values["organization"] != "ada":
            return self._send_error(403, "", "You don't have the rights to create a model under this namespace")
        if name in self.server.repositories:
            return self._send_json({"url": f"{self.server.url}/{name}", "error": "You already created this model"}, 409)
        repository = self.server.repositories[name] = Repository(private=values.get("visibility") == "private")
        repository.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        return self._send_json({"url": f"{self.server.url}/{name}"})

    def _branch(self, name: str, repository: Repository, branch: str, body: bytes) -> None:
        if branch in repository.branches:
            return self._send_json({"error": "Reference already exists"}, 409)
        repository.branches[branch] = repository.branches["main"]
        return self._send_json({})

    def _preupload(self, name: str, repository: Repository, revision: str, body: bytes) -> None:
        if repository.find(revision) is None:
            return self._send_error(404, "RevisionNotFound", "Invalid rev id")
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if _is_lfs(file["path"]) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in json.loads(body)["files"]
        ]
        return self._send_json({"files": files})

    def _lfs_object(self, wanted: dict[str, Any]) -> dict[str, Any]:
        actions = {
            "upload": {"href": f"{self.server.url}/lfs/upload/{wanted['oid']}"},
            "verify": {"href": f"{self.server.url}/lfs/verify"},
        }
        return wanted if wanted["oid"] in self.server.blobs else wanted | {"actions": actions}

    def _commit(self, name: str, repository: Repository, revision: str, body: bytes) -> None:
        header, *operations = [json.loads(line) for line in body.splitlines()]
        files = {}
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:  # lfsFile
                if value["oid"] not in self.server.blobs:
                    return self._send_error(400, "", "An LFS file of this commit was not uploaded")
                files[value["path"]] = self.server.blobs[value["oid"]]
        oid = repository.commit(revision, files, header["value"]["summary"])
        return self._send_json({"commitUrl": f"{self.server.url}/{name}/commit/{oid}", "commitOid": oid})

    def _answer_file(self) -> None:
        path, _ = self._begin()
        if match := re.fullmatch(r"/lfs/([0-9a-f]{64})", path):
            return self._send(200, self.server.blobs[match[1]], ETag=f'"{match[1]}"')
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if match is None:
            return self._send(404)
        repository = self.server.repositories.get(match[1])
        is_owner = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.private and not is_owner):
            return self._send_error(
                404 if is_owner else 401, "RepoNotFound" if is_owner else "", "Repository not found"
            )
        if repository.gated:
            return self._send_error(403 if is_owner else 401, "GatedRepo", f"Access to model {match[1]} is restricted")
        commit = repository.find(match[2])
        if commit is None:
            return self._send_error(404, "RevisionNotFound", f"Invalid rev id: {match[2]}")
        content = repository.commits[commit].get(match[3])
        if content is None:
            return self._send_error(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit})
        if not _is_lfs(match[3]):
            oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            return self._send(200, content, ETag=f'"{oid}"', **{"X-Repo-Commit": commit})
        digest = hashlib.sha256(content).hexdigest()
        self.server.blobs[digest] = content
        linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content)), "X-Repo-Commit": commit}
        # Clients follow redirects to the same host; the Hub's lead to another one.
        return self._send(302, Location=f"http://localhost:{self.server.server_port}/lfs/{digest}", **linked)

    def _send_json(self, values: Any, status: int = 200) -> None:
        self._send(status, json.dumps(values).encode(), **{"Content-Type": "application/json"})

    def _send_error(self, status: int, code: str, message: str, **headers: str) -> None:
        named = {"X-Error-Code": code} if code else {}
        self._send(status, json.dumps({"error": message}).encode(), **named, **{"X-Error-Message": message}, **headers)

    def _send(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def handle(self):
        with contextlib.suppress(ConnectionError):  # a client hung up, or `breaks_off`
            super().handle()

    def finish(self):
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def log_message(self, *args):
        pass


def _is_lfs(path: str) -> bool:
    return path.endswith((".safetensors", ".bin", ".png"))


@contextlib.contextmanager
def serving() -> Iterator[HubServer]:
    """A running server without repositories."""
    with HubServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
