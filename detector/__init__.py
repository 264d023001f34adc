"""A real-time object detector framework: Cross Stage Partial backbones, Exact Fusion Model, YOLOv3-style head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from detector.config import load_config
from detector.errors import InputError

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
