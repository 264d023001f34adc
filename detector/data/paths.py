"""A compact list of paths, which worker processes share."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np


class PathTable(Sequence[Path]):
    """A list of paths stored in one array of bytes.

    A list of Path objects would be copied into every worker process, because reading an object changes its reference
    count, and so the system copies the shared memory page.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self._content = np.frombuffer(b"".join(encoded), np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> list[Path]: ...
    def __getitem__(self, index: int | slice) -> Path | list[Path]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return Path(os.fsdecode(self._content[self._ends[place] : self._ends[place + 1]].tobytes()))

    def __iter__(self) -> Iterator[Path]:
        return (self[place] for place in range(len(self)))
