"""Published classifiers of other projects -> our weights file, to start detectors from.

timm's and Holocron's CSPDarknet53 are the network of csdarknet53.cfg in another notation: the split is one convolution
whose first half bypasses the blocks, and the concatenation has the bypass first. They take images that are
normalised by ImageNet's mean and standard deviation; LeakyReLU has PyTorch's slope of 0.01.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detector.checkpoint import read_tensors, save_checkpoint
from detector.config import ClassifierConfig, CSPDarknet53Config, PreprocessConfig
from detector.errors import InputError
from detector.export.request import require_free
from detector.models.build import build_classifier
from detector.models.cspdarknet import STAGE_BLOCKS

ACTIVATIONS = {"cspdarknet53": "leaky_001", "cspdarknet53_mish": "mish"}
"""By the name of the published network; timm's tensors do not tell."""
TRAINED_AT = {"timm": 256, "holocron": 224}
_NORMALISATION = {"backbone.mean", "backbone.std"}
_PARTS = ("weight", "bias", "running_mean", "running_var")
Names = Callable[[int, str], tuple[str, str]]
"""A stage and a layer in it (down, split, block J first, block J second, last, transition) -> its two modules."""


def from_published(name: str, file: Path, out: Path) -> dict[str, Any]:
    """Writes a published classifier as our weights file; `train.py CONFIG --weights OUT` starts a detector from it.

    Args:
        name: a key of ACTIVATIONS.
        file: model.safetensors of timm, or a state dict as PyTorch saves it, which is read without running its code.
        out: the file to write.

    Raises:
        InputError: the file is not such a network, or OUT exists.
    """
    require_free(out, "OUT", suffix=".safetensors")
    if name not in ACTIVATIONS:
        raise InputError(f"NAME {name}: expected one of {', '.join(ACTIVATIONS)}")
    published = _read(file)
    origin = "timm" if "stem.conv1.conv.weight" in published else "holocron"
    if origin == "holocron" and (_second(published) == 4) != name.endswith("_mish"):
        raise InputError(f"{file}: is Holocron's other network; NAME is one of {', '.join(ACTIVATIONS)}")
    names = _timm if origin == "timm" else partial(_holocron, second=_second(published))
    try:
        tensors = _translate(published, names, output="head.fc" if origin == "timm" else "classifier")
        num_classes = len(tensors["output.bias"])
        model = ClassifierConfig(
            backbone=CSPDarknet53Config("cspdarknet53", standardize=True),
            num_classes=num_classes,
            activation=ACTIVATIONS[name],  # type: ignore[arg-type]
        )
        classifier = build_classifier(model)
        own = {name: value for name, value in classifier.state_dict().items() if name in _NORMALISATION}
        classifier.load_state_dict({**own, **tensors})
    except (KeyError, RuntimeError, IndexError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file}: is not a CSPDarknet53 of timm or Holocron: {reason}") from error
    side = TRAINED_AT[origin]
    state = {f"model.{key}": value for key, value in classifier.state_dict().items()}
    info = {"step": 0, "source": f"{origin} {name}, {file.name}"}
    save_checkpoint(out, model=model, preprocess=PreprocessConfig((side, side)), info=info, tensors=state)
    return {"written": str(out), "classes": num_classes, "activation": model.activation, "source": origin}


def _read(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    if file.suffix == ".safetensors":
        return read_tensors(file)[1]
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle can fail in any way
        raise InputError(f"{file}: is not a state dict of PyTorch, or holds code, which is not run") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"{file}: expected a dict of tensors, as torch.save(model.state_dict()) writes it")
    return content


def _translate(published: Mapping[str, Tensor], names: Names, *, output: str) -> dict[str, Tensor]:
    """The state of our classifier. Raises: KeyError: a tensor is missing."""
    ours: dict[str, Tensor] = {}

    def put(target: str, stage: int, layer: str, rows: slice = slice(None)) -> None:
        conv, norm = names(stage, layer)
        ours[f"backbone.{target}.conv.weight"] = published[f"{conv}.weight"][rows]
        for part in _PARTS:
            ours[f"backbone.{target}.norm.{part}"] = published[f"{norm}.{part}"][rows]
        ours[f"backbone.{target}.norm.num_batches_tracked"] = torch.tensor(0)

    put("stem", -1, "stem")
    for stage, num_blocks in enumerate(STAGE_BLOCKS):
        here, path = f"stages.{stage}", f"stages.{stage}.1.block_path"
        put(f"{here}.0", stage, "down")
        half = len(published[f"{names(stage, 'split')[0]}.weight"]) // 2
        put(f"{here}.1.bypass_path", stage, "split", slice(half))
        put(f"{path}.0", stage, "split", slice(half, None))
        for block in range(num_blocks):
            put(f"{path}.{block + 1}.body.0", stage, f"block {block} first")
            put(f"{path}.{block + 1}.body.1", stage, f"block {block} second")
        put(f"{path}.{num_blocks + 1}", stage, "last")
        put(f"{here}.1.fusion", stage, "transition")
        joined = f"backbone.{here}.1.fusion.conv.weight"
        ours[joined] = ours[joined].roll(half, dims=1)  # [bypass, blocks] -> [blocks, bypass]
    ours["output.weight"] = published[f"{output}.weight"][:, :, None, None]
    ours["output.bias"] = published[f"{output}.bias"]
    return ours


def _timm(stage: int, layer: str) -> tuple[str, str]:
    kind, block, which = [*layer.split(), "", ""][:3]
    path = {
        "down": "conv_down",
        "split": "conv_exp",
        "block": f"blocks.{block}.conv{1 if which == 'first' else 2}",
        "last": "conv_transition_b",
        "transition": "conv_transition",
        "stem": "",
    }[kind]
    full = "stem.conv1" if kind == "stem" else f"stages.{stage}.{path}"
    return f"{full}.conv", f"{full}.bn"


def _second(published: Mapping[str, Tensor]) -> int:
    """Where a sequence of two convolutions has its second one; DropBlock layers, which have no tensors, move it."""
    return 4 if published.get("features.stages.0.base_layer.4.weight", torch.zeros(1)).ndim == 4 else 3


def _holocron(stage: int, layer: str, *, second: int) -> tuple[str, str]:
    kind, block, which = [*layer.split(), "", ""][:3]
    if kind == "stem":
        return "features.stem.0", "features.stem.1"
    start = f"features.stages.{stage}"
    if kind == "last":
        return f"{start}.main.{STAGE_BLOCKS[stage]}", f"{start}.main.{STAGE_BLOCKS[stage] + 1}"
    path, first = {
        "down": ("base_layer", 0),
        "split": ("base_layer", second),
        "block": (f"main.{block}.conv", 0 if which == "first" else second),
        "transition": ("transition", 0),
    }[kind]
    return f"{start}.{path}.{first}", f"{start}.{path}.{first + 1}"
