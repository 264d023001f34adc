"""Plots for reports, as PNG or SVG files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

os.environ.setdefault("MPLCONFIGDIR", str(Path(tempfile.gettempdir()) / f"detector-matplotlib-{os.getuid()}"))

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

MAX_NAMED_CLASSES = 20


def _plain(name: str) -> str:
    """A name in which matplotlib sees no formula."""
    return name.replace("$", r"\$")


def plot_precision_recall(
    target: Path | BinaryIO, recall: NDArray[np.float64], precision: NDArray[np.float64], class_names: Sequence[str]
) -> None:
    """Precision over recall at IoU 0.5: one thin line for each class, a thick one for their mean.

    Args:
        target: file of the PNG.
        recall: (101,).
        precision: (101, C); -1 in the column of a class without objects.
        class_names: C.
    """
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    present = [index for index in range(len(class_names)) if precision[:, index].max(initial=-1) > -1]
    for index in present:
        label = class_names[index] if len(present) <= MAX_NAMED_CLASSES else None
        area = precision[:, index].mean()
        axes.plot(recall, precision[:, index], linewidth=1, label=f"{_plain(label)} {area:.3f}" if label else None)
    if present:
        mean = precision[:, present].mean(axis=1)
        axes.plot(recall, mean, color="black", linewidth=2.5, label=f"mean {mean.mean():.3f}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title="Precision and recall, IoU 0.5")
    axes.grid(alpha=0.3)
    if present:
        axes.legend(loc="lower left")
    figure.savefig(target, dpi=120)


def plot_confusion(target: Path | BinaryIO, counts: NDArray[np.int64], names: Sequence[str], *, title: str) -> None:
    """A confusion matrix as shares of each true class, with the counts written in if there is room.

    Args:
        target: file of the PNG.
        counts: (N, N); row: truth, column: prediction.
        names: N, of the rows and columns.
        title: above the plot.
    """
    side = 2.5 + min(0.7 * len(names), 14)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class")
    ticks = range(len(names))
    axes.set(xlabel="predicted", ylabel="truth", title=title)
    shown = [_plain(name) for name in names]
    axes.set_xticks(ticks, shown, rotation=60, ha="right")
    axes.set_yticks(ticks, shown)
    if len(names) <= MAX_NAMED_CLASSES:
        for row in ticks:
            for column in ticks:
                ink = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=ink, fontsize=9)
    figure.savefig(target, dpi=120)


def plot_curves(
    target: Path | BinaryIO,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    log: bool = False,
) -> None:
    """Values over training steps, as SVG.

    Args:
        target: file of the SVG.
        curves: steps and values by name.
        title: above the plot.
        log: a logarithmic axis for the values.
    """
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for name, (steps, values) in curves.items():
        axes.plot(steps, values, linewidth=1.5, marker="o" if len(steps) < 12 else None, label=name)
    axes.set(xlabel="step", title=title)
    if log:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    if any(len(steps) for steps, _ in curves.values()):
        axes.legend()
    figure.savefig(target, format="svg", metadata={"Date": None})


def plot_trade_off(target: Path | BinaryIO, points: Mapping[str, tuple[float, float]]) -> None:
    """AP50 over latency, one named point for each way to run a model, as PNG.

    Args:
        target: file of the PNG.
        points: by name: milliseconds, AP50 as a fraction.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, (milliseconds, ap50) in points.items():
        axes.scatter(milliseconds, ap50)
        axes.annotate(name, (milliseconds, ap50), textcoords="offset points", xytext=(6, 4), fontsize=8)
    axes.set(xlabel="latency of one image, ms (median)", ylabel="AP50", title="Latency and AP50")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    figure.savefig(target, format="png")


def plot_bars(
    target: Path | BinaryIO, names: Sequence[str], bars: Mapping[str, Sequence[float]], *, title: str, ylabel: str
) -> None:
    """Groups of bars, as SVG.

    Args:
        target: file of the SVG.
        names: of the groups, shown below them.
        bars: by name, one value for each group.
        title: above the plot.
        ylabel: label of the value axis.
    """
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.add_subplot()
    places, width = np.arange(len(names)), 0.8 / max(len(bars), 1)
    for number, (name, values) in enumerate(bars.items()):
        axes.bar(places + (number - (len(bars) - 1) / 2) * width, values, width, label=name)
    axes.set_xticks(places, [_plain(name) for name in names], rotation=45, ha="right", fontsize=8)
    axes.set(title=title, ylabel=ylabel)
    axes.grid(alpha=0.3, axis="y")
    axes.legend()
    figure.savefig(target, format="svg", metadata={"Date": None})


def plot_layer_bars(target: Path | BinaryIO, series: Mapping[str, Sequence[float]], *, ylabel: str, title: str) -> None:
    """One bar for each layer of each network, side by side, in the order of execution (the paper's Figure 7).

    Args:
        target: file of the PNG.
        series: network -> the layers' values.
        ylabel: what the values are.
        title: of the plot.
    """
    figure = Figure(figsize=(14, 5), layout="constrained")
    axes = figure.add_subplot()
    width = 0.9 / len(series)
    for number, (name, values) in enumerate(series.items()):
        places = np.arange(len(values)) + number * width
        axes.bar(places, values, width=width, label=f"{name}, largest {max(values):.4f}")
    axes.set(xlabel="layer", ylabel=ylabel, title=title)
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    figure.savefig(target, dpi=120)


def plot_layer_traffic(
    target: Path | BinaryIO, series: Mapping[str, tuple[Sequence[int], Sequence[int]]], *, title: str
) -> None:
    """Elements read (up) and written (down) by each layer, one panel for each network (the paper's Figure 8).

    Args:
        target: file of the PNG.
        series: network -> (input elements of each layer, output elements of each layer).
        title: of the plot.
    """
    figure = Figure(figsize=(12, 3.2 * len(series)), layout="constrained")
    for number, (name, (read, written)) in enumerate(series.items(), 1):
        axes = figure.add_subplot(len(series), 1, number)
        places = np.arange(len(read))
        axes.bar(places, np.asarray(read) / 1e6, label="input")
        axes.bar(places, -np.asarray(written) / 1e6, label="output")
        axes.set(ylabel="million elements", title=f"{name}: CIO {(sum(read) + sum(written)) / 1e6:.2f} M")
        axes.grid(axis="y", alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    figure.savefig(target, dpi=120)
