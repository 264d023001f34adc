"""Detects objects in a camera, a video, a stream or images, and shows or saves the result.

Examples:
    python tools/demo.py --video cam0 --show
    python tools/demo.py --video street.mp4 --save out.mp4
    python tools/demo.py --video rtsp://user:password@host/stream --json
    python tools/demo.py --image "images/*.jpg" --save annotated/
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detector.cli import Parser, add_model_arguments, announce_backend, print_json, print_note, run
from detector.postprocess import Thresholds

SHOWN_PROBLEMS = 5
SHOWN_CLASSES = 8


def main(arguments: list[str]) -> int:
    parser = Parser(description=__doc__)
    add_model_arguments(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--video", metavar="SOURCE", help="cam0, a video file, a stream URL, or a folder of images")
    what.add_argument("--image", metavar="SOURCE", help="an image, a folder or a glob")
    parser.add_argument(
        "--save", type=Path, metavar="OUT", help="annotated video; for images a folder, or a .jpg with a grid"
    )
    parser.add_argument("--show", action="store_true", help="show a window; q quits")
    parser.add_argument(
        "--score-threshold", type=float, default=Thresholds.score_threshold, help="keep higher scores (%(default)s)"
    )
    parser.add_argument("--multi-label", action="store_true", help="an object may have boxes of several classes")
    parser.add_argument("--json", action="store_true", help="one line of JSON for each frame on stdout")
    options = parser.parse_args(arguments)
    if not (options.save or options.show or options.json):
        options.show = True

    from detector.inference.find import find_model
    from detector.inference.folder import to_rows
    from detector.inference.predictor import Predictor
    from detector.structures import Detections
    from detector.video.pipeline import Sink, open_file_sink, run_video
    from detector.video.sink import WindowSink
    from detector.video.source import Frame, open_source

    thresholds = Thresholds(options.score_threshold, multi_label=options.multi_label)
    loaded = find_model(options.model, options.weights, options.names)
    announce_backend(options.backend)
    predictor = Predictor.from_loaded(loaded, thresholds, backend=options.backend, device=options.device)
    source = open_source(options.video or options.image)
    wait_ms = 0 if source.fps is None else 1  # an image stays until a key is pressed
    sinks: list[Sink] = [WindowSink(wait_ms=wait_ms)] if options.show else []
    if options.save:
        sinks.append(open_file_sink(source, options.save))
    print_note(f"weights {loaded.path}")
    if options.model is None and options.weights is None:
        print_note(what_it_finds(predictor.class_names))

    def print_frame(frame: Frame, detections: Detections) -> None:
        found = to_rows(detections, predictor.class_names)
        print_json({"frame": frame.index, "name": frame.name, "detections": found})

    report = run_video(source, predictor, sinks, on_frame=print_frame if options.json else None)
    print_note(report.summary() + (f"; saved {options.save}" if options.save else ""))
    for problem in source.problems[:SHOWN_PROBLEMS]:
        print_note(f"warning: {problem}")
    if len(source.problems) > SHOWN_PROBLEMS:
        print_note(f"warning: {len(source.problems) - SHOWN_PROBLEMS} more files could not be read")
    return 1 if source.problems else 0


def what_it_finds(class_names: Sequence[str]) -> str:
    """What to expect of weights that the user did not name."""
    shown = ", ".join(class_names[:SHOWN_CLASSES]) + (", ..." if len(class_names) > SHOWN_CLASSES else "")
    return (
        f"they find {shown}; for everyday objects: python tools/download.py yolov4-tiny, then "
        "python tools/demo.py yolov4-tiny --video cam0"
    )


if __name__ == "__main__":
    run(main)
