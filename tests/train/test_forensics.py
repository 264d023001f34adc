"""What a run reports when it fails; each failure is provoked."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from detector.config import DetectConfig
from detector.data.batch import Batch
from detector.data.dataset import DetectionDataset
from detector.data.loader import explain_lost_workers, training_batches
from detector.data.samples import TrainingSamples
from detector.errors import InputError
from detector.models.layers import ConvBN
from detector.train.detection import open_split
from detector.train.distributed import Ranks
from detector.train.forensics import (
    explain_out_of_memory,
    first_nonfinite_gradient,
    first_nonfinite_layer,
    is_finite,
    subdivisions_advice,
)
from detector.train.replay import rebuild_batch, save_batch_image

Make = Callable[..., DetectConfig]


def network() -> nn.Sequential:
    return nn.Sequential(ConvBN(3, 4, 3), ConvBN(4, 4, 3), ConvBN(4, 2, 1))


def test_the_first_layer_that_overflows_is_named() -> None:
    layers = network()
    images = torch.rand(2, 3, 8, 8)
    assert first_nonfinite_layer(layers, images) is None
    with torch.no_grad():
        layers[1].norm.weight.fill_(3e38)  # type: ignore[union-attr, operator]
        layers[1].norm.bias.fill_(3e38)  # type: ignore[union-attr, operator]
    layers.train()(images)  # as in a run: the failing pass has already corrupted the statistics
    before = {name: value.clone() for name, value in layers.state_dict().items()}
    assert first_nonfinite_layer(layers, images) == "the output of 1.norm"
    assert all(
        torch.equal(value.nan_to_num(), before[name].nan_to_num()) for name, value in layers.state_dict().items()
    ), "nothing is changed"


def test_a_weight_and_an_image_that_are_not_finite_are_named() -> None:
    layers = network()
    with torch.no_grad():
        layers[2].conv.weight[0, 0] = float("nan")  # type: ignore[union-attr, index, operator]
    assert first_nonfinite_layer(layers, torch.rand(1, 3, 8, 8)) == "the weights of 2.conv.weight"
    assert first_nonfinite_layer(layers, torch.full((1, 3, 8, 8), float("inf"))) == "the images"


def test_a_gradient_that_is_not_finite_is_named() -> None:
    layers = network()
    layers(torch.rand(2, 3, 8, 8)).sum().backward()
    assert is_finite(torch.ones(3), layers)
    assert not is_finite(torch.tensor([1.0, float("nan")]), layers)
    gradient = layers[1].conv.weight.grad
    assert isinstance(gradient, torch.Tensor)
    gradient[0, 0, 0, 0] = float("inf")
    assert not is_finite(torch.ones(3), layers)
    assert first_nonfinite_gradient(layers) == "the gradient of 1.conv.weight"


def hang(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Makes reading `path` very slow, as on a network drive that does not respond."""
    original = DetectionDataset.read_bytes

    def slow(self: DetectionDataset, index: int) -> bytes:
        if self.paths[index] == path:
            time.sleep(300)
        return original(self, index)

    monkeypatch.setattr(DetectionDataset, "read_bytes", slow)


def test_a_stuck_loader_names_the_file(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(["train.num_workers=2", "data.timeout_seconds=2", "augment.mosaic=0"])
    dataset = open_split(config, "train")
    hang(monkeypatch, dataset.paths[5])
    with pytest.raises(InputError, match=f"no batch for 2 s: worker . has been reading .*{dataset.paths[5].name} for"):
        for _ in training_batches(dataset, config, start_step=0):
            pass


def test_a_loader_process_that_was_killed_is_explained(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(["train.num_workers=1"])
    dataset = open_split(config, "train")
    monkeypatch.setattr(TrainingSamples, "_read_one", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(InputError, match=r"out of memory; lower train.num_workers"), explain_lost_workers():
        next(training_batches(dataset, config, start_step=0))


def kill_a_worker_and_compute(batches: Iterator[Batch]) -> None:
    with explain_lost_workers():
        next(batches)
        (worker,) = multiprocessing.active_children()
        os.kill(int(worker.pid or 0), signal.SIGKILL)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            torch.zeros(10).sum()


def test_a_worker_that_dies_while_the_network_computes_is_explained(tiny: Make) -> None:
    config = tiny(["train.num_workers=1"])
    source = training_batches(open_split(config, "train"), config, start_step=0)
    with closing(source) as batches, pytest.raises(InputError, match="a loader process was killed"):
        kill_a_worker_and_compute(batches)


def test_a_reading_note_is_removed_even_after_a_failure(tiny: Make) -> None:
    config = tiny(["train.num_workers=0", "augment.mosaic=0"])
    dataset = open_split(config, "train")
    samples = TrainingSamples(replace(dataset, paths=[Path("/none.jpg"), *dataset.paths[1:]]), config)
    samples._read(1, (64, 64))
    samples._read(0, (64, 64))
    assert samples.notes.describe() == "no worker is reading an image"
    with samples.notes.reading(1):
        assert f"worker 0 has been reading {dataset.paths[1]} for 0 s" in samples.notes.describe()


def test_an_image_that_fails_in_a_worker_is_a_one_line_error(tiny: Make) -> None:
    config = tiny(["train.num_workers=1", "data.bad_labels=fail"])
    dataset = replace(open_split(config, "train"), paths=[Path("/nowhere/x.jpg")] * 64)
    with pytest.raises(InputError) as caught:
        next(training_batches(dataset, config, start_step=0))
    assert str(caught.value) == "/nowhere/x.jpg: cannot be read: No such file or directory"


@pytest.mark.parametrize(
    ("num_images", "subdivisions", "advice"),
    [
        (64, 8, "8 images at a time: train.subdivisions=16 (parts of 4 images) needs about 50 % of the memory"),
        (6, 1, "6 images at a time: train.subdivisions=2 (parts of 3 images) needs about 50 % of the memory"),
        (4, 4, "1 image at a time: lower preprocess.size_hw; halving both sides needs a quarter of the memory"),
    ],
)
def test_advice_on_the_number_of_parts(num_images: int, subdivisions: int, advice: str) -> None:
    assert subdivisions_advice(num_images, subdivisions) == advice


def test_too_little_memory_is_answered_with_advice(tiny: Make) -> None:
    config, ranks = tiny(["train.precision=fp32"]), Ranks(0, 1, torch.device("cpu"))
    wanted = "out of memory with 4 images at a time: train.subdivisions=4 .*; train.precision=bf16 halves"
    with pytest.raises(InputError, match=wanted), explain_out_of_memory(config, ranks):
        torch.empty(2**50, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="shape"), explain_out_of_memory(config, ranks):
        torch.zeros(2).view(3)


def test_replay_shows_what_training_sees(tiny: Make, tmp_path: Path) -> None:
    config = tiny(["train.subdivisions=1"])
    dataset = open_split(config, "train")
    with closing(training_batches(dataset, config, start_step=0)) as batches:
        third = list(itertools.islice(batches, 3))[2]
    again = rebuild_batch(config, dataset, 3)
    assert torch.equal(again.images, third.images)
    assert again.image_ids == third.image_ids
    save_batch_image(tmp_path / "new/batch.jpg", again, config.model.class_names)
    assert (tmp_path / "new/batch.jpg").stat().st_size > 1000
    with pytest.raises(InputError, match="--replay 0: the steps of this config are 1 to 120"):
        rebuild_batch(config, dataset, 0)
