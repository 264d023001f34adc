"""Evaluates a detector on a data set, with pycocotools; or a classifier on class folders of images.

Examples:
    python tools/eval.py
    python tools/eval.py configs/csppelee_efm_bccd.yaml --data data/bccd --split test
    python tools/eval.py weights/bccd/best.safetensors --data data/coco/annotations/instances_val2017.json --json
    python tools/eval.py yolov4-tiny.cfg --weights yolov4-tiny.weights --data instances_val2017.json --images val2017
    python tools/eval.py weights/imagenet_csppeleenet --data data/imagenet --split val
    python tools/eval.py --tracks tracks.txt --data gt.txt
    python tools/eval.py best.safetensors --data image_info_test-dev2017.json --images test2017 --submit csppelee_efm
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detector.cli import Parser, add_model_arguments, announce_backend, print_json, print_note, run
from detector.errors import InputError

if TYPE_CHECKING:
    import argparse

    from detector.checkpoint import Checkpoint
    from detector.config import DetectConfig
    from detector.data.dataset import DetectionDataset
    from detector.inference.find import Loaded


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    if options.tracks is not None:
        evaluate_tracks(options)
        return 0

    from detector.inference.find import find_classifier, find_model

    classifier = find_classifier(options.model, options.weights)
    if classifier is not None:
        evaluate_classifier(classifier, options)
    else:
        evaluate_detector(find_model(options.model, options.weights, options.names), options)
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__)
    add_model_arguments(parser)
    parser.add_argument("--data", help="data set (default: the one that the weights were trained for)")
    parser.add_argument("--split", help="part of the data set (default: the config's data.val)")
    parser.add_argument("--images", help="folder with the images of a COCO JSON")
    parser.add_argument(
        "--out", type=Path, help="folder for the plots (default: eval/ in the run; for a Darknet model weights/eval/)"
    )
    parser.add_argument(
        "--submit", metavar="NAME", help="write the zip for COCO's evaluation server instead of measuring"
    )
    parser.add_argument("--tracks", type=Path, metavar="FILE", help="measure tracks in MOT format; --data is the truth")
    parser.add_argument("--json", nargs="?", const="-", metavar="OUT", help="metrics as JSON to OUT, or to stdout")
    return parser.parse_args(arguments)


def evaluate_detector(loaded: Loaded, options: argparse.Namespace) -> None:
    """Prints the metrics and draws the plots, or writes a submission. Raises: InputError."""
    from detector.data.dataset import describe
    from detector.evaluate.detection import evaluate, evaluation_thresholds
    from detector.inference.find import LoadedExport
    from detector.inference.predictor import Predictor
    from detector.report.evaluation import write_plots, write_submission

    config = loaded.config
    if config is None and options.data is None:
        raise InputError(f"{loaded.path}: does not record which data set it is for; give --data PATH")
    announce_backend(options.backend)
    thresholds = evaluation_thresholds(config.evaluate if config else None)
    predictor = Predictor.from_loaded(loaded, thresholds, backend=options.backend, device=options.device)
    dataset = open_data(config, options, predictor.class_names)
    print_note(f"weights {loaded.path} (step {loaded.info.get('step', '?')})")
    if isinstance(loaded, LoadedExport) and loaded.record.suppression is not None:
        threshold = loaded.record.suppression.score_threshold
        print_note(f"the file returns only boxes above its own threshold {threshold}: AP is lower than with raw maps")
    print_note(describe(dataset))
    out_dir = options.out or (loaded.path.parent / "eval" if config else Path("weights") / "eval" / loaded.path.stem)
    evaluation = evaluate(predictor, dataset, progress=True)
    if options.submit:
        written = write_submission(evaluation.coco, out_dir, name=options.submit)
        if options.json == "-":
            print_json({"written": str(written)})
        else:
            print(f"wrote {written}")
        return
    plots = write_plots(evaluation, dataset, out_dir)
    problems = dict(Counter(problem.rule for problem in dataset.problems))
    print_metrics({**evaluation.compute(), "problems": problems}, options.json)
    print_note(f"plots in {out_dir}: {', '.join(plots)}")


def open_data(
    config: DetectConfig | None, options: argparse.Namespace, class_names: tuple[str, ...]
) -> DetectionDataset:
    """The data set of the command line, or the config's. Raises: InputError."""
    from detector.data.open import open_dataset

    data = options.data or (config.data.root if config else "")
    is_own = config is not None and (options.data is None or Path(data).resolve() == Path(config.data.root).resolve())
    split = options.split or (config.data.val if config and is_own else None)
    policy = config.data.bad_labels if config else "clip"
    return open_dataset(data, split, images_dir=options.images, class_names=class_names, policy=policy)


def evaluate_tracks(options: argparse.Namespace) -> None:
    """Prints how good tracks are. Raises: InputError."""
    from detector.tracking.mot import measure_tracks, read_mot

    if options.data is None:
        raise InputError("--tracks: give the truth with --data gt.txt")
    measures = measure_tracks(read_mot(Path(options.data)), read_mot(options.tracks))
    if options.json == "-":
        print_json(measures)
    else:
        for name, value in measures.items():
            print(f"{name:<6}{value:8.0f}" if name == "IDSW" else f"{name:<6}{value:8.3%}")
    if options.json not in (None, "-"):
        Path(options.json).write_text(json.dumps(measures), encoding="utf-8")


def print_metrics(metrics: dict[str, Any], json_out: str | None) -> None:
    """Prints a table, or JSON; writes JSON if a file is named."""
    from detector.evaluate.table import metrics_table

    if json_out == "-":
        print_json(metrics)
    else:
        print(metrics_table(metrics))
    if json_out not in (None, "-"):
        Path(json_out).write_text(json.dumps(metrics), encoding="utf-8")


def evaluate_classifier(checkpoint: Checkpoint, options: argparse.Namespace) -> None:
    """Prints top-1 and top-5. Raises: InputError."""
    for name in ("submit", "backend", "images", "names", "out"):
        if getattr(options, name) is not None:
            raise InputError(f"--{name}: is for detectors, but this is a classifier")

    from detector.evaluate.classification import evaluate_checkpoint

    metrics = evaluate_checkpoint(
        checkpoint, root=options.data, split=options.split, device=options.device, progress=True
    )
    print_note(
        f"step {checkpoint.info.get('step', '?')}, {metrics['images']} images, {checkpoint.model.num_classes} classes"
    )
    print_metrics(metrics, options.json)


if __name__ == "__main__":
    run(main)
