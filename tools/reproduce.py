"""Prints the tables and figures of the CSPNet paper next to our own.

Examples:
    python tools/reproduce.py --table 1
    python tools/reproduce.py --table 4 --row "EFM(SAM) CSPPeleeNet 416" --measure fps
    python tools/reproduce.py --table 2 --measure ap --data data/coco/annotations/instances_val2017.json
    python tools/reproduce.py --figure 7 --out figure7.png
"""

from __future__ import annotations

import math
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from detector.cli import Parser, print_json, print_note, run
from detector.errors import InputError

MEASURES = {"fps", "ap"}
PLOTS = (".png", ".svg", ".pdf")


def main(arguments: list[str]) -> int:
    parser = Parser(description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--table", metavar="1..5", help="published and our figures, row by row")
    what.add_argument("--figure", metavar="7|8", help="cost (7) or traffic (8) of every layer, as a plot")
    parser.add_argument("--row", help="only the row with this name")
    parser.add_argument("--measure", default="", help="fps, ap, or fps,ap: measured on this machine")
    parser.add_argument("--data", help="data set for ap (default: the config's)")
    parser.add_argument("--split", help="part of the data set (default: the config's data.val)")
    parser.add_argument("--out", type=Path, help="file of the plot (default: figure7.png, figure8.png)")
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    options = parser.parse_args(arguments)
    measures = set(filter(None, options.measure.split(",")))
    if measures - MEASURES:
        raise InputError(f"--measure: expected some of {', '.join(sorted(MEASURES))}, got {options.measure!r}")
    if options.figure is not None:
        if options.row or measures or options.data or options.split:
            raise InputError("--figure: --row, --measure, --data and --split are for tables")
        return draw_figure(options.figure, options.out or Path(f"figure{options.figure}.png"), as_json=options.json)
    return print_table(options, measures)


def print_table(options: Any, measures: set[str]) -> int:
    """The rows of one table."""
    from detector.paper.tables import as_json, load_table, reproduce, table_text

    title, rows = load_table(options.table)
    if options.row is not None:
        names = [row.name for row in rows]
        if options.row not in names:
            close = [name for name in names if options.row.lower() in name.lower()]
            close = close or get_close_matches(options.row, names, cutoff=0.3)
            hint = f"did you mean {' or '.join(map(repr, close[:3]))}?" if close else ""
            raise InputError(f"--row {options.row!r}: no such row in Table {options.table}; {hint or '; '.join(names)}")
        rows = [row for row in rows if row.name == options.row]
    found = [reproduce(row) for row in rows]
    machine = measure(found, measures, options)
    if options.json:
        print_json({**as_json(found), "machine": machine})
    else:
        print(table_text(f"Table {options.table}: {title}", found))
        if machine is not None:
            print(f"FPS here: frame to boxes, one image at a time, OpenVINO's fastest precision, {machine}")
    return 0


def measure(found: list[Any], measures: set[str], options: Any) -> str | None:
    """Measures what was requested; returns the machine's name if that includes speed."""
    machine = None
    if "fps" in measures:
        from detector.paper.measure import best_fps, measure_fps

        for one in found:
            print_note(f"measuring {one.row.name}")
            table = measure_fps(one.row, print_progress=print_if_left_out)
            if table is not None:
                one.ours["fps_cpu" if options.table == "5" else "fps"] = best_fps(table)
                machine = f"{table['cpu']}, {table['threads']} threads"
    if "ap" in measures:
        from detector.paper.measure import measure_ap

        with_weights = sum(measure_ap(one, data=options.data, split=options.split, progress=True) for one in found)
        print_note(f"ap: {with_weights} of {len(found)} rows have weights here; the others stay empty")
    return machine


def print_if_left_out(text: str) -> None:
    """Prints only those messages of a measurement that report a failure."""
    if text.startswith("left out"):
        print_note(text)


def draw_figure(number: str, out: Path, *, as_json: bool) -> int:
    """Writes the plot to a file and prints its figures."""
    from dataclasses import asdict

    from detector.paper.tables import figure_7_text, figure_8_text, figure_layers
    from detector.report.plots import plot_layer_bars, plot_layer_traffic

    layers = figure_layers(number)
    if out.suffix not in PLOTS:
        raise InputError(f"--out {out}: expected a name that ends in {', '.join(PLOTS)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    if number == "7":
        bars = {name: [cost.bflops for cost in costs] for name, costs in layers.items()}
        plot_layer_bars(out, bars, ylabel="BFLOPs", title="Computation of each layer at 416x416 (Figure 7)")
        text = figure_7_text(layers)
    else:
        traffic = {
            name: (
                [math.prod(cost.input_chw) for cost in costs],
                [math.prod(cost.output_chw) for cost in costs],
            )
            for name, costs in layers.items()
        }
        plot_layer_traffic(out, traffic, title="Input and output of each layer at 256x256 (Figure 8)")
        text = figure_8_text(layers)
    if as_json:
        print_json({"networks": {name: [asdict(cost) for cost in costs] for name, costs in layers.items()}})
    else:
        print(f"{text}\nplot: {out}")
    return 0


if __name__ == "__main__":
    run(main)
