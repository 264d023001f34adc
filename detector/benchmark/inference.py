"""How fast a detector runs here, with every library and precision, beside what the machine can do.

All of them take turns in one run, since a machine is rarely alone and never equally fast for long; compare the rows of
one table, not two tables.
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
from detector.inference.backends import computes_in_bf16, open_runtime, possible_backends
from detector.inference.find import Loaded, LoadedDetector, LoadedExport, load_export
from detector.inference.predictor import Predictor
from detector.runtime.threads import cpu_name, usable_cpus
from detector.structures import Image

PRECISIONS = ("fp32", "bf16", "int8")
FRAME_HW = (480, 640)
NUM_FRAMES = 8
RUNS_PER_TURN = 8
PAUSE_SECONDS = 0.05
"""Before each turn, until the threads of the library before have gone to sleep."""


@dataclass
class Contestant:
    """One way to run the detector, and what was measured of it.

    Attributes:
        backend: name of the runtime.
        precision: fp32, bf16 or int8.
        predictor: that runs it.
        parallel: the same with one request for each thread, to be called from as many; None = not offered.
        network_ms: of single runs of the network on one picture.
        end_to_end_ms: from a frame in memory to boxes in its pixels.
        around_ms: of it, what is not the network.
        throughput: pictures per second, frame to boxes, with as many pictures at once as threads.
        ap50: on the given data.
    """

    backend: str
    precision: str
    predictor: Predictor
    parallel: Predictor | None = None
    network_ms: list[float] = field(default_factory=list)
    end_to_end_ms: list[float] = field(default_factory=list)
    around_ms: list[float] = field(default_factory=list)
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
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measures all ways to run a detector, in turns.

    Args:
        loaded: weights or an exported file.
        backends: only these; None = all that can run it.
        precisions: only these.
        dataset: to measure AP50 on, and whose pictures are the frames; None = drawn frames, no AP50.
        calibration: data set and split to quantize with, for int8 of weights.
        threads: None = all usable processors.
        rounds: turns; each has some runs.
        say: called with what is going on.

    Returns:
        `rows`, each: backend, precision, p50_ms, p95_ms, end_to_end_ms, fps, around_share, throughput, gflops,
        share_of_peak, ap50; and what they were measured on.

    Raises:
        InputError: nothing can run it, or int8 does not keep its budget.
    """
    threads = threads or usable_cpus()
    torch.set_num_threads(threads)
    frames = _frames(dataset)
    peaks: dict[str, list[float]] = {"fp32": [], "bf16": []}
    with _contestants(loaded, backends, precisions, calibration, threads, say) as contestants:
        for turn in range(rounds + 1):
            say(f"turn {turn} of {rounds}")
            for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
                if name == "fp32" or computes_in_bf16():
                    peaks[name].append(matrix_product_gflops(dtype, repeats=1))
            for contestant in contestants:
                _take_turn(contestant, frames, threads, counts=turn > 0)
        if dataset is not None:
            for contestant in contestants:
                say(f"AP50 of {contestant.backend} {contestant.precision}")
                runtime = contestant.predictor.runtime
                contestant.ap50 = measure_ap50(runtime, loaded, dataset, range(len(dataset)))
        gflop = _gflop(loaded)
        peak = {name: max(values) for name, values in peaks.items() if values}
        return {
            "rows": [_row(contestant, gflop, peak) for contestant in contestants],
            "model": loaded.path.name,
            "size_hw": list(loaded.preprocess.size_hw),
            "frame_hw": list(frames[0].shape[:2]),
            "gflop": gflop,
            "peak_gflops": peak,
            "threads": threads,
            "cpu": cpu_name(),
            "system": platform.platform(),
            "data": dataset.name if dataset is not None else None,
        }


@contextmanager
def _contestants(
    loaded: Loaded,
    backends: Sequence[str] | None,
    precisions: Sequence[str],
    calibration: tuple[str, str | None] | None,
    threads: int,
    say: Callable[[str], None],
) -> Iterator[list[Contestant]]:
    """Opens what takes part; what cannot be opened is told and left out."""
    found: list[Contestant] = []

    def enter(which: Loaded, backend: str, precision: str) -> None:
        """Opens one contestant, if it was asked for and can run here."""
        if precision not in precisions or (backends is not None and backend not in backends):
            return
        if precision == "bf16" and not computes_in_bf16():
            return
        say(f"opening {backend} {precision}")
        try:
            runtime = open_runtime(which, backend, threads=threads)
            contestant = Contestant(backend, precision, Predictor.from_runtime(runtime, which))
            if backend.startswith("openvino") and threads > 1:
                side_by_side = open_runtime(which, backend, threads=threads, streams=threads)
                contestant.parallel = Predictor.from_runtime(side_by_side, which)
        except (InputError, ImportError) as error:
            say(f"left out: {error}")
            return
        found.append(contestant)

    own = "int8" if isinstance(loaded, LoadedExport) and loaded.record.precision == "int8" else "fp32"
    for backend in possible_backends(loaded):
        enter(loaded, backend, "bf16" if backend.endswith("bf16") and own != "int8" else own)
    with tempfile.TemporaryDirectory() as folder:
        wanted = "int8" in precisions and (backends is None or any(name.startswith("openvino") for name in backends))
        if wanted and isinstance(loaded, LoadedDetector) and calibration is not None:
            try:
                say("quantizing to int8")
                out = Path(folder) / "int8.xml"
                gate_data = gather_gate_data(loaded, data=calibration[0], split=calibration[1])
                export(loaded, Request("openvino", out, precision="int8"), gate_data)
                quantized = load_export(out)
                enter(quantized, possible_backends(quantized)[0], "int8")
            except InputError as error:
                say(f"left out: {error}")
        if not found:
            raise InputError(f"{loaded.path}: nothing of what was asked for can run it")
        yield found


def _take_turn(contestant: Contestant, frames: Sequence[Image], threads: int, *, counts: bool) -> None:
    """A few runs; the first two, and those of the first turn, warm up."""
    time.sleep(PAUSE_SECONDS)
    predictor = contestant.predictor
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
            contestant.network_ms.append(1000 * (ran - fitted))
            contestant.end_to_end_ms.append(1000 * (end - begin))
            contestant.around_ms.append(1000 * (end - ran + fitted - begin))
    if contestant.parallel is not None:
        many = [frames[number % len(frames)] for number in range(4 * RUNS_PER_TURN)]
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(contestant.parallel.predict, many[:threads]))
            begin = time.perf_counter()
            list(pool.map(contestant.parallel.predict, many))
            if counts:
                contestant.throughput.append(len(many) / (time.perf_counter() - begin))


def _frames(dataset: DetectionDataset | None) -> list[Image]:
    """Frames in memory: pictures of the data set, or drawn ones of the size of a webcam's."""
    if dataset is not None:
        return [dataset.read(index).image for index in range(min(NUM_FRAMES, len(dataset)))]
    rng = np.random.default_rng(0)
    return [draw_shapes(draw_background(FRAME_HW, rng), random_shapes(FRAME_HW, rng))[0] for _ in range(NUM_FRAMES)]


def _gflop(loaded: Loaded) -> float | None:
    """Of one picture; None for an exported file, which does not tell."""
    if not isinstance(loaded, LoadedDetector):
        return None
    return total_complexity(loaded.network, measure_complexity(loaded.network, loaded.preprocess.size_hw)).bflops


def _row(contestant: Contestant, gflop: float | None, peak: dict[str, float]) -> dict[str, Any]:
    middle, late = np.percentile(contestant.network_ms, [50, 95])
    end_to_end = float(np.median(contestant.end_to_end_ms))
    gflops = gflop / middle * 1000 if gflop is not None else None
    best = peak["fp32"] if contestant.precision == "fp32" else peak.get("bf16", peak["fp32"])
    return {
        "backend": contestant.backend,
        "precision": contestant.precision,
        "p50_ms": float(middle),
        "p95_ms": float(late),
        "end_to_end_ms": end_to_end,
        "fps": 1000 / end_to_end,
        "around_share": float(np.median(contestant.around_ms) / middle),
        "throughput": float(np.median(contestant.throughput)) if contestant.throughput else None,
        "gflops": gflops,
        "share_of_peak": gflops / best if gflops is not None else None,
        "ap50": contestant.ap50,
    }


def inference_text(table: dict[str, Any]) -> str:
    """`inference_table` for people."""
    height, width = table["size_hw"]
    peaks = ", ".join(f"{name} {value:.0f}" for name, value in table["peak_gflops"].items())
    cost = f", {table['gflop']:.2f} GFLOP a picture" if table["gflop"] is not None else ""
    lines = [
        f"{table['model']} at {height}x{width}{cost}; {table['cpu']}, {table['threads']} threads; "
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
            f"{row['end_to_end_ms']:>16.2f}{row['fps']:>7.0f}{row['around_share']:>8.1%}{at_once:>13}"
            f"{ap50:>8}{slowest / row['p50_ms']:>7.2f}"
        )
    notes = [
        "around: pre- and postprocessing over the network; at once: as many pictures as threads; times: of the slowest"
    ]
    return "\n".join([*lines, *notes])
