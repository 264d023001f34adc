"""The tables of the CSPNet paper, next to the parameters, BFLOPs and CIO of the networks here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detector.analysis.complexity import LayerCost, measure_complexity, total_complexity
from detector.config import ClassifyConfig, ModelConfig, RunConfig, load_run_config, read_yaml
from detector.errors import InputError
from detector.models.build import build_classifier, build_detector

PROJECT_ROOT = Path(__file__).resolve().parents[2]
TABLES_FILE = Path(__file__).with_name("tables.yaml")
COUNTED = ("params", "bflops", "cio")
"""Columns that follow from the layers alone; the others must be measured."""
RECONSTRUCTION_TOLERANCE = 0.01


@dataclass(frozen=True)
class PaperRow:
    """A row of a published table.

    Attributes:
        name: the row's name.
        config: the experiment that builds it here; None if there is none.
        reconstruction: its layers are not published, so the network here was designed to match the figures.
        impossible: why there is no config.
        note: what the reader should know about its figures.
        published: the printed figures, as text: params and cio in millions, bflops, fps, ap, top1, ...
    """

    name: str
    config: Path | None
    reconstruction: bool
    impossible: str | None
    note: str | None
    published: dict[str, str]


@dataclass
class Reproduction:
    """A row, and the figures counted and measured here.

    Attributes:
        row: the paper's row.
        ours: figures that were counted or measured here; published figures are never copied into it.
        deviations: (ours - published) / published of the counted figures that differ in the printed digits.
        status: exact (to the printed digits) | within 1 % | off | built (no published figure can be counted) |
            impossible.
    """

    row: PaperRow
    ours: dict[str, float] = field(default_factory=dict)
    deviations: dict[str, float] = field(default_factory=dict)
    status: str = "impossible"

    @property
    def verdict(self) -> str:
        """The status in words; a miss is called a miss."""
        if self.within_tolerance or self.status in {"built", "impossible"}:
            return {"built": "nothing to compare"}.get(self.status, self.status)
        largest = max(self.deviations.values(), key=abs)
        return f"misses by {largest:+.2%}"

    @property
    def within_tolerance(self) -> bool:
        """Whether the counts match: to the printed digits if the layers are known, otherwise within 1 %."""
        return self.status == "exact" or (self.row.reconstruction and self.status == "within 1 %")


def load_table(number: str) -> tuple[str, list[PaperRow]]:
    """Title and rows of Table "1" to "5". Raises: InputError: no such table."""
    tables = read_yaml(TABLES_FILE)
    if number not in tables:
        raise InputError(f"table {number}: expected one of {', '.join(tables)}")
    rows = [
        PaperRow(
            name=row["row"],
            config=PROJECT_ROOT / row["config"] if row["config"] else None,
            reconstruction=row.get("reconstruction", False),
            impossible=row.get("impossible"),
            note=row.get("note"),
            published=row["published"],
        )
        for row in tables[number]["rows"]
    ]
    return tables[number]["title"], rows


def reproduce(row: PaperRow) -> Reproduction:
    """Counts the row's network. Raises: InputError: its config is missing or wrong."""
    found = Reproduction(row)
    if row.config is None:
        return found
    network, costs = count_layers(load_run_config(row.config))
    totals = total_complexity(network, costs)
    found.ours = {"params": totals.params / 1e6, "bflops": totals.bflops, "cio": totals.cio / 1e6}
    for name in COUNTED:
        published = row.published.get(name)
        if published is not None and not _prints_as(found.ours[name], published):
            found.deviations[name] = found.ours[name] / float(published) - 1
    found.status = _status(row, found.deviations)
    return found


def _status(row: PaperRow, deviations: dict[str, float]) -> str:
    if not any(name in row.published for name in COUNTED):
        return "built"
    if not deviations:
        return "exact"
    return "within 1 %" if max(map(abs, deviations.values())) <= RECONSTRUCTION_TOLERANCE else "off"


def _prints_as(value: float, published: str) -> bool:
    """Whether `value` has the published digits, rounded or (as some of the authors' figures are) truncated."""
    digits = len(published.partition(".")[2])
    cut = math.floor(value * 10**digits) / 10**digits
    return published in {f"{value:.{digits}f}", f"{cut:.{digits}f}"}


def count_layers(config: RunConfig) -> tuple[nn.Module, list[LayerCost]]:
    """The network of an experiment, without memory for its weights, and its layers' costs. Raises: InputError."""
    with torch.device("meta"):
        if isinstance(config, ClassifyConfig):
            network: nn.Module = build_classifier(config.model)
        elif isinstance(config.model, ModelConfig):
            network = build_detector(config.model)
        else:
            raise InputError("count_layers: expected a config with a backbone, but this one holds a Darknet cfg")
    return network, measure_complexity(network, config.preprocess.size_hw)


HEADINGS = {
    "params": "params M",
    "bflops": "BFLOPs",
    "cio": "CIO M",
    "fps": "FPS",
    "fps_cpu": "CPU FPS",
    "fps_mobile": "mobile FPS",
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "top1": "top-1",
    "top5": "top-5",
}
_DIGITS = {"params": 3, "bflops": 4, "cio": 2, "fps": 0, "fps_cpu": 0}


def table_text(title: str, found: Sequence[Reproduction]) -> str:
    """Published / ours for every column of the table, notes, misses, and the summary."""
    columns = [
        name for name in HEADINGS if any(name in one.row.published or (name in COUNTED and one.ours) for one in found)
    ]
    width = max(len(one.row.name) for one in found) + 1
    lines = [title, f"{'published / ours':<{width}}" + "".join(f"{HEADINGS[name]:>18}" for name in columns)]
    for one in found:
        cells = "".join(f"{_cell(one, name):>18}" for name in columns)
        remark = f"{one.verdict}{', reconstruction' if one.row.reconstruction else ''}"
        reason = one.row.impossible or one.row.note
        lines.append(f"{one.row.name:<{width}}{cells}  {remark}{f' ({reason})' if reason else ''}")
    misses = [one for one in found if one.deviations and not one.within_tolerance]
    for one in misses:
        off = ", ".join(f"{HEADINGS[name]} {value:+.2%}" for name, value in one.deviations.items())
        lines.append(f"misses: {one.row.name}: {off}")
    return "\n".join([*lines, summary(found)])


def summary(found: Sequence[Reproduction]) -> str:
    """The line "rows: N, within tolerance: N, reconstructions: N, impossible: N (why)"."""
    why = Counter(one.row.impossible for one in found if one.row.impossible)
    uncounted = sum(one.status == "built" for one in found)
    reasons = "; ".join(f"{count} {reason}" for reason, count in why.items())
    return (
        f"rows: {len(found)}, within tolerance: {sum(one.within_tolerance for one in found)}, "
        f"reconstructions: {sum(one.row.reconstruction for one in found)}, "
        f"impossible: {sum(why.values())}{f' ({reasons})' if reasons else ''}"
        + (f"; without published counts: {uncounted}" if uncounted else "")
    )


def _cell(one: Reproduction, name: str) -> str:
    published = one.row.published.get(name, "")
    ours = one.ours.get(name)
    if ours is None:
        return f"{published} /" if published else ""
    digits = _DIGITS.get(name, 1)
    return f"{published or '-'} / {ours:.{digits}f}"


def as_json(found: Sequence[Reproduction]) -> dict[str, Any]:
    """{"rows": [{"row", "published", "ours", "status", ...}], "summary"}."""
    rows = [
        {
            "row": one.row.name,
            "config": str(one.row.config.relative_to(PROJECT_ROOT)) if one.row.config else None,
            "published": {name: float(text) for name, text in one.row.published.items()},
            "ours": one.ours,
            "status": one.status,
            "reconstruction": one.row.reconstruction,
            "deviations": one.deviations,
            "impossible": one.row.impossible,
        }
        for one in found
    ]
    return {"rows": rows, "summary": summary(found)}


FIGURE_7 = {
    "PeleeNet-YOLO": "configs/coco/peleenet_yolo.yaml",
    "PeleeNet-PRN": "configs/coco/peleenet_prn.yaml",
    "CSPPeleeNet-EFM": "configs/coco/csppeleenet_efm.yaml",
}
FIGURE_8 = {"ResNeXt50": "configs/imagenet/resnext50.yaml", "CSPResNeXt50": "configs/imagenet/cspresnext50.yaml"}


def figure_layers(number: str) -> dict[str, list[LayerCost]]:
    """The layers of the networks of Figure "7" (at 416) or "8" (at 256). Raises: InputError: no such figure."""
    figures = {"7": FIGURE_7, "8": FIGURE_8}
    if number not in figures:
        raise InputError(f"figure {number}: expected 7 or 8")
    return {name: count_layers(load_run_config(PROJECT_ROOT / path))[1] for name, path in figures[number].items()}


def figure_7_text(layers: dict[str, list[LayerCost]]) -> str:
    """The largest layer of each network, and by how much CSPPeleeNet-EFM's is smaller."""
    largest = {name: max(costs, key=lambda cost: cost.bflops) for name, costs in layers.items()}
    ours = largest["CSPPeleeNet-EFM"].bflops
    lines = [
        f"{name}: {sum(cost.bflops for cost in costs):.3f} BFLOPs in {len(costs)} layers, at most "
        f"{largest[name].bflops:.4f} ({largest[name].name}); CSPPeleeNet-EFM's largest is "
        f"{ours / largest[name].bflops - 1:+.0%}"
        for name, costs in layers.items()
    ]
    return "\n".join(lines)


def figure_8_text(layers: dict[str, list[LayerCost]]) -> str:
    """The CIO of both networks."""
    lines = []
    for name, costs in layers.items():
        read = sum(math.prod(cost.input_chw) for cost in costs)
        written = sum(math.prod(cost.output_chw) for cost in costs)
        lines.append(
            f"{name}: CIO {sum(cost.cio for cost in costs) / 1e6:.2f} M in {len(costs)} layers "
            f"(input {read / 1e6:.2f} M, output {written / 1e6:.2f} M)"
        )
    return "\n".join(lines)
