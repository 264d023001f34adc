"""Evaluates a detector on a data set, with pycocotools; or a classifier on a folder of pictures for each class.

Examples:
    python tools/eval.py
    python tools/eval.py configs/csppelee_efm_bccd.yaml --data data/bccd --split test
    python tools/eval.py weights/bccd/best.safetensors --data data/coco/annotations/instances_val2017.json --json
    python tools/eval.py yolov4-tiny.cfg --weights yolov4-tiny.weights --data instances_val2017.json --images val2017
    python tools/eval.py weights/imagenet_csppeleenet --data data/imagenet --split val
    python tools/eval.py best.safetensors --data image_info_test-dev2017.json --images test2017 --submit csppelee_efm
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detector.cli import Parser, add_model_arguments, announce_backend, print_json, run, say
from detector.errors import InputError

if TYPE_CHECKING:
    import argparse

    from detector.checkpoint import Checkpoint
    from detector.config import ExperimentConfig
    from detector.data.dataset import DetectionDataset
    from detector.load import Loaded
    from detector.predict import Predictor


def main(arguments: list[str]) -> int:
    options = parse(arguments)

    from detector.load import find_classifier, find_model

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
    parser.add_argument("--images", help="folder of the pictures of a COCO JSON")
    parser.add_argument(
        "--out", type=Path, help="folder for the plots (default: eval/ in the run; for a Darknet model weights/eval/)"
    )
    parser.add_argument(
        "--submit", metavar="NAME", help="write the zip for COCO's evaluation server instead of measuring"
    )
    parser.add_argument("--json", nargs="?", const="-", metavar="OUT", help="metrics as JSON to OUT, or to stdout")
    return parser.parse_args(arguments)


def evaluate_detector(loaded: Loaded, options: argparse.Namespace) -> None:
    """Prints the metrics and draws the plots, or writes a submission. Raises: InputError."""
    from detector.config import parse_experiment_text
    from detector.data.dataset import summarize
    from detector.engine.evaluate import COCO_DETECTIONS, evaluate
    from detector.engine.report import evaluate_with_plots, write_submission
    from detector.load import LoadedExport

    stored = loaded.info.get("config")
    config = parse_experiment_text(stored, str(loaded.path)) if stored else None
    if config is None and options.data is None:
        raise InputError(f"{loaded.path}: does not say which data it is for; give --data PATH")
    announce_backend(options.backend)
    predictor = build_predictor(loaded, config, options.backend)
    dataset = open_data(config, options, predictor.class_names)
    say(f"weights {loaded.path} (step {loaded.info.get('step', '?')})")
    if isinstance(loaded, LoadedExport) and loaded.record.suppression is not None:
        threshold = loaded.record.suppression.score_threshold
        say(f"its boxes are those above its own threshold of {threshold}: AP is lower than that of raw maps")
    say(f"{dataset.name}: {len(dataset)} images, {len(dataset.labels)} objects, {summarize(dataset.problems)}")
    coco_detections = config.evaluate.max_detections if config else COCO_DETECTIONS
    out_dir = options.out or (loaded.path.parent / "eval" if stored else Path("weights") / "eval" / loaded.path.stem)
    if options.submit:
        evaluation = evaluate(predictor, dataset, coco_detections=coco_detections, progress=True)
        written = write_submission(evaluation.coco, out_dir, name=options.submit)
        if options.json == "-":
            print_json({"written": str(written)})
        else:
            print(f"wrote {written}")
        return
    metrics: dict[str, Any] = evaluate_with_plots(
        predictor, dataset, out_dir, coco_detections=coco_detections, progress=True
    )
    metrics["problems"] = dict(Counter(problem.rule for problem in dataset.problems))
    show(metrics, options.json)
    say(f"plots in {out_dir}: precision_recall.png, confusion.png, worst.jpg")


def open_data(
    config: ExperimentConfig | None, options: argparse.Namespace, class_names: tuple[str, ...]
) -> DetectionDataset:
    """The data set of the command line, or the config's. Raises: InputError."""
    from detector.data import open_dataset

    data = options.data or (config.data.root if config else "")
    split = options.split or (config.data.val if config and not options.data else None)
    policy = config.data.bad_labels if config else "clip"
    return open_dataset(data, split, images_dir=options.images, class_names=class_names, policy=policy)


def show(metrics: dict[str, Any], json_out: str | None) -> None:
    """Prints a table, or JSON; writes JSON where a file is named."""
    from detector.metrics.table import metrics_table

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
            raise InputError(f"--{name}: is for detectors, this is a classifier")

    from detector.engine.classification import evaluate_checkpoint

    metrics = evaluate_checkpoint(checkpoint, root=options.data, split=options.split, progress=True)
    say(f"step {checkpoint.info.get('step', '?')}, {metrics['images']} images, {checkpoint.model.num_classes} classes")
    show(metrics, options.json)


def build_predictor(loaded: Loaded, config: ExperimentConfig | None, backend: str | None) -> Predictor:
    """With the config's thresholds, or COCO's customary ones for a model without a config."""
    from detector.engine.evaluate import MAX_DETECTIONS
    from detector.predict import Predictor

    return Predictor.from_loaded(
        loaded,
        backend=backend,
        score_threshold=config.evaluate.score_threshold if config else 0.001,
        nms_threshold=config.evaluate.nms_threshold if config else 0.45,
        max_detections=MAX_DETECTIONS,
    )


if __name__ == "__main__":
    run(main)
