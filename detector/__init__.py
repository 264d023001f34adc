"""A real-time object detector framework: Cross Stage Partial backbones, Exact Fusion Model, YOLOv3-style head."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from detector.config import load_config
from detector.errors import InputError

# These libraries report their use over the network when they are imported; a user's own setting is respected.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

if TYPE_CHECKING:
    from detector.inference.predictor import Predictor
    from detector.models.build import build_detector

__version__ = "0.1.0"
__all__ = ["InputError", "Predictor", "__version__", "build_detector", "load_config"]


def __getattr__(name: str) -> Any:
    """Loads torch and OpenCV only when they are needed."""
    if name == "Predictor":
        from detector.inference.predictor import Predictor

        return Predictor
    if name == "build_detector":
        from detector.models.build import build_detector

        return build_detector
    raise AttributeError(f"module 'detector' has no attribute {name!r}")
