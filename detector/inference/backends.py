"""Opens the runtime for a loaded detector: by its file, by name, or the fastest on this machine."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, cast

import numpy as np

from detector.errors import InputError
from detector.files import write_atomically
from detector.inference.find import PROJECT_ROOT, Loaded, LoadedExport, identity
from detector.runtime.formats import FORMATS, format_of
from detector.runtime.protocol import BACKENDS, Runtime, relative_difference
from detector.runtime.threads import computes_in_bf16, cpu_name, usable_cpus

if TYPE_CHECKING:
    from detector.inference.weights import LoadedDetector

WARM_UP_ROUNDS = 3
MEASURED_ROUNDS = 15

MAP_TOLERANCE = {"torch": 1e-4, "onnxruntime": 1e-4, "openvino": 1e-4, "opencv": 1e-3, "openvino-bf16": 0.1}
"""Difference of raw maps, relative to the largest value. OpenCV computes some convolutions by Winograd's formula."""
LOW_PRECISION_TOLERANCE = 0.3
"""The same for files in fp16 or int8, between libraries."""


def open_runtime(
    loaded: Loaded,
    backend: str | None = None,
    *,
    device: str = "cpu",
    threads: int | None = None,
    streams: int = 1,
) -> Runtime:
    """Prepares a detector to run.

    Weights are converted in memory where the backend is not PyTorch, and the result is compared with PyTorch's.

    Args:
        loaded: weights or an exported file.
        backend: one of BACKENDS; "auto" = the fastest (see `fastest_backend`); None = "torch" for weights, the
            library of its format for an exported file.
        device: "cpu"; or for PyTorch "cuda" or "cuda:N", where float32 is then multiplied exactly, process-wide.
        threads: None = all usable processors.
        streams: for OpenVINO: images computed in parallel, when this many threads call it.

    Raises:
        InputError: the backend cannot open this, or does not agree with PyTorch (for an exported file: with the library
            that ran when it was written).
    """
    possible = possible_backends(loaded)
    if backend == "auto":
        backend = fastest_backend(loaded, possible, threads=threads) if device == "cpu" else "torch"
    backend = backend or possible[0]
    if backend not in possible:
        raise InputError(f"--backend {backend}: cannot run {loaded.path}; possible are auto, {', '.join(possible)}")
    if device != "cpu" and not backend.startswith("torch"):
        raise InputError(f"--device {device}: {backend} runs on the CPU only; leave out --device, or use our weights")
    if isinstance(loaded, LoadedExport):
        runtime = _open_file(loaded, backend, threads, streams)
        if backend != possible[0] and loaded.record.suppression is None:  # the gate ran only the first
            tolerance = MAP_TOLERANCE[backend] if loaded.record.precision == "fp32" else LOW_PRECISION_TOLERANCE
            _require_agreement(_open_file(loaded, possible[0], threads, 1), runtime, loaded, tolerance)
        return runtime
    return _open_weights(cast("LoadedDetector", loaded), backend, device, threads, streams)


def possible_backends(loaded: Loaded) -> tuple[str, ...]:
    """Names of the backends that can run this, the default first."""
    if not isinstance(loaded, LoadedExport):
        return BACKENDS
    names = FORMATS[format_of(loaded.path) or ""].backends
    if names[0] == "openvino" and loaded.record.precision == "int8" and computes_in_bf16():
        return ("openvino-bf16", "openvino")  # layers that are not in INT8 are quicker in bfloat16
    return names if loaded.record.suppression is None else tuple(name for name in names if name != "opencv")


def _open_file(loaded: LoadedExport, backend: str, threads: int | None, streams: int) -> Runtime:
    return _open_graph(loaded.path, backend, batch=loaded.record.batch, threads=threads, streams=streams)


def _open_graph(model: Path | bytes, backend: str, *, batch: int | None, threads: int | None, streams: int) -> Runtime:
    if backend == "onnxruntime":
        from detector.runtime.onnxruntime_backend import OnnxRuntime

        return OnnxRuntime(model, batch=batch, threads=threads)
    if backend == "opencv":
        from detector.runtime.opencv_backend import OpenCvRuntime

        return OpenCvRuntime(model, batch=batch, threads=threads)
    from detector.runtime.openvino_backend import OpenVinoRuntime

    return OpenVinoRuntime(model, batch=batch, bf16=backend == "openvino-bf16", threads=threads, streams=streams)


def _open_weights(loaded: LoadedDetector, backend: str, device: str, threads: int | None, streams: int) -> Runtime:
    import torch

    from detector.models.precision import multiply_float32_in
    from detector.runtime.device import find_device
    from detector.runtime.torch_backend import TorchRuntime

    if backend.startswith("torch"):
        torch.set_num_threads(threads or min(torch.get_num_threads(), usable_cpus()))
        if find_device(device).type == "cuda":
            multiply_float32_in("ieee")
        return TorchRuntime(loaded.network, bf16=backend == "torch-bf16", device=device)
    runtime = _open_graph(loaded.onnx, backend, batch=1, threads=threads, streams=streams)
    _require_agreement(TorchRuntime(loaded.network), runtime, loaded, MAP_TOLERANCE[backend])
    return runtime


def _require_agreement(reference: Runtime, runtime: Runtime, loaded: Loaded, tolerance: float) -> None:
    """Compares the raw maps of a random image. Raises: InputError: they differ by more than the tolerance."""
    image = np.random.default_rng(0).integers(0, 256, (1, *loaded.preprocess.size_hw, 3), np.uint8)
    difference = max(map(relative_difference, reference.run(image), runtime.run(image)))
    if not difference <= tolerance:
        raise InputError(
            f"--backend {runtime.name}: refused, its raw maps differ from those of {reference.name} by "
            f"{difference:.1e} of their largest value (at most {tolerance:g})"
        )


def fastest_backend(loaded: Loaded, possible: Sequence[str], *, threads: int | None = None) -> str:
    """Measures the backends in turn, one image at a time, and remembers the fastest for this file and machine.

    bfloat16 is measured only if the processor computes in it. A backend that cannot be opened is skipped. The answer
    is kept in weights/.backends.json until the file, the processor, the number of threads or a library changes.

    Raises:
        InputError: no backend can run it.
    """
    key = _cache_key(loaded, possible, threads)
    cache = PROJECT_ROOT / "weights" / ".backends.json"
    known = _read_cache(cache)
    if known.get(key) in possible:
        return known[key]
    median_ms = measure_backends(loaded, possible, threads=threads)
    if not median_ms:
        raise InputError(f"--backend auto: none of {', '.join(possible)} can run {loaded.path}")
    best = min(median_ms, key=lambda name: median_ms[name])
    with suppress(OSError):  # a cache that cannot be written only costs time
        write_atomically(cache, json.dumps({**known, key: best}, indent=2).encode())
    return best


def measure_backends(
    loaded: Loaded, names: Sequence[str], *, threads: int | None = None, rounds: int = MEASURED_ROUNDS
) -> dict[str, float]:
    """Median milliseconds per image of each backend that opens and runs, measured in turn."""
    runtimes: dict[str, Runtime] = {}
    image = np.random.default_rng(0).integers(0, 256, (1, *loaded.preprocess.size_hw, 3), np.uint8)
    for name in names:
        if name.endswith("-bf16") and not computes_in_bf16():
            continue
        with suppress(Exception):  # a backend that fails, for whatever reason, is skipped
            runtime = open_runtime(loaded, name, threads=threads)
            runtime.run(image)
            runtimes[name] = runtime
    seconds: dict[str, list[float]] = {name: [] for name in runtimes}
    for turn in range(WARM_UP_ROUNDS + rounds):
        for name, runtime in runtimes.items():
            started = time.perf_counter()
            runtime.run(image)
            if turn >= WARM_UP_ROUNDS:
                seconds[name].append(time.perf_counter() - started)
    return {name: 1000 * median(times) for name, times in seconds.items()}


def _cache_key(loaded: Loaded, possible: Sequence[str], threads: int | None) -> str:
    """Changes with everything that may change the answer."""
    libraries = []
    for name in ("torch", "onnxruntime", "openvino", "opencv-python"):
        with suppress(PackageNotFoundError):
            libraries.append(f"{name} {version(name)}")
    return "; ".join([identity(loaded), cpu_name(), f"{threads or usable_cpus()} threads", *libraries, *possible])


def _read_cache(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
