"""Prints what a network costs, layer by layer, counted as the CSPNet paper counts.

Examples:
    python tools/analyze.py configs/csppelee_efm.yaml --size 416
    python tools/analyze.py yolov4-tiny.cfg
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from detector.cli import Parser, parse_size, print_json, run
from detector.config import load_config
from detector.errors import InputError

if TYPE_CHECKING:
    from torch import nn


def main(arguments: list[str]) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("model", help="a config or a Darknet cfg")
    parser.add_argument("--size", type=int, nargs="+", help="height [width] of the input (default: the config's)")
    parser.add_argument("--classifier", type=int, metavar="N", help="the backbone alone, as classifier of N classes")
    parser.add_argument("--json", action="store_true", help="totals and layers as JSON on stdout")
    options = parser.parse_args(arguments)
    if options.classifier is not None and options.classifier < 1:
        raise InputError(f"--classifier: expected the number of classes, got {options.classifier}")
    network, own_size, weights_bytes = build(options.model, options.classifier)
    size_hw = parse_size(options.size) if options.size else own_size

    from detector.analysis.complexity import complexity_table, measure_complexity, total_complexity

    costs = measure_complexity(network, size_hw)
    totals = total_complexity(network, costs)
    if options.json:
        report = {
            "totals": {**asdict(totals), "weights_bytes": weights_bytes},
            "layers": [asdict(cost) for cost in costs],
        }
        print_json(report)
    else:
        print(complexity_table(costs, totals))
        if weights_bytes is not None:
            print(f"its .weights file has {weights_bytes:,} bytes (4 less when older than version 0.2)")
    return 0


def build(model: str, num_classes: int | None) -> tuple[nn.Module, tuple[int, int], int | None]:
    """The network, its own input size, and the size of its weights file where it is a cfg's."""
    if model.endswith(".cfg"):
        from detector.darknet import load_darknet
        from detector.darknet.weights import weights_size

        darknet = load_darknet(model)
        _, height, width = darknet.size_chw
        return darknet, (height, width), weights_size(darknet.convolutions())

    from detector.build import build_network
    from detector.config import ModelConfig
    from detector.models import build_classifier

    config = load_config(model)
    if num_classes is None:
        return build_network(config.model), config.preprocess.size_hw, None
    if not isinstance(config.model, ModelConfig):
        raise InputError("--classifier: needs a config with a backbone, this one holds a Darknet cfg")
    return build_classifier(config.model, num_classes), config.preprocess.size_hw, None


if __name__ == "__main__":
    run(main)
