"""Metrics as a readable table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """Overall figures in one row, then a row for each class; "-" where nothing can be measured.

    For a classifier: the shares of images whose true class is ranked first, and among the first five.
    """
    if "top1" in metrics:
        return f"top-1 {_cell(metrics['top1'])}, top-5 {_cell(metrics['top5'])}"
    overall = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar100")
    heads = ("AP", "AP50", "AP75", "APS", "APM", "APL", "AR100")
    lines = ["".join(f"{head:>8}" for head in heads), "".join(f"{_cell(metrics[name]):>8}" for name in overall)]
    width = max([len(name) for name in metrics["per_class"]] + [5])
    lines += ["", f"{'class':<{width}}{'objects':>9}{'AP':>8}{'AP50':>8}{'AR100':>8}"]
    for name, row in metrics["per_class"].items():
        cells = "".join(f"{_cell(row[key]):>8}" for key in ("ap", "ap50", "ar100"))
        lines.append(f"{name:<{width}}{row['objects']:>9}{cells}")
    if "darknet" in metrics:
        darknet = metrics["darknet"]
        lines += [
            "",
            f"Darknet's own metric: mAP@0.50 {darknet['map50']:.4f} (11 points {darknet['map50_11_points']:.4f}, "
            f"101 points {darknet['map50_101_points']:.4f}); at confidence 0.25: "
            f"TP {darknet['tp']}, FP {darknet['fp']}, FN {darknet['fn']}, average IoU {darknet['avg_iou']:.4f}",
        ]
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
