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
    base = (host or os.environ.get("DETECTOR_ZOO_URL") or HOST).rstrip("/")
    if urlsplit(base).scheme not in ("http", "https"):
        raise InputError(f"--from {base}: expected an address that begins with http:// or https://")
    cfg, weights, names = model.files(root / model.name)
    download(f"{base}/{model.cfg}", cfg, progress=progress, unpacks=False)
    download(f"{base}/{model.weights}", weights, size=model.bytes, progress=progress, unpacks=False)
    verdict = _check(model, cfg, weights, root / HASHES)
    if model.kind == "detector":
        write_atomically(names, "".join(f"{name}\n" for name in coco_names()).encode())
    return verdict


def _check(model: ZooModel, cfg: Path, weights: Path, hashes: Path) -> str:
    """Raises: InputError; what does not belong is removed."""
    for path in (cfg, weights):
        with path.open("rb") as file:
            if file.read(512).lstrip().startswith((b"<!", b"<html", b"<HTML", b"<?xml")):
                path.unlink()
                raise InputError(f"{path.name}: the server sent a web page instead of the file; removed")
    size, digest = weights.stat().st_size, _digest(weights, "sha256")
    if size != model.bytes:
        weights.unlink()
        raise InputError(f"{weights.name}: {size:,} bytes instead of {model.bytes:,}; removed, fetch it again")
    published = _compare_published(model, weights, digest)
    recorded = _read_hashes(hashes)
    found = {model.name: digest, f"{model.name}.cfg": _digest(cfg, "sha256")}
    for name, value in found.items():
        if recorded.get(name, value) != value:
            changed = cfg if name.endswith(".cfg") else weights
            changed.unlink()
            raise InputError(
                f"{changed.name}: is another file than the one fetched before (sha256 {value[:16]}, recorded "
                f"{recorded[name][:16]} in {hashes}); removed"
            )
    try:
        load_darknet(cfg, weights)
    except InputError as error:
        cfg.unlink()
        raise InputError(
            f"{model.name}: cfg and weights do not belong together ({error}); the cfg was removed"
        ) from error
    write_atomically(hashes, json.dumps({**recorded, **found}, indent=2).encode())
    if published:
        return f"{size / 1e6:.1f} MB, {published} as published; the weights fit the cfg to the last byte"
    first = "compared with the first download" if model.name in recorded else f"recorded in {hashes}"
    return f"{size / 1e6:.1f} MB; no hash is published: sha256 {digest[:16]}... {first}; the weights fit the cfg"


def _compare_published(model: ZooModel, weights: Path, sha256: str) -> str:
    """The kind of hash that was compared; "" where none is published. Raises: InputError: it differs."""
    kind = "sha256" if model.sha256 else "md5" if model.md5 else ""
    if kind:
        expected, digest = getattr(model, kind), sha256 if kind == "sha256" else _digest(weights, kind)
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


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
