"""A web server on this machine for tests: files of a folder or of a dict, with ranges of bytes or
without."""

import contextlib
import http.server
import threading
from collections.abc import Mapping


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files`; `server.ranges` says whether a part of a file can be had."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        content = self.server.files.get(self.path)
        self.server.asked.append((self.command, self.path, self.headers.get("Range")))
        if self.server.failures.get(self.path, 0) > 0:
            self.server.failures[self.path] -= 1
            return self._send(503, b"busy", {})
        if isinstance(content, int):
            return self._send(content, b"<html>no</html>", {"Content-Type": "text/html"})
        if content is None:
            return self._send(404, b"<html>not here</html>", {"Content-Type": "text/html"})
        wanted = self.headers.get("Range")
        if wanted is None or not self.server.ranges:
            return self._send(200, content, {"ETag": f'"{hash(content)}"'})
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start = int(first)
        stop = min(int(last or len(content)) + 1, len(content))
        if start >= len(content):
            return self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        about = {
            "Content-Range": f"bytes {start}-{stop - 1}/{len(content)}",
            "ETag": f'"{hash(content)}"',
        }
        return self._send(206, content[start:stop], about)

    do_HEAD = do_GET

    def _send(self, status, content, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):
                self.wfile.write(content)

    def log_message(self, *about):
        """Says nothing."""


@contextlib.contextmanager
def serve(files: Mapping[str, bytes], ranges: bool = True):
    """Serves path -> content, or the status of an answer without any; yields the server, with
    `url`, what was `asked`, and `failures` (path -> answers that fail)."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files = dict(files)
    server.ranges = ranges
    server.asked = []
    server.failures = {}
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
    )
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
