"""From the options of the demo to cameras and to what listens to their results."""

from __future__ import annotations

import difflib
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from detector.cli import print_json, print_note
from detector.errors import InputError
from detector.extras import require_all
from detector.inference.folder import to_rows
from detector.tracking.counting import CountLine, Place, Zone
from detector.tracking.mot import mot_lines
from detector.tracking.tracker import Tracker
from detector.video.events import Courier
from detector.video.frame import Result, Source
from detector.video.pipeline import Camera, open_file_sink
from detector.video.record import Recorder
from detector.video.source import open_source

Listener = Callable[[Result], None]


def open_cameras(options: Namespace, class_names: tuple[str, ...]) -> list[Camera]:
    """Opens every source with what the options want of it.

    Raises:
        InputError: a source cannot be opened, or an option does not fit.
    """
    blurred = frozenset(_label(name, class_names) for name in options.blur)
    texts = options.video or [options.image]
    several = len(texts) > 1
    if several and options.save and options.save.suffix:
        raise InputError(f"--save {options.save}: several sources are saved into a folder; name one")
    cameras: list[Camera] = []
    try:
        for number, text in enumerate(texts):
            places = _places(options, number, len(texts), class_names)
            tracker = Tracker(options.track, score_threshold=options.score_threshold) if options.track else None
            source = open_source(text, retries=options.retries, patient=several or options.retries is not None)
            camera = Camera(source, [], tracker, places, blurred)
            cameras.append(camera)
            if options.save:
                path = options.save / _saved_name(source, number) if several else options.save
                camera.sinks = [open_file_sink(source, path)]
            if options.record:
                camera.sinks = [*camera.sinks, _recorder(options, source, number, class_names)]
    except BaseException:
        for camera in cameras:
            camera.source.close()
        raise
    return cameras


def _saved_name(source: Source, number: int) -> str:
    """What the output of one of several sources is called: its number and its own name."""
    return _plain_stem(source, number) + ("" if source.fps is None else ".mp4")


def _plain_stem(source: Source, number: int) -> str:
    """A source's number and name, as a part of a file's name."""
    stem = re.sub(r"[^\w.-]+", "_", Path(source.name.rstrip("/")).stem).strip("_")
    return f"{number + 1}_{stem}"


def _recorder(options: Namespace, source: Source, number: int, class_names: Sequence[str]) -> Recorder:
    if source.fps is None:
        raise InputError("--record: is for cameras and videos, not for images")
    return Recorder(
        options.record,
        _plain_stem(source, number),
        source.fps,
        segment_seconds=options.seconds,
        labels=frozenset(_label(name, class_names) for name in options.on) or None,
        max_bytes=round(options.record_gb * 1e9) if options.record_gb else None,
    )


def _label(name: str, class_names: Sequence[str]) -> int:
    """Raises: InputError: it is not a class."""
    if name in class_names:
        return class_names.index(name)
    alike = difflib.get_close_matches(name.lower(), class_names, n=3)
    hint = f"did you mean {' or '.join(alike)}?" if alike else f"it finds {', '.join(class_names[:20])}, ..."
    raise InputError(f"{name}: is not a class of this model; {hint}")


def _places(options: Namespace, number: int, count: int, class_names: tuple[str, ...]) -> list[Place]:
    """The lines and zones of a camera."""
    found: list[Place] = []
    for kind, texts in ((CountLine, options.count_line), (Zone, options.zone)):
        for index, text in enumerate(texts, 1):
            camera, _, points = text.rpartition(":")
            if camera and not (camera.isdigit() and 1 <= int(camera) <= count):
                raise InputError(f"{kind.option} {text}: there is no source {camera}; they are numbered from 1")
            if not camera or int(camera) == number + 1:
                found.append(kind(points, f"{kind.noun} {index}", class_names))
    return found


def open_listeners(
    options: Namespace, cameras: Sequence[Camera], class_names: tuple[str, ...], stack: ExitStack
) -> list[Listener]:
    """What is told each result: standard output, a file of tracks; `stack` closes them.

    Raises:
        InputError: an option does not fit.
    """
    listeners: list[Listener] = []
    if options.json:
        listeners.append(lambda result: print_result(result, cameras, class_names))
    if options.tracks is not None:
        if len(cameras) > 1:
            raise InputError("--tracks: a file holds the tracks of one source; run it once for each")
        file = stack.enter_context(options.tracks.open("w"))
        listeners.append(lambda result: print(mot_lines(result.frame.index, result.detections), end="", file=file))
    for target in options.events:
        courier = Courier(target, print_note)
        stack.callback(_end_courier, courier, cameras[0])
        listeners.append(partial(_send_events, courier, cameras))
    if options.web is not None:
        listeners.append(_serve(options.web, cameras, class_names, stack))
    return listeners


def _send_events(courier: Courier, cameras: Sequence[Camera], result: Result) -> None:
    for event in result.events:
        courier.put({"camera": result.camera, "source": cameras[result.camera].source.name, **event.row()})


def _end_courier(courier: Courier, camera: Camera) -> None:
    if lost := courier.close():
        camera.source.problems.append(lost)


def _serve(address: str, cameras: Sequence[Camera], class_names: tuple[str, ...], stack: ExitStack) -> Listener:
    """Starts the page for a browser."""
    require_all(("starlette", "uvicorn", "websockets", "prometheus_client"), "--web")
    from detector.video.web.hub import Hub, WebSink
    from detector.video.web.server import WebServer
    from detector.web import parse_address

    hub = Hub(cameras, class_names)
    for number, camera in enumerate(cameras):
        camera.sinks = [*camera.sinks, WebSink(hub, number)]
    server = WebServer(hub, *parse_address(address, "--web"))
    stack.callback(server.close)
    print_note(f"watch at {server.url}")
    return hub.put_result


def print_result(result: Result, cameras: Sequence[Camera], class_names: tuple[str, ...]) -> None:
    """A line of JSON for a frame, and one for each event; at once, for a program that reads them as they come."""
    name = cameras[result.camera].source.name
    where = {"camera": result.camera, "source": name} if len(cameras) > 1 else {}
    for event in result.events:
        print_json({**where, **event.row()})
    frame = {"frame": result.frame.index, "name": result.frame.name, "seconds": round(result.frame.seconds, 6)}
    print_json({**where, **frame, "detections": to_rows(result.detections, class_names)})
    sys.stdout.flush()


def summary_row(camera: Camera) -> dict[str, Any]:
    """What was measured and counted, as JSON."""
    counts = {place.name: place.totals() for place in camera.places}
    return {"source": camera.source.name, **camera.ledger.figures(), **({"counts": counts} if counts else {})}


def summary_line(camera: Camera, seconds: float) -> str:
    """The same for people. Args: seconds: of the whole run."""
    counted = "".join(f"; {place.name}: {place.caption()}" for place in camera.places)
    return f"{camera.source.name}: {camera.ledger.summary(seconds)}{counted}"
