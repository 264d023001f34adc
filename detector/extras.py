"""Libraries that running an exported file does without: each is asked for here before it is needed."""

from __future__ import annotations

from importlib.util import find_spec

from detector.errors import InputError


def require(module: str, purpose: str, *, package: str | None = None) -> None:
    """Checks that a library is installed, without importing it.

    Args:
        module: its name for `import`.
        purpose: what needs it, for the message.
        package: its name for pip, if that is another.

    Raises:
        InputError: it is not installed.
    """
    if find_spec(module) is None:
        raise InputError(f"{purpose} needs {module}; run: pip install {package or module}")
