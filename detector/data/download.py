"""Downloads public data sets and models. Only this module fetches anything, and only when asked."""

from __future__ import annotations

import hashlib
import http.client
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from detector.errors import InputError

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 60
MAX_BYTES = 100 * 10**9
"""No file here is larger."""
MAX_GROWTH = 50
"""Labels in text shrink to a tenth when they are packed; a zip bomb grows a thousand times."""


@dataclass(frozen=True)
class Archive:
    """One file to download and unpack.

    Attributes:
        url: where it is.
        md5: its published checksum; None if there is none.
        inner: the folder in the archive whose content is wanted; "" = all.
    """

    url: str
    md5: str | None = None
    inner: str = ""


_COCO = "https://s3.amazonaws.com/images.cocodataset.org"
_VOC = "http://host.robots.ox.ac.uk/pascal/VOC"
ARCHIVES: dict[str, tuple[Archive, ...]] = {
    # Checksums as other projects list them; COCO publishes none.
    "coco": (
        Archive(f"{_COCO}/annotations/annotations_trainval2017.zip", "f4bbac642086de4f52a3fdda2de5fa2c"),
        Archive(f"{_COCO}/annotations/image_info_test2017.zip", "85da7065e5e600ebfee8af1edb634eb5"),
        Archive(f"{_COCO}/zips/val2017.zip", "442b8da7639aecaf257c1dceb8ba8c80"),
        Archive(f"{_COCO}/zips/train2017.zip", "cced6f7f71b7629ddf16f17bbcfab6b2"),
        Archive(f"{_COCO}/zips/test2017.zip", "77ad2c53ac5d0aea611d422c0938fb35"),
    ),
    # Without https; the checksums, as in torchvision.datasets.voc, protect it.
    "voc": (
        Archive(f"{_VOC}/voc2012/VOCtrainval_11-May-2012.tar", "6cd6e144f989b92b3379bac3b3de84fd"),
        Archive(f"{_VOC}/voc2007/VOCtrainval_06-Nov-2007.tar", "c52e279531787c972589f7e41ab4ae64"),
        Archive(f"{_VOC}/voc2007/VOCtest_06-Nov-2007.tar", "b6e924de25625d8de591ea690078ad9f"),
    ),
    "bccd": (
        Archive(
            "https://github.com/Shenggan/BCCD_Dataset/archive/refs/heads/master.zip", inner="BCCD_Dataset-master/BCCD"
        ),
    ),
}


def fetch_dataset(archives: Iterable[Archive], root: Path, *, progress: bool = True) -> None:
    """Downloads, checks and unpacks archives into `root`; skips what is already there.

    Raises:
        InputError: no connection, no space, a wrong checksum, a damaged archive. An interrupted download is kept
            as .part and resumes at the next call.
    """
    for archive in archives:
        name = archive.url.rsplit("/", 1)[-1]
        done = root / f".{name}.done"
        if done.exists():
            continue
        target = root / name
        download(archive.url, target, progress=progress)
        if archive.md5 is not None:
            _check_md5(target, archive.md5)
        _unpack(target, root, archive.inner)
        target.unlink()
        done.touch()


def download(url: str, target: Path, *, size: int | None = None, progress: bool = True, unpacks: bool = True) -> None:
    """Downloads a file, resuming where an earlier attempt stopped; a file that is there is left alone.

    Args:
        url: where it is.
        target: where it goes; NAME.part beside it holds what has come so far.
        size: its size in bytes, where that is known.
        progress: show a bar on stderr.
        unpacks: it is an archive, whose content needs as much room again.

    Raises:
        InputError: as in `fetch_dataset`; or the server offers a file of another size.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        return
    part = target.with_name(f"{target.name}.part")
    try:
        expected = _fetch(url, part, size=size, progress=progress, unpacks=unpacks)
    except urllib.error.HTTPError as error:
        _remove_empty(target.parent)
        raise InputError(f"{url}: the server returned {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        if not part.exists():
            _remove_empty(target.parent)
            raise InputError(f"{url}: cannot be reached ({error})") from error
        raise InputError(f"{url}: download interrupted ({error}); run the same command again to resume") from error
    if expected is not None and part.stat().st_size != expected:
        raise InputError(
            f"{url}: download interrupted at {part.stat().st_size} of {expected} bytes; "
            "run the same command again to resume"
        )
    part.rename(target)


def _remove_empty(folder: Path) -> None:
    """Removes a folder that was made for nothing."""
    with suppress(OSError):  # it has something in it
        folder.rmdir()


def _fetch(url: str, part: Path, *, size: int | None, progress: bool, unpacks: bool) -> int | None:
    """Appends the missing bytes to `part`; returns the size of the whole file, if the server reports it."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)  # noqa: S310
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # there is nothing left to download
            return None
        raise
    with response:
        if have and response.status != 206:
            have = 0  # the server does not support ranges: start from the beginning
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        if size is not None and total is not None and total != size:
            part.unlink(missing_ok=True)
            raise InputError(f"{url}: the server offers {total:,} bytes instead of {size:,}; this is not the file")
        rest = (total or 0) - have
        _require_space(part.parent, rest + (total or 0) if unpacks else rest, url)
        bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem, disable=not progress)
        with bar, part.open("ab" if have else "wb") as file:
            while chunk := response.read(_CHUNK):
                have += len(chunk)
                if have > (size if size is not None else MAX_BYTES):
                    raise InputError(f"{url}: the server sends more than it should; {part.name} can be removed")
                file.write(chunk)
                bar.update(len(chunk))
    return total


def _require_space(folder: Path, needed: int, url: str) -> None:
    """Raises: InputError unless there is room for the rest of the file, and for an archive's content."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{url}: needs {needed / 1e9:.1f} GB in {folder}, but {free / 1e9:.1f} GB are free; "
            "free some space and run the same command again"
        )


def _check_md5(path: Path, expected: str) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        path.unlink()
        raise InputError(
            f"{path.name}: checksum {digest.hexdigest()} instead of {expected}; file removed, download it again"
        )


def _require_plausible_size(archive: zipfile.ZipFile, path: Path) -> None:
    """Raises: InputError: the content is far larger than images and labels in an archive of this size can be."""
    size = sum(member.file_size for member in archive.infolist())
    if size > MAX_GROWTH * path.stat().st_size:
        path.unlink()
        raise InputError(f"{path.name}: would grow to {size / 1e9:.1f} GB, which no data set does; file removed")


def _unpack(path: Path, root: Path, inner: str) -> None:
    """Unpacks .zip and .tar*; the libraries keep every file inside the folder."""
    unpacked = root / f".{path.name}.unpacked" if inner else root
    unpacked.mkdir(parents=True, exist_ok=True)
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                _require_plausible_size(archive, path)
                archive.extractall(unpacked)  # noqa: S202 (zipfile removes .. and absolute names)
        else:
            with tarfile.open(path) as archive:
                archive.extractall(unpacked, filter="data")
        if inner:
            shutil.copytree(unpacked / inner, root, dirs_exist_ok=True)
            shutil.rmtree(unpacked)
    except OSError as error:
        if error.errno is not None:  # the disk, not the archive: keep it for another try
            raise InputError(f"{path.name}: cannot be unpacked into {root}: {error.strerror}") from error
        raise
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        path.unlink()
        raise InputError(f"{path.name}: is damaged ({error}); file removed, download it again") from error
