"""Prints what a network costs, layer by layer, counted as the CSPNet paper counts.

Example:
    python tools/analyze.py configs/csppelee_efm.yaml --size 416
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from detector.cli import print_json, run
from detector.config import load_config
from detector.errors import InputError


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a config")
    parser.add_argument("--size", type=int, nargs="+", help="height [width] of the input (default: the config's)")
    parser.add_argument("--classifier", type=int, metavar="N", help="the backbone alone, as classifier of N classes")
    parser.add_argument("--json", action="store_true", help="totals and layers as JSON on stdout")
    options = parser.parse_args(arguments)
    config = load_config(options.model)
    size_hw = tuple(options.size * 2)[:2] if options.size else config.preprocess.size_hw
    if len(options.size or []) > 2 or any(side < 32 or side % 32 for side in size_hw):
        raise InputError(f"--size: expected one or two multiples of 32, got {options.size}")

    from detector.analysis.complexity import complexity_table, measure_complexity, total_complexity
    from detector.models import build_classifier, build_detector

    network = build_classifier(config.model, options.classifier) if options.classifier else build_detector(config.model)
    costs = measure_complexity(network, (size_hw[0], size_hw[1]))
    totals = total_complexity(network, costs)
    if options.json:
        print_json({"totals": asdict(totals), "layers": [asdict(cost) for cost in costs]})
    else:
        print(complexity_table(costs, totals))
    return 0


if __name__ == "__main__":
    run(main)
