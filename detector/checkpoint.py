"""The only reader and writer of weights and training state. safetensors with JSON metadata; never pickle.

A weights file holds `model.*` tensors and everything needed to use them: model and preprocess sections of the config,
including class names. A training state is a weights file that also holds `ema.*` (averaged weights, which readers
prefer), `momentum.*` (the optimiser) and, in its `info`, the step.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from detector.config import (
    PreprocessConfig,
    StoredModel,
    parse_model_config,
    parse_preprocess_config,
)
from detector.errors import InputError
from detector.extras import require
from detector.files import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "detector-weights-1"
METADATA_KEY = "detector"


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        model: the network's configuration.
        preprocess: how images become its input.
        info: what else was recorded: step, metrics, config text, ...
        tensors: by full name, such as `model.backbone.stem.entry.conv.weight`.
    """

    model: StoredModel
    preprocess: PreprocessConfig
    info: dict[str, Any]
    tensors: dict[str, Tensor]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The tensors of one group (model, ema, momentum), without its prefix."""
        start = f"{prefix}."
        return {name.removeprefix(start): value for name, value in self.tensors.items() if name.startswith(start)}

    def weights(self) -> dict[str, Tensor]:
        """The weights to predict with: the averaged ones where there are any."""
        return self.group("ema") or self.group("model")


def save_checkpoint(
    path: Path,
    *,
    model: StoredModel,
    preprocess: PreprocessConfig,
    info: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> None:
    """Writes a checkpoint so that a crash at any moment leaves either the old file or the new one, complete.

    Raises:
        InputError: the disk is full or not writable; the old file is untouched.
    """
    from safetensors.torch import save  # imports torch, which running an exported file does without

    record = {"format": FORMAT, "model": asdict(model), "preprocess": asdict(preprocess), "info": info}
    # One key only: safetensors writes several in a random order, and equal states must give equal files.
    metadata = {METADATA_KEY: json.dumps(record, sort_keys=True)}
    content = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, metadata=metadata)
    try:
        write_atomically(path, content)
    except OSError as error:
        kept = "; the previous file is intact" if path.exists() else ""
        raise InputError(f"{path}: cannot be written: {error.strerror}{kept}") from error


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a weights file or a training state.

    Raises:
        InputError: the file is missing, damaged, or not written by this program.
    """
    path = Path(path)
    metadata, tensors = read_tensors(path)
    record = _parse_record(metadata.get(METADATA_KEY), path)
    return Checkpoint(
        model=parse_model_config(record["model"], str(path)),
        preprocess=parse_preprocess_config(record["preprocess"], str(path)),
        info=record["info"],
        tensors=tensors,
    )


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of any safetensors file. Raises: InputError: it is missing or damaged."""
    if not path.is_file():
        raise InputError(f"{path}: no such weights file")
    require("torch", f"{path}: opening weights, unlike an exported file,")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: is not a safetensors file, or is damaged: {error}") from error


def _parse_record(text: str | None, path: Path) -> dict[str, Any]:
    try:
        record = json.loads(text or "")
        if record["format"] == FORMAT and isinstance(record["info"], dict):
            return dict(record)
    except (ValueError, KeyError, TypeError):
        pass
    raise InputError(f"{path}: was not written by this program, or by a newer version (expected {FORMAT})")


def kind_of_weights(path: Path) -> str | None:
    """Classifier or detector, from a weights file's header alone; None for a damaged or foreign one."""
    try:
        with safe_open(path, framework="numpy") as file:
            record = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
    except (SafetensorError, OSError, ValueError):
        return None
    if not record:
        return None
    return "classifier" if "num_classes" in record.get("model", {}) else "detector"


def find_weights(folders: Iterable[Path], *, detectors_only: bool = True) -> Path:
    """The weights to use when none are named: those of the newest run in the folders, else the newest released file.

    Args:
        folders: where to look.
        detectors_only: skip classifiers.

    Raises:
        InputError: there are none.
    """
    folders = [folder for folder in folders if folder.is_dir()]
    runs = [path for folder in folders for path in folder.glob("*/best.safetensors")]
    released = [path for folder in folders for path in folder.glob("*.safetensors")]
    for found in (runs, released):
        wanted = {"detector"} if detectors_only else {"detector", "classifier"}
        candidates = [path for path in found if kind_of_weights(path) in wanted]
        if candidates:
            return max(candidates, key=lambda path: path.stat().st_mtime)
    raise InputError("no weights found in weights/; train first (make demo, or tools/train.py) or give --weights FILE")
