"""`train.subdivisions: auto` takes the fewest parts that fit, once for each run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from detector.config import DetectConfig, load_config, load_run_config
from detector.errors import InputError
from detector.inference.build import build_network
from detector.train import parts
from detector.train.loop import train
from detector.train.parts import bytes_per_image, fewest_parts, largest_size, resolve_subdivisions

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
Make = Callable[..., DetectConfig]


def give_memory(monkeypatch: pytest.MonkeyPatch, config: DetectConfig, images: float) -> None:
    """As much free memory as this many images need."""
    needed = bytes_per_image(config, torch.float32) * images / parts.SHARE_OF_FREE_MEMORY
    monkeypatch.setattr(parts, "available_bytes", lambda device: int(needed))


def test_the_fewest_parts_that_fit(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(["train.subdivisions=auto", "train.batch_size=12", "train.precision=fp32"])
    for images, expected in ((12.5, 1), (11.5, 2), (5.9, 3), (1.1, 12)):
        give_memory(monkeypatch, config, images)
        assert fewest_parts(config, CPU) == expected
    give_memory(monkeypatch, config, 6.5)
    assert fewest_parts(config, CPU, num_ranks=2) == 2, "two processes share the memory: 3 images each"
    give_memory(monkeypatch, config, 0.9)
    with pytest.raises(InputError, match=r"one image needs about \d+ MiB, of \d+ MiB that are free"):
        fewest_parts(config, CPU)
    with pytest.raises(InputError, match="cannot be shared by 5 processes"):
        fewest_parts(config, CPU, num_ranks=5)


def test_a_stated_number_is_kept(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(["train.subdivisions=4"])
    give_memory(monkeypatch, config, 0.1)
    assert resolve_subdivisions(config, CPU) is config


def test_a_run_keeps_what_it_began_with(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["train.subdivisions=auto", "train.precision=fp32", "evaluate.every=0", "train.num_workers=0"]
    config = tiny([*settings, "train.max_steps=2"])
    give_memory(monkeypatch, config, 4.5)
    train(config)
    recorded = Path(str(config.run_dir)) / "config.yaml"
    assert load_run_config(recorded).train.subdivisions == 2
    give_memory(monkeypatch, config, 100)
    train(tiny([*settings, "train.max_steps=3"]), resume=True, allow_change=True)
    assert load_run_config(recorded).train.subdivisions == 2


def test_the_estimate_counts_what_a_real_forward_pass_keeps(tiny: Make) -> None:
    config = tiny()
    assert largest_size(config) == (128, 128), "of multi_scale"
    expected = parts._kept_for_backward(parts.build_on_meta(config), (96, 96), images=2)
    network, kept = build_network(config.model).train(), {}
    known = {id(parameter) for parameter in network.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in known:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.zeros(2, 3, 96, 96))
    assert sum(each.untyped_storage().nbytes() for each in kept.values()) == pytest.approx(expected, rel=0.02)


def test_memory_of_this_machine() -> None:
    from detector.train.memory import available_bytes

    assert 2**20 < available_bytes(CPU) < 2**50


def test_every_config_gets_a_number() -> None:
    config = load_config(ROOT / "configs/csppelee_efm.yaml", ["train.subdivisions=auto"])
    assert config.train.batch_size % fewest_parts(config, CPU) == 0
