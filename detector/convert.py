"""Conversions between our weights files and Darknet's, each checked on a picture before it counts as done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detector.checkpoint import save_checkpoint, write_atomically
from detector.config import ModelConfig
from detector.darknet import load_darknet
from detector.darknet.export import export_detector
from detector.darknet.weights import write_weights
from detector.errors import InputError
from detector.load import find_weights_of, load_detector
from detector.models.detector import Detector

TOLERANCE = 1e-4
"""Largest difference of the raw maps, relative to their largest value: float32 sums in another order."""


def to_darknet(weights: str, out: Path) -> dict[str, Any]:
    """Writes OUT (.cfg), OUT.weights and OUT.names, reads them back and compares the raw maps.

    Raises:
        InputError: no native detector, or the copy does not agree (the files are removed).
    """
    loaded = find_weights_of(weights)
    if not isinstance(loaded.model, ModelConfig) or not isinstance(loaded.network, Detector):
        raise InputError(f"{loaded.path}: is a Darknet model already")
    if out.suffix != ".cfg":
        raise InputError(f"{out}: expected a name that ends in .cfg")
    exported = export_detector(loaded.network, loaded.model, loaded.preprocess)
    files = {kind: out.with_suffix(f".{kind}") for kind in ("cfg", "weights", "names")}
    write_atomically(files["cfg"], exported.cfg_text.encode())
    write_atomically(files["names"], "".join(f"{name}\n" for name in loaded.model.class_names).encode())
    exported.save_weights(files["weights"])
    difference = _difference(loaded.network, load_darknet(files["cfg"], files["weights"]), loaded.preprocess.size_hw)
    if not difference <= TOLERANCE:
        for path in files.values():
            path.unlink()
        raise InputError(f"{out}: refused, the raw maps differ by {difference:.1e} (at most {TOLERANCE:.0e})")
    return {"written": [str(path) for path in files.values()], "largest_difference": difference}


def from_darknet(cfg: str, weights: str, out: Path, *, names: str | None = None) -> dict[str, Any]:
    """Writes a Darknet detector as our weights file, reads it back and compares the raw maps.

    Raises:
        InputError: the files cannot be read, or the copy does not agree (it is removed).
    """
    loaded = load_detector(cfg, weights, names=names)
    tensors = {f"model.{name}": value for name, value in loaded.network.state_dict().items()}
    info = {"step": 0, "source": f"{Path(cfg).name}, {Path(weights).name}"}
    save_checkpoint(out, model=loaded.model, preprocess=loaded.preprocess, info=info, tensors=tensors)
    difference = _difference(loaded.network, load_detector(out).network, loaded.preprocess.size_hw)
    if difference != 0:
        out.unlink()
        raise InputError(f"{out}: refused, the raw maps differ by {difference:.1e}")
    return {"written": str(out), "classes": len(loaded.model.class_names), "largest_difference": difference}


def partial(cfg: str, weights: str, out: Path, *, num_layers: int) -> dict[str, Any]:
    """Writes the first `num_layers` sections' weights (Darknet's `partial`). Raises: InputError."""
    network = load_darknet(cfg, weights)
    if not 0 < num_layers <= len(network.layers):
        raise InputError(f"--layers: expected 1 to {len(network.layers)}, got {num_layers}")
    kept = network.convolutions(num_layers)
    write_weights(out, kept, replace(network.header, seen=0))  # a training starts from it
    return {"written": str(out), "convolutions": len(kept), "bytes": out.stat().st_size}


def _difference(first: nn.Module, second: nn.Module, size_hw: tuple[int, int]) -> float:
    """Largest difference of the raw maps on one random picture, relative to their largest value."""
    images = torch.rand(1, 3, *size_hw, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pairs = list(zip(first.eval()(images), second.eval()(images), strict=True))
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1)) for a, b in pairs)
