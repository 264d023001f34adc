"""Downloads from a local server: resume, checksums, space, damage."""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import detector.data.download as module
from detector.data.download import ARCHIVES, Archive, _unpack, download, fetch_dataset
from detector.errors import InputError


class Server(ThreadingHTTPServer):
    files: dict[str, bytes]
    ranges: bool = True
    break_after: int | None = None
    requests: list[str]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        content = self.server.files.get(self.path)
        wanted = self.headers.get("Range")
        self.server.requests.append(wanted or "all")
        if content is None:
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.ranges else 0
        if start >= len(content) and start:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        stop = len(content) if self.server.break_after is None else start + self.server.break_after
        self.wfile.write(content[start:stop])

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("top/inner/a.txt", "hello")
    server.files = {"/a.bin": bytes(range(256)) * 40, "/a.zip": archive.getvalue(), "/bad.zip": b"no zip at all"}
    server.requests = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def url(server: Server, name: str) -> str:
    return f"http://127.0.0.1:{server.server_port}/{name}"


@pytest.mark.parametrize("ranges", [True, False])
def test_resumes_where_it_broke_off(server: Server, ranges: bool, tmp_path: Path) -> None:
    server.break_after = 3000
    with pytest.raises(InputError, match="download interrupted"):
        download(url(server, "a.bin"), tmp_path / "a.bin", progress=False)
    assert (tmp_path / "a.bin.part").stat().st_size == 3000
    assert not (tmp_path / "a.bin").exists()
    server.break_after, server.ranges = None, ranges
    download(url(server, "a.bin"), tmp_path / "a.bin", progress=False)
    assert (tmp_path / "a.bin").read_bytes() == server.files["/a.bin"]
    assert server.requests == ["all", "bytes=3000-"]
    download(url(server, "a.bin"), tmp_path / "a.bin", progress=False)
    assert len(server.requests) == 2, "fetched again without need"


def test_a_part_file_that_is_already_complete(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(server.files["/a.bin"])
    download(url(server, "a.bin"), tmp_path / "a.bin", progress=False)
    assert (tmp_path / "a.bin").read_bytes() == server.files["/a.bin"]


def test_unpacks_the_inner_folder_once(server: Server, tmp_path: Path) -> None:
    digest = hashlib.md5(server.files["/a.zip"], usedforsecurity=False).hexdigest()
    archives = [Archive(url(server, "a.zip"), md5=digest, inner="top/inner")]
    fetch_dataset(archives, tmp_path, progress=False)
    assert (tmp_path / "a.txt").read_text() == "hello"
    assert not (tmp_path / "a.zip").exists()
    fetch_dataset(archives, tmp_path, progress=False)
    assert len(server.requests) == 1


def test_a_wrong_checksum_and_a_damaged_archive_are_removed(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"checksum .* instead of 0"):
        fetch_dataset([Archive(url(server, "a.zip"), md5="0")], tmp_path, progress=False)
    with pytest.raises(InputError, match="is damaged"):
        fetch_dataset([Archive(url(server, "bad.zip"))], tmp_path, progress=False)
    assert not list(tmp_path.glob("*.zip"))


def test_no_file_no_server_no_space(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="the server returned 404"):
        download(url(server, "none"), tmp_path / "x", progress=False)
    with pytest.raises(InputError, match="cannot be reached"):
        download("http://127.0.0.1:1/x", tmp_path / "x", progress=False)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(InputError, match="GB are free"):
        download(url(server, "a.bin"), tmp_path / "x", progress=False)


def test_the_known_data_sets() -> None:
    assert set(ARCHIVES) == {"coco", "voc", "bccd"}


def test_an_archive_that_would_fill_the_disk_is_not_unpacked(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(10**7))
    with pytest.raises(InputError, match=r"bomb.zip: would grow to 0.0 GB, which no data set does; file removed"):
        _unpack(bomb, tmp_path, "")
    assert list(tmp_path.iterdir()) == []
