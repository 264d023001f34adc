"""Detects objects in cameras, videos, streams or images, and shows, saves, counts or serves the result.

Examples:
    python tools/demo.py --video cam0 --show
    python tools/demo.py --video street.mp4 --track --save out.mp4
    python tools/demo.py --video cam0 rtsp://user:password@host/stream --json
    python tools/demo.py --video cam0 --track --count-line 0,300,640,300
    python tools/demo.py --video cam0 cam1 --web
    python tools/demo.py --image "images/*.jpg" --save annotated/
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from detector.cli import Parser, add_model_arguments, announce_backend, print_json, print_note, run
from detector.errors import InputError
from detector.postprocess import Thresholds

if TYPE_CHECKING:
    from detector.video.frame import Result
    from detector.video.pipeline import Camera

SHOWN_PROBLEMS = 5
SHOWN_CLASSES = 8


def main(arguments: list[str]) -> int:
    options = parse(arguments)

    from detector.inference.find import find_model
    from detector.inference.predictor import Predictor
    from detector.tracking.tracker import lowest_score
    from detector.video.pipeline import run_video
    from detector.video.setup import open_cameras, open_listeners, summary_line, summary_row
    from detector.video.sink import WindowSink

    loaded = find_model(options.model, options.weights, options.names)
    announce_backend(options.backend)
    lowest = lowest_score(options.track, options.score_threshold) if options.track else options.score_threshold
    thresholds = Thresholds(lowest, multi_label=options.multi_label)
    predictor = Predictor.from_loaded(loaded, thresholds, backend=options.backend, device=options.device)
    cameras = open_cameras(options, predictor.class_names)
    try:
        with ExitStack() as stack:
            for camera in cameras:
                stack.callback(camera.source.close)
            listeners = open_listeners(options, cameras, predictor.class_names, stack)
            wait_ms = 0 if cameras[0].source.fps is None else 1  # an image stays until a key is pressed
            window = WindowSink(wait_ms=wait_ms) if options.show else None
            print_note(f"weights {loaded.path}")
            if options.model is None and options.weights is None:
                print_note(what_it_finds(predictor.class_names))

            def tell(result: Result) -> None:
                for listener in listeners:
                    listener(result)

            begun = time.perf_counter()
            try:
                run_video(cameras, predictor, window=window, on_result=tell)
            finally:
                seconds = time.perf_counter() - begun
                if options.json:
                    print_json({"summary": [summary_row(camera) for camera in cameras]})
                for camera in cameras:
                    print_note(summary_line(camera, seconds))
    finally:
        failed = report_problems(cameras)
    for target in (options.save, options.record, options.tracks):
        if target is not None and any(camera.ledger.frames for camera in cameras):
            print_note(f"saved {target}")
    return failed


def parse(arguments: list[str]) -> Namespace:
    """The options. Raises: InputError: they do not fit together."""
    parser = Parser(description=__doc__)
    add_model_arguments(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--video", nargs="+", metavar="SOURCE", help="cam0, a video file, a stream URL, a folder of images; or several"
    )
    what.add_argument("--image", metavar="SOURCE", help="an image, a folder or a glob")
    parser.add_argument("--retries", type=int, metavar="N", help="attempts to open a lost stream (without end)")
    parser.add_argument(
        "--score-threshold", type=float, default=Thresholds.score_threshold, help="keep higher scores (%(default)s)"
    )
    parser.add_argument("--multi-label", action="store_true", help="an object may have boxes of several classes")
    parser.add_argument("--blur", action="append", default=[], metavar="CLASS", help="make it unrecognisable")
    _add_outputs(parser)
    _add_tracking(parser)
    _add_recording(parser)
    options = parser.parse_args(arguments)
    if options.tracks or options.count_line or options.zone:
        options.track = options.track or "ocsort"
    _check(options)
    if not any(getattr(options, name) for name in ("save", "show", "json", "tracks", "web", "events", "record")):
        options.show = True
    return options


def _add_outputs(parser: Parser) -> None:
    save = "annotated video; a folder for several; for images a folder, or a .jpg with a grid"
    web = "a page to watch in a browser (%(const)s); beyond this computer it needs the token that is printed"
    parser.add_argument("--save", type=Path, metavar="OUT", help=save)
    parser.add_argument("--show", action="store_true", help="show a window; q quits")
    parser.add_argument("--web", nargs="?", const="127.0.0.1:8000", metavar="HOST:PORT", help=web)
    parser.add_argument("--json", action="store_true", help="a line of JSON for each frame and event on stdout")


def _add_tracking(parser: Parser) -> None:
    group = parser.add_argument_group("tracking (objects keep a number over time)")
    track = "follow objects, by OC-SORT or ByteTrack; implied by the options below"
    line = "count what crosses it, in pixels; 2:X1,... for the second source only"
    zone = "count what enters and leaves a polygon, and is inside"
    events = "send what is counted to FILE.jsonl, http(s)://... or mqtt://HOST/TOPIC"
    group.add_argument("--track", nargs="?", const="ocsort", choices=("ocsort", "bytetrack"), help=track)
    group.add_argument("--tracks", type=Path, metavar="FILE", help="write the tracks in MOT format")
    group.add_argument("--count-line", action="append", default=[], metavar="X1,Y1,X2,Y2", help=line)
    group.add_argument("--zone", action="append", default=[], metavar="X1,Y1,...", help=zone)
    group.add_argument("--events", action="append", default=[], metavar="TARGET", help=events)


def _add_recording(parser: Parser) -> None:
    group = parser.add_argument_group("recording")
    seen = "only while it is seen, and 5 s before and after"
    group.add_argument("--record", type=Path, metavar="DIR", help="write annotated segments into a folder")
    group.add_argument("--seconds", type=float, default=60.0, help="length of a segment (%(default)g)")
    group.add_argument("--on", action="append", default=[], metavar="CLASS", help=seen)
    group.add_argument("--record-gb", type=float, metavar="GB", help="remove the oldest recordings beyond this")


def _check(options: Namespace) -> None:
    """Raises: InputError: options do not fit together."""
    if options.seconds <= 0 or (options.record_gb is not None and options.record_gb <= 0):
        raise InputError("--seconds, --record-gb: expected more than 0")
    if options.retries is not None and options.retries < 0:
        raise InputError(f"--retries {options.retries}: expected 0 or more")
    if (options.on or options.record_gb) and not options.record:
        raise InputError("--on, --record-gb: are for recordings; add --record DIR")
    if options.events and not (options.count_line or options.zone):
        raise InputError("--events: nothing is counted; add --count-line or --zone")
    if options.image and options.track:
        raise InputError("--track: is for videos; images have no order in time")


def report_problems(cameras: Sequence[Camera]) -> int:
    """Prints what went wrong without ending the run; returns the exit code."""
    problems = [
        problem
        for camera in cameras
        for problem in (*camera.source.problems, *(text for sink in camera.sinks for text in sink.problems))
    ]
    for problem in problems[:SHOWN_PROBLEMS]:
        print_note(f"warning: {problem}")
    if len(problems) > SHOWN_PROBLEMS:
        print_note(f"warning: {len(problems) - SHOWN_PROBLEMS} more problems like these")
    return 1 if problems else 0


def what_it_finds(class_names: Sequence[str]) -> str:
    """What to expect of weights that the user did not name."""
    shown = ", ".join(class_names[:SHOWN_CLASSES]) + (", ..." if len(class_names) > SHOWN_CLASSES else "")
    return (
        f"they find {shown}; for everyday objects: python tools/download.py yolov4-tiny, then "
        "python tools/demo.py yolov4-tiny --video cam0"
    )


if __name__ == "__main__":
    run(main)
