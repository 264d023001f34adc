"""How fast a detector runs on this machine, with every library and precision, compared with the machine's peak.

All of them take turns in one run, since other processes make a machine's speed vary. Compare the rows of one table, not
two tables.
"""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detector.analysis.complexity import measure_complexity, total_complexity
from detector.analysis.peak import matrix_product_gflops
from detector.data.dataset import DetectionDataset
from detector.data.synthetic import draw_background, draw_shapes, random_shapes
from detector.errors import InputError
from detector.export.gate import export
from detector.export.gate_data import gather_gate_data, measure_ap50
from detector.export.request import Request
from detector.inference.backends import open_runtime, possible_backends
from detector.inference.find import Loaded, LoadedExport, load_export
from detector.inference.predictor import Predictor
from detector.inference.weights import LoadedDetector
from detector.runtime.device import find_device
from detector.runtime.protocol import BACKENDS
from detector.runtime.threads import computes_in_bf16, cpu_name, usable_cpus
from detector.structures import Image

PRECISIONS = ("fp32", "bf16", "int8")
FRAME_HW = (480, 640)
NUM_FRAMES = 8
RUNS_PER_TURN = 8
PAUSE_SECONDS = 0.05
"""Pause before each turn, so that the previous library's threads go to sleep."""


@dataclass
class Variant:
    """One way to run the detector, and its measurements.

    Attributes:
        backend: name of the runtime.
        precision: fp32, bf16 or int8.
        predictor: runs the detector in this way.
        parallel: the same with one request per thread, to be called from all threads at once; None = not supported.
        network_ms: times of single runs of the network on one image.
        end_to_end_ms: times from a frame in memory to boxes in its pixels.
        overhead_ms: the part of end_to_end_ms outside the network.
        throughput: images per second, frame to boxes, with one image per thread at once.
        ap50: on the given data.
    """

    backend: str
    precision: str
    predictor: Predictor
    parallel: Predictor | None = None
    network_ms: list[float] = field(default_factory=list)
    end_to_end_ms: list[float] = field(default_factory=list)
    overhead_ms: list[float] = field(default_factory=list)
    throughput: list[float] = field(default_factory=list)
    ap50: float | None = None


def inference_table(
    loaded: Loaded,
    *,
    backends: Sequence[str] | None = None,
    precisions: Sequence[str] = PRECISIONS,
    dataset: DetectionDataset | None = None,
    calibration: tuple[str, str | None] | None = None,
    threads: int | None = None,
    rounds: int = 8,
    device: str = "cpu",
    print_progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measures all ways to run a detector, in turn.

    Args:
        loaded: weights or an exported file.
        backends: only these; None = all that can run it.
        precisions: only these.
        dataset: to measure AP50 on; its images are also the frames. None = drawn frames, no AP50.
        calibration: data set and split to quantize with, for int8 from weights.
        threads: None = all usable processors.
        rounds: number of turns, each with several runs.
        device: see `find_device`; on a GPU only PyTorch runs.
        print_progress: called with progress messages.

    Returns:
        `rows`, each: backend, precision, p50_ms, p95_ms, end_to_end_ms, fps, overhead_share, throughput, gflops,
        share_of_peak, ap50; and what they were measured on.

    Raises:
        InputError: nothing can run it, or int8 loses more AP50 than allowed.
    """
    threads = threads or usable_cpus()
    torch.set_num_threads(threads)
    frames = _frames(dataset)
    peaks: dict[str, list[float]] = {"fp32": [], "bf16": []}
    if find_device(device).type == "cuda":
        backends = [name for name in backends or BACKENDS if name.startswith("torch")]
    with _variants(loaded, backends, precisions, calibration, threads, device, print_progress) as variants:
        for turn in range(rounds + 1):
            print_progress(f"turn {turn} of {rounds}")
            _measure_peaks(peaks, device)
            for variant in variants:
                _take_turn(variant, frames, threads, counts=turn > 0)
        if dataset is not None:
            for variant in variants:
                print_progress(f"AP50 of {variant.backend} {variant.precision}")
                runtime = variant.predictor.runtime
                variant.ap50 = measure_ap50(runtime, loaded, dataset, range(len(dataset)))
        gflop = _gflop(loaded)
        peak = {name: max(values) for name, values in peaks.items() if values}
        return {
            "rows": [_row(variant, gflop, peak) for variant in variants],
            "model": loaded.path.name,
            "size_hw": list(loaded.preprocess.size_hw),
            "frame_hw": list(frames[0].shape[:2]),
            "gflop": gflop,
            "peak_gflops": peak,
            "threads": threads,
            "cpu": cpu_name(),
            "gpu": torch.cuda.get_device_name(device) if device != "cpu" else None,
            "system": platform.platform(),
            "data": dataset.name if dataset is not None else None,
        }


def _measure_peaks(peaks: dict[str, list[float]], device: str) -> None:
    """Adds a measurement of the rate of matrix products in each precision that the device computes in."""
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        if name == "fp32" or device != "cpu" or computes_in_bf16():
            peaks[name].append(matrix_product_gflops(dtype, repeats=1, device=device))


@contextmanager
def _variants(
    loaded: Loaded,
    backends: Sequence[str] | None,
    precisions: Sequence[str],
    calibration: tuple[str, str | None] | None,
    threads: int,
    device: str,
    print_progress: Callable[[str], None],
) -> Iterator[list[Variant]]:
    """Opens all variants; those that cannot be opened are reported and left out."""
    found: list[Variant] = []

    def enter(which: Loaded, backend: str, precision: str) -> None:
        """Opens one variant, if it was requested and can run here."""
        if precision not in precisions or (backends is not None and backend not in backends):
            return
        if precision == "bf16" and device == "cpu" and not computes_in_bf16():
            return
        print_progress(f"opening {backend} {precision}")
        try:
            runtime = open_runtime(which, backend, device=device, threads=threads)
            variant = Variant(backend, precision, Predictor.from_runtime(runtime, which))
            if backend.startswith("openvino") and threads > 1:
                side_by_side = open_runtime(which, backend, threads=threads, streams=threads)
                variant.parallel = Predictor.from_runtime(side_by_side, which)
        except (InputError, ImportError) as error:
            print_progress(f"left out: {error}")
            return
        found.append(variant)

    own = "int8" if isinstance(loaded, LoadedExport) and loaded.record.precision == "int8" else "fp32"
    for backend in possible_backends(loaded):
        enter(loaded, backend, "bf16" if backend.endswith("bf16") and own != "int8" else own)
    with tempfile.TemporaryDirectory() as folder:
        wanted = "int8" in precisions and (backends is None or any(name.startswith("openvino") for name in backends))
        if wanted and isinstance(loaded, LoadedDetector) and calibration is not None:
            try:
                print_progress("quantizing to int8")
                out = Path(folder) / "int8.xml"
                gate_data = gather_gate_data(loaded, data=calibration[0], split=calibration[1])
                export(loaded, Request("openvino", out, precision="int8"), gate_data)
                quantized = load_export(out)
                enter(quantized, possible_backends(quantized)[0], "int8")
            except InputError as error:
                print_progress(f"left out: {error}")
        if not found:
            raise InputError(f"{loaded.path}: none of the requested backends and precisions can run it")
        yield found


def _take_turn(variant: Variant, frames: Sequence[Image], threads: int, *, counts: bool) -> None:
    """A few runs; the first two, and those of the first turn, warm up."""
    time.sleep(PAUSE_SECONDS)
    predictor = variant.predictor
    for number in range(RUNS_PER_TURN + 2):
        image = frames[number % len(frames)]
        begin = time.perf_counter()
        pixels, records = predictor.fit([image])
        fitted = time.perf_counter()
        outputs = predictor.runtime.run(pixels)
        ran = time.perf_counter()
        (found,) = predictor.decode(outputs, 1)
        records[0].to_original(found.boxes_xyxy)
        end = time.perf_counter()
        if counts and number >= 2:
            variant.network_ms.append(1000 * (ran - fitted))
            variant.end_to_end_ms.append(1000 * (end - begin))
            variant.overhead_ms.append(1000 * (end - ran + fitted - begin))
    if variant.parallel is not None:
        many = [frames[number % len(frames)] for number in range(4 * RUNS_PER_TURN)]
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(variant.parallel.predict, many[:threads]))
            begin = time.perf_counter()
            list(pool.map(variant.parallel.predict, many))
            if counts:
                variant.throughput.append(len(many) / (time.perf_counter() - begin))


def _frames(dataset: DetectionDataset | None) -> list[Image]:
    """Frames in memory: images of the data set, or drawn ones of webcam size."""
    if dataset is not None:
        return [dataset.read(index).image for index in range(min(NUM_FRAMES, len(dataset)))]
    rng = np.random.default_rng(0)
    return [draw_shapes(draw_background(FRAME_HW, rng), random_shapes(FRAME_HW, rng))[0] for _ in range(NUM_FRAMES)]


def _gflop(loaded: Loaded) -> float | None:
    """GFLOP per image; None for an exported file, which does not record it."""
    if not isinstance(loaded, LoadedDetector):
        return None
    return total_complexity(loaded.network, measure_complexity(loaded.network, loaded.preprocess.size_hw)).bflops


def _row(variant: Variant, gflop: float | None, peak: dict[str, float]) -> dict[str, Any]:
    middle, late = np.percentile(variant.network_ms, [50, 95])
    end_to_end = float(np.median(variant.end_to_end_ms))
    gflops = gflop / middle * 1000 if gflop is not None else None
    best = peak["fp32"] if variant.precision == "fp32" else peak.get("bf16", peak["fp32"])
    return {
        "backend": variant.backend,
        "precision": variant.precision,
        "p50_ms": float(middle),
        "p95_ms": float(late),
        "end_to_end_ms": end_to_end,
        "fps": 1000 / end_to_end,
        "overhead_share": float(np.median(variant.overhead_ms) / middle),
        "throughput": float(np.median(variant.throughput)) if variant.throughput else None,
        "gflops": gflops,
        "share_of_peak": gflops / best if gflops is not None else None,
        "ap50": variant.ap50,
    }


def inference_text(table: dict[str, Any]) -> str:
    """`inference_table` as text."""
    height, width = table["size_hw"]
    peaks = ", ".join(f"{name} {value:.0f}" for name, value in table["peak_gflops"].items())
    cost = f", {table['gflop']:.2f} GFLOP per image" if table["gflop"] is not None else ""
    lines = [
        f"{table['model']} at {height}x{width}{cost}; {table['gpu'] or table['cpu']}, {table['threads']} threads; "
        f"matrix products reach {peaks} GFLOP/s",
        f"{'backend':<14}{'precision':<11}{'p50 ms':>8}{'p95 ms':>8}{'GFLOP/s':>9}{'of peak':>9}{'frame-boxes ms':>16}"
        f"{'fps':>7}{'around':>8}{'at once fps':>13}{'AP50':>8}{'times':>7}",
    ]
    slowest = max(row["p50_ms"] for row in table["rows"])
    for row in table["rows"]:
        gflops = "" if row["gflops"] is None else f"{row['gflops']:.0f}"
        share = "" if row["share_of_peak"] is None else f"{row['share_of_peak']:.0%}"
        at_once = "" if row["throughput"] is None else f"{row['throughput']:.0f}"
        ap50 = "" if row["ap50"] is None else f"{row['ap50']:.4f}"
        lines.append(
            f"{row['backend']:<14}{row['precision']:<11}{row['p50_ms']:>8.2f}{row['p95_ms']:>8.2f}{gflops:>9}{share:>9}"
            f"{row['end_to_end_ms']:>16.2f}{row['fps']:>7.0f}{row['overhead_share']:>8.1%}{at_once:>13}"
            f"{ap50:>8}{slowest / row['p50_ms']:>7.2f}"
        )
    notes = [
        "around: time of pre- and postprocessing / of the network; at once: one image per thread; "
        "times: speed / the slowest's"
    ]
    return "\n".join([*lines, *notes])
