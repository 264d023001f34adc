"""Prints what a network costs, layer by layer, counted as in the CSPNet paper.

Examples:
    python tools/analyze.py configs/csppelee_efm.yaml --size 416
    python tools/analyze.py configs/imagenet/cspresnext50.yaml
    python tools/analyze.py yolov4-tiny.cfg
    python tools/analyze.py configs/csppelee_efm.yaml --measure        # ms and the roofline, worst first
    python tools/analyze.py detector.onnx --measure
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detector.cli import Parser, parse_size, print_json, run
from detector.config import ClassifyConfig, load_run_config
from detector.errors import InputError
from detector.runtime.formats import is_export
from detector.zoo.table import cfg_of

if TYPE_CHECKING:
    import argparse

    from torch import nn

WORST = 20
"""Rows in the table of times."""


def main(arguments: list[str]) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("model", help="a config, a Darknet cfg, a weights file, a run folder, or an exported file")
    parser.add_argument("--size", type=int, nargs="+", help="height [width] of the input (default: the model's)")
    parser.add_argument("--classifier", type=int, metavar="N", help="only the backbone, as a classifier of N classes")
    parser.add_argument("--measure", action="store_true", help="time the layers and compare with the machine's limits")
    parser.add_argument("--threads", type=int, help="default: one for each usable processor")
    parser.add_argument("--json", action="store_true", help="totals and layers as JSON on stdout")
    options = parser.parse_args(arguments)
    if options.classifier is not None and options.classifier < 1:
        raise InputError(f"--classifier: expected the number of classes, got {options.classifier}")
    if options.threads is not None and options.threads < 1:
        raise InputError(f"--threads: expected at least 1, got {options.threads}")

    import torch

    from detector.runtime.threads import usable_cpus

    torch.set_num_threads(options.threads or usable_cpus())
    report, text = analyze_export(options) if is_export(options.model) else analyze_network(options)
    if options.json:
        print_json(report)
    else:
        print(text)
    return 0


def analyze_network(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """A PyTorch network: costs, memory and, with --measure, times."""
    network, own_size, weights_bytes = build(options.model, options.classifier)
    size_hw = parse_size(options.size) if options.size else own_size

    from detector.analysis.complexity import complexity_table, measure_complexity, total_complexity
    from detector.analysis.liveness import activation_memory
    from detector.analysis.timing import measure_layers

    costs = measure_complexity(network, size_hw)
    totals = total_complexity(network, costs)
    peak_bytes, held = activation_memory(network, size_hw)
    text = complexity_table(costs, totals, held)
    text += f"\nfeature maps: {peak_bytes / 2**20:.1f} MB at once in float32, batch 1"
    if weights_bytes is not None:
        text += f"\nits .weights file has {weights_bytes:,} bytes (4 fewer before version 0.2)"
    report = {
        "totals": {**asdict(totals), "weights_bytes": weights_bytes, "activation_peak_bytes": peak_bytes},
        "layers": [{**asdict(cost), "held_bytes": held[cost.name]} for cost in costs],
    }
    if options.measure:
        times, total_ms = measure_layers(network, [cost.name for cost in costs], size_hw)
        text += "\n" + add_times(report, costs, times, total_ms)
    return report, text


def analyze_export(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """An exported file: costs, memory and times, as OpenVINO sees and runs it."""
    if options.size or options.classifier:
        raise InputError(f"{options.model}: an exported file has a size of its own; leave out --size and --classifier")

    import torch

    from detector.analysis.complexity import Totals, complexity_table
    from detector.analysis.exported import exported_costs

    found = exported_costs(Path(options.model), threads=torch.get_num_threads())
    costs = found.layers
    params = sum(cost.params for cost in costs)
    totals = Totals(params, None, sum(cost.bflops for cost in costs), sum(cost.cio for cost in costs))
    report = {
        "totals": {**asdict(totals), "activation_peak_bytes": found.peak_bytes},
        "layers": [{**asdict(cost), "held_bytes": found.held.get(cost.name)} for cost in costs],
    }
    text = complexity_table(costs, totals, found.held)
    text += f"\nfeature maps: {found.peak_bytes / 2**20:.1f} MB at once as OpenVINO executes it, batch 1"
    if options.measure:
        text += "\n" + add_times(report, costs, found.ms, found.total_ms, engine="OpenVINO")
    return report, text


def add_times(
    report: dict[str, Any], costs: list[Any], times: dict[str, float], total_ms: float, *, engine: str = "PyTorch"
) -> str:
    """Puts times into the report, worst layer first; returns them as text."""
    from detector.analysis.timing import layer_time, measure_machine, time_table

    machine = measure_machine()
    timed = {cost.name: layer_time(cost, times[cost.name], machine) for cost in costs if cost.name in times}
    for layer in report["layers"]:
        layer["time"] = asdict(timed[layer["name"]]) if layer["name"] in timed else None
    report["layers"].sort(key=lambda layer: -layer["time"]["lost_ms"] if layer["time"] else 0.0)
    report["totals"]["ms"] = total_ms
    report["machine"] = asdict(machine)
    return time_table(costs, timed, total_ms, machine, rows=WORST, engine=engine)


def build(model: str, num_classes: int | None) -> tuple[nn.Module, tuple[int, int], int | None]:
    """The network, its own input size and, for a cfg, the size of its weights file."""
    model = cfg_of(model)
    if model.endswith(".cfg"):
        from detector.darknet import load_darknet
        from detector.darknet.weights import weights_size

        darknet = load_darknet(model)
        _, height, width = darknet.size_chw
        return darknet, (height, width), weights_size(darknet.convolutions())

    from detector.config import ClassifierConfig, DarknetModelConfig
    from detector.inference.build import build_network
    from detector.models.build import build_classifier

    if model.endswith(".safetensors") or Path(model).is_dir():
        from detector.checkpoint import load_checkpoint
        from detector.inference.find import weights_of_run

        checkpoint = load_checkpoint(weights_of_run(Path(model)) if Path(model).is_dir() else model)
        described, size_hw = checkpoint.model, checkpoint.preprocess.size_hw
    else:
        config = load_run_config(model)
        described, size_hw = config.model, config.preprocess.size_hw
        if isinstance(config, ClassifyConfig) and num_classes is not None:
            raise InputError(f"--classifier: {model} is a classifier already, with {config.model.num_classes} classes")
    if num_classes is None:
        return build_network(described), size_hw, None
    if isinstance(described, DarknetModelConfig):
        raise InputError("--classifier: expected a config with a backbone, but this one holds a Darknet cfg")
    return build_classifier(ClassifierConfig(described.backbone, num_classes, described.activation)), size_hw, None


if __name__ == "__main__":
    run(main)
