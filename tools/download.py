"""Downloads a public data set; resumes an interrupted download. Nothing else in this project uses the network.

Example:
    python tools/download.py bccd --out data/bccd
"""

from __future__ import annotations

from pathlib import Path

from detector.cli import Parser, print_json, run


def main(arguments: list[str]) -> int:
    from detector.data.download import ARCHIVES, fetch_dataset

    parser = Parser(description=__doc__)
    parser.add_argument(
        "name", choices=sorted(ARCHIVES), help="COCO 2017 (27 GB), VOC 2007 and 2012 (3 GB), BCCD (8 MB)"
    )
    parser.add_argument("--out", type=Path, help="folder (default: data/NAME)")
    parser.add_argument("--json", action="store_true", help="the location as JSON on stdout")
    options = parser.parse_args(arguments)
    root = options.out or Path("data") / options.name
    fetch_dataset(ARCHIVES[options.name], root)
    if options.json:
        print_json({"name": options.name, "root": str(root)})
    else:
        inner = " (data.root is one of its VOCdevkit/VOC* folders)" if options.name == "voc" else ""
        print(f"{options.name} is in {root}{inner}; tools/doctor.py examines it")
    return 0


if __name__ == "__main__":
    run(main)
