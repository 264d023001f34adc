"""What an exported file says about itself: everything needed to use it.

The record is one JSON text: inside the file (ONNX metadata, OpenVINO's runtime information)
and beside it, as NAME.json, for people and other programs.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from detector.config import PreprocessConfig, parse_preprocess_config
from detector.errors import InputError
from detector.postprocess import Decoder, Thresholds

FORMAT = "detector-export-1"
METADATA_KEY = "detector"


@dataclass(frozen=True)
class ExportRecord:
    """Describes one exported file.

    Attributes:
        class_names: in the order of the class indices.
        preprocess: how images become the input "images": RGB, float32 (batch, 3, H, W) in [0, 1].
        decoder: how to read the raw maps.
        precision: fp32, fp16 or int8.
        batch: images per run; None = any number.
        dynamic: height and width may be any multiples of 32.
        suppression: None = the outputs are raw maps; else boxes, scores, labels and indices of the images.
        source: name and sha256 of the weights that were exported.
        gate: what was compared before the file was written: images, tolerances, differences.
        info: what the weights file said: step, metrics, config text.
    """

    class_names: tuple[str, ...]
    preprocess: PreprocessConfig
    decoder: Decoder
    precision: str
    batch: int | None
    dynamic: bool
    suppression: Thresholds | None
    source: dict[str, Any]
    gate: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The text that `from_json` reads."""
        suppression = None if self.suppression is None else vars(self.suppression)
        decoder = {**asdict(self.decoder), "anchors_wh": [anchors.tolist() for anchors in self.decoder.anchors_wh]}
        content = {**vars(self), "preprocess": vars(self.preprocess), "decoder": decoder, "suppression": suppression}
        return json.dumps({"format": FORMAT, **content}, indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes | None, where: str) -> ExportRecord:
        """Reads a record. Raises: InputError: it is not one of ours, or is of another version."""
        try:
            content = json.loads(text or "")
            if content.pop("format") != FORMAT:
                raise ValueError(FORMAT)
            decoder, suppression = content["decoder"], content["suppression"]
            return cls(
                **{
                    **content,
                    "class_names": tuple(content["class_names"]),
                    "preprocess": parse_preprocess_config(content["preprocess"], where),
                    "decoder": Decoder(
                        anchors_wh=tuple(np.array(anchors, np.float32) for anchors in decoder["anchors_wh"]),
                        strides=tuple(decoder["strides"]),
                        scale_xy=tuple(decoder["scale_xy"]),
                        new_coords=decoder["new_coords"],
                        nms_beta=decoder["nms_beta"],
                    ),
                    "suppression": None if suppression is None else Thresholds(**suppression),
                }
            )
        except (ValueError, KeyError, TypeError, AttributeError, InputError) as error:
            raise InputError(
                f"{where}: holds no record of tools/export.py ({FORMAT}); export the weights again with it"
            ) from error


def record_path(path: Path) -> Path:
    """The JSON beside an exported file."""
    return path.with_name(f"{path.name}.json")
