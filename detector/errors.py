"""The one exception that a user may meet."""

from __future__ import annotations


class InputError(Exception):
    """Bad input: a single line that says what was wrong, where, and how to fix it.

    The tools print it and exit with code 2; a program that uses the library can catch it.
    """
