"""Detects objects in many or large images and writes one file. The same command resumes a killed run.

Examples:
    python tools/predict.py images/ --out results.json
    python tools/predict.py images/ --out results.jsonl --weights weights/mine/best.safetensors --backend auto
    python tools/predict.py aerial.png --out results.json --tile 640 --overlap 0.2
    python tools/predict.py images/ --out results.json --ray auto
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from detector.cli import Parser, add_device_argument, announce_backend, print_json, print_note, run
from detector.errors import InputError
from detector.postprocess import Thresholds

if TYPE_CHECKING:
    import argparse

    from detector.inference.folder import Report

SHOWN_FAILURES = 5


def main(arguments: list[str]) -> int:
    options = parse(arguments)

    from detector.inference.folder import check_out, compute_here, find_images, predict_many
    from detector.inference.tiles import tile_windows
    from detector.inference.work import Work, Worker
    from detector.runtime.threads import usable_cpus

    if options.tile is not None:
        tile_windows(1, 1, tile=options.tile, overlap=options.overlap)  # raises if tile or overlap is invalid
    check_out(options.out)
    thresholds = Thresholds(options.score_threshold, multi_label=options.multi_label)
    images = take_shard(find_images(options.source), options.shard)
    files = (options.model, options.weights, options.names, options.backend, options.device)
    work = Work(*files, thresholds, options.tile, options.overlap, options.batch)
    loaded = work.load()
    announce_backend(options.backend)
    worker = Worker(work, loaded, usable_cpus())
    class_names, runtime = worker.predictor.class_names, worker.predictor.runtime.name
    print_note(f"weights {loaded.path}, {runtime}; {len(images)} image{'s' * (len(images) != 1)}")
    source = {"source": str(Path(options.source).resolve()), "shard": options.shard}
    try:
        with ExitStack() as stack:
            compute = compute_here(worker.predict, class_names, batch_size=work.batch_size)
            if options.ray is not None:
                from detector.inference.cluster import compute_on_cluster, join_cluster

                stack.enter_context(join_cluster(options.ray))
                compute = compute_on_cluster(replace(work, backend=runtime))
            report = predict_many(
                images,
                options.out,
                compute,
                class_names,
                settings={**source, **work.settings(loaded, runtime)},
                progress=not options.json,
            )
    except KeyboardInterrupt:
        print_note(f"interrupted; finished results are in {options.out}.partial; the same command resumes")
        return 130
    finally:
        worker.close()
    print_report(report, options)
    if not report.images:
        return 2
    return 1 if report.failed else 0


def take_shard(images: list[Path], shard: str | None) -> list[Path]:
    """Every n-th image, for one of n processes that know nothing of each other. Raises: InputError."""
    if shard is None:
        return images
    number, _, count = shard.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise InputError(f"--shard {shard}: expected NUMBER/COUNT, such as 1/8")
    taken = images[int(number) - 1 :: int(count)]
    if not taken:
        raise InputError(f"--shard {shard}: there are {len(images)} images only")
    return taken


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
    parser.add_argument(
        "--ray", nargs="?", const="local", metavar="ADDRESS", help="compute on a cluster of Ray, or on one started here"
    )
    parser.add_argument("--shard", metavar="NUMBER/COUNT", help="only every COUNT-th image, from NUMBER on")
    parser.add_argument("--json", action="store_true", help="a summary as JSON on stdout")
    options = parser.parse_args(arguments)
    if options.batch < 1:
        raise InputError(f"--batch: expected at least 1, got {options.batch}")
    return options


if __name__ == "__main__":
    run(main)
