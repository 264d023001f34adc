"""Conversions between our weights files and Darknet's, each checked on an image before it is kept."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detector.checkpoint import save_checkpoint
from detector.config import ModelConfig
from detector.darknet import load_darknet
from detector.darknet.export import export_detector
from detector.darknet.weights import write_weights
from detector.errors import InputError
from detector.export.formats import write_darknet
from detector.export.request import require_free
from detector.inference.find import find_trainable
from detector.inference.weights import load_detector
from detector.models.detector import Detector
from detector.runtime.formats import FORMATS

TOLERANCE = 1e-4
"""Largest difference of the raw maps, relative to their largest value: float32 sums in another order."""


def to_darknet(weights: str, out: Path) -> dict[str, Any]:
    """Writes OUT (.cfg), OUT.weights and OUT.names after reading them back and comparing the raw maps.

    Raises:
        InputError: not a native detector, a file exists already, or the copy does not agree (nothing is written).
    """
    target = FORMATS["darknet"]
    require_free(out, "OUT", suffix=target.suffix, beside=target.beside)
    loaded = find_trainable(weights)
    if not isinstance(loaded.model, ModelConfig) or not isinstance(loaded.network, Detector):
        raise InputError(f"{loaded.path}: is already a Darknet model")
    exported = export_detector(loaded.network, loaded.model, loaded.preprocess)
    with _beside(out) as trial:
        write_darknet(exported, loaded.class_names, trial)
        copy = load_darknet(trial, trial.with_suffix(".weights"))
        difference = _difference(loaded.network, copy, loaded.preprocess.size_hw)
        if not difference <= TOLERANCE:
            raise InputError(f"{out}: refused, the raw maps differ by {difference:.1e} (at most {TOLERANCE:.0e})")
        written = [str(path.replace(out.parent / path.name)) for path in sorted(trial.parent.iterdir())]
    return {"written": written, "largest_difference": difference}


def from_darknet(cfg: str, weights: str, out: Path, *, names: str | None = None) -> dict[str, Any]:
    """Writes a Darknet detector as our weights file after reading it back and comparing the raw maps.

    Raises:
        InputError: the files cannot be read, OUT exists, or the copy does not agree (nothing is written).
    """
    require_free(out, "OUT", suffix=".safetensors")
    loaded = load_detector(cfg, weights, names=names)
    tensors = {f"model.{name}": value for name, value in loaded.network.state_dict().items()}
    info = {"step": 0, "source": f"{Path(cfg).name}, {Path(weights).name}"}
    with _beside(out) as trial:
        save_checkpoint(trial, model=loaded.model, preprocess=loaded.preprocess, info=info, tensors=tensors)
        difference = _difference(loaded.network, load_detector(trial).network, loaded.preprocess.size_hw)
        if difference != 0:
            raise InputError(f"{out}: refused, the raw maps differ by {difference:.1e}")
        trial.replace(out)
    return {"written": str(out), "classes": len(loaded.class_names), "largest_difference": difference}


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A temporary path for a trial of `out`, on the same disk; always removed at the end."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        yield Path(folder) / out.name


def partial(cfg: str, weights: str, out: Path, *, num_layers: int) -> dict[str, Any]:
    """Writes the first `num_layers` sections' weights (Darknet's `partial`). Raises: InputError."""
    if out.exists():
        raise InputError(f"OUT {out}: exists already; move it first, or choose another name")
    network = load_darknet(cfg, weights)
    if not 0 < num_layers <= len(network.layers):
        raise InputError(f"--layers: expected 1 to {len(network.layers)}, got {num_layers}")
    kept = network.convolutions(num_layers)
    write_weights(out, kept, replace(network.header, seen=0))  # training starts from this file
    return {"written": str(out), "convolutions": len(kept), "bytes": out.stat().st_size}


def _difference(first: nn.Module, second: nn.Module, size_hw: tuple[int, int]) -> float:
    """Largest difference of the raw maps on one random image, relative to their largest value."""
    images = torch.rand(1, 3, *size_hw, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pairs = list(zip(first.eval()(images), second.eval()(images), strict=True))
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1)) for a, b in pairs)
