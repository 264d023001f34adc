"""Libraries that running an exported file does without: each is asked for here before it is needed."""

from __future__ import annotations

from importlib.util import find_spec

from detector.errors import InputError


def require(module: str, purpose: str) -> None:
    """Checks that a library is installed, without importing it.

    Args:
        module: its name for `import` and for pip.
        purpose: what needs it, for the message.

    Raises:
        InputError: it is not installed.
    """
    if find_spec(module) is None:
        raise InputError(f"{purpose} needs {module}; run: pip install {module}")
