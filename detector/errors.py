"""The one exception that a user may see, and a reader of text files that raises it."""

from pathlib import Path


class InputError(Exception):
    """Bad input: a single line that says what was wrong, where, and how to fix it.

    The tools print it and exit with code 2; a program that uses the library can catch it.
    """


def read_text(path: Path) -> str:
    """The content of a UTF-8 file. Raises: InputError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
