"""The whole network has the same outputs after folding."""

from pathlib import Path

import torch

from detector.config import load_config
from detector.models.build import build_detector
from detector.models.layers import fold_batchnorm

ROOT = Path(__file__).resolve().parents[2]


def test_folded_detector_agrees() -> None:
    torch.manual_seed(0)
    detector = build_detector(load_config(ROOT / "configs/csppelee_efm.yaml").model)
    images = torch.rand(4, 3, 128, 128)
    with torch.no_grad():
        for _ in range(5):
            detector.train()(images)  # fills the running statistics
        detector.eval()
        expected, found = detector(images), fold_batchnorm(detector)(images)
    for before, after in zip(expected, found, strict=True):
        # Relative to the maps' scale; measured 1e-6, float32 rounding over 130 layers.
        assert (before - after).abs().max() < 1e-5 * before.abs().max().clamp(min=1)
