"""Files as people name them: text in any encoding, names in lists and label files, folders of images.

A name in a list or label file is looked for in a few folders, first of all that of the file which names it. In each it
may be written in another way than on the disk: with backslashes, quotes, percent codes (`%20`), composed or decomposed
letters (a Mac's), other capitals. If it is in none of them, its leading folders are left out, one after the other:
`/content/set/images/a.jpg` of another machine is `images/a.jpg` here.
"""

from __future__ import annotations

import codecs
import logging
import os
import re
import tempfile
import threading
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import has_magic, iglob
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from detector.errors import InputError

IMAGE_SUFFIXES = {
    *(".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm"),
    *(".ppm", ".tif", ".tiff", ".webp"),
}
SHOWN_SUFFIXES = "an image such as .jpg, .png, .webp or .tif"
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_OTHER_SYSTEMS = {"__MACOSX"}
_LOG = logging.getLogger(__name__)


def read_text(path: Path) -> str:
    """The content of a text file.

    UTF-8, UTF-16 (as PowerShell writes it), or else GB18030 or Windows-1252, of which a warning tells.

    Raises:
        InputError: the file cannot be read, or is not text.
    """
    try:
        return decode_text(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def decode_text(content: bytes, where: str) -> str:
    """The bytes of a text file as text, see `read_text`. Raises: InputError."""
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    if encoding is None and content[:200].count(0) * 3 > len(content[:200]):
        encoding = "utf-16-be" if content[0] == 0 else "utf-16-le"
    runs = re.findall(rb"[\x80-\xff]+", content)
    chinese = sum(len(run) % 2 == 0 for run in runs) * 2 > len(runs)  # whose characters have two such bytes
    for name in [encoding] if encoding else ["utf-8", *(["gb18030"] if chinese else []), "cp1252"]:
        try:
            text = content.decode(name)
        except UnicodeDecodeError:
            continue
        if "\0" in text:
            break
        if name in {"gb18030", "cp1252"}:
            _LOG.warning("%s: is not UTF-8, read as %s; save it as UTF-8 if its names look wrong", where, name)
        return text
    raise InputError(f"{where}: is not text; save it as UTF-8")


def write_atomically(path: Path, content: bytes) -> None:
    """Writes beside the target, flushes to the disk, then renames. Raises: OSError."""
    with replacing(path) as trial, trial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new name beside a file, which replaces it at the end; a link stays one, and an error leaves the old file."""
    path = path.resolve() if path.is_symlink() else path
    path.parent.mkdir(parents=True, exist_ok=True)
    trial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        yield trial
        trial.replace(path)
    finally:
        trial.unlink(missing_ok=True)


def printable(name: str | Path) -> str:
    """A file name as it can be shown and stored, also if it is not UTF-8."""
    return os.fsencode(str(name)).decode("utf-8", "backslashreplace")


@contextmanager
def plain_name(path: str) -> Iterator[str]:
    """A name that libraries in C can open: a link to the file where its own is not UTF-8, which makes OpenCV crash."""
    try:
        path.encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory(prefix=f"detector-{os.getpid()}-") as folder:
            link = Path(folder) / f"file{Path(path).suffix if Path(path).suffix.isascii() else ''}"
            link.symlink_to(Path(path).absolute())
            yield str(link)
    else:
        yield path


def is_file(path: Path) -> bool:
    """Whether there is a file of this name, also if the name is impossible, for which Path.is_file raises."""
    return os.path.isfile(path)  # noqa: PTH113


def is_image_name(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def list_files(folder: str | Path) -> list[Path]:
    """The files of a folder and its subfolders, links followed, sorted; without hidden files and those of archives."""
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    waiting = [Path(folder)]
    while waiting:
        here = waiting.pop()
        try:
            status = here.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = list(os.scandir(here))
        except OSError:
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name in _OTHER_SYSTEMS:
                continue
            if entry.is_dir():
                waiting.append(Path(entry.path))
            elif entry.is_file():
                found.append(Path(entry.path))
    return sorted(found)


def list_images(folder: str | Path) -> list[Path]:
    """The image files of a folder and its subfolders, see `list_files`."""
    return [path for path in list_files(folder) if is_image_name(path)]


def expand(pattern: str) -> list[Path] | None:
    """The images that a pattern such as `*.jpg` or `frame_%03d.jpg` means, sorted; None for what is not a pattern."""
    numbered = re.sub(r"%0(\d)d", lambda match: "[0-9]" * int(match[1]), pattern).replace("%d", "[0-9]*")
    if os.path.lexists(pattern) or not has_magic(numbered):  # a file that exists is never a pattern
        return None
    return sorted(path for path in map(Path, iglob(numbered)) if is_image_name(path))


def read_list(path: Path) -> list[str]:
    """The lines of a list of files, without blanks around them, quotes and empty lines. Raises: InputError."""
    lines = (line.strip() for line in read_text(path).splitlines())
    return [_unquote(line) for line in lines if line]


def read_class_names(path: Path) -> tuple[str, ...]:
    """The class names in a text file, one a line; an empty line between others is a class without a name.

    Raises:
        InputError: the file is missing or empty, or two names are equal.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file of class names")
    lines = read_text(path).rstrip().splitlines()
    if not lines:
        raise InputError(f"{path}: has no class names; expected one per line")
    return require_distinct([line.strip() or f"class{index}" for index, line in enumerate(lines)], str(path))


def require_distinct(names: Sequence[str], where: str) -> tuple[str, ...]:
    """Class names, of which no two are equal. Raises: InputError."""
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise InputError(f"{where}: the class name {repeated[0]!r} appears twice; give each class a name of its own")
    return tuple(names)


class Finder:
    """Finds the files that a list or a label file names; the module's docstring has the rule.

    Args:
        folders: where to look, in this order.
    """

    def __init__(self, *folders: Path) -> None:
        self.folders = tuple(dict.fromkeys(folders))
        self.elsewhere: dict[str, Path] = {}  # what was found without its leading folders
        self._contents: dict[Path, tuple[dict[str, str], dict[str, str]]] = {}

    def find(self, name: str, *, any_suffix: bool = False, here: bool = False) -> Path | None:
        """The file or folder of this name.

        Args:
            name: as it is written.
            any_suffix: if there is none, take the image with another suffix.
            here: do not leave out leading folders of the name.
        """
        if not name or "\0" in name:
            return None
        for folder in self.folders:
            if self._list(folder)[0].get(name) == name if "/" not in name else os.path.lexists(folder / name):
                return folder / name
        spellings = list(dict.fromkeys([_unquote(name), _unquote(name).replace("\\", "/"), unquote(name)]))
        spellings += [unquote(spelling) for spelling in spellings]
        found = self._respelt(spellings, any_suffix)
        return found if found or here else self._without_folders(name, spellings, any_suffix)

    def describe(self) -> str:
        """Where was looked."""
        return " and ".join(printable(folder) for folder in self.folders)

    def _respelt(self, spellings: Sequence[str], any_suffix: bool) -> Path | None:
        for folder in self.folders:
            for spelling in spellings:
                found = self._walk(folder, PurePosixPath(spelling).parts, any_suffix)
                if found is not None:
                    return found
        return None

    def _without_folders(self, name: str, spellings: Sequence[str], any_suffix: bool) -> Path | None:
        paths = [PurePosixPath(spelling.replace("\\", "/")).parts for spelling in spellings]
        for start in range(1, max(map(len, paths))):
            for folder in self.folders:
                for parts in paths:
                    found = self._walk(folder, parts[start:], any_suffix) if parts[start:] else None
                    if found is not None:
                        self.elsewhere[name] = found
                        return found
        return None

    def _walk(self, folder: Path, parts: Sequence[str], any_suffix: bool) -> Path | None:
        """Follows the parts of a name as they may be written on the disk."""
        if parts and parts[0] == "/":
            folder, parts = Path("/"), parts[1:]
        for place, part in enumerate(parts):
            if part == "..":
                folder = folder / part
                continue
            entries, stems = self._list(folder)
            name = entries.get(part) or entries.get(_key(part))
            if name is None and any_suffix and place == len(parts) - 1:
                path = Path(part)
                name = stems.get(_key(path.stem if is_image_name(path) else part))
            if name is None:
                return None
            folder = folder / name
        return folder if parts else None

    def _list(self, folder: Path) -> tuple[dict[str, str], dict[str, str]]:
        """The names in a folder by their keys, and those of images by the keys of their stems."""
        if folder not in self._contents:
            try:
                names = sorted(
                    (path.name for path in folder.iterdir()), reverse=True
                )  # of several that fit, the first in the alphabet wins
            except OSError:
                names = []
            images = [name for name in names if is_image_name(Path(name))]
            by_key = {_key(name): name for name in names} | {name: name for name in names}
            self._contents[folder] = by_key, {_key(Path(name).stem): name for name in images}
        return self._contents[folder]


def _key(name: str) -> str:
    """A name without the differences between systems."""
    return unicodedata.normalize("NFC", name).casefold()


def _unquote(name: str) -> str:
    return re.sub(r"""^(["'])(.*)\1$""", r"\2", name.strip())
