"""Weights files: complete, atomic, and never a pickle."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from detector.checkpoint import find_weights, load_checkpoint, save_checkpoint
from detector.config import load_config
from detector.errors import InputError

TINY = load_config(Path(__file__).resolve().parents[1] / "configs/tiny.yaml")


def save(path: Path, value: float = 1.0) -> None:
    save_checkpoint(
        path,
        model=TINY.model,
        preprocess=TINY.preprocess,
        info={"step": 3, "x": [0.1, None]},
        tensors={"model.a": torch.full((2,), value), "momentum.a": torch.zeros(1)},
    )


def test_round_trip(tmp_path: Path) -> None:
    save(tmp_path / "deep" / "w.safetensors")
    loaded = load_checkpoint(tmp_path / "deep" / "w.safetensors")
    assert (loaded.model, loaded.preprocess) == (TINY.model, TINY.preprocess)
    assert loaded.info == {"step": 3, "x": [0.1, None]}
    assert loaded.weights()["a"].tolist() == [1, 1]
    assert loaded.group("ema") == {}


def test_averaged_weights_go_first(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    tensors = {"model.a": torch.zeros(1), "ema.a": torch.ones(1)}
    save_checkpoint(path, model=TINY.model, preprocess=TINY.preprocess, info={}, tensors=tensors)
    assert load_checkpoint(path).weights()["a"].item() == 1


def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    save(path, 1.0)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("detector.files.os.fsync", full)
    with pytest.raises(InputError, match="No space left on device; the previous file is intact"):
        save(path, 2.0)
    assert load_checkpoint(path).weights()["a"].tolist() == [1, 1]
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.safetensors"], "a temporary file was left behind"


@pytest.mark.parametrize("content", [b"", b"not a file of ours", b"\x80\x04pickle"])
def test_a_damaged_file_is_explained(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="is damaged"):
        load_checkpoint(tmp_path / "w.safetensors")


def test_missing_cut_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such weights file"):
        load_checkpoint(tmp_path / "none.safetensors")
    save(tmp_path / "w.safetensors")
    content = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(content[:-3])
    with pytest.raises(InputError, match="is damaged"):
        load_checkpoint(tmp_path / "w.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="was not written by this program"):
        load_checkpoint(tmp_path / "other.safetensors")


def test_find_weights_prefers_the_newest_run(tmp_path: Path) -> None:
    import os

    with pytest.raises(InputError, match="train first"):
        find_weights([tmp_path, tmp_path / "none"])
    save(tmp_path / "released.safetensors")
    assert find_weights([tmp_path]) == tmp_path / "released.safetensors"
    for age, name in enumerate(("new", "old")):
        save(tmp_path / name / "best.safetensors")
        os.utime(tmp_path / name / "best.safetensors", (1e9 - age, 1e9 - age))
    assert find_weights([tmp_path]) == tmp_path / "new" / "best.safetensors"


def test_one_bad_file_does_not_stop_the_search_for_the_newest_weights(tmp_path: Path) -> None:
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
    save(tmp_path / "good/best.safetensors")
    (tmp_path / "bad/best.safetensors").write_bytes(b"cut off")
    assert find_weights([tmp_path]) == tmp_path / "good/best.safetensors"


def test_a_link_stays_one_and_the_umask_holds(tmp_path: Path) -> None:
    save(tmp_path / "real.safetensors", 1.0)
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "real.safetensors")
    previous = os.umask(0o027)
    try:
        save(tmp_path / "link.safetensors", 2.0)
    finally:
        os.umask(previous)
    assert (tmp_path / "link.safetensors").is_symlink()
    assert load_checkpoint(tmp_path / "real.safetensors").weights()["a"].tolist() == [2, 2]
    assert (tmp_path / "real.safetensors").stat().st_mode & 0o777 == 0o640
