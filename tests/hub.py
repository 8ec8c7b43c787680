"""A hub on this machine: it has what it is given, counts what is asked of it, and hangs up once if told to."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

SHA = "1" * 40
Files = Mapping[str, bytes]


class Hub(ThreadingHTTPServer):
    """Files by the name of what they belong to: `owner/model`, or `datasets/owner/data`."""

    daemon_threads = True
    files: Mapping[str, Files]
    ranges: list[str | None]
    """Of each file in safetensors that was asked for: from where on."""
    cut: int | None = None
    """So many bytes of the next large file are sent."""

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serve(files: Mapping[str, Files]) -> Iterator[Hub]:
    """A hub of these, meanwhile. Effect: a thread that listens."""
    server = Hub(("127.0.0.1", 0), Answers)
    server.files, server.ranges = files, []
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        name = next((name for name in self.server.files if f"/{name}/" in path), None)
        if name is None:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        files = self.server.files[name]
        if path.endswith("/revision/main"):
            told = {"id": name.removeprefix("datasets/"), "sha": SHA, "siblings": []}
            return self._send(200, json.dumps(told).encode())
        if "/revision/" in path:
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if "/tree/" in path:
            entries = [
                {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for file, content in files.items()
            ]
            return self._send(200, json.dumps(entries).encode())
        file = path.partition(f"/resolve/{SHA}/")[2]
        content = files[file]
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range")
        if self.command == "GET" and file.endswith(".safetensors"):
            self.server.ranges.append(asked)
        start = int(match[1]) if asked and (match := re.match(r"bytes=(\d+)-", asked)) else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self._send(206 if start else 200, content[start:], headers)

    def _send(self, code: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for key, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            cut, self.server.cut = (self.server.cut, None) if len(content) > 1 << 16 else (None, self.server.cut)
            self.wfile.write(content[:cut])
            if cut:
                self.wfile.flush()
                self.connection.close()
