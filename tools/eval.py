"""Evaluates a detector on a data set, with pycocotools.

Examples:
    python tools/eval.py
    python tools/eval.py configs/csppelee_efm_bccd.yaml --data data/bccd --split test
    python tools/eval.py weights/bccd/best.safetensors --data data/coco/annotations/instances_val2017.json --json
    python tools/eval.py best.safetensors --data image_info_test-dev2017.json --images test2017 --submit csppelee_efm
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from detector.cli import add_model_arguments, print_json, run, say


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    parser.add_argument("--data", help="data set (default: the one that the weights were trained for)")
    parser.add_argument("--split", help="part of the data set (default: the config's data.val)")
    parser.add_argument("--images", help="folder of the pictures of a COCO JSON")
    parser.add_argument("--out", type=Path, help="folder for the plots (default: eval/ beside the weights)")
    parser.add_argument(
        "--submit", metavar="NAME", help="write the zip for COCO's evaluation server instead of measuring"
    )
    parser.add_argument("--json", nargs="?", const="-", metavar="OUT", help="metrics as JSON to OUT, or to stdout")
    options = parser.parse_args(arguments)

    from detector.config import parse_experiment_text
    from detector.data import open_dataset
    from detector.engine.evaluate import evaluate
    from detector.engine.report import evaluate_with_plots, write_submission
    from detector.metrics.table import metrics_table
    from detector.predict import Predictor, find_model

    weights, checkpoint = find_model(options.model, options.weights)
    config = parse_experiment_text(checkpoint.info["config"], str(weights))
    settings = asdict(config.evaluate)
    predictor = Predictor(
        weights, **{name: settings[name] for name in ("score_threshold", "nms_threshold", "max_detections")}
    )
    data, split = options.data or config.data.root, options.split or (None if options.data else config.data.val)
    say(f"weights {weights} (step {checkpoint.info['step']}), data {data}{f' ({split})' if split else ''}")
    dataset = open_dataset(
        data, split, images_dir=options.images, class_names=predictor.class_names, policy=config.data.bad_labels
    )
    out_dir = options.out or weights.parent / "eval"
    if options.submit:
        evaluator = evaluate(predictor, dataset, progress=True)
        print(f"wrote {write_submission(evaluator, out_dir, name=options.submit)}")
        return 0
    metrics: dict[str, Any] = evaluate_with_plots(predictor, dataset, out_dir, progress=True)
    if options.json == "-":
        print_json(metrics)
    else:
        print(metrics_table(metrics))
    if options.json not in (None, "-"):
        Path(options.json).write_text(json.dumps(metrics), encoding="utf-8")
    say(f"plots in {out_dir}: precision_recall.png, confusion.png, worst.jpg")
    return 0


if __name__ == "__main__":
    run(main)
