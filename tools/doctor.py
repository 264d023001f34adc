"""Examines a data set: bad labels, unreadable images, class counts, box sizes, fit of the anchors, shared images.

Examples:
    python tools/doctor.py data/bccd
    python tools/doctor.py data/mine/data.yaml --config configs/csppelee_efm_bccd.yaml

Exit code: 0 nothing found, 1 warnings, 2 errors.
"""

from __future__ import annotations

from dataclasses import asdict

from detector.cli import Parser, print_json, print_note, run
from detector.config import ClassifyConfig, ModelConfig, load_run_config
from detector.errors import InputError


def main(arguments: list[str]) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("data", help="COCO JSON, VOC folder, YOLO data.yaml or Darknet .data")
    parser.add_argument("--images", help="folder with the images of a COCO JSON")
    parser.add_argument(
        "--config", help="take network size and anchors from this config (default: 416, COCO's anchors)"
    )
    parser.add_argument("--quick", action="store_true", help="do not read the images")
    parser.add_argument("--json", action="store_true", help="the whole report as JSON on stdout")
    options = parser.parse_args(arguments)

    from detector.data.doctor import COCO_ANCHORS, examine, report_text

    config = load_run_config(options.config) if options.config else None
    if isinstance(config, ClassifyConfig):
        return examine_classes(options.data, config, as_json=options.json)
    if config is not None and not isinstance(config.model, ModelConfig):
        raise InputError(f"{options.config}: holds a Darknet model; give a config with model.anchors")
    report = examine(
        options.data,
        images_dir=options.images,
        size_hw=config.preprocess.size_hw if config else (416, 416),
        anchors=config.model.anchors if config and isinstance(config.model, ModelConfig) else COCO_ANCHORS,
        read_images=not options.quick,
    )
    if config is None:
        print_note("no --config: boxes are compared with COCO's nine anchors at 416x416")
    if options.json:
        print_json({**asdict(report), "exit_code": report.exit_code()})
    else:
        print(report_text(report))
    return report.exit_code()


def examine_classes(root: str, config: ClassifyConfig, *, as_json: bool) -> int:
    """Examines class folders: every image is read."""
    from detector.data.doctor import examine_folders

    splits = (config.data.train, config.data.val)
    problems = examine_folders(root, splits, num_classes=config.model.num_classes)
    if as_json:
        print_json({"problems": [asdict(problem) for problem in problems], "exit_code": int(bool(problems))})
    else:
        print("\n".join([*map(str, problems), f"{len(problems)} images cannot be read"]))
    return int(bool(problems))


if __name__ == "__main__":
    run(main)
