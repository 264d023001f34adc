"""What joins two threads of the pipeline: a short queue that ends, fails and stops as one."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")
PATIENCE_SECONDS = 1.0
"""How long `close` waits for a thread that is inside a driver or a disk."""


class Belt(Generic[Item]):
    """A bounded queue from one thread to another.

    Args:
        size: items that may wait.
        newest: a full belt drops its oldest item, as live sources need it; else `put` waits, and every item arrives.
    """

    def __init__(self, size: int, *, newest: bool = False) -> None:
        self.dropped = 0
        self._size, self._newest = size, newest
        self._items: deque[Item] = deque()
        self._ended = self._stopped = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def put(self, item: Item) -> bool:
        """Adds an item; False = the receiver has stopped. Raises: what the receiver has failed with."""
        with self._changed:
            if self._newest and len(self._items) == self._size:
                self._items.popleft()
                self.dropped += 1
            self._changed.wait_for(lambda: self._stopped or len(self._items) < self._size)
            if self._stopped:
                if self._error is not None:
                    raise self._error
                return False
            self._items.append(item)
            self._changed.notify_all()
            return True

    def end(self, error: BaseException | None = None) -> None:
        """No further item will come; the receiver gets those that wait, and then the error, if any."""
        with self._changed:
            self._ended, self._error = True, self._error or error
            self._changed.notify_all()

    def stop(self, error: BaseException | None = None) -> None:
        """The receiver takes no further item, because of the error, if any."""
        with self._changed:
            self._stopped, self._error = True, self._error or error
            self._items.clear()
            self._changed.notify_all()

    @property
    def ended(self) -> bool:
        """Whether nothing waits and nothing will come."""
        with self._changed:
            return not self._items and (self._ended or self._stopped)

    def get(self, timeout: float | None = None) -> Item | None:
        """The next item; None at the end, or when none came in time. Raises: what the sender has failed with."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._ended or self._stopped, timeout)
            if not self._items:
                if self._error is not None and not self._stopped:
                    raise self._error
                return None
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def __iter__(self) -> Iterator[Item]:
        while True:
            item = self.get()
            if item is None:
                return
            yield item


class Consumer(Generic[Item]):
    """Calls a function for each item in a thread of its own."""

    def __init__(self, use: Callable[[Item], None], *, waiting: int, newest: bool = False) -> None:
        self.belt: Belt[Item] = Belt(waiting, newest=newest)
        self._use = use
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for item in self.belt:
                self._use(item)
        except BaseException as error:  # belongs to the thread that fills the belt
            self._failure = error
            self.belt.stop(error)

    def finish(self) -> None:
        """Waits until every item was used. Raises: what the function has raised."""
        self.belt.end()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def close(self) -> bool:
        """Uses the items that wait, if that is quick; whether the thread has ended, so that its files may be closed."""
        self.belt.end()
        self._thread.join(2 * PATIENCE_SECONDS)
        return not self._thread.is_alive()
