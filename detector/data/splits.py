"""Which part of a data set a file belongs to, by its name, and parts by a hash of the content."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from detector.errors import InputError

EVERYTHING = "all"
"""The split of a data set whose files name none."""
_SPLIT = re.compile(r"(?:^|[^a-z])(train|training|val|valid|validation|test|testing)(?:[^a-z]|$)")
_CANONICAL = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
_PART = re.compile(r"(.*)\[(\d*)%?:(\d*)%?\]")


def split_of(path: Path | str) -> str | None:
    """train, val or test where a name says so (`valid/a.jpg`, `instances_val2017.json`); the last word counts."""
    found = [match[1] for part in Path(path).parts for match in _SPLIT.finditer(part.lower())]
    return _CANONICAL.get(found[-1], found[-1]) if found else None


def group_by_split(files: Iterable[Path], root: Path) -> dict[str, list[Path]]:
    """Files below a folder by the split that their names state; those that state none are `all`."""
    groups: dict[str, list[Path]] = {}
    for file in files:
        groups.setdefault(split_of(file.relative_to(root)) or EVERYTHING, []).append(file)
    return groups


def same_split(wanted: str, names: Sequence[str]) -> str | None:
    """The split that a user means: by its name, or by what it is (`val` for `valid` or `val_2024`)."""
    if wanted in names:
        return wanted
    stem = _stem(wanted)
    by_stem = [name for name in names if _stem(name) == stem]
    by_kind = [name for name in names if split_of(name) == (split_of(wanted) or wanted)]
    return next((found[0] for found in (by_stem, by_kind) if len(found) == 1), None)


def _stem(name: str) -> str:
    return Path(name).name.removesuffix(".json").removeprefix("instances_").removeprefix("image_info_")


def parse_part(split: str) -> tuple[str, float, float]:
    """`train[80%:]` -> the split and the share of its images, here 0.8 to 1. Raises: InputError."""
    match = _PART.fullmatch(split)
    if match is None:
        return split, 0.0, 1.0
    low, high = int(match[2] or 0) / 100, int(match[3] or 100) / 100
    if not 0 <= low < high <= 1:
        raise InputError(f"split {split!r}: expected a part such as {match[1]}[:80%] or {match[1]}[80%:]")
    return match[1], low, high


def in_part(content: bytes, low: float, high: float) -> bool:
    """Whether an image is in a part. Its content decides, so that equal images are in the same one."""
    place = int.from_bytes(hashlib.sha256(content).digest()[:8], "big") / 2**64
    return low <= place < high
