"""Fetches a public model and checks what came: size, hash, and that its layers use it to the last byte."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from detector.darknet import load_darknet
from detector.data.download import download
from detector.errors import InputError
from detector.files import write_atomically
from detector.zoo.table import FOLDER, ZooModel, coco_names

HOST = "https://github.com"
HASHES = "hashes.json"


def fetch(model: ZooModel, *, root: Path = FOLDER, host: str | None = None, progress: bool = True) -> str:
    """Fetches cfg and weights into ROOT/NAME, writes the class names beside them, and says what was checked.

    What is there already is checked again and not fetched. What fails a check is removed.

    Args:
        model: a row of the table.
        root: folder of all models; its hashes.json records the hashes that no project publishes.
        host: replaces https://github.com; None = the environment's DETECTOR_ZOO_URL, else that.
        progress: show bars on stderr.

    Raises:
        InputError: no connection, no space, another size or hash, or weights that do not fit their cfg.
    """
    base = base_of(host or os.environ.get("DETECTOR_ZOO_URL") or HOST)
    cfg, weights, names = model.files(root / model.name)
    download(f"{base}/{model.cfg}", cfg, progress=progress, unpacks=False)
    download(f"{base}/{model.weights}", weights, size=model.bytes, progress=progress, unpacks=False)
    verdict = _check(model, cfg, weights, root / HASHES)
    if model.kind == "detector":
        write_atomically(names, "".join(f"{name}\n" for name in coco_names()).encode())
    return verdict


def base_of(host: str) -> str:
    """The address to which paths are appended. Raises: InputError: it is not one of the web."""
    if urlsplit(host).scheme not in ("http", "https"):
        raise InputError(f"--from {host}: expected an address that begins with http:// or https://")
    return host.rstrip("/")


def _check(model: ZooModel, cfg: Path, weights: Path, hashes: Path) -> str:
    """Raises: InputError; what does not belong is removed."""
    for path in (cfg, weights):
        refuse_web_page(path)
    size, digest = weights.stat().st_size, digest_of(weights, "sha256")
    if size != model.bytes:
        weights.unlink()
        raise InputError(f"{weights.name}: {size:,} bytes instead of {model.bytes:,}; removed, fetch it again")
    published = _compare_published(model, weights, digest)
    record = HashRecord(hashes)
    known = record.compare(model.name, weights, digest)
    record.compare(f"{model.name}.cfg", cfg, digest_of(cfg, "sha256"))
    try:
        load_darknet(cfg, weights)
    except InputError as error:
        cfg.unlink()
        raise InputError(
            f"{model.name}: cfg and weights do not belong together ({error}); the cfg was removed"
        ) from error
    record.save()
    if published:
        return f"{size / 1e6:.1f} MB, {published} as published; the weights fit the cfg to the last byte"
    return f"{size / 1e6:.1f} MB; no hash is published: sha256 {digest[:16]}... {known}; the weights fit the cfg"


class HashRecord:
    """The hashes of what was fetched: the first download of a name is recorded, later ones are compared with it.

    Args:
        path: its file. Raises: InputError: it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hashes = _read_hashes(path)

    def compare(self, name: str, file: Path, digest: str) -> str:
        """Compares or notes the sha256 of a file, and says which. Raises: InputError: it differs; file removed."""
        if name not in self.hashes:
            self.hashes[name] = digest
            return f"recorded in {self.path}"
        if self.hashes[name] != digest:
            file.unlink()
            raise InputError(
                f"{file.name}: is another file than the one fetched before (sha256 {digest[:16]}, recorded "
                f"{self.hashes[name][:16]} in {self.path}); removed"
            )
        return "compared with the first download"

    def save(self) -> None:
        """Writes what was noted."""
        write_atomically(self.path, json.dumps(self.hashes, indent=2).encode())


def refuse_web_page(path: Path) -> None:
    """Raises: InputError: the file is a page of HTML; removed."""
    with path.open("rb") as file:
        if file.read(512).lstrip().startswith((b"<!", b"<html", b"<HTML", b"<?xml")):
            path.unlink()
            raise InputError(f"{path.name}: the server sent a web page instead of the file; removed")


def _compare_published(model: ZooModel, weights: Path, sha256: str) -> str:
    """The kind of hash that was compared; "" where none is published. Raises: InputError: it differs."""
    kind = "sha256" if model.sha256 else "md5" if model.md5 else ""
    if kind:
        expected, digest = getattr(model, kind), sha256 if kind == "sha256" else digest_of(weights, kind)
        if digest != expected:
            weights.unlink()
            raise InputError(f"{weights.name}: {kind} {digest} instead of {expected}; removed, fetch it again")
    return kind


def _read_hashes(path: Path) -> dict[str, str]:
    try:
        content: Any = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); remove it to record the hashes anew") from error
    return {str(name): str(value) for name, value in content.items()} if isinstance(content, dict) else {}


def digest_of(path: Path, kind: str) -> str:
    """A hash of a file, in hexadecimal digits. Args: kind: as in hashlib."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
