"""Stages that run side by side: every item of a file, the newest of a live source, and errors on both sides."""

from __future__ import annotations

import pytest

from detector.video.belt import Belt, Consumer


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


def test_an_error_of_the_output_stops_the_others() -> None:
    def full(_: int) -> None:
        raise OSError("disk full")

    consumer = Consumer(full, waiting=1)
    with pytest.raises(OSError, match="disk full"):
        all(consumer.belt.put(number) for number in range(100))
    with pytest.raises(OSError, match="disk full"):
        consumer.finish()


def test_waiting_for_an_item_ends_in_time() -> None:
    belt: Belt[int] = Belt(1)
    assert belt.get(0.01) is None
    assert not belt.ended
    belt.put(1)
    belt.end()
    assert belt.get(0.01) == 1
    assert belt.ended
