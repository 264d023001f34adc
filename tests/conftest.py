"""Fixtures: the tiny experiment on synthetic data, and the optional real data beside the project."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from file_server import FileServer

from detector.config import DetectConfig, load_config
from detector.data.synthetic import ensure_synthetic_dataset

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic data set of configs/tiny.yaml, drawn once."""
    root = tmp_path_factory.mktemp("tiny")
    synthetic = load_config(ROOT / "configs/tiny.yaml").data.synthetic
    assert synthetic is not None
    ensure_synthetic_dataset(root, synthetic)
    return root


@pytest.fixture
def tiny(tiny_data: Path, tmp_path: Path) -> Callable[..., DetectConfig]:
    """Builds the config of the tiny experiment with overrides; its run directory is in tmp_path."""

    def make(overrides: Sequence[str] = (), *, run: str = "run") -> DetectConfig:
        config = load_config(ROOT / "configs/tiny.yaml", [f"data.root={tiny_data}", *overrides])
        return replace(config, run_dir=str(tmp_path / run))

    return make


@pytest.fixture(scope="session")
def trained_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps, with its checkpoints."""
    from detector.train.loop import train

    run_dir = tmp_path_factory.mktemp("weights") / "tiny"
    config = load_config(
        ROOT / "configs/tiny.yaml",
        [
            f"data.root={tiny_data}",
            "train.max_steps=6",
            "evaluate.every=0",
            "evaluate.score_threshold=0.0001",
            "train.num_workers=0",
            f"run_dir={run_dir}",
        ],
    )
    train(config)
    return run_dir


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the tiny experiment that find about a hundred boxes in any image."""
    from detector.checkpoint import save_checkpoint
    from detector.inference.build import build_network

    config = load_config(ROOT / "configs/tiny.yaml")
    torch.manual_seed(0)
    network = build_network(config.model)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
                module.weight.uniform_(0.6, 1.4)
                module.bias.normal_(0, 0.2)
        for layer in network.head.output:  # type: ignore[union-attr]
            layer.weight.normal_(0, 0.3)  # type: ignore[operator, union-attr]
            layer.bias.normal_(-1, 1)  # type: ignore[operator, union-attr]
    path = tmp_path_factory.mktemp("lively") / "lively.safetensors"
    tensors = {f"model.{name}": value for name, value in network.state_dict().items()}
    save_checkpoint(path, model=config.model, preprocess=config.preprocess, info={"step": 0}, tensors=tensors)
    return path


@pytest.fixture
def file_server() -> Iterator[FileServer]:
    """A server of files on loopback, empty."""
    with FileServer() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the project."""
    if not SHARED.is_dir():
        pytest.skip("the real data folder ../shared is missing")
    return SHARED


def pytest_configure(config: pytest.Config) -> None:
    if config.option.markexpr != "gpu":
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
