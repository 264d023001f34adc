"""Identities, counts and measures: drawn scenes whose truth is known, and the figures of TrackEval."""

from __future__ import annotations

import runpy
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from detector.errors import InputError
from detector.inference.predictor import Predictor
from detector.structures import Detections
from detector.tracking.counting import CountLine, Event, Zone
from detector.tracking.mot import Tracks, measure_tracks, mot_lines, read_mot
from detector.tracking.tracker import KINDS, Tracker
from detector.video.source import open_source

Position = Callable[[float], tuple[float, float] | None]
SIZE = 40.0


def walk(start: tuple[float, float], speed: tuple[float, float], *, hidden: tuple[float, float] = (0, 0)) -> Position:
    """Where an object is at a time; None while it is hidden."""

    def at(seconds: float) -> tuple[float, float] | None:
        if hidden[0] <= seconds < hidden[1]:
            return None
        return start[0] + speed[0] * seconds, start[1] + speed[1] * seconds

    return at


def seen(objects: list[Position], seconds: float) -> tuple[Detections, list[int]]:
    """Detections of a drawn scene, and which object each is."""
    places = [(number, place(seconds)) for number, place in enumerate(objects)]
    visible = [(number, place) for number, place in places if place is not None]
    boxes = np.array([[x, y, x + SIZE, y + 2 * SIZE] for _, (x, y) in visible], np.float32).reshape(-1, 4)
    scores = np.full(len(visible), 0.9, np.float32)
    return Detections(boxes, scores, np.zeros(len(visible), np.int64)), [number for number, _ in visible]


def identities(objects: list[Position], times: list[float], kind: str = "ocsort") -> dict[int, list[int]]:
    """The identities that each object had, in their order."""
    tracker = Tracker(kind, score_threshold=0.5)
    had: dict[int, list[int]] = {number: [] for number in range(len(objects))}
    for seconds in times:
        given, numbers = seen(objects, seconds)
        found = tracker.update(given, seconds)
        assert found.track_ids is not None
        for box, track in zip(found.boxes_xyxy, found.track_ids.tolist(), strict=True):
            number = numbers[int(np.flatnonzero((given.boxes_xyxy == box).all(1))[0])]
            if track not in had[number]:
                had[number].append(track)
    return had


def every(step: float, duration: float = 4.0) -> list[float]:
    return [round(number * step, 6) for number in range(int(duration / step))]


SCENES = {
    "passing": [walk((0, 0), (100, 0)), walk((400, 60), (-100, 0))],
    "occlusion": [walk((0, 0), (60, 0), hidden=(1.5, 2.0)), walk((0, 300), (60, 0))],
    "crossing": [walk((0, 0), (80, 40)), walk((20, 200), (80, -40))],
}


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("rate", [30, 25, 10])
@pytest.mark.parametrize("kind", KINDS)
def test_an_object_keeps_its_identity(kind: str, scene: str, rate: int) -> None:
    had = identities(SCENES[scene], every(1 / rate), kind)
    assert all(len(tracks) == 1 for tracks in had.values()), had
    assert len({tracks[0] for tracks in had.values()}) == len(had), "and shares it with no other"


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("kind", KINDS)
def test_dropped_frames_change_no_identity(kind: str, scene: str) -> None:
    rng = np.random.default_rng(0)
    times = [seconds for seconds in every(1 / 25) if rng.random() < 0.5]
    had = identities(SCENES[scene], times, kind)
    assert all(len(tracks) == 1 for tracks in had.values()), had


def test_who_comes_back_later_is_somebody_else() -> None:
    had = identities([walk((0, 0), (20, 0), hidden=(1.0, 2.5))], every(1 / 25))
    assert len(had[0]) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_cost_of_a_frame_does_not_grow(kind: str) -> None:
    """Objects come and go for 20,000 frames; nothing of them stays."""
    tracker = Tracker(kind, score_threshold=0.5)
    line = CountLine("200,0,200,400", "line 1", ("thing",))

    def run(first: int, count: int) -> float:
        begun = time.process_time()
        for number in range(first, first + count):
            start = number // 100 * 4.0  # each object stays for 100 frames
            found = tracker.update(seen([walk((-100 * start, 10), (100, 0))], number / 25)[0], number / 25)
            line.update(found, number / 25)
        return time.process_time() - begun

    run(0, 500)
    early = run(500, 3000)
    run(3500, 13_500)
    late = run(17_000, 3000)
    assert late < 3 * early
    assert len(tracker._tracker.tracks) <= 2
    assert len(line._sides) <= 4


def test_time_must_rise() -> None:
    tracker = Tracker(score_threshold=0.5)
    tracker.update(Detections(), 1.0)
    with pytest.raises(InputError, match="expected a frame after 1 s, got one of 1 s"):
        tracker.update(Detections(), 1.0)


def standing(x: float, y: float, *, track: int = 1, label: int = 0) -> Detections:
    """One tracked object, 100 pixels high, that stands at (x, y)."""
    boxes = np.array([[x - 20, y - 100, x + 20, y]], np.float32)
    return Detections(boxes, np.ones(1, np.float32), np.array([label]), track_ids=np.array([track]))


def count(place: CountLine | Zone, path: list[tuple[float, float]]) -> list[str]:
    events: list[Event] = []
    for number, (x, y) in enumerate(path):
        events += place.update(standing(x, y), number / 25)
    return [event.direction for event in events]


def test_a_line_counts_each_direction() -> None:
    line = CountLine("0,200,400,200", "line 1", ("person",))
    down = [(200.0, y) for y in range(100, 300, 10)]
    assert count(line, down) == ["right"], "downwards is to the right of a line from left to right"
    assert count(line, down[::-1]) == ["left"]
    assert line.counts == {("right", "person"): 1, ("left", "person"): 1}


def test_who_trembles_on_a_line_counts_once() -> None:
    rng = np.random.default_rng(0)
    path = [(200.0, 150.0)] + [(200.0, 200 + float(rng.uniform(-9, 9))) for _ in range(300)] + [(200.0, 250.0)]
    assert count(CountLine("0,200,400,200", "line 1", ("person",)), path) == ["right"]


def test_who_walks_around_a_line_does_not_cross_it() -> None:
    around = [(500.0, y) for y in range(100, 300, 10)]
    assert count(CountLine("0,200,400,200", "line 1", ("person",)), around) == []


def test_a_zone_counts_who_enters_and_leaves() -> None:
    zone = Zone("100,100,300,100,300,300,100,300", "zone 1", ("person",))
    path = [(float(x), 200.0) for x in range(0, 400, 10)]
    assert count(zone, path) == ["enter", "leave"]
    assert zone.inside == 0
    zone = Zone("100,100,300,100,300,300,100,300", "zone 1", ("person",))
    assert count(zone, [(200.0, 200.0)]) == [], "who is first seen inside did not enter"
    assert zone.caption() == "inside 1  enter 0  leave 0"
    narrow = Zone("190,100,210,100,210,300,190,300", "zone 1", ("person",))
    assert count(narrow, [(float(x), 200.0) for x in range(100, 300, 5)]) == ["enter", "leave"], "of 100 pixels' height"


def test_events_carry_what_a_listener_needs() -> None:
    line = CountLine("0,200,400,200", "line 1", ("person", "dog"))
    line.update(standing(200, 100, track=7, label=1), 1.0)
    (event,) = line.update(standing(200, 300, track=7, label=1), 1.04)
    assert event.row() == {
        "event": {"seconds": 1.04, "place": "line 1", "direction": "right", "track_id": 7, "class_name": "dog"}
    }


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,1,2", "a,b,c,d", "1,2,3,4,5,6", "nan,1,2,3"])
def test_what_is_no_line(text: str) -> None:
    with pytest.raises(InputError, match=r"--count-line .*: expected x1,y1,x2,y2 in pixels, two different points"):
        CountLine(text, "line 1", ())


@pytest.mark.parametrize("text", ["1,2,3,4", "0,0,1,1,2,2", "0,0,1,1,2"])
def test_what_is_no_zone(text: str) -> None:
    with pytest.raises(InputError, match="at least three points around an area"):
        Zone(text, "zone 1", ())


def test_a_perfect_track_and_a_broken_one(tmp_path: Path) -> None:
    tracker = Tracker(score_threshold=0.5)
    text = ""
    for number, seconds in enumerate(every(1 / 25)):
        text += mot_lines(number, tracker.update(seen(SCENES["crossing"], seconds)[0], seconds))
    (tmp_path / "tracks.txt").write_text(text)
    tracks = read_mot(tmp_path / "tracks.txt")
    assert measure_tracks(tracks, tracks) == pytest.approx(
        {"HOTA": 1, "DetA": 1, "AssA": 1, "MOTA": 1, "IDSW": 0, "IDF1": 1}
    )
    switched = {frame: (3 - ids if frame > 50 else ids, boxes) for frame, (ids, boxes) in tracks.frames.items()}
    measured = measure_tracks(tracks, Tracks(switched))
    assert measured["IDSW"] == 2
    assert measured["AssA"] < 0.6
    assert measured["DetA"] > 0.9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no row"),
        ("1,2,3\n", r"line 1: expected frame,id,left,top,width,height"),
        ("1,1,0,0,5,5\n1,1,0,0,6,6\n", r"line 2: identity 1 is in frame 1 twice"),
        ("1,1,0,0,-5,5\n", "line 1: expected"),
        ("1,1,0,0,nan,5\n", "line 1: expected"),
    ],
)
def test_files_that_are_no_tracks(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "tracks.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        read_mot(tmp_path / "tracks.txt")
    with pytest.raises(InputError, match="cannot be read"):
        read_mot(tmp_path)


def test_the_figures_of_trackeval(shared: Path) -> None:
    folder = shared / "tracking/TUD-Campus"
    measured = measure_tracks(read_mot(folder / "gt.txt"), read_mot(folder / "test.txt"))
    printed = {"HOTA": 39.140, "DetA": 41.805, "AssA": 36.912, "MOTA": 52.646}  # by TrackEval, in percent
    assert {name: 100 * measured[name] for name in printed} == pytest.approx(printed, abs=5e-4)


def test_the_figures_at_the_command_line(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shared / "tracking/TUD-Campus"
    main = runpy.run_path(str(Path(__file__).resolve().parents[2] / "tools/eval.py"))["main"]
    assert main(["--tracks", str(folder / "test.txt"), "--data", str(folder / "gt.txt")]) == 0
    assert "HOTA   39.140%" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"give the truth with --data gt\.txt"):
        main(["--tracks", str(folder / "test.txt")])


def test_every_second_frame_is_enough(shared: Path) -> None:
    """A real video with a weak detector: the identities of every second frame beside those of every frame."""
    predictor = Predictor(
        shared / "darknet/weights/yolo-fastest-1.1.cfg", backend="openvino", score_threshold=0.5, multi_label=False
    )
    frames = [
        (frame.seconds, predictor.predict(frame.image))
        for frame in open_source(str(shared / "data/video/vtest.avi"))
        if frame.index < 400
    ]
    runs = []
    for step in (1, 2):
        tracker = Tracker(score_threshold=0.5)
        found = {}
        for number in range(0, len(frames), step):
            seconds, detections = frames[number]
            tracked = tracker.update(detections, seconds)
            assert tracked.track_ids is not None
            if number % 2 == 0 and len(tracked):
                found[number + 1] = (tracked.track_ids, tracked.boxes_xyxy.astype(np.float64))
        runs.append(Tracks(found))
    assert measure_tracks(*runs)["IDF1"] > 0.7
