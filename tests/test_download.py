"""What is fetched is what a hub has, also after a cut, by pattern and from a mirror; what fails says what to do."""

from collections.abc import Iterator
from pathlib import Path

import download
import pytest
from hub import Hub, serve

FILES = {
    "config.json": b'{"model_type": "qwen3"}',
    "model.safetensors": bytes(range(256)) * 90_000,
    "pytorch_model.bin": b"a pickle",
    "sub/tokenizer.json": b"{}",
}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve({"owner/model": FILES}) as server:
        yield server


def config_of(hub: Hub, folder: Path, **changes: object) -> download.Config:
    fields = {"name": "owner/model", "to": folder, "mirror": hub.url}
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
