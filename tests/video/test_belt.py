"""Stages that run side by side: every item of a file, the newest of a live source, and errors on both sides."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from detector.video.belt import Belt, Consumer, Feeder


def slow(count: int, seconds: float) -> Iterator[int]:
    for number in range(count):
        time.sleep(seconds)
        yield number


def test_stages_take_as_long_as_the_slowest() -> None:
    used: list[int] = []

    def use(number: int) -> None:
        time.sleep(0.02)
        used.append(number)

    started = time.perf_counter()
    feeder, consumer = Feeder(slow(25, 0.02), ahead=4), Consumer(use, waiting=4)
    for number in feeder.belt:
        time.sleep(0.02)
        assert consumer.belt.put(number)
    consumer.finish()
    seconds = time.perf_counter() - started
    assert used == list(range(25)), "every frame, in order"
    assert seconds < 0.75 * 3 * 25 * 0.02, "one after the other takes 1.5 s"


def test_a_live_belt_keeps_the_newest() -> None:
    belt: Belt[int] = Belt(1, newest=True)
    for number in range(5):
        assert belt.put(number)
    belt.end()
    assert list(belt) == [4]
    assert belt.dropped == 4


def test_an_error_of_the_source_arrives_after_its_items() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("unplugged")

    feeder = Feeder(broken(), ahead=4)
    seen: list[int] = []
    with pytest.raises(OSError, match="unplugged"):
        seen.extend(number for number in feeder.belt)
    assert seen == [1]


def test_an_error_of_the_output_stops_the_others() -> None:
    def full(_: int) -> None:
        raise OSError("disk full")

    consumer = Consumer(full, waiting=1)
    with pytest.raises(OSError, match="disk full"):
        all(consumer.belt.put(number) for number in range(100))
    with pytest.raises(OSError, match="disk full"):
        consumer.finish()


def test_stopping_frees_a_thread_that_waits() -> None:
    before = threading.active_count()
    feeder = Feeder(iter(range(1000)), ahead=2)
    assert next(iter(feeder.belt)) == 0
    started = time.perf_counter()
    feeder.close()
    assert time.perf_counter() - started < 0.5
    assert threading.active_count() == before
