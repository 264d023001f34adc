"""Measures how fast training is on this machine.

Example:
    python tools/benchmark.py configs/csppelee_efm_bccd.yaml --loader
    python tools/benchmark.py configs/csppelee_efm_bccd.yaml --train train.batch_size=16 preprocess.size_hw=[416,416]
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from detector.cli import Parser, print_json, run
from detector.config import load_config
from detector.errors import InputError


def main(arguments: list[str]) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("config", help="a YAML file, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="replace a field of the config")
    parser.add_argument("--loader", action="store_true", help="milliseconds for reading and augmenting, by stage")
    parser.add_argument("--train", action="store_true", help="images per second of training steps, beside plain fp32")
    parser.add_argument("--images", type=int, default=400, help="to measure the loader over (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="steps of either side to measure (%(default)s)")
    parser.add_argument("--threads", type=int, help="of the training steps (default: one for each processor)")
    parser.add_argument("--json", action="store_true", help="the figures as JSON on stdout")
    options = parser.parse_intermixed_args(arguments)
    if not (options.loader or options.train):
        raise InputError("benchmark: say what to measure: --loader, --train or both")
    if options.images < 1 or options.rounds < 1 or (options.threads or 1) < 1:
        raise InputError("benchmark: --images, --rounds and --threads must be at least 1")
    config = load_config(options.config, options.overrides)

    import torch

    from detector.data.synthetic import ensure_synthetic_dataset
    from detector.engine.benchmark import loader_table, loader_text, training_table, training_text
    from detector.engine.train import open_split

    torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
    report: dict[str, Any] = {}
    texts = []
    if options.loader:
        if config.data.synthetic is not None:
            ensure_synthetic_dataset(Path(config.data.root), config.data.synthetic)
        dataset = open_split(config, config.data.train)
        report["loader"] = loader_table(config, dataset, num_images=options.images)
        texts.append(loader_text(report["loader"], config.train.num_workers))
    if options.train:
        report["train"] = training_table(config, rounds=options.rounds)
        texts.append(training_text(report["train"]))
    if options.json:
        print_json(report)
    else:
        print("\n\n".join(texts))
    return 0


if __name__ == "__main__":
    run(main)
