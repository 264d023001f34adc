"""The programs run on a GPU without one here: nothing mixes devices, and a step waits for the GPU once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from pretend_gpu import DeviceError, DeviceTensor, PretendGPU, PretendNCCL
from torch import Tensor

from detector import loss
from detector.benchmark.training import random_batch, training_step
from detector.checkpoint import load_checkpoint
from detector.config import DetectConfig, ModelConfig, load_config, load_run_config
from detector.inference.build import build_network
from detector.inference.predictor import Predictor
from detector.models.precision import to_network_input
from detector.runtime.torch_backend import TorchRuntime
from detector.train import detection, ema, loop
from detector.train.distributed import Ranks
from detector.train.loop import train
from detector.train.state import fresh_state

ROOT = Path(__file__).resolve().parents[2]
MAX_WAITS, MAX_LAUNCHES = 1, 1550
"""Of a training step, at any batch size. Raise them only knowingly: an H100 is idle while it waits for launches."""
STEP = ["train.batch_size=64", "train.subdivisions=1", "train.precision=fp32", "augment.multi_scale=null"]
SHORT = ["train.precision=fp32", "train.num_workers=0", "train.save_every=2", "evaluate.every=0"]
Make = Callable[..., DetectConfig]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendGPU]:
    """A pretended GPU that training takes for its device."""
    with PretendGPU() as pretended:
        monkeypatch.setattr(loop, "join_ranks", alone)
        yield pretended


@contextmanager
def alone() -> Iterator[Ranks]:
    """Stands in for `join_ranks`: one process, on the GPU."""
    yield Ranks(0, 1, PretendGPU.device)


def pinned_batch(config: DetectConfig) -> Any:
    return random_batch(config).pin_memory()


@pytest.fixture
def one_step(gpu: PretendGPU, monkeypatch: pytest.MonkeyPatch) -> Callable[[], PretendGPU]:
    """Computes a step of the paper's detector on 64 small images, pinned as the loader pins them."""

    def run() -> PretendGPU:
        config = load_config(
            ROOT / "configs/csppelee_efm.yaml", [*STEP, "preprocess.size_hw=[64,64]", "run_dir=unused"]
        )
        monkeypatch.setattr("detector.benchmark.training.random_batch", pinned_batch)
        step = training_step(config, gpu.device)
        gpu.forget()
        step()
        return gpu

    return run


def test_a_step_waits_once_and_starts_few_kernels(one_step: Callable[[], PretendGPU]) -> None:
    gpu = one_step()
    assert sum(gpu.waits.values()) <= MAX_WAITS, gpu.waits
    assert sum(gpu.launches.values()) <= MAX_LAUNCHES, gpu.launches.most_common(20)
    assert {kind for kind, _ in gpu.uploads} == {"does not wait"}, gpu.uploads
    assert sum(gpu.uploads.values()) == 3, "images, boxes, labels"


def test_training_is_saved_and_resumed(tiny: Make, gpu: PretendGPU) -> None:
    """The loop itself: the same values as on the CPU, evaluation and report included."""
    train(tiny([*SHORT, "train.max_steps=2"], run="run"))
    train(tiny([*SHORT, "train.max_steps=3"], run="run"), resume=True, allow_change=True)
    run_dir = Path(str(tiny(run="run").run_dir))
    found = load_checkpoint(run_dir / "last.safetensors")
    assert found.info["step"] == 3
    assert not any(isinstance(each, DeviceTensor) for each in found.tensors.values())
    assert (run_dir / "report.html").is_file()
    waits = {kind for kind, place in gpu.waits if place.startswith(("train/loop", "loss", "assign", "boxes"))}
    assert waits == {"copy to the CPU"}, gpu.waits


def test_a_step_computes_what_it_computes_on_the_cpu(tiny: Make) -> None:
    config = tiny([*STEP, "train.batch_size=4"])
    expected = training_step(config, torch.device("cpu"))()
    with PretendGPU() as pretended:
        found = training_step(config, pretended.device)()
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_classifier_trains(gpu: PretendGPU, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("dark", "light"):
            folder = tmp_path / "shades" / split / kind
            folder.mkdir(parents=True)
            for number in range(8):
                image = rng.integers(0, 100, (40, 40, 3)) + (0 if kind == "dark" else 150)
                cv2.imwrite(str(folder / f"{number}.png"), image.astype(np.uint8))
    overrides = [f"data.root={tmp_path / 'shades'}", "model.backbone.name=darknet_reference", "model.num_classes=2"]
    short = [*SHORT, "train.max_steps=2", "train.batch_size=4", "train.subdivisions=1", f"run_dir={tmp_path / 'run'}"]
    metrics = train(load_run_config(ROOT / "configs/classify_tiny.yaml", [*overrides, *short]))
    assert 0 <= metrics["top1"] <= 1
    assert gpu.launches["aten.convolution_backward"] > 0


def test_prediction_copies_only_what_may_be_a_box(tiny: Make, gpu: PretendGPU) -> None:
    config = tiny(["train.precision=fp32"])
    state = fresh_state(config, gpu.device)
    predictor = Predictor.from_network(state.network, config.model, config.preprocess)
    images = [np.zeros((120, 90, 3), np.uint8)] * 2
    gpu.forget()
    assert len(predictor.predict_batch(images)) == 2
    kinds = {kind: sum(count for (each, _), count in gpu.waits.items() if each == kind) for kind, _ in gpu.waits}
    assert kinds == {"nonzero": 3, "copy to the CPU": 2}, "one choice for each scale; codes and places"


def configs() -> Sequence[Path]:
    """One config for each pair of backbone and neck."""
    found: dict[str, Path] = {}
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        if path.name in {"base.yaml", "detector.yaml", "detector_fast.yaml"}:
            continue
        model = load_run_config(path).model
        neck = str(model.neck) if isinstance(model, ModelConfig) else ""
        found.setdefault(f"{getattr(model, 'backbone', path)} {neck}", path)
    return list(found.values())


@pytest.mark.parametrize("path", configs(), ids=lambda path: path.stem)
def test_every_network_runs(path: Path, gpu: PretendGPU) -> None:
    network = build_network(load_run_config(path).model).eval().to(gpu.device)
    pixels = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    with torch.inference_mode():
        outputs = network(to_network_input(pixels, gpu.device))
    outputs = [outputs] if isinstance(outputs, Tensor) else outputs
    assert all(isinstance(each, DeviceTensor) for each in outputs)
    assert not gpu.waits


def test_processes_exchange_tensors_on_the_gpu(tiny: Make, gpu: PretendGPU) -> None:
    nccl, ranks = PretendNCCL(), Ranks(0, 2, gpu.device)
    state = fresh_state(tiny(["train.precision=fp32"]), gpu.device)
    with nccl.patch():
        assert ranks.sum([1.0, 2.0]) == [2.0, 4.0]
        state.network(torch.zeros(2, 3, 64, 64, device=gpu.device))[0].sum().backward()
        ranks.sum_gradients(state.network)
        ranks.copy_from_first(state.network.state_dict().values())
    assert nccl.calls["all_reduce"] == 2
    assert nccl.calls["broadcast"] > 0


def cells_on_the_cpu(height: int, width: int, device: torch.device) -> Tensor:
    return loss_cells(height, width, torch.device("cpu"))


loss_cells = loss.cell_corners


def average_on_the_cpu(self: Any, network: Any, decay: float) -> None:
    self.decay, self.average = decay, copy.deepcopy(network).to("cpu").requires_grad_(False)


def outputs_as_they_are(self: TorchRuntime, images: Any, *_: Any) -> Any:
    return [each.numpy() for each in self._outputs(images)]


def labels_stay(config: DetectConfig, network: Any, device: torch.device) -> Any:
    compute = detection.build_loss(config, network)
    return lambda maps, batch: torch.stack(compute(maps, batch.boxes_xyxy, batch.labels, batch_size=1))


@pytest.mark.parametrize(
    ("owner", "name", "fault"),
    [
        (loss, "cell_corners", cells_on_the_cpu),
        (torch, "full", lambda size, value, **_: torch.zeros(size).fill_(value)),
        (ema.ExponentialMovingAverage, "__init__", average_on_the_cpu),
        (TorchRuntime, "run_above", outputs_as_they_are),
        ("detector.benchmark.training", "loss_terms", labels_stay),
        ("detector.benchmark.training", "to_network_input", lambda images, device: images.float().div(255)),
    ],
)
def test_planted_mixes_of_devices_are_refused(
    owner: Any, name: str, fault: Any, one_step: Callable[[], PretendGPU], tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(owner, str):
        monkeypatch.setattr(f"{owner}.{name}", fault)
    else:
        monkeypatch.setattr(owner, name, fault)
    config = tiny(["train.precision=fp32"])

    def step_average_and_predict() -> None:
        state = fresh_state(config, one_step().device)
        assert state.ema is not None
        state.ema.update(state.network, 0)
        Predictor.from_network(state.network, config.model, config.preprocess).predict(np.zeros((90, 90, 3), np.uint8))

    with pytest.raises(DeviceError):
        step_average_and_predict()


def test_planted_waits_break_the_limit(one_step: Callable[[], PretendGPU], monkeypatch: pytest.MonkeyPatch) -> None:
    usual = loss.split_raw_map

    def asks(*arguments: Any) -> Tensor:
        raw = usual(*arguments)
        raw.detach().max().item()
        raw[raw.detach() > 0.5].sum()
        return raw

    monkeypatch.setattr(loss, "split_raw_map", asks)
    waits = one_step().waits
    assert {kind for kind, _ in waits} == {"copy to the CPU", "item", "mask as index"}
    assert sum(waits.values()) > MAX_WAITS


def test_planted_pageable_memory_waits(one_step: Callable[[], PretendGPU], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "pinned_batch", random_batch)
    assert {kind for kind, _ in one_step().uploads} == {"waits"}


def test_planted_tensor_on_the_cpu_for_nccl(gpu: PretendGPU) -> None:
    with PretendNCCL().patch(), pytest.raises(DeviceError, match="all_reduce: a tensor on the CPU"):
        Ranks(0, 2, torch.device("cpu")).sum([1.0])
