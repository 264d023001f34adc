"""Measures how fast detectors run on this machine, or how fast a detector trains.

Examples:
    python tools/benchmark.py weights/mine --data data/bccd --split test
    python tools/benchmark.py yolov4-tiny.cfg --backends openvino,opencv --precisions fp32,bf16
    python tools/benchmark.py configs/csppelee_efm.yaml --fresh preprocess.size_hw=[416,416]
    python tools/benchmark.py yolov4-tiny --video street.mp4
    python tools/benchmark.py --table5
    python tools/benchmark.py configs/csppelee_efm_bccd.yaml --loader
    python tools/benchmark.py configs/csppelee_efm_bccd.yaml --train train.batch_size=16 preprocess.size_hw=[416,416]
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detector.cli import Parser, add_device_argument, parse_size, print_json, print_note, run
from detector.config import DetectConfig, load_config
from detector.errors import InputError

if TYPE_CHECKING:
    import argparse

    from detector.inference.find import Loaded

MAX_VIDEO_TURNS = 3


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    if options.table5:
        report, text = measure_table5(options)
    elif options.video:
        report, text = measure_video(options)
    elif options.loader or options.train:
        report, text = measure_training(options)
    else:
        report, text = measure_inference(options)
    if options.json:
        print_json(report)
    else:
        print(text)
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line. Raises: InputError."""
    parser = Parser(description=__doc__)
    parser.add_argument("model", nargs="?", help="weights or exported file, Darknet cfg, run folder, or config")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="replace a field of the config")
    parser.add_argument("--weights", help="weights file, when MODEL is a cfg or config")
    parser.add_argument("--names", help="file of class names, for a Darknet cfg (default: a *.names beside it)")
    parser.add_argument("--fresh", action="store_true", help="an untrained network from a config; enough for speed")
    parser.add_argument("--backends", help="only these, separated by commas (default: all that can run it)")
    parser.add_argument("--precisions", default="fp32,bf16,int8", help="only these (default: %(default)s)")
    parser.add_argument("--data", help="measure AP50 on these data; int8 is calibrated on the split data.train")
    parser.add_argument("--split", help="part of the data set to measure on (default: the config's data.val)")
    parser.add_argument("--size", type=int, nargs="+", help="height [width] of the input (default: as trained)")
    parser.add_argument("--out", type=Path, help="folder for benchmark.json and, with --data, latency_ap50.png")
    parser.add_argument("--video", type=Path, metavar="FILE", help="from file to file, with tracking and drawing")
    parser.add_argument("--loader", action="store_true", help="milliseconds for reading and augmenting, by stage")
    parser.add_argument("--train", action="store_true", help="training steps: images per second, compared with fp32")
    parser.add_argument("--table5", action="store_true", help="every detector of the paper's Table 5 at its size")
    parser.add_argument("--images", type=int, default=400, help="images to measure the loader over (%(default)s)")
    parser.add_argument("--rounds", type=int, default=8, help="number of turns (%(default)s)")
    parser.add_argument("--threads", type=int, help="default: one for each usable processor")
    add_device_argument(parser)
    parser.add_argument("--json", action="store_true", help="the figures as JSON on stdout")
    options = parser.parse_intermixed_args(arguments)
    if options.images < 1 or options.rounds < 1 or (options.threads is not None and options.threads < 1):
        raise InputError("benchmark: --images, --rounds and --threads must be at least 1")
    if (options.loader or options.train or options.fresh) and options.model is None:
        raise InputError("benchmark: --loader, --train and --fresh need a config")
    return options


def measure_inference(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The table of inference, and its text."""
    from detector.benchmark.inference import PRECISIONS, inference_table, inference_text
    from detector.data.open import open_dataset
    from detector.inference.find import LoadedExport
    from detector.report.plots import plot_trade_off
    from detector.runtime.protocol import BACKENDS

    precisions = options.precisions.split(",")
    if not set(precisions) <= set(PRECISIONS):
        raise InputError(f"--precisions: expected some of {', '.join(PRECISIONS)}, got {options.precisions}")
    backends = options.backends.split(",") if options.backends else None
    if not set(backends or ()) <= set(BACKENDS):
        raise InputError(f"--backends: expected some of {', '.join(BACKENDS)}, got {options.backends}")
    loaded = find(options)
    if options.size:
        if isinstance(loaded, LoadedExport):
            raise InputError(f"--size: {loaded.path} has a size of its own; give the weights it was exported from")
        size_hw = parse_size(options.size)
        loaded = replace(loaded, preprocess=replace(loaded.preprocess, size_hw=size_hw))
    dataset = calibration = None
    if options.data:
        data = loaded.config.data if loaded.config else None
        split = options.split or (data.val if data else None)
        policy = data.bad_labels if data else "clip"
        dataset = open_dataset(options.data, split, class_names=loaded.class_names, policy=policy)
        calibration = (options.data, data.train) if data else None
    table = inference_table(
        loaded,
        backends=backends,
        precisions=precisions,
        dataset=dataset,
        calibration=calibration,
        threads=options.threads,
        rounds=options.rounds,
        device=options.device,
        print_progress=print_note,
    )
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "benchmark.json").write_text(json.dumps(table, indent=2), encoding="utf-8")
        rows = [row for row in table["rows"] if row["ap50"] is not None]
        if rows:
            points = {f"{row['backend']} {row['precision']}": (row["p50_ms"], row["ap50"]) for row in rows}
            plot_trade_off(options.out / "latency_ap50.png", points)
    return table, inference_text(table)


def find(options: argparse.Namespace) -> Loaded:
    """The detector to measure."""
    from detector.inference.find import find_model
    from detector.inference.weights import untrained_detector

    if options.fresh:
        return untrained_detector(load_config(options.model, options.overrides), Path(options.model))
    if options.overrides:
        raise InputError(f"benchmark: {options.overrides[0]}: allowed only with --fresh, --loader or --train")
    return find_model(options.model, options.weights, options.names)


def measure_video(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The rates of a video, and their text."""
    from detector.benchmark.video import video_table, video_text
    from detector.inference.predictor import Predictor
    from detector.postprocess import Thresholds

    backend = options.backends or None
    thresholds = Thresholds(multi_label=False)
    predictor = Predictor.from_loaded(find(options), thresholds, backend=backend, device=options.device)
    threshold = Thresholds.score_threshold
    table = video_table(
        options.video, predictor, score_threshold=threshold, rounds=min(options.rounds, MAX_VIDEO_TURNS)
    )
    return table, video_text(table)


def measure_table5(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The detectors of Table 5 next to the published rates, and the text."""
    from detector.paper.measure import benchmark_table5, table5_text

    for name in ("model", "weights", "backends", "data", "size", "out"):
        if getattr(options, name):
            raise InputError(f"--table5: runs all detectors of the table at their sizes; leave out {name}")
    table = benchmark_table5(rounds=options.rounds, threads=options.threads, print_progress=print_note)
    return table, table5_text(table)


def measure_training(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The tables of the loader and of training steps, and their text."""
    config = load_config(options.model, options.overrides)

    import torch

    from detector.benchmark.training import loader_table, loader_text, training_table, training_text
    from detector.data.synthetic import ensure_synthetic_dataset
    from detector.runtime.device import find_device
    from detector.runtime.threads import usable_cpus
    from detector.train.detection import open_split
    from detector.train.parts import resolve_subdivisions

    torch.set_num_threads(options.threads or usable_cpus())
    resolved = resolve_subdivisions(config, find_device(options.device))
    assert isinstance(resolved, DetectConfig)
    config = resolved
    report: dict[str, Any] = {}
    texts = []
    if options.loader:
        if config.data.synthetic is not None:
            ensure_synthetic_dataset(Path(config.data.root), config.data.synthetic)
        dataset = open_split(config, config.data.train)
        report["loader"] = loader_table(config, dataset, num_images=options.images)
        texts.append(loader_text(report["loader"], config.train.num_workers))
    if options.train:
        report["train"] = training_table(config, rounds=options.rounds, device=options.device)
        texts.append(training_text(report["train"]))
    return report, "\n\n".join(texts)


if __name__ == "__main__":
    run(main)
