"""Darknet's cfg files: text <-> sections. Every key keeps its line number for error messages."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from detector.errors import InputError

_LOG = logging.getLogger(__name__)
MAX_DIMENSION = 1 << 16
"""No sensible cfg has more channels, pixels or filters; the limit keeps a typo from using up the memory."""


_SHORT_NAMES = {"conv": "convolutional", "max": "maxpool", "avg": "avgpool", "soft": "softmax"}


@dataclass
class Section:
    """One [section].

    Attributes:
        name: such as convolutional.
        where, line: file and line, for errors.
        options: key -> (value as text, line).
    """

    name: str
    where: str
    line: int = 0
    options: dict[str, tuple[str, int]] = field(default_factory=dict)

    def __contains__(self, key: str) -> bool:
        return key in self.options

    def text(self, key: str, default: str) -> str:
        return self.options[key][0] if key in self.options else default

    def integer(self, key: str, default: int, *, minimum: int = 0, maximum: int = MAX_DIMENSION) -> int:
        """A whole number within limits. Raises: InputError."""
        value = self.number(key, default)
        if value != int(value) or not minimum <= value <= maximum:
            raise self.error(key, f"expected a whole number from {minimum} to {maximum}")
        return int(value)

    def number(self, key: str, default: float) -> float:
        """A finite number. Raises: InputError."""
        if key not in self.options:
            return default
        try:
            value = float(self.options[key][0])
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self.error(key, "expected a number")
        return value

    def numbers(self, key: str) -> list[float]:
        """A comma-separated list; empty if the key is missing. Raises: InputError."""
        if key not in self.options:
            return []
        try:
            values = [float(part) for part in self.options[key][0].split(",") if part.strip()]
        except ValueError:
            values = [math.nan]
        if not all(math.isfinite(value) for value in values):
            raise self.error(key, "expected comma-separated numbers")
        return values

    def integers(self, key: str) -> list[int]:
        """A comma-separated list of whole numbers. Raises: InputError."""
        values = self.numbers(key)
        if any(value != int(value) or abs(value) > MAX_DIMENSION for value in values):
            raise self.error(key, "expected comma-separated whole numbers")
        return [int(value) for value in values]

    def error(self, key: str, problem: str) -> InputError:
        """An error about one key."""
        value, line = self.options.get(key, ("(missing)", self.line))
        return InputError(f"{self.where}, line {line}: [{self.name}] {key}={value}: {problem}")


def parse_cfg(text: str, where: str) -> list[Section]:
    """Text -> sections, in order; the first is [net] (or [network]).

    Comments (# or ;) are on their own line, as in Darknet, or after a value.

    Args:
        text: of the file.
        where: its name, for errors.

    Raises:
        InputError: a line that is neither section nor key=value, a key outside any section, no [net].
    """
    sections: list[Section] = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.split("#")[0].split(";")[0].strip()
        if not line:
            continue
        if line.startswith("["):
            if not line.endswith("]"):
                raise InputError(f"{where}, line {number}: expected [section], got {line[:60]!r}")
            name = line[1:-1].strip()
            sections.append(Section(_SHORT_NAMES.get(name, name), where, number))
            continue
        key, separator, value = line.partition("=")
        if not separator or not key.strip():
            raise InputError(f"{where}, line {number}: expected key=value, got {line[:60]!r}")
        if not sections:
            raise InputError(f"{where}, line {number}: {key.strip()} appears before the first [section]")
        if key.strip() in sections[-1].options:  # Darknet takes the first one (`option_find`)
            _LOG.warning("%s, line %d: [%s] %s appears twice, the first is used", where, number, sections[-1].name, key)
            continue
        sections[-1].options[key.strip()] = (value.strip(), number)
    if not sections or sections[0].name not in {"net", "network"}:
        raise InputError(f"{where}: is not a Darknet cfg: it does not start with [net]")
    if len(sections) == 1:
        raise InputError(f"{where}: has no layers, only [net]")
    return sections


def format_cfg(sections: Iterable[tuple[str, dict[str, object]]]) -> str:
    """Sections (name, key -> value) -> text that `parse_cfg` and Darknet read; sequences get commas."""
    blocks = []
    for name, options in sections:
        lines = [f"[{name}]"]
        for key, value in options.items():
            text = ",".join(_plain(item) for item in value) if isinstance(value, (list, tuple)) else _plain(value)
            lines.append(f"{key}={text}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _plain(value: object) -> str:
    """1.0 -> 1: Darknet reads anchors as whole numbers or decimals; whole numbers are easier to read."""
    return str(int(value)) if isinstance(value, float) and value == int(value) else str(value)
