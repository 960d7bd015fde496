"""A server of files on this machine that can break off, stall, redirect and announce the wrong length."""

import contextlib
import http.server
import re
import threading
from collections.abc import Iterator


class FileServer(http.server.ThreadingHTTPServer):
    """Serves `files` by path.

    Attributes:
      files: path, such as `/data.tgz`, to content.
      redirects: path to the path that it is redirected to.
      requests: (path, Range header) of what was asked for.
      ranges: whether ranges are supported.
      announces_length: whether Content-Length is sent.
      breaks_off_at: position in a file at which the server hangs up.
      stalls_at: position in a file at which the server sends nothing more until `go_on` is set.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files, self.redirects, self.requests = {}, {}, []
        self.ranges = self.announces_length = True
        self.breaks_off_at = self.stalls_at = None
        self.go_on = threading.Event()


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.requests.append((self.path, self.headers.get("Range")))
        if self.path in server.redirects:
            self.send_response(302)
            self.send_header("Location", server.redirects[self.path])
            self.end_headers()
            return
        if self.path not in server.files:
            self.send_error(404)
            return
        content, start = server.files[self.path], 0
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if wanted and server.ranges:
            start = int(wanted[1])
            if start >= len(content):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if server.announces_length:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if server.stalls_at is not None:
            self.wfile.write(content[start : server.stalls_at])
            server.go_on.wait(30)
            start = server.stalls_at
        with contextlib.suppress(ConnectionError):  # the client may have given up
            self.wfile.write(content[start : server.breaks_off_at])

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serving(**files: bytes) -> Iterator[FileServer]:
    """A running server of these files."""
    with FileServer() as server:
        server.files = {f"/{name}": content for name, content in files.items()}
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.go_on.set()
            server.shutdown()
            thread.join()
