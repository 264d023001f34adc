"""Exports a detector, and keeps the file only if it returns what the network returns.

Examples:
    python tools/export.py weights/mine --to openvino --out mine.xml
    python tools/export.py weights/mine --to openvino --precision int8 --data data/bccd --out mine_int8.xml
    python tools/export.py weights/mine --to onnx --with-nms --out mine.onnx
    python tools/export.py yolov4-tiny.cfg --weights yolov4-tiny.weights --to onnx --out tiny.onnx
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from detector.cli import Parser, add_device_argument, parse_size, print_json, print_note, run
from detector.errors import InputError
from detector.postprocess import Thresholds
from detector.runtime.formats import FORMATS

if TYPE_CHECKING:
    import argparse


USUAL_CALIBRATION_IMAGES = 100


def main(arguments: list[str]) -> int:
    options = parse(arguments)

    from detector.export.gate import export
    from detector.export.gate_data import gather_gate_data
    from detector.export.request import Request, check_request
    from detector.inference.find import find_trainable

    loaded = find_trainable(options.model, options.weights, options.names)
    thresholds = Thresholds(options.score_threshold, options.nms_threshold, options.max_detections)
    request = Request(
        to=options.to,
        out=options.out or loaded.path.with_suffix(FORMATS[options.to].suffix),
        precision=options.precision,
        size_hw=parse_size(options.size) if options.size else None,
        batch=None if options.dynamic and options.batch is None else options.batch or 1,
        dynamic=options.dynamic,
        suppression=thresholds if options.with_nms else None,
        max_drop=options.max_drop,
        device=options.device,
    )
    print_note(f"weights {loaded.path}")
    check_request(loaded, request)
    data = gather_gate_data(loaded, request.size_hw, data=options.data, split=options.split, images_dir=options.images)
    print_note(f"comparing on {data.origin}")
    if request.precision == "int8" and len(data.images) < USUAL_CALIBRATION_IMAGES:
        print_note(
            f"warning: only {len(data.images)} images to calibrate int8 on; {USUAL_CALIBRATION_IMAGES} or more are "
            "usual, and an AP50 of so few says little"
        )
    report = export(loaded, request, data)
    if options.json:
        print_json(report)
    else:
        if options.with_nms:
            del report["maps"]  # such a graph has none
        print("\n".join(f"{key:<22}{format_value(value)}" for key, value in report.items() if value is not None))
        print("agreed; maps: largest difference / largest value; score, iou: of matching boxes;")
        print("unmatched: share of boxes without a counterpart; on_limit: boxes that only just pass a threshold")
    return 0


def format_value(value: object) -> str:
    """A figure with four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line. Raises: InputError."""
    parser = Parser(description=__doc__)
    parser.add_argument("model", nargs="?", help="weights file, Darknet cfg, run folder, or config (its run)")
    parser.add_argument("--weights", help="weights file, when MODEL is a cfg or config or is left out")
    parser.add_argument("--names", help="file of class names, for a Darknet cfg (default: a *.names beside it)")
    parser.add_argument("--to", choices=tuple(FORMATS), required=True, help="format")
    parser.add_argument("--out", type=Path, help="file to write (default: beside the weights)")
    parser.add_argument("--precision", choices=("fp32", "fp16", "int8"), default="fp32", help="default: fp32")
    parser.add_argument("--size", type=int, nargs="+", help="height [width] of the input (default: as trained)")
    parser.add_argument("--dynamic", action="store_true", help="any size that is a multiple of 32, any batch")
    parser.add_argument("--batch", type=int, help="images per run (default: 1; with --dynamic: any number)")
    parser.add_argument("--with-nms", action="store_true", help="include NMS: the graph returns boxes (onnx, openvino)")
    for name, kind in (("score_threshold", float), ("nms_threshold", float), ("max_detections", int)):
        default = getattr(Thresholds, name)
        of_class = "per class, " if name == "max_detections" else ""
        help_text = f"{of_class}for --with-nms (default: {default})"
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=help_text)
    parser.add_argument("--data", help="labelled images to compare AP50 on; int8 is calibrated and measured on them")
    parser.add_argument("--split", help="part of the data set (default: the one used for training)")
    parser.add_argument("--images", help="folder with the images of a COCO JSON")
    parser.add_argument(
        "--max-drop", type=float, default=0.01, help="AP50 that int8 may lose, measured as users run it (default: 0.01)"
    )
    add_device_argument(parser)
    parser.add_argument("--json", action="store_true", help="the gate's report as JSON on stdout")
    options = parser.parse_args(arguments)
    if (options.batch or 1) < 1:
        raise InputError(f"--batch: expected at least 1, got {options.batch}")
    if not 0 <= options.max_drop <= 1:
        raise InputError(f"--max-drop: expected 0 to 1, got {options.max_drop}")
    return options


if __name__ == "__main__":
    run(main)
