"""Released weights: half the size and the same detections; a release that differs is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from detector.checkpoint import load_checkpoint
from detector.errors import InputError
from detector.export.release import release


def test_a_release_is_half_precision_and_complete(trained_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "released.safetensors"
    report = release(str(trained_run), out)
    assert report["bytes"] < 0.6 * (trained_run / "best.safetensors").stat().st_size
    checkpoint = load_checkpoint(out)
    kinds = {value.dtype for value in checkpoint.group("model").values() if value.ndim > 1}
    assert kinds == {torch.float16}
    assert checkpoint.model.class_names == ("circle", "square", "triangle")
    assert checkpoint.info["metrics"]["ap50"] == report["ap50"]
    provenance = checkpoint.info["provenance"]
    assert (provenance["train"]["images"], provenance["val"]["images"]) == (64, 16)
    assert provenance["train"]["sha256_of_labels"] != provenance["val"]["sha256_of_labels"]
    with pytest.raises(InputError, match="exists already"):
        release(str(trained_run), out)


def test_a_release_that_loses_ap_is_refused(trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "half", lambda tensor: torch.zeros_like(tensor))
    monkeypatch.setattr("detector.export.release.TOLERANCE", 1e-6)  # six steps of training leave little to lose
    with pytest.raises(InputError, match="refused, half precision changes AP50"):
        release(str(trained_run), tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"
