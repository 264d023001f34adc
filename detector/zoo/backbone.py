"""Fetches timm's published weights of a backbone and checks that they are that network's, to the last tensor."""

from __future__ import annotations

import os
from pathlib import Path

from detector.data.download import download
from detector.errors import InputError
from detector.models.timm_backbone import PREFIX, TimmBackbone
from detector.zoo.fetch import HASHES, HashRecord, base_of, digest_of, refuse_web_page
from detector.zoo.table import FOLDER, backbone_file

HOST = "https://huggingface.co"


def fetch_backbone(name: str, *, root: Path = FOLDER, host: str | None = None, progress: bool = True) -> str:
    """Fetches the weights of timm/NAME into ROOT/timm/NAME.safetensors, and says what was checked.

    What is there already is checked again and not fetched. What fails a check is removed.

    Args:
        name: timm/NAME.
        root: folder of all models.
        host: replaces https://huggingface.co; None = the environment's HF_ENDPOINT, else that.
        progress: show a bar on stderr.

    Raises:
        InputError: timm is missing or publishes no weights of it, no connection, no space, or another network's file.
    """
    base = base_of(host or os.environ.get("HF_ENDPOINT") or HOST)
    network = TimmBackbone(name.removeprefix(PREFIX))
    if not network.repository:
        raise InputError(f"{name}: timm publishes no weights of it")
    target = backbone_file(name, root)
    download(f"{base}/{network.repository}/resolve/main/model.safetensors", target, progress=progress, unpacks=False)
    refuse_web_page(target)
    try:
        network.load_published(target)
    except InputError as error:
        target.unlink()
        raise InputError(f"{target.name}: does not hold the weights of {name} ({error}); removed") from error
    record, digest = HashRecord(root / HASHES), digest_of(target, "sha256")
    known = record.compare(name, target, digest)
    record.save()
    size = target.stat().st_size
    return f"{size / 1e6:.1f} MB; no hash is published: sha256 {digest[:16]}... {known}; the weights fit the network"
