"""Measures what a row of the paper's tables needs: speed on this machine, AP on given data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from detector.benchmark.inference import inference_table
from detector.checkpoint import load_checkpoint
from detector.config import ClassifyConfig, DetectConfig, RunConfig, load_run_config
from detector.data.open import open_dataset
from detector.errors import InputError
from detector.evaluate.classification import evaluate_checkpoint
from detector.evaluate.detection import evaluate, evaluation_thresholds
from detector.inference.predictor import Predictor
from detector.inference.weights import load_detector, untrained_detector
from detector.paper.tables import PaperRow, Reproduction, load_table

FASTEST = ("openvino", "openvino-bf16")


def measure_fps(
    row: PaperRow,
    *,
    backends: tuple[str, ...] = FASTEST,
    rounds: int = 3,
    threads: int | None = None,
    print_progress: Callable[[str], None],
) -> dict[str, Any] | None:
    """`inference_table` of the row's detector, untrained, at its size; None for classifiers and rows without config.

    Raises:
        InputError: none of the backends can run it.
    """
    config = load_run_config(row.config) if row.config is not None else None
    if row.config is None or not isinstance(config, DetectConfig):
        return None
    loaded = untrained_detector(config, row.config)
    return inference_table(
        loaded,
        backends=backends,
        precisions=("fp32", "bf16"),
        rounds=rounds,
        threads=threads,
        print_progress=print_progress,
    )


def best_fps(table: dict[str, Any]) -> float:
    """FPS from frame to boxes, one image at a time, of the fastest row in the table."""
    return float(max(row["fps"] for row in table["rows"]))


def measure_ap(found: Reproduction, *, data: str | None, split: str | None, progress: bool) -> bool:
    """Fills in AP, or top-1 and top-5, if there are weights of the row's network here.

    They are searched for in weights/<config name>, then in runs of the same network at other sizes. The row's own size
    is used in any case.

    Args:
        found: the row, which is filled.
        data: data set; None = the one in the row's config.
        split: part of the data set; None = the config's.
        progress: show a bar on stderr.

    Returns:
        Whether there were weights.

    Raises:
        InputError: the data are missing.
    """
    if found.row.config is None:
        return False
    config = load_run_config(found.row.config)
    weights = _weights_of(config, found.row.config)
    if weights is None:
        return False
    split = split or (None if data else config.data.val)
    if isinstance(config, ClassifyConfig):
        measured = evaluate_checkpoint(load_checkpoint(weights), root=data, split=split, progress=progress)
        names: tuple[str, ...] = ("top1", "top5")
    else:
        dataset = open_dataset(data or config.data.root, split, class_names=config.model.class_names)
        loaded = replace(load_detector(weights), preprocess=config.preprocess)
        predictor = Predictor.from_loaded(loaded, evaluation_thresholds(config.evaluate))
        result = evaluate(predictor, dataset, progress=progress)
        measured, names = result.compute(), ("ap", "ap50", "ap75")
    found.ours |= {name: 100 * measured[name] for name in names if measured[name] is not None}
    return True


def _weights_of(config: RunConfig, path: Path) -> Path | None:
    """The best weights of a run with the same network, from this config or another one in its folder."""
    others = sorted(other for other in path.parent.glob("*.yaml") if other.stem != "base")  # which names no network
    for candidate in (path, *others):
        other = load_run_config(candidate)
        weights = Path(other.run_dir or ".") / "best.safetensors"
        if other.model == config.model and weights.is_file() and load_checkpoint(weights).model == config.model:
            return weights
    return None


TABLE_5_BACKENDS = ("opencv", "openvino", "openvino-bf16")


def benchmark_table5(*, rounds: int, threads: int | None, print_progress: Callable[[str], None]) -> dict[str, Any]:
    """Every detector of the paper's Table 5 at its size: frames per second of the network alone, on this machine.

    Returns:
        `rows`, each: row, published_cpu_fps (None where the paper has none), the fps of each backend (None where it
        cannot run the network), frame_to_boxes_fps of the fastest; and the machine.
    """
    title, rows = load_table("5")
    answer: dict[str, Any] = {"title": title, "rows": []}
    for row in rows:
        print_progress(row.name)
        try:
            table = measure_fps(
                row, backends=TABLE_5_BACKENDS, rounds=rounds, threads=threads, print_progress=print_progress
            )
        except InputError as error:
            print_progress(f"left out: {error}")
            continue
        if table is None:
            continue
        answer |= {"cpu": table["cpu"], "threads": table["threads"]}
        published = row.published.get("fps_cpu")
        measured = {one["backend"]: 1000 / one["p50_ms"] for one in table["rows"]}
        answer["rows"].append(
            {
                "row": row.name,
                "reconstruction": row.reconstruction,
                "gflop": table["gflop"],
                "published_cpu_fps": float(published) if published else None,
                **{backend: measured.get(backend) for backend in TABLE_5_BACKENDS},
                "frame_to_boxes_fps": best_fps(table),
            }
        )
    return answer


def table5_text(answer: dict[str, Any]) -> str:
    """`benchmark_table5` as text."""
    lines = [
        f"networks of Table 5, one image at a time, frames per second; here: {answer['cpu']}, "
        f"{answer['threads']} threads; published: i9-9900K, 8 cores, OpenCV",
        f"{'':<32}{'GFLOP':>7}{'published':>11}"
        + "".join(f"{backend:>15}" for backend in TABLE_5_BACKENDS)
        + f"{'frame to boxes':>16}",
    ]
    for row in answer["rows"]:
        published = "-" if row["published_cpu_fps"] is None else f"{row['published_cpu_fps']:.0f}"
        cells = "".join(f"{'-' if row[name] is None else format(row[name], '.0f'):>15}" for name in TABLE_5_BACKENDS)
        lines.append(f"{row['row']:<32}{row['gflop']:>7.2f}{published:>11}{cells}{row['frame_to_boxes_fps']:>16.0f}")
    return "\n".join(lines)
