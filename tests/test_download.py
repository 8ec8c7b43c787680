"""What is fetched is what a hub has, also after a cut, by pattern and from a mirror; what fails says what to do."""

import hashlib
import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import download
import pytest

SHA = "1" * 40
FILES = {
    "config.json": b'{"model_type": "qwen3"}',
    "model.safetensors": bytes(range(256)) * 90_000,
    "pytorch_model.bin": b"a pickle",
    "sub/tokenizer.json": b"{}",
}


class Hub(ThreadingHTTPServer):
    """A hub of one model, on this machine: what was asked of it, and where it hangs up once."""

    daemon_threads = True
    ranges: list[str | None]
    cut: int | None = None


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if "/owner/model" not in path:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if path.endswith("/revision/main"):
            return self._send(200, json.dumps({"id": "owner/model", "sha": SHA, "siblings": []}).encode())
        if "/revision/" in path:
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if "/tree/" in path:
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in FILES.items()
            ]
            return self._send(200, json.dumps(entries).encode())
        name = path.partition(f"/resolve/{SHA}/")[2]
        content = FILES[name]
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range")
        if self.command == "GET" and name == "model.safetensors":
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


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub(("127.0.0.1", 0), Answers)
    server.ranges = []
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def config_of(hub: Hub, folder: Path, **changes: object) -> download.Config:
    fields = {"name": "owner/model", "to": folder, "mirror": f"http://127.0.0.1:{hub.server_port}"}
    return download.Config(**(fields | changes))


def content_of(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_a_model_is_what_it_is_read_from_and_no_pickle(hub: Hub, tmp_path: Path, capsys) -> None:
    download.main(config_of(hub, tmp_path))
    assert content_of(tmp_path) == {name: content for name, content in FILES.items() if name != "pytorch_model.bin"}
    assert f"3 files, 23.0 MB, are in {tmp_path}. Use them: --model {tmp_path}" in capsys.readouterr().out


def test_patterns_choose(hub: Hub, tmp_path: Path) -> None:
    download.main(config_of(hub, tmp_path, only=("*.json", "*.bin"), skip=("sub/*",)))
    assert sorted(content_of(tmp_path)) == ["config.json", "pytorch_model.bin"]
    with pytest.raises(ValueError, match="owner/model"):
        download.main(config_of(hub, tmp_path / "none", only=("*.nothing",)))


def test_what_was_cut_short_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    hub.cut = 12_000_000  # It is written in pieces of ten million.
    download.main(config_of(hub, tmp_path))
    assert content_of(tmp_path)["model.safetensors"] == FILES["model.safetensors"]
    assert [asked for asked in hub.ranges if asked and not asked.startswith("bytes=0-")], hub.ranges


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "owner/other"}, r"has no owner/other, or it is private: .* --dataset"),
        ({"revision": "old"}, r"owner/model has no such --revision"),
        ({"name": "a/b/c"}, r"a/b/c is no name of the hub: it is spelled OWNER/NAME"),
        ({"mirror": "http://127.0.0.1:9"}, r"http://127.0.0.1:9 cannot be reached for owner/model .*name a --mirror"),
    ],
    ids=["unknown", "revision", "name", "offline"],
)
def test_what_cannot_be_had_says_what_to_do(hub: Hub, tmp_path: Path, changes: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        download.main(config_of(hub, tmp_path, **changes))
    assert not content_of(tmp_path)


def test_a_disk_without_room_is_refused_before_anything_is_fetched(hub: Hub, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(download, "free_bytes", lambda place: 1000)
    with pytest.raises(ValueError, match=r"has 1.0 kB free, and 23.0 MB are to come"):
        download.main(config_of(hub, tmp_path))
    assert not hub.ranges
