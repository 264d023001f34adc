"""Stages that run side by side: every item of a file, the newest of a live source, and errors on both sides."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from detector.video.belt import Belt, Consumer, Feeder


def test_stages_work_at_the_same_time() -> None:
    """The output has the first item, the caller the second and the source the third: all three meet."""
    together = threading.Barrier(3, timeout=20)
    used: list[int] = []

    def source() -> Iterator[int]:
        for number in range(5):
            if number == 2:
                together.wait()
            yield number

    def use(number: int) -> None:
        if number == 0:
            together.wait()
        used.append(number)

    feeder, consumer = Feeder(source(), ahead=4), Consumer(use, waiting=4)
    for number in feeder.belt:
        if number == 1:
            together.wait()
        assert consumer.belt.put(number)
    consumer.finish()
    assert used == list(range(5)), "every frame, in order"


def test_what_waits_is_used_before_closing() -> None:
    used: list[int] = []
    consumer = Consumer(used.append, waiting=4)
    for number in range(4):
        consumer.belt.put(number)
    assert consumer.close()
    assert used == [0, 1, 2, 3]


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
    assert feeder.close()
    assert threading.active_count() == before
