"""Sections of a cfg -> modules, their sources and shapes; mismatches are found before any image is processed."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

from torch import nn

from detector.darknet.cfg import Section
from detector.darknet.operations import (
    MaxPool,
    Multiply,
    Route,
    Shortcut,
    Softmax,
    Upsample,
    YoloActivation,
    YoloSection,
)
from detector.errors import InputError
from detector.models.layers import ACTIVATIONS, ConvBN, Maxout

_LOG = logging.getLogger(__name__)
KNOWN_ACTIVATIONS = tuple(name for name in ACTIVATIONS if name != "leaky_001")

_KNOWN_KEYS = {
    "convolutional": "batch_normalize filters size stride stride_x stride_y pad padding dilation groups activation",
    "maxpool": "size stride stride_x stride_y padding maxpool_depth out_channels",
    "avgpool": "",
    "route": "layers groups group_id",
    "shortcut": "from activation",
    "upsample": "stride scale",
    "scale_channels": "from activation",
    "sam": "from activation",
    "dropout": "probability",
    "softmax": "groups",
    "cost": "type scale",
    "net": "batch subdivisions width height channels momentum decay angle saturation exposure hue learning_rate "
    "burn_in max_batches policy steps scales step scale power flip mosaic cutmix mixup label_smooth_eps letter_box "
    "aspect min_crop max_crop resize inputs crop max_chart_loss optimized_memory workspace_size_limit_MB seed",
    "yolo": "mask anchors classes num scale_x_y new_coords jitter resize ignore_thresh truth_thresh random iou_loss "
    "iou_thresh iou_normalizer obj_normalizer cls_normalizer uc_normalizer delta_normalizer max_delta nms_kind "
    "beta_nms beta1 iou_thresh_kind label_smooth_eps objectness_smooth focal_loss max",
}
_KEYS_THAT_CHANGE_OUTPUTS = {
    "convolutional": "xnor binary antialiasing deform stretch sway rotate stretch_sway assisted_excitation share_index",
    "maxpool": "antialiasing",
    "shortcut": "weights_type weights_normalization",
    "scale_channels": "scale_wh",
}
"""What this program does not compute: a cfg with it would give other detections, so it is refused."""
Shape = tuple[int, int, int]


def warn_of_unknown_keys(section: Section) -> None:
    """Warns of every key that this program does not know, with file and line.

    Raises:
        InputError: the key changes the outputs.
    """
    name = "net" if section.name == "network" else section.name
    for key in _KEYS_THAT_CHANGE_OUTPUTS.get(name, "").split():
        if section.text(key, "0") not in {"0", "none"}:
            raise section.error(key, "is not supported, and without it every output would be another one")
    for key in sorted(section.options.keys() - set(_KNOWN_KEYS[name].split())):
        value, line = section.options[key]
        _LOG.warning("%s, line %d: [%s] %s=%s is unknown and ignored", section.where, line, section.name, key, value)


class GraphBuilder:
    """Turns sections into layers and tracks shapes, so that mismatches are found before any image is processed."""

    def __init__(self, input_chw: Shape) -> None:
        self.input_chw = input_chw
        self.layers: list[nn.Module] = []
        self.sources: list[tuple[int, ...]] = []
        self.shapes: list[Shape] = []
        self.yolos: list[YoloSection] = []
        self._makers: dict[str, Callable[[Section], None]] = {
            "convolutional": self._convolutional,
            "maxpool": self._maxpool,
            "avgpool": self._avgpool,
            "route": self._route,
            "shortcut": self._shortcut,
            "upsample": self._upsample,
            "scale_channels": self._multiply,
            "sam": self._multiply,
            "dropout": self._identity,
            "cost": self._identity,
            "softmax": self._softmax,
            "yolo": self._yolo,
        }

    def add(self, section: Section) -> None:
        maker = self._makers.get(section.name)
        if maker is None:
            raise InputError(
                f"{section.where}, line {section.line}: unknown section [{section.name}]; expected one of "
                f"{', '.join(self._makers)}"
            )
        warn_of_unknown_keys(section)
        maker(section)

    def _append(self, layer: nn.Module, sources: Sequence[int], shape: Shape, section: Section) -> None:
        if min(shape) < 1 or math.prod(shape) > 1 << 31:
            raise InputError(
                f"{section.where}, line {section.line}: [{section.name}] has the impossible output shape {shape}"
            )
        self.layers.append(layer)
        self.sources.append(tuple(sources))
        self.shapes.append(shape)

    def _previous(self) -> Shape:
        return self.shapes[-1] if self.shapes else self.input_chw

    def _before(self) -> int:
        return len(self.shapes) - 1

    def _resolve(self, section: Section, key: str) -> list[int]:
        """Layer numbers, negative ones counted back from this layer."""
        values = section.integers(key)
        here = len(self.shapes)
        indices = [value if value >= 0 else here + value for value in values]
        if not indices or any(not 0 <= index < here for index in indices):
            raise section.error(key, f"expected layers from 0 to {here - 1}, or -1 to -{here}")
        return indices

    def _activation(self, section: Section, default: str) -> str:
        name = section.text("activation", default)
        if name not in KNOWN_ACTIVATIONS:
            raise section.error("activation", f"expected one of {', '.join(KNOWN_ACTIVATIONS)}")
        return name

    def _strides(self, section: Section) -> tuple[int, int]:
        stride = section.integer("stride", 1, minimum=1)
        return section.integer("stride_y", stride, minimum=1), section.integer("stride_x", stride, minimum=1)

    def _convolutional(self, section: Section) -> None:
        channels, height, width = self._previous()
        filters = section.integer("filters", 1, minimum=1)
        size = section.integer("size", 1, minimum=1, maximum=63)
        groups = section.integer("groups", 1, minimum=1)
        if channels % groups or filters % groups:
            raise section.error("groups", f"expected a divisor of {channels} inputs and {filters} filters")
        dilation = section.integer("dilation", 1, minimum=1, maximum=64) if size > 1 else 1
        padding = size // 2 if section.integer("pad", 0) else section.integer("padding", 0, maximum=64)
        if filters * channels // groups * size * size > 1 << 28:
            raise section.error("filters", "expected at most 268 million weights in one layer")
        stride = self._strides(section)
        layer = ConvBN(
            channels,
            filters,
            size,
            stride=stride,
            padding=padding * dilation,
            dilation=dilation,
            groups=groups,
            normalize=bool(section.integer("batch_normalize", 0)),
            activation=self._activation(section, "logistic"),
        )
        reach = dilation * (size - 1) + 1
        sides = [
            (side + 2 * padding * dilation - reach) // step + 1
            for side, step in zip((height, width), stride, strict=True)
        ]
        self._append(layer, [self._before()], (filters, sides[0], sides[1]), section)

    def _maxpool(self, section: Section) -> None:
        channels, height, width = self._previous()
        if section.integer("maxpool_depth", 0):
            out_channels = section.integer("out_channels", 1, minimum=1)
            if channels % out_channels:
                raise section.error("out_channels", f"expected a divisor of {channels}")
            return self._append(Maxout(out_channels), [self._before()], (out_channels, height, width), section)
        stride = self._strides(section)
        size = section.integer("size", stride[1], minimum=1, maximum=255)
        padding = section.integer("padding", size - 1, maximum=255)
        sides = [(side + padding - size) // step + 1 for side, step in zip((height, width), stride, strict=True)]
        layer = MaxPool(size, stride, padding)
        return self._append(layer, [self._before()], (channels, sides[0], sides[1]), section)

    def _avgpool(self, section: Section) -> None:
        self._append(nn.AdaptiveAvgPool2d(1), [self._before()], (self._previous()[0], 1, 1), section)

    def _route(self, section: Section) -> None:
        sources = self._resolve(section, "layers")
        shapes = [self.shapes[index] for index in sources]
        groups = section.integer("groups", 1, minimum=1)
        group_id = section.integer("group_id", 0, maximum=groups - 1)
        if any(shape[1:] != shapes[0][1:] for shape in shapes):
            raise section.error("layers", f"expected maps of one size, got {[shape[1:] for shape in shapes]}")
        if any(shape[0] % groups for shape in shapes):
            raise section.error("groups", f"expected a divisor of {[shape[0] for shape in shapes]} channels")
        channels = sum(shape[0] // groups for shape in shapes)
        self._append(Route(groups, group_id), sources, (channels, *shapes[0][1:]), section)

    def _shortcut(self, section: Section) -> None:
        sources = self._resolve(section, "from")
        layer = Shortcut(self._activation(section, "linear"))
        self._append(layer, [self._before(), *sources], self._previous(), section)

    def _upsample(self, section: Section) -> None:
        channels, height, width = self._previous()
        stride = section.integer("stride", 2, minimum=1, maximum=64)
        layer = Upsample(stride, section.number("scale", 1))
        self._append(layer, [self._before()], (channels, height * stride, width * stride), section)

    def _multiply(self, section: Section) -> None:
        (source, *others), (channels, height, width) = self._resolve(section, "from"), self._previous()
        shape = self.shapes[source]
        fits = (channels, height, width) == shape or (
            section.name == "scale_channels" and (channels, 1, 1) == self._previous()
        )
        if others or not fits or shape[0] != channels:
            raise section.error("from", f"maps {self._previous()} and {shape} do not fit")
        self._append(Multiply(self._activation(section, "linear")), [self._before(), source], shape, section)

    def _identity(self, section: Section) -> None:
        self._append(nn.Identity(), [self._before()], self._previous(), section)

    def _softmax(self, section: Section) -> None:
        groups = section.integer("groups", 1, minimum=1)
        if self._previous()[0] % groups:
            raise section.error("groups", f"expected a divisor of {self._previous()[0]}")
        self._append(Softmax(groups), [self._before()], self._previous(), section)

    def _yolo(self, section: Section) -> None:
        anchors = section.numbers("anchors")
        mask = section.integers("mask") or list(range(section.integer("num", 1, minimum=1, maximum=64)))
        classes = section.integer("classes", 20, minimum=1)
        if len(anchors) % 2 or any(not 0 <= index < len(anchors) // 2 for index in mask):
            raise section.error("mask", f"expected indices of the {len(anchors) // 2} anchors")
        channels = self._previous()[0]
        if channels != len(mask) * (5 + classes):
            needed = len(mask) * (5 + classes)
            raise section.error(
                "classes",
                f"{len(mask)} anchors and {classes} classes need filters={needed} in the layer before, not {channels}",
            )
        yolo = YoloSection(
            anchors_wh=tuple((anchors[2 * index], anchors[2 * index + 1]) for index in mask),
            num_classes=classes,
            scale_xy=section.number("scale_x_y", 1),
            new_coords=bool(section.integer("new_coords", 0)),
            section=section,
        )
        self.yolos.append(yolo)
        self._append(YoloActivation(yolo), [self._before()], self._previous(), section)
