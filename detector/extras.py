"""Libraries that running an exported file does without: each is asked for here, and named with what installs it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from detector.errors import InputError

_CLONE = Path(__file__).resolve().parents[1]
SOURCE = _CLONE if (_CLONE / "pyproject.toml").is_file() else "detector"
"""What pip installs this package from."""


def require(module: str, purpose: str, *, extra: str) -> None:
    """Checks that a library is installed, without importing it.

    Args:
        module: its name for `import`.
        purpose: what needs it, for the message.
        extra: the part of pyproject.toml that installs it.

    Raises:
        InputError: it is not installed.
    """
    if find_spec(module) is None:
        raise InputError(f"{purpose} needs {module}; run: pip install '{SOURCE}[{extra}]'")
