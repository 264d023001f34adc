"""Weights for release: half precision, with config, metrics and provenance; written only if accuracy is kept."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from detector import __version__
from detector.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from detector.config import DetectConfig
from detector.data.dataset import DetectionDataset
from detector.data.open import open_dataset
from detector.errors import InputError
from detector.evaluate.detection import evaluate, evaluation_thresholds
from detector.export.request import require_free
from detector.inference.find import find_trainable
from detector.inference.predictor import Predictor
from detector.inference.weights import load_detector

TOLERANCE = 0.001
"""Largest allowed change of AP and AP50; rounding swaps detections with nearly equal scores."""


def release(run: str, out: Path, *, progress: bool = False) -> dict[str, Any]:
    """Writes the weights of a run in half precision and measures both on the run's validation split.

    Normalisation stays in float32: it is small, and its variances may be too small for half precision. The file
    records the whole config, its own metrics and where the weights come from.

    Args:
        run: folder, config or weights of the run.
        out: the file to write.
        progress: show bars on stderr.

    Returns:
        written, bytes, ap50 and ap of the file, ap50_float32 and ap_float32 of the float32 weights.

    Raises:
        InputError: not a run of this program, its data are missing, the file exists, or the metrics differ by more
            than 0.001 (nothing is written).
    """
    require_free(out, "OUT", suffix=".safetensors")
    loaded = find_trainable(run)
    config = loaded.config
    if config is None:
        raise InputError(f"{loaded.path}: was not trained by this program; only its own runs can be released")
    train_set, val_set = (_open(config, split) for split in (config.data.train, config.data.val))
    full = _measure(loaded.path, config, val_set, progress=progress)
    if full["ap"] is None:
        raise InputError(f"{loaded.path}: cannot be released, its validation split {config.data.val} has no objects")
    checkpoint = _in_half_precision(load_checkpoint(loaded.path))
    trial = out.with_name(f".{out.name}")
    try:
        _save(trial, checkpoint)
        half = _measure(trial, config, val_set, progress=progress)
    finally:
        trial.unlink(missing_ok=True)
    if max(abs(full[key] - half[key]) for key in ("ap", "ap50")) > TOLERANCE:
        raise InputError(
            f"{out}: refused, half precision changes AP50 from {full['ap50']:.4f} to {half['ap50']:.4f} and AP "
            f"from {full['ap']:.4f} to {half['ap']:.4f} (at most {TOLERANCE})"
        )
    provenance = {
        "program": f"detector {__version__}",
        "torch": torch.__version__,
        "seed": config.train.seed,
        "train": _describe(train_set, config.data.train),
        "val": _describe(val_set, config.data.val),
    }
    info = {"step": checkpoint.info["step"], "config": loaded.info["config"], "metrics": half, "provenance": provenance}
    _save(out, replace(checkpoint, info=info))
    return {
        "written": str(out),
        "bytes": out.stat().st_size,
        "ap50": half["ap50"],
        "ap": half["ap"],
        "ap50_float32": full["ap50"],
        "ap_float32": full["ap"],
    }


def _open(config: DetectConfig, split: str) -> DetectionDataset:
    names, policy = config.model.class_names, config.data.bad_labels
    return open_dataset(config.data.root, split, class_names=names, policy=policy)


def _measure(path: Path, config: DetectConfig, dataset: DetectionDataset, *, progress: bool) -> dict[str, Any]:
    predictor = Predictor.from_loaded(load_detector(path), evaluation_thresholds(config.evaluate))
    return evaluate(predictor, dataset, progress=progress).compute()


def _in_half_precision(checkpoint: Checkpoint) -> Checkpoint:
    """The weights for prediction in half precision; normalisation stays as it is."""
    tensors = {
        f"model.{name}": value.half() if value.ndim > 1 else value for name, value in checkpoint.weights().items()
    }
    return replace(checkpoint, tensors=tensors)


def _save(path: Path, checkpoint: Checkpoint) -> None:
    save_checkpoint(
        path,
        model=checkpoint.model,
        preprocess=checkpoint.preprocess,
        info=checkpoint.info,
        tensors=checkpoint.tensors,
    )


def _describe(dataset: DetectionDataset, split: str) -> dict[str, Any]:
    """Enough to check whether other data are the same: counts, and a hash over image ids, boxes and labels."""
    content = hashlib.sha256("\n".join(map(str, dataset.image_ids)).encode())
    content.update(dataset.boxes_xyxy.tobytes())
    content.update(dataset.labels.tobytes())
    return {
        "split": split,
        "images": len(dataset),
        "objects": len(dataset.labels),
        "sha256_of_labels": content.hexdigest(),
    }
