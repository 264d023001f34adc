"""Reads several sources side by side and gives their frames in turn, so that each gets its share of the detector."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence

from detector.errors import InputError
from detector.video.belt import PATIENCE_SECONDS
from detector.video.frame import Frame, Source

WAITING_FRAMES = 4
"""Of a file; of a live source only the newest waits."""


class Intake:
    """A thread for each source. Of a file every frame is given, of a live source the newest; what it replaces is
    counted.

    Attributes:
        dropped: of each source.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.dropped = [0] * len(sources)
        self._sources = sources
        self._waiting: list[deque[Frame]] = [deque() for _ in sources]
        self._open = set(range(len(sources)))
        self._error: BaseException | None = None
        self._stopped = False
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._read, args=(n,), daemon=True) for n in range(len(sources))]
        for thread in self._threads:
            thread.start()

    def _read(self, number: int) -> None:
        error: BaseException | None = None
        try:
            frames = iter(self._sources[number])
            for frame in frames:
                if not self._put(number, frame):
                    break
            close = getattr(frames, "close", None)
            if close is not None:
                close()  # a generator that was left early frees what it holds
        except BaseException as caught:  # belongs to the thread that iterates
            error = caught
        with self._changed:
            self._open.discard(number)
            if isinstance(error, InputError) and len(self._sources) > 1:  # the other cameras continue
                self._sources[number].problems.append(str(error))
                self._sources[number].state = f"failed: {error}"
            elif error is not None:
                self._error = error
            self._changed.notify_all()

    def _put(self, number: int, frame: Frame) -> bool:
        """Adds a frame; False = nobody wants it."""
        waiting, live = self._waiting[number], self._sources[number].live
        with self._changed:
            if live and waiting:
                waiting.clear()
                self.dropped[number] += 1
            self._changed.wait_for(lambda: self._stopped or len(waiting) < WAITING_FRAMES)
            if self._stopped:
                return False
            waiting.append(frame)
            self._changed.notify_all()
            return True

    def get(self, after: int, timeout: float | None = None) -> tuple[int, Frame] | None:
        """The next frame and its source, of those after source `after` in the circle first.

        Returns:
            None when all sources have ended, or nothing came within `timeout` seconds.

        Raises:
            what the only source has failed with.
        """
        with self._changed:
            self._changed.wait_for(lambda: any(self._waiting) or not self._open or self._stopped, timeout)
            for step in range(1, len(self._sources) + 1):
                number = (after + step) % len(self._sources)
                if self._waiting[number]:
                    frame = self._waiting[number].popleft()
                    self._changed.notify_all()
                    return number, frame
            if self._error is not None:
                raise self._error
            return None

    def __iter__(self) -> Iterator[tuple[int, Frame]]:
        number = -1
        while (found := self.get(number)) is not None:
            number = found[0]
            yield found

    def close(self) -> None:
        """Stops reading. A source whose thread hangs in a driver is left to it."""
        for source in self._sources:
            if source.live:
                source.close()
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for source, thread in zip(self._sources, self._threads, strict=True):
            thread.join(PATIENCE_SECONDS)
            if not thread.is_alive():
                source.close()
