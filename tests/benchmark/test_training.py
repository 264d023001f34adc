"""The benchmark's tables are complete and consistent; no test checks speed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from detector.benchmark.training import loader_table, loader_text, random_batch, training_table, training_text
from detector.config import DetectConfig
from detector.errors import InputError
from detector.train.detection import open_split

Make = Callable[..., DetectConfig]


def test_loader_table_adds_up(tiny: Make) -> None:
    config = tiny(["augment.mosaic=1.0"])
    table = loader_table(config, open_split(config, "train"), num_images=64)
    for row in table.values():
        stages = sum(row[stage] for stage in ("read", "decode", "augment", "mosaic", "collate"))
        assert 0 < stages <= row["total"]
        assert row["images_per_second"] == pytest.approx(1000 / row["total"])
    assert table["cold"]["decode"] > table["warm"]["decode"] == 0, "64 images fit into the cache"
    assert "warm cache" in loader_text(table, 1)


def test_training_table_is_consistent(tiny: Make) -> None:
    config = tiny(["train.batch_size=2", "train.subdivisions=1"])
    table = training_table(config, rounds=1)
    for name in ("fp32", "ours"):
        row = table[name]
        assert row["gflops"] == pytest.approx(row["images_per_second"] * table["gflop_per_image"])
        assert row["share_of_peak"] == pytest.approx(row["gflops"] / table["peak_gflops"])
    assert table["speedup"] == pytest.approx(table["ours"]["images_per_second"] / table["fp32"]["images_per_second"])
    assert "times as fast as plain fp32" in training_text(table)


def test_random_batch_has_the_shape_of_a_part(tiny: Make) -> None:
    batch = random_batch(tiny(["train.batch_size=8", "train.subdivisions=4", "preprocess.size_hw=[64, 96]"]))
    assert batch.images.shape == (2, 3, 64, 96)
    boxes = batch.boxes_xyxy[batch.labels >= 0]
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert boxes[:, 2].max() <= 96
    assert boxes[:, 3].max() <= 64


def test_a_network_that_fails_in_the_benchmark_is_reported(tiny: Make, capfd: pytest.CaptureFixture[str]) -> None:
    config = tiny()
    broken = replace(config, train=replace(config.train, learning_rate=float("nan")))
    with pytest.raises(InputError, match="benchmark: "):
        training_table(broken, rounds=1)
    assert "Traceback" not in capfd.readouterr().err


def test_resident_memory_grows_with_what_is_used() -> None:
    code = "from detector.train.memory import resident_mb as m; a = m(); x = bytearray(10**8); print(m() - a)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 95 < float(result.stdout) < 130
