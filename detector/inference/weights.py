"""Opens weights: our files, and a Darknet cfg with its weights. Needs PyTorch, unlike exported files (`find.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from detector.checkpoint import load_checkpoint
from detector.config import ClassifierConfig, DarknetModelConfig, DetectConfig, PreprocessConfig
from detector.darknet import load_darknet
from detector.darknet.names import find_names, read_names
from detector.errors import InputError
from detector.inference.build import DetectorModel, build_decoder, build_network, require_detector
from detector.inference.find import Loaded


@dataclass(frozen=True)
class LoadedDetector(Loaded):
    """Weights with their network.

    Attributes:
        network: in eval mode.
        model: its config section.
    """

    network: nn.Module
    model: DetectorModel

    @cached_property
    def onnx(self) -> bytes:
        """The network as an ONNX graph for one image, made once: it takes some seconds."""
        from detector.runtime.onnx_graph import to_onnx

        graph: bytes = to_onnx(self.network, self.preprocess.size_hw).SerializeToString()
        return graph


def load_detector(
    model: str | Path, weights: str | Path | None = None, *, names: str | Path | None = None
) -> LoadedDetector:
    """Loads a detector from our weights file, or from a Darknet cfg and its weights.

    Args:
        model: .safetensors, or .cfg.
        weights: weights file of a .cfg; None = the .weights file of the same name beside it.
        names: file of class names of a .cfg; None = a *.names file of the right length beside it.

    Raises:
        InputError: a file is missing or damaged, or does not hold a detector.
    """
    path = Path(model)
    if path.suffix == ".cfg":
        return _load_darknet_detector(path, Path(weights or path.with_suffix(".weights")), names)
    checkpoint = load_checkpoint(path)
    if isinstance(checkpoint.model, ClassifierConfig):
        raise InputError(
            f"{path}: holds a classifier, not a detector; tools/eval.py measures it, and tools/train.py --weights "
            "starts a detector from its backbone"
        )
    loaded = _describe(path, build_network(checkpoint.model), checkpoint.model, checkpoint.preprocess, checkpoint.info)
    try:
        loaded.network.load_state_dict(checkpoint.weights())
    except RuntimeError as error:
        raise InputError(f"{path}: its tensors do not fit its own config: {error}") from error
    return loaded


def _describe(
    path: Path, network: nn.Module, model: DetectorModel, preprocess: PreprocessConfig, info: dict[str, Any]
) -> LoadedDetector:
    return LoadedDetector(
        path=path,
        class_names=model.class_names,
        preprocess=preprocess,
        decoder=build_decoder(model, network),
        info=info,
        network=network.eval(),
        model=model,
    )


def _load_darknet_detector(cfg: Path, weights: Path, names: str | Path | None) -> LoadedDetector:
    network = load_darknet(cfg, weights, cpu_parity=False)
    if not network.yolo_sections:
        raise InputError(f"{cfg}: has no [yolo] section; it is a classifier, not a detector")
    num_classes = network.yolo_sections[0].num_classes
    class_names = read_names(Path(names)) if names is not None else find_names(cfg, num_classes)
    require_detector(network, len(class_names), str(cfg))
    _, height, width = network.size_chw
    preprocess = PreprocessConfig((height, width), bool(network.net.integer("letter_box", 0)), align_corners=True)
    return _describe(weights, network, DarknetModelConfig(network.cfg_text, class_names), preprocess, {})


def untrained_detector(config: DetectConfig, path: Path) -> LoadedDetector:
    """The untrained network of an experiment, for what needs no weights: measuring its speed and cost.

    Args:
        config: the experiment.
        path: its file, for messages.
    """
    return _describe(path, build_network(config.model), config.model, config.preprocess, {})
