"""Networks of timm under our necks: their own features, trained, resumed, exported."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from file_server import FileServer

from detector.checkpoint import load_checkpoint
from detector.config import DetectConfig, TimmBackboneConfig, load_config
from detector.errors import InputError
from detector.export.gate import export
from detector.export.gate_data import gather_gate_data
from detector.export.request import Request
from detector.inference.find import find_trainable
from detector.inference.predictor import Predictor
from detector.models.build import build_detector
from detector.models.timm_backbone import TimmBackbone
from detector.train.loop import train
from detector.train.state import fresh_state

timm = pytest.importorskip("timm")
ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs/timm").glob("*.yaml"))
SMALL = "model.backbone={name: timm/cs3darknet_focus_s}"
Make = Callable[..., DetectConfig]


def publish(name: str, path: Path) -> torch.nn.Module:
    """A classifier of timm with random weights, saved as timm publishes it."""
    from safetensors.torch import save_file

    torch.manual_seed(1)
    classifier = timm.create_model(name)
    save_file(classifier.state_dict(), path)
    return classifier.eval()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds(path: Path) -> None:
    config = load_config(path)
    with torch.device("meta"):
        network = build_detector(config.model)
    assert config.model.backbone.name == f"timm/{path.stem.removeprefix('timm_')}"
    assert [tuple(each.shape[2:]) for each in network.eval()(torch.zeros(1, 3, 64, 64, device="meta"))] == [
        (8, 8),
        (4, 4),
        (2, 2),
    ]


def test_features_are_timms_own(tiny: Make, tmp_path: Path) -> None:
    classifier = publish("cs3darknet_focus_s", tmp_path / "model.safetensors")
    config = tiny(["model.backbone={name: timm/cs3darknet_focus_s, file: %s}" % (tmp_path / "model.safetensors")])
    backbone = fresh_state(config, torch.device("cpu")).network.backbone.eval()
    images = torch.rand(2, 3, 64, 96)
    mean, std = (torch.tensor(classifier.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        expected = classifier.forward_intermediates((images - mean) / std, intermediates_only=True)
        for found in backbone(images):
            match = next(each for each in expected if each.shape == found.shape)
            torch.testing.assert_close(found, match, rtol=1e-6, atol=1e-6)


def test_trains_resumes_and_exports(tiny: Make, tmp_path: Path) -> None:
    settings = [SMALL, "train.save_every=2", "evaluate.every=0", "train.num_workers=0"]
    whole = tiny([*settings, "train.max_steps=4", "train.policy={name: steps}"], run="whole")
    half = tiny([*settings, "train.max_steps=2", "train.policy={name: steps}"], run="parts")
    train(whole)
    train(half)
    parts = tiny([*settings, "train.max_steps=4", "train.policy={name: steps}"], run="parts")
    train(parts, resume=True)
    runs = [load_checkpoint(Path(str(each.run_dir)) / "last.safetensors").tensors for each in (whole, parts)]
    for name, value in runs[0].items():
        assert torch.equal(runs[1][name], value), name

    loaded = find_trainable(str(whole.run_dir))
    out = tmp_path / "timm.onnx"
    export(loaded, Request("onnx", out), gather_gate_data(loaded))
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    for backend in ("onnxruntime", "openvino"):
        assert len(Predictor(out, backend=backend, score_threshold=0.9).predict(image)) >= 0
    with pytest.raises(InputError, match="does not support TimmBackbone"):
        export(loaded, Request("darknet", tmp_path / "timm.cfg"), gather_gate_data(loaded))


def test_published_weights_by_name(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_server: FileServer
) -> None:
    """`download.py timm/NAME` from a mirror, then `pretrained: true`; the network is asked once."""
    monkeypatch.chdir(tmp_path)
    config = tiny(["model.backbone={name: timm/cs3darknet_focus_s, pretrained: true}"])
    with pytest.raises(InputError, match=r"not here yet; fetch them with: python tools/download\.py timm/cs3dark"):
        fresh_state(config, torch.device("cpu"))
    classifier = publish("cs3darknet_focus_s", tmp_path / "published.safetensors")
    path = f"/{classifier.pretrained_cfg['hf_hub_id']}/resolve/main/model.safetensors"
    content = (tmp_path / "published.safetensors").read_bytes()
    download = runpy.run_path(str(ROOT / "tools/download.py"))["main"]
    command = ["timm/cs3darknet_focus_s", "--from", file_server.address]
    publish("cs3darknet_m", tmp_path / "other.safetensors")
    for wrong, message in (
        ((tmp_path / "other.safetensors").read_bytes(), "does not hold the weights of timm/cs3darknet_focus_s"),
        (b"<!DOCTYPE html>", "a web page instead of the file"),
        (content[:-100], "does not hold the weights"),
    ):
        file_server.files[path] = wrong
        with pytest.raises(InputError, match=message):
            download(command)
        assert not list((tmp_path / "weights/zoo/timm").iterdir())
    file_server.files[path] = content
    monkeypatch.setenv("HF_ENDPOINT", file_server.address)
    assert download(command[:1]) == 0
    asked = len(file_server.requests)
    assert download(command[:1]) == 0
    assert len(file_server.requests) == asked
    by_file = tiny(["model.backbone={name: timm/cs3darknet_focus_s, file: %s}" % (tmp_path / "published.safetensors")])
    taken, expected = (fresh_state(each, torch.device("cpu")).network.state_dict() for each in (config, by_file))
    assert all(torch.equal(taken[name], expected[name]) for name in expected)


def test_what_cannot_be_used(tiny: Make, tmp_path: Path) -> None:
    for name, message in (
        ("no_such_network", "no_such_network"),
        ("vit_tiny_patch16_224", "strides|feature"),
        ("resnet10t", ""),
    ):
        model = replace(tiny().model, backbone=TimmBackboneConfig(f"timm/{name}"))
        if message:
            with pytest.raises(InputError, match=message):
                build_detector(model)
        else:
            build_detector(model)
    with pytest.raises(InputError, match=r"is missing; get model.safetensors of huggingface.co/timm/resnet18\.a1_in1k"):
        TimmBackbone("resnet18").load_published(tmp_path / "none.safetensors")
    publish("resnet18", tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="timm/cs3darknet_focus_s"):
        TimmBackbone("cs3darknet_focus_s").load_published(tmp_path / "other.safetensors")
