"""Libraries that running an exported file does without: each is asked for here before it is needed."""

from __future__ import annotations

from collections.abc import Sequence
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


def require_all(modules: Sequence[str], purpose: str) -> None:
    """The same for several libraries, so that one command installs all that are missing. Raises: InputError."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        names = " ".join(module.replace("_", "-") for module in missing)
        raise InputError(f"{purpose} needs {', '.join(missing)}; run: pip install {names}")
