"""Our detectors -> Darknet cfg and weights that Darknet itself can run.

Each part of a network is written as sections in the order in which Darknet computes them; layers are referred to by
number. A map that is needed again is read with [route].

Legend: a "layer" below is the number of a section, counted from 0 after [net].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from detector.config import ModelConfig, PreprocessConfig
from detector.darknet.cfg import format_cfg
from detector.darknet.network import DarknetNetwork, build_darknet
from detector.errors import InputError
from detector.models.csp import CrossStagePartial
from detector.models.cspdarknet import CSPDarknet53, Darknet53, ResidualBlock
from detector.models.csppeleenet import CSPPeleeNet, Stem, TwoWayDenseLayer
from detector.models.cspresnet import BottleneckBlock, CSPResNet
from detector.models.detector import Detector
from detector.models.efm import ExactFusionModel
from detector.models.layers import ConvBN, Maxout, SpatialAttention
from detector.models.prn import PartialResidualNeck, PartialResidualStep
from detector.models.reference import CSPReference, DenseLayer

_ACTIVATION_NAMES: dict[type[nn.Module], str] = {
    nn.LeakyReLU: "leaky",
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Mish: "mish",
    nn.SiLU: "swish",
    nn.Sigmoid: "logistic",
    nn.Identity: "linear",
}

DARKNET_SLOPE = 0.1

EXPORTABLE_BACKBONES = (CSPPeleeNet, CSPDarknet53, Darknet53, CSPResNet, CSPReference)
"""The backbones that can be written as a cfg."""


def _activation_name(activation: nn.Module) -> str:
    """What Darknet calls it. Raises: InputError: it has no such activation."""
    if isinstance(activation, nn.LeakyReLU) and activation.negative_slope != DARKNET_SLOPE:
        raise InputError(
            f"to-darknet: its leaky has a slope of {DARKNET_SLOPE}, this network's {activation.negative_slope} "
            "(model.activation)"
        )
    if type(activation) not in _ACTIVATION_NAMES:
        raise InputError(f"to-darknet: does not support {type(activation).__name__}")
    return _ACTIVATION_NAMES[type(activation)]


@dataclass
class CfgWriter:
    """Collects sections, and our modules in the order of the weights file."""

    sections: list[tuple[str, dict[str, object]]] = field(default_factory=list)
    sources: list[tuple[nn.Conv2d, nn.Module]] = field(default_factory=list)

    def section(self, name: str, options: dict[str, object] | None = None) -> int:
        """Adds a section; returns its layer."""
        self.sections.append((name, options or {}))
        return len(self.sections) - 1

    def route_to(self, layer: int) -> int:
        """Makes `layer` the one that the next section reads."""
        here = len(self.sections) - 1
        return layer if layer == here else self.section("route", {"layers": layer})

    def conv(self, conv: nn.Conv2d, norm: nn.Module, activation: str) -> int:
        options: dict[str, object] = {"batch_normalize": 1} if isinstance(norm, nn.BatchNorm2d) else {}
        size, stride, groups = conv.kernel_size[0], conv.stride[0], conv.groups
        options |= {"filters": conv.out_channels, "size": size, "stride": stride, "pad": 1}
        if groups > 1:
            options["groups"] = groups
        self.sources.append((conv, norm))
        return self.section("convolutional", {**options, "activation": activation})

    def sequence(self, modules: Sequence[nn.Module], layer: int) -> int:
        """Writes modules one after the other; the first reads `layer`."""
        for module in modules:
            layer = self.module(module, layer)
        return layer

    def module(self, module: nn.Module, layer: int) -> int:
        """Writes a module that reads `layer`; returns the layer of its output."""
        if isinstance(module, nn.Identity):
            return layer
        if isinstance(module, nn.Sequential):
            return self.sequence(list(module), layer)
        if isinstance(module, CrossStagePartial):
            return self._cross_stage_partial(module, layer)
        if isinstance(module, TwoWayDenseLayer):
            if module.weigh is not None:
                raise InputError("to-darknet: does not support squeeze and excitation (model.squeeze_excite)")
            deep = self.module(module.deep, layer)
            shallow = self.module(module.shallow, layer)
            return self.section("route", {"layers": [layer, deep, shallow]})
        if isinstance(module, Stem):
            return self._stem(module)
        if isinstance(module, DenseLayer):
            return self.section("route", {"layers": [layer, *(self.module(way, layer) for way in module.ways)]})
        if isinstance(module, ResidualBlock):
            self.module(module.body, layer)
            return self.section("shortcut", {"from": layer, "activation": "linear"})
        if isinstance(module, BottleneckBlock):
            self.module(module.body, layer)
            return self.section("shortcut", {"from": layer, "activation": _activation_name(module.activation)})
        self.route_to(layer)
        if isinstance(module, ConvBN):
            return self.conv(module.conv, module.norm, _activation_name(module.activation))
        if isinstance(module, nn.MaxPool2d):
            return self.section("maxpool", {"size": module.kernel_size, "stride": module.stride})
        if isinstance(module, Maxout):
            return self.section(
                "maxpool", {"maxpool_depth": 1, "out_channels": module.out_channels, "size": 1, "stride": 1}
            )
        if isinstance(module, nn.Upsample):
            return self.section("upsample", {"stride": 2})
        if isinstance(module, SpatialAttention):
            here = len(self.sections) - 1
            self.conv(module.gate, nn.Identity(), "logistic")
            return self.section("sam", {"from": here})
        raise InputError(f"to-darknet: does not support {type(module).__name__}")

    def concatenate(self, layers: Sequence[int]) -> int:
        return self.section("route", {"layers": list(layers)})

    def _cross_stage_partial(self, module: CrossStagePartial, layer: int) -> int:
        bypass = self.module(module.bypass_path, layer)
        block = self.module(module.block_path, layer)
        return self.module(module.fusion, self.concatenate([block, bypass]))

    def _stem(self, stem: Stem) -> int:
        entry = self.conv(stem.entry.conv, stem.entry.norm, _activation_name(stem.entry.activation))
        pooled = self.module(stem.pooled, entry)
        convolved = self.module(stem.convolved, entry)
        return self.concatenate([convolved, pooled])


def export_detector(network: Detector, model: ModelConfig, preprocess: PreprocessConfig) -> DarknetNetwork:
    """A Darknet network with the cfg and the weights of one of our detectors.

    Its [yolo] sections are in the order of our raw maps, fine to coarse.

    Raises:
        InputError: a part that has no Darknet counterpart.
    """
    writer = CfgWriter()
    fused = _neck(writer, network.neck, _backbone(writer, network.backbone))
    per_scale = len(model.anchors) // len(network.strides)
    for scale, (layer, conv) in enumerate(zip(fused, network.head.output, strict=True)):  # type: ignore[arg-type]
        writer.route_to(layer)
        writer.conv(conv, nn.Identity(), "linear")
        writer.section(
            "yolo",
            {
                "mask": list(range(scale * per_scale, (scale + 1) * per_scale)),
                "anchors": [side for anchor in model.anchors for side in anchor],
                "classes": model.num_classes,
                "num": len(model.anchors),
            },
        )
    height, width = preprocess.size_hw
    net: dict[str, object] = {"batch": 1, "subdivisions": 1, "width": width, "height": height, "channels": 3}
    if preprocess.letterbox:
        net["letter_box"] = 1
    return _finish(writer, net)


def convolution_paths(network: Detector) -> list[str]:
    """Where the convolutions of `export_detector` come from: paths of our modules, in the order of the file.

    A `ConvBN` includes its convolution, normalisation and activation, as one section does.
    """
    writer = CfgWriter()
    _neck(writer, network.neck, _backbone(writer, network.backbone))
    paths = {module: path for path, module in network.named_modules()}
    body = [paths[conv].removesuffix(".conv") for conv, _ in writer.sources]
    return body + [paths[conv] for conv in network.head.output]  # type: ignore[union-attr]


def _finish(writer: CfgWriter, net: dict[str, object]) -> DarknetNetwork:
    """The network made of the written sections, with the weights of the original modules."""
    exported = build_darknet(format_cfg([("net", net), *writer.sections]), "the exported cfg")
    for (source, norm), (_, target) in zip(writer.sources, exported.convolutions(), strict=True):
        target.conv.load_state_dict(source.state_dict())
        target.norm.load_state_dict(norm.state_dict())
    return exported


def _backbone(writer: CfgWriter, backbone: nn.Module) -> list[int]:
    """Writes the backbone; returns the layers of C2 to C5."""
    if isinstance(backbone, CSPPeleeNet):
        layer, maps = writer.module(backbone.stem, -1), []
        for stage, transition in zip(backbone.stages, backbone.transitions, strict=True):
            fused = writer.module(stage, layer)
            layer = writer.module(transition, fused)
            maps.append(fused)
        return [*maps[:3], layer]
    if isinstance(backbone, CSPDarknet53) and backbone.standardize:
        raise InputError("to-darknet: it cannot normalise images by a mean (model.backbone.standardize)")
    if isinstance(backbone, EXPORTABLE_BACKBONES):
        layer, maps = writer.module(backbone.stem, -1), []
        for stage in backbone.stages:
            layer = writer.module(stage, layer)
            maps.append(layer)
        return maps[-4:]
    raise InputError(f"to-darknet: does not support {type(backbone).__name__}")


def _neck(writer: CfgWriter, neck: nn.Module, maps: list[int]) -> tuple[int, ...]:
    """Writes the neck; returns the layers of the fused maps. Follows `ExactFusionModel.forward` line by line."""
    if isinstance(neck, PartialResidualNeck):
        return _partial_residual(writer, neck, maps)
    if not isinstance(neck, ExactFusionModel):
        raise InputError(f"to-darknet: does not support {type(neck).__name__}")
    c2, c3, c4, c5 = maps
    c3 = writer.module(neck.maxout_c3, c3)
    l5 = writer.module(neck.lateral5, c5)
    up5 = writer.module(neck.up, l5)
    l4 = writer.module(neck.lateral4, writer.concatenate([up5, writer.module(neck.maxout_c4, c4)]))
    p4 = writer.module(neck.pyramid4, writer.concatenate([l4, writer.module(neck.down3, c3)]))
    d2 = writer.module(neck.down2, writer.module(neck.maxout_c2, c2))
    l3 = writer.module(neck.lateral3, c3)
    f3 = writer.concatenate([l3, d2, writer.module(neck.up, p4)])
    f4 = writer.concatenate([writer.module(neck.next4, f3), p4, up5])
    f5 = writer.concatenate([writer.module(neck.next5, f4), l5])
    return writer.module(neck.fuse3, f3), writer.module(neck.fuse4, f4), writer.module(neck.fuse5, f5)


def _partial_residual(writer: CfgWriter, neck: PartialResidualNeck, maps: list[int]) -> tuple[int, ...]:
    """Writes the neck; returns the layers of the fused maps. Follows `PartialResidualNeck.forward` line by line."""
    activation = _activation_name(neck.activation)

    def add(layer: int, other: int) -> int:
        writer.route_to(layer)
        return writer.section("shortcut", {"from": other, "activation": activation})

    entered = writer.module(neck.enter, maps[-1])
    convolved = writer.module(neck.conv, entered)
    fused = [add(convolved, entered)]
    for step, fine in zip(neck.steps, maps[-2::-1], strict=False):
        assert isinstance(step, PartialResidualStep)
        up = writer.module(step.up, convolved)
        convolved = writer.module(step.conv, add(up, fine))
        fused.insert(0, add(add(convolved, up), fine))
    return tuple(fused)
