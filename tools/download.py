"""Fetches a public model or data set; resumes an interrupted download. Nothing else in this project fetches anything.

Examples:
    python tools/download.py --list
    python tools/download.py yolov4-tiny
    python tools/download.py timm/cs3darknet_focus_s        # for model.backbone.pretrained
    python tools/download.py bccd --out data/bccd
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

from detector.cli import Parser, print_json, run
from detector.errors import InputError


def main(arguments: list[str]) -> int:
    from detector.data.download import ARCHIVES, fetch_dataset
    from detector.zoo.table import by_hand, list_text, zoo

    parser = Parser(description=__doc__)
    parser.add_argument(
        "name", nargs="?", help="coco (27 GB), voc (3 GB), bccd (8 MB), timm/NAME, or a model, see --list"
    )
    parser.add_argument("--list", action="store_true", help="the models: input, size, AP50, where from, licence")
    parser.add_argument("--out", type=Path, help="folder (default: data/NAME; weights/zoo for models)")
    parser.add_argument(
        "--from",
        dest="host",
        metavar="URL",
        help="a mirror of github.com (or DETECTOR_ZOO_URL), or of huggingface.co (or HF_ENDPOINT)",
    )
    parser.add_argument("--json", action="store_true", help="the location, or the list, as JSON on stdout")
    options = parser.parse_args(arguments)
    if options.list:
        rows = [asdict(row) for row in zoo().values()]
        print_json({"models": rows, "by_hand": by_hand()}) if options.json else print(list_text())
        return 0
    if options.name in zoo() or (options.name or "").startswith("timm/"):
        return _fetch_model(options)
    if options.name in by_hand():
        raise InputError(f"{options.name}: cannot be fetched; get it by hand from {by_hand()[options.name]}")
    if options.name not in ARCHIVES:
        known = f"{', '.join(sorted(ARCHIVES))}, or a model of --list"
        raise InputError(f"download: expected {known}, got {options.name or 'nothing'}")
    if options.host is not None:
        raise InputError("--from: is for models; data sets come from their own hosts")
    root = options.out or Path("data") / options.name
    fetch_dataset(ARCHIVES[options.name], root)
    if options.json:
        print_json({"name": options.name, "root": str(root)})
    else:
        inner = " (data.root is one of its VOCdevkit/VOC* folders)" if options.name == "voc" else ""
        print(f"{options.name} is in {root}{inner}; tools/doctor.py examines it")
    return 0


def _fetch_model(options: Namespace) -> int:
    from detector.zoo.backbone import fetch_backbone
    from detector.zoo.fetch import fetch  # reads the network that the cfg describes, with PyTorch
    from detector.zoo.table import FOLDER, zoo

    name, root = options.name, options.out or FOLDER
    if name in zoo():
        verdict = fetch(zoo()[name], root=root, host=options.host)
        follow = f"python tools/demo.py {name} --video cam0" if zoo()[name].kind == "detector" else ""
    else:
        verdict = fetch_backbone(name, root=root, host=options.host)
        backbone = "pretrained: true" if options.out is None else f"file: {root / name}.safetensors"
        follow = f"python tools/train.py --data PATH 'model.backbone={{name: {name}, {backbone}}}'"
    where = root / name if name in zoo() else root / f"{name}.safetensors"
    if options.json:
        print_json({"name": name, "root": str(where), "checked": verdict})
        return 0
    print(f"{name} is in {where}: {verdict}")
    if follow:
        print(f"next: {follow}")
    return 0


if __name__ == "__main__":
    run(main)
