"""Detects objects in many or large images and writes one file. The same command resumes a killed run.

Examples:
    python tools/predict.py images/ --out results.json
    python tools/predict.py images/ --out results.jsonl --weights weights/mine/best.safetensors --backend auto
    python tools/predict.py aerial.png --out results.json --tile 640 --overlap 0.2
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from detector.cli import Parser, add_device_argument, announce_backend, print_json, print_note, run
from detector.errors import InputError
from detector.postprocess import Thresholds

if TYPE_CHECKING:
    import argparse

    from detector.inference.folder import Report
    from detector.inference.predictor import Predictor
    from detector.structures import Detections, Image

SHOWN_FAILURES = 5


def main(arguments: list[str]) -> int:
    options = parse(arguments)

    from detector.inference.find import find_model, identity
    from detector.inference.folder import check_out, find_images, predict_many
    from detector.inference.predictor import Predictor
    from detector.inference.tiles import tile_windows
    from detector.runtime.threads import usable_cpus

    if options.tile is not None:
        tile_windows(1, 1, tile=options.tile, overlap=options.overlap)  # raises if tile or overlap is invalid
    check_out(options.out)
    thresholds = Thresholds(options.score_threshold, multi_label=options.multi_label)
    images = find_images(options.source)
    loaded = find_model(options.model, options.weights, options.names)
    num_cpus = usable_cpus()
    announce_backend(options.backend)
    predictor = Predictor.from_loaded(
        loaded, thresholds, backend=options.backend, device=options.device, streams=num_cpus
    )
    print_note(f"weights {loaded.path}, {predictor.runtime.name}; {len(images)} image{'s' * (len(images) != 1)}")

    settings = {
        "source": str(Path(options.source).resolve()),
        "weights": loaded.path.name,
        "identity": identity(loaded),
        "backend": predictor.runtime.name,
        "score_threshold": options.score_threshold,
        "multi_label": options.multi_label,
        "tile": options.tile,
        "overlap": options.overlap if options.tile else None,
    }
    try:
        with ThreadPoolExecutor(num_cpus) as threads:
            report = predict_many(
                images,
                options.out,
                partial(predict, predictor, threads, options),
                predictor.class_names,
                settings=settings,
                batch_size=options.batch if options.tile is None else 1,  # tiled images are large
                progress=not options.json,
            )
    except KeyboardInterrupt:
        print_note(f"interrupted; finished results are in {options.out}.partial; the same command resumes")
        return 130
    print_report(report, options)
    if not report.images:
        return 2
    return 1 if report.failed else 0


def predict(
    predictor: Predictor, threads: ThreadPoolExecutor, options: argparse.Namespace, images: Sequence[Image]
) -> list[Detections]:
    """Detections of some images, whole or in tiles."""
    from detector.inference.tiles import predict_tiled

    side_by_side = predictor.runtime.name.startswith("openvino")  # faster than batches
    if options.tile is not None:
        pool = threads if side_by_side else None
        return [
            predict_tiled(predictor, image, tile=options.tile, overlap=options.overlap, threads=pool)
            for image in images
        ]
    return list(threads.map(predictor.predict, images)) if side_by_side else predictor.predict_batch(images)


def print_report(report: Report, options: argparse.Namespace) -> None:
    """Prints the results, and which images were skipped."""
    for name, reason in report.failed[:SHOWN_FAILURES]:
        print_note(f"skipped {name}: {reason}")
    if len(report.failed) > SHOWN_FAILURES:
        print_note(f"skipped {len(report.failed) - SHOWN_FAILURES} more; {options.out} lists them all")
    if options.json:
        print_json({**vars(report), "out": str(options.out)})
    else:
        resumed = f" ({report.resumed} from an interrupted run)" if report.resumed else ""
        skipped = f"{report.detections} detections, {len(report.failed)} images skipped"
        print(f"{report.images} images{resumed}, {skipped}; {options.out}")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line. Raises: InputError."""
    parser = Parser(description=__doc__)
    parser.add_argument("source", help="folder (with its subfolders), image, pattern in quotes, or .txt of paths")
    parser.add_argument("--out", type=Path, required=True, help="COCO JSON (.json), or one line per image (.jsonl)")
    parser.add_argument("--model", help="Darknet cfg, run folder or config (default: the newest in weights/)")
    parser.add_argument("--weights", help="weights or exported file")
    parser.add_argument("--names", help="file of class names, for a Darknet cfg (default: a *.names beside it)")
    parser.add_argument("--backend", help="see demo.py; auto = the fastest on this machine")
    add_device_argument(parser)
    parser.add_argument(
        "--score-threshold", type=float, default=Thresholds.score_threshold, help="keep higher scores (%(default)s)"
    )
    parser.add_argument("--multi-label", action="store_true", help="an object may have boxes of several classes")
    parser.add_argument("--batch", type=int, default=8, help="images at a time (default 8)")
    parser.add_argument("--tile", type=int, metavar="PIXELS", help="detect in tiles of this side and in the whole")
    parser.add_argument(
        "--overlap", type=float, default=0.2, help="overlap of neighbouring tiles, share of a side (default 0.2)"
    )
    parser.add_argument("--json", action="store_true", help="a summary as JSON on stdout")
    options = parser.parse_args(arguments)
    if options.batch < 1:
        raise InputError(f"--batch: expected at least 1, got {options.batch}")
    return options


if __name__ == "__main__":
    run(main)
