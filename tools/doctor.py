"""Examines a data set: bad labels, unreadable images, class counts, box sizes, fit of the anchors, shared images.

Examples:
    python tools/doctor.py data/bccd
    python tools/doctor.py data/mine/data.yaml --config configs/csppelee_efm_bccd.yaml
    python tools/doctor.py --audit weights/mine

Exit code: 0 nothing found, 1 warnings, 2 errors.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

from detector.cli import Parser, print_json, print_note, run
from detector.config import ClassifyConfig, ModelConfig, load_run_config
from detector.errors import InputError
from detector.files import write_atomically

SHOWN_SUSPECTS = 10


def main(arguments: list[str]) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("data", nargs="?", help="COCO JSON, VOC folder, YOLO data.yaml or Darknet .data")
    parser.add_argument(
        "--audit", metavar="RUN", help="list the labels that this run's network disagrees with, in RUN/audit.csv"
    )
    parser.add_argument("--images", help="folder with the images of a COCO JSON")
    parser.add_argument(
        "--config", help="take network size and anchors from this config (default: 416, COCO's anchors)"
    )
    parser.add_argument("--quick", action="store_true", help="do not read the images")
    parser.add_argument("--json", action="store_true", help="the whole report as JSON on stdout")
    options = parser.parse_args(arguments)

    if options.audit is not None:
        audit(options.audit, options.data, as_json=options.json)
        return 0
    if options.data is None:
        raise InputError("doctor: give a data set, or --audit RUN")

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


def audit(run_dir: str, data: str | None, *, as_json: bool) -> None:
    """Writes the label suspects of a run's training data, or of other data, as a list to work through."""
    from detector.data.open import open_dataset
    from detector.evaluate.detection import evaluation_thresholds
    from detector.inference.find import find_trainable
    from detector.inference.predictor import Predictor
    from detector.report.label_audit import audit_labels, list_of

    loaded = find_trainable(run_dir, None, None)
    if loaded.config is None:
        raise InputError(f"{run_dir}: does not record what it was trained on; give a run of ours")
    root, split = (data, None) if data is not None else (loaded.config.data.root, loaded.config.data.train)
    policy = loaded.config.data.bad_labels
    dataset = open_dataset(root, split, class_names=loaded.class_names, policy=policy)
    predictor = Predictor.from_loaded(loaded, evaluation_thresholds(loaded.config.evaluate))
    found = audit_labels(predictor, dataset, progress=True)
    out = loaded.path.parent / "audit.csv"
    write_atomically(out, list_of(found.suspects, dataset).encode(errors="surrogateescape"))
    kinds = Counter(suspect.kind for suspect in found.suspects)
    if as_json:
        print_json({"out": str(out), "images": found.num_images, "unreadable": found.num_unreadable, **kinds})
        return
    print("\n".join(list_of(found.suspects[:SHOWN_SUSPECTS], dataset).splitlines()))
    print(
        f"{len(found.suspects)} suspects in {found.num_images} images: {kinds['missing']} missing labels, "
        f"{kinds['class']} other classes, {kinds['place']} labels where nothing is seen; all of them, the most "
        f"surprising first: {out}"
    )


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
