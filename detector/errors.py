"""The one exception that a user may meet, and the one reader of text files."""

from __future__ import annotations

import codecs
from pathlib import Path

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


class InputError(Exception):
    """Bad input: a single line that says what was wrong, where, and how to fix it.

    The tools print it and exit with code 2; a program that uses the library can catch it.
    """


def read_text(path: Path) -> str:
    """The content of a text file in UTF-8, or in UTF-16 with its mark (as PowerShell writes it). Raises: InputError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
