"""Converts detectors to and from Darknet, or for release; each conversion is verified before it is kept.

Examples:
    python tools/convert.py to-darknet weights/mine/best.safetensors mine.cfg
    python tools/convert.py from-darknet yolov4-tiny.cfg yolov4-tiny.weights yolov4-tiny.safetensors
    python tools/convert.py from-published cspdarknet53 model.safetensors cspdarknet53.safetensors
    python tools/convert.py release weights/mine mine.safetensors
    python tools/convert.py partial yolov4-tiny.cfg yolov4-tiny.weights yolov4-tiny.conv.29 --layers 29
"""

from __future__ import annotations

from pathlib import Path

from detector.cli import Parser, print_json, run


def main(arguments: list[str]) -> int:
    parser = Parser(description=__doc__)
    parser.epilog = "Each command takes --json and --help."
    commands = parser.add_subparsers(dest="command", required=True)
    to_parser = commands.add_parser("to-darknet", help="our weights -> OUT.cfg, OUT.weights, OUT.names")
    to_parser.add_argument("weights", help="our weights file or run folder")
    from_parser = commands.add_parser("from-darknet", help="Darknet cfg and weights -> our weights file")
    partial_parser = commands.add_parser("partial", help="the first layers of a weights file, to start training from")
    for command in (from_parser, partial_parser):
        command.add_argument("cfg")
        command.add_argument("weights")
    from_parser.add_argument("--names", help="file of class names (default: a *.names beside the cfg)")
    partial_parser.add_argument("--layers", type=int, required=True, help="number of sections after [net]")
    published_parser = commands.add_parser("from-published", help="timm's or Holocron's CSPDarknet53 -> our weights")
    published_parser.add_argument("name", help="cspdarknet53 or cspdarknet53_mish")
    published_parser.add_argument("file", type=Path, help="model.safetensors, or a state dict as PyTorch saves it")
    release_parser = commands.add_parser(
        "release", help="a run's weights in half precision, evaluated before they are kept"
    )
    release_parser.add_argument("run", help="run folder, config or weights")
    for command in (to_parser, from_parser, partial_parser, published_parser, release_parser):
        command.add_argument("out", type=Path, help="the file to write; it must not exist")
        command.add_argument("--json", action="store_true", help="what was written, as JSON on stdout")
    options = parser.parse_args(arguments)

    from detector.export.convert import from_darknet, partial, to_darknet

    if options.command == "to-darknet":
        report = to_darknet(options.weights, options.out)
    elif options.command == "from-darknet":
        report = from_darknet(options.cfg, options.weights, options.out, names=options.names)
    elif options.command == "from-published":
        from detector.export.published import from_published

        report = from_published(options.name, options.file, options.out)
    elif options.command == "release":
        from detector.export.release import release

        report = release(options.run, options.out, progress=True)
    else:
        report = partial(options.cfg, options.weights, options.out, num_layers=options.layers)
    if options.json:
        print_json(report)
    else:
        print("; ".join(f"{key}: {value}" for key, value in report.items()))
    return 0


if __name__ == "__main__":
    run(main)
