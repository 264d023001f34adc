"""A Darknet cfg as a network, connected as the C program connects it.

Legend: B images, C channels, H, W height and width.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from detector.darknet.cfg import Section, parse_cfg
from detector.darknet.graph import GraphBuilder, warn_of_unknown_keys
from detector.darknet.operations import MaxPool
from detector.darknet.weights import (
    HEADER_BYTES,
    WeightsHeader,
    check_size,
    payload_size,
    read_weights,
    weights_size,
    write_weights,
)
from detector.errors import InputError
from detector.files import read_text
from detector.models.layers import ConvBN

MAX_WEIGHTS = 1 << 29
"""Even twice the largest public network has far fewer; the limit keeps a typo from using up the memory."""


class DarknetNetwork(nn.Module):
    """A network made from a cfg.

    Attributes:
        layers: one module for each section after [net].
        sources: for each layer the indices of the layers that it reads; -1 is the image.
        size_chw: channels, height, width from [net]; other multiples of the stride work as well.
        yolo_sections: of a detector, in file order.
        strides: input pixels per cell of each [yolo], in file order.
        header: of the weights file that was read.
        shapes: (C, H, W) of each layer's output at `size_chw`.
        cfg_text: the cfg.
    """

    def __init__(self, sections: list[Section], cfg_text: str) -> None:
        super().__init__()
        net = sections[0]
        warn_of_unknown_keys(net)
        self.cfg_text = cfg_text
        self.net = net
        if net.integer("channels", 3) != 3:
            raise net.error("channels", "expected 3; images are read in colour")
        self.size_chw = (
            3,
            net.integer("height", 416, minimum=1),
            net.integer("width", 416, minimum=1),
        )
        self.kinds = [section.name for section in sections[1:]]
        self.header = WeightsHeader()
        builder = GraphBuilder(self.size_chw)
        for section in sections[1:]:
            builder.add(section)
        self.layers = nn.ModuleList(builder.layers)
        self.sources = builder.sources
        self.yolo_sections = builder.yolos
        self.shapes = builder.shapes
        self._outputs = [i for i, kind in enumerate(self.kinds) if kind == "yolo"]
        self.strides = tuple(self._stride(builder.shapes[i]) for i in self._outputs)
        self._last_use = {source: i for i, sources in enumerate(self.sources) for source in sources}

    def _stride(self, shape: tuple[int, int, int]) -> int:
        """Input pixels per cell of a map. Raises: InputError: the sides of the input are not multiples of it."""
        for name, side, cells in zip(("height", "width"), self.size_chw[1:], shape[1:], strict=True):
            stride = side // cells
            if side % cells or stride & (stride - 1):
                raise self.net.error(name, f"gives cells of {side / cells:.4g} pixels; expected a multiple of 32")
        return self.size_chw[2] // shape[2]

    def forward(self, images: Tensor, all_layers: bool = False) -> list[Tensor] | Tensor:
        """Images (B, C, H, W) -> what the [yolo] sections read, in file order; for a classifier the logits (B, C).

        Args:
            images: float in [0, 1], RGB.
            all_layers: return every section's output instead, in order.
        """
        kept: dict[int, Tensor] = {-1: images}
        every: list[Tensor] = []
        raw_maps: list[Tensor] = []
        logits = images
        for index, (layer, sources, kind) in enumerate(zip(self.layers, self.sources, self.kinds, strict=True)):
            inputs = [kept[source] for source in sources]
            if kind == "yolo":
                raw_maps.append(inputs[0])
            if kind not in {"softmax", "cost"}:
                logits = inputs[0] if kind == "yolo" else layer(*inputs)
                kept[index] = layer(*inputs) if kind == "yolo" and all_layers else logits
            else:
                kept[index] = layer(*inputs)
            if all_layers:
                every.append(kept[index])
            for source in set(sources):
                if self._last_use[source] == index:
                    del kept[source]
        if all_layers:
            return every
        return raw_maps if raw_maps else logits.flatten(1)

    def convolutions(self, num_layers: int | None = None) -> list[tuple[str, ConvBN]]:
        """The layers with weights among the first `num_layers`, in file order, with a name for errors."""
        layers = list(enumerate(self.layers))[:num_layers]
        return [(f"layer {i} [convolutional]", layer) for i, layer in layers if isinstance(layer, ConvBN)]

    def load_weights(self, path: str | Path) -> None:
        """Reads a .weights file that holds all layers. Raises: InputError."""
        self.header = read_weights(Path(path), self.convolutions())

    def load_first_layers(self, path: str | Path) -> tuple[list[str], list[str]]:
        """Reads a .weights file that holds all layers or the first ones; returns the names of read and unread layers.

        Raises:
            InputError: the file does not end where a layer ends, so it is for another cfg.
        """
        payload, convolutions = payload_size(Path(path)), self.convolutions()
        for count in range(len(convolutions), 0, -1):
            if payload == weights_size(convolutions[:count]) - HEADER_BYTES:
                read_weights(Path(path), convolutions[:count])
                return [name for name, _ in convolutions[:count]], [name for name, _ in convolutions[count:]]
        raise InputError(
            f"{path}: does not end where a layer of this cfg ends; for other classes or another cfg, extract "
            "the layers that both share: tools/convert.py partial"
        )

    def save_weights(self, path: str | Path) -> None:
        """Writes a .weights file that Darknet reads. Raises: InputError when the disk is full."""
        write_weights(Path(path), self.convolutions(), self.header)


def load_darknet(
    cfg_path: str | Path, weights_path: str | Path | None = None, *, cpu_parity: bool = True
) -> DarknetNetwork:
    """Builds the network of a cfg, in eval mode, with the weights of a .weights file or PyTorch's initial ones.

    Args:
        cfg_path: the cfg.
        weights_path: the weights; None leaves PyTorch's initial ones.
        cpu_parity: compute what Darknet's CPU program computes, with its incomplete pooling windows (see `MaxPool`);
            False = what its GPU program computes, for which public weights were trained.

    Returns:
        a module: images (B, 3, H, W) in [0, 1] -> the inputs of the [yolo] sections in file order, or the logits before
        [softmax]; see `DarknetNetwork`.

    Raises:
        InputError: the cfg cannot be read or built (file and line), or the weights do not fit it.
    """
    cfg_path = Path(cfg_path)
    text = read_text(cfg_path)
    network = _plan(text, str(cfg_path), cpu_parity=cpu_parity)
    if weights_path is not None:
        check_size(Path(weights_path), network.convolutions())  # before any memory is allocated
    _take_memory(network)
    if weights_path is not None:
        network.load_weights(weights_path)
    return network


def build_darknet(text: str, where: str, *, cpu_parity: bool = False) -> DarknetNetwork:
    """The network of a cfg's text, in eval mode, with PyTorch's initial weights. Raises: InputError."""
    return _take_memory(_plan(text, where, cpu_parity=cpu_parity))


def _plan(text: str, where: str, *, cpu_parity: bool) -> DarknetNetwork:
    """The network, before memory for its weights is allocated."""
    with torch.device("meta"):
        network = DarknetNetwork(parse_cfg(text, where), text).eval()
    num_weights = sum(parameter.numel() for parameter in network.parameters())
    if num_weights > MAX_WEIGHTS:
        raise InputError(f"{where}: has {num_weights:,} weights; at most {MAX_WEIGHTS:,} are allowed; check the cfg")
    for layer in network.layers:
        if isinstance(layer, MaxPool):
            layer.cpu_parity = cpu_parity
    return network


def _take_memory(network: DarknetNetwork) -> DarknetNetwork:
    """Allocates a planned network's memory and draws PyTorch's initial weights."""
    network.to_empty(device="cpu")
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.reset_parameters()
    return network
