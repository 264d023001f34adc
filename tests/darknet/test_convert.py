"""To Darknet and back, and training from a cfg."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import detector.export.convert as module
from detector.checkpoint import load_checkpoint
from detector.config import ClassifierConfig, CSPPeleeNetConfig, build_config, load_config, parse_model_config
from detector.darknet import load_darknet
from detector.darknet.export import CfgWriter, _backbone, _finish, export_detector
from detector.darknet.recipe import experiment_tree
from detector.errors import InputError
from detector.export.convert import from_darknet, partial, to_darknet
from detector.inference.predictor import Predictor
from detector.inference.weights import load_detector
from detector.models.build import build_classifier, build_detector
from detector.train.finetune import load_initial_weights
from detector.train.loop import train

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("backbone", "neck", "attention", "letterbox"),
    [
        ("csppeleenet", "efm", "sam", False),
        ("csppeleenet", "efm", "none", True),
        ("cspdarknet53", "efm", "sam", False),
        ("cspresnext50", "efm", "none", False),
        ("darknet53", "prn_3l", "none", False),
        ("cspdensenet_reference", "prn_3l", "none", False),
        ("csppeleenetb_reference", "prn_3l", "none", False),
    ],
)
def test_an_exported_detector_gives_the_same_maps(backbone: str, neck: str, attention: str, letterbox: bool) -> None:
    config = load_config(ROOT / "configs/tiny.yaml")
    attends = {"attention": attention} if neck == "efm" else {}
    parts = {"backbone": {"name": backbone}, "neck": {"name": neck, **attends}}
    model = parse_model_config({**asdict(config.model), **parts}, "test")
    torch.manual_seed(0)
    network = build_detector(model)  # type: ignore[arg-type]
    with torch.no_grad():
        network.train()(torch.rand(4, 3, 64, 64))  # fills the running statistics
        exported = export_detector(network, model, replace(config.preprocess, letterbox=letterbox))  # type: ignore[arg-type]
        images = torch.rand(1, 3, 96, 96)
        for ours, theirs in zip(network.eval()(images), exported(images), strict=True):
            assert (ours - theirs).abs().max() < 1e-5 * ours.abs().max().clamp(min=1)
    assert exported.strides == (8, 16, 32)
    assert ("letter_box=1" in exported.cfg_text) == letterbox


def test_squeeze_and_excitation_is_not_dropped_silently() -> None:
    config = load_config(ROOT / "configs/tiny.yaml")
    model = replace(config.model, backbone=CSPPeleeNetConfig("csppeleenet", squeeze_excite=True))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="does not support squeeze and excitation"):
        export_detector(build_detector(model), model, config.preprocess)  # type: ignore[arg-type]


def test_round_trip_of_files(trained_run: Path, tmp_path: Path) -> None:
    report = to_darknet(str(trained_run), tmp_path / "tiny.cfg")
    assert report["largest_difference"] < 1e-5
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)  # the network's size: no resizing
    original = Predictor(trained_run / "best.safetensors", score_threshold=0.001)
    exported = Predictor(tmp_path / "tiny.cfg", score_threshold=0.001)
    assert exported.class_names == original.class_names
    first, second = original.predict(image), exported.predict(image)
    assert len(first) == len(second) > 0
    assert first.boxes_xyxy == pytest.approx(second.boxes_xyxy, abs=0.01)
    back = from_darknet(str(tmp_path / "tiny.cfg"), str(tmp_path / "tiny.weights"), tmp_path / "back.safetensors")
    assert back["largest_difference"] == 0
    third = Predictor(tmp_path / "back.safetensors", score_threshold=0.001).predict(image)
    assert third.boxes_xyxy.tolist() == second.boxes_xyxy.tolist()


def test_a_conversion_that_disagrees_is_refused(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = module.export_detector

    def broken(*arguments: object) -> object:
        network = original(*arguments)  # type: ignore[arg-type]
        with torch.no_grad():
            network.convolutions()[0][1].conv.weight.mul_(1.5)
        return network

    monkeypatch.setattr(module, "export_detector", broken)
    with pytest.raises(InputError, match="refused, the raw maps differ by"):
        to_darknet(str(trained_run), tmp_path / "tiny.cfg")
    assert list(tmp_path.iterdir()) == [], "something was left behind"
    with pytest.raises(InputError, match=r"ends in .cfg"):
        to_darknet(str(trained_run), tmp_path / "tiny.txt")


@pytest.mark.parametrize("taken", ["tiny.cfg", "tiny.weights", "tiny.names", "tiny.safetensors"])
def test_no_conversion_overwrites_or_removes_a_file(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: str
) -> None:
    (tmp_path / taken).write_bytes(b"mine")
    (tmp_path / "other").mkdir()
    to_darknet(str(trained_run), tmp_path / "other/a.cfg")
    cfg, weights = str(tmp_path / "other/a.cfg"), str(tmp_path / "other/a.weights")
    conversion = {
        True: lambda: from_darknet(cfg, weights, tmp_path / "tiny.safetensors"),
        False: lambda: to_darknet(str(trained_run), tmp_path / "tiny.cfg"),
    }[taken == "tiny.safetensors"]
    with pytest.raises(InputError, match=f"{taken}: exists already"):
        conversion()
    with pytest.raises(InputError, match=f"{taken}: exists already"):
        partial(cfg, weights, tmp_path / taken, num_layers=3)
    monkeypatch.setattr(module, "_difference", lambda *_: 1.0)
    with pytest.raises(InputError, match="refused, the raw maps differ"):
        to_darknet(str(trained_run), tmp_path / "refused.cfg")
    with pytest.raises(InputError, match="refused, the raw maps differ"):
        from_darknet(cfg, weights, tmp_path / "refused.safetensors")
    assert (tmp_path / taken).read_bytes() == b"mine"
    assert {path.name for path in tmp_path.iterdir()} == {taken, "other"}


@pytest.fixture(scope="module")
def exported_classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    """CSPPeleeNet as Darknet files: other programs know our networks only without Maxout and SAM."""
    config = load_config(ROOT / "configs/tiny.yaml")
    torch.manual_seed(0)
    network = build_classifier(ClassifierConfig(config.model.backbone, 10))  # type: ignore[union-attr]
    with torch.no_grad():
        network.train()(torch.rand(8, 3, 64, 64))  # fills the running statistics
    writer = CfgWriter()
    writer.route_to(_backbone(writer, network.eval().backbone)[-1])
    writer.section("avgpool")
    writer.conv(network.output, torch.nn.Identity(), "linear")
    writer.section("softmax", {"groups": 1})
    exported = _finish(writer, {"batch": 1, "subdivisions": 1, "height": 64, "width": 64, "channels": 3})
    cfg = tmp_path_factory.mktemp("export") / "x.cfg"
    cfg.write_text(exported.cfg_text)
    exported.save_weights(cfg.with_suffix(".weights"))
    return cfg, network


def test_opencv_runs_what_we_export(exported_classifier: tuple[Path, torch.nn.Module]) -> None:
    cfg, network = exported_classifier
    other = cv2.dnn.readNetFromDarknet(str(cfg), str(cfg.with_suffix(".weights")))
    images = torch.rand(1, 3, 64, 64)
    other.setInput(images.numpy())
    with torch.no_grad():
        # Measured 1.1e-5: OpenCV computes 3x3 convolutions by Winograd's method.
        assert np.abs(other.forward().reshape(1, 10) - network(images).softmax(1).numpy()).max() < 1e-4


@pytest.mark.skipif(shutil.which("darknet") is None, reason="Debian's darknet program is not installed")
def test_the_darknet_program_runs_what_we_export(
    exported_classifier: tuple[Path, torch.nn.Module], tmp_path: Path
) -> None:
    cfg, network = exported_classifier
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    theirs = run_darknet_program(cfg, pixels, tmp_path)
    with torch.no_grad():
        ours = network(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255).softmax(1)[0] * 100
    for index, share in theirs.items():
        assert float(ours[index]) == pytest.approx(share, abs=0.006)  # it prints two digits


def run_darknet_program(cfg: Path, pixels: np.ndarray, folder: Path) -> dict[int, float]:
    """The five best classes of a 10-class network by `darknet classifier predict`, in percent."""
    cv2.imwrite(str(folder / "a.png"), pixels[..., ::-1])
    (folder / "names").write_text("".join(f"class{index}\n" for index in range(10)))
    (folder / "x.data").write_text(f"classes=10\nlabels={folder}/names\nnames={folder}/names\ntop=5\n")
    files = [folder / "x.data", cfg, cfg.with_suffix(".weights"), folder / "a.png"]
    command = ["darknet", "classifier", "predict", *map(str, files)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder, check=False)
    found = {int(index): float(share) for share, index in re.findall(r"([\d.]+)%: class(\d+)", result.stdout)}
    assert len(found) == 5, result.stdout + result.stderr
    return found


TRAIN_CFG = """[net]
width=64
height=64
channels=3
batch=4
subdivisions=2
max_batches=3
learning_rate=0.001
burn_in=2
policy=steps
steps=2
scales=.1
saturation=1.5
hue=.1
[convolutional]
batch_normalize=1
filters=8
size=3
stride=8
pad=1
activation=leaky
[convolutional]
filters=24
size=1
stride=1
pad=1
activation=linear
[yolo]
mask=0,1,2
anchors=8,8, 16,16, 32,32
classes=3
num=3
jitter=.2
random=1
ignore_thresh=.6
iou_loss=ciou
iou_normalizer=.07
"""


def test_training_from_a_cfg(tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "x.cfg").write_text(TRAIN_CFG)
    network = load_darknet(tmp_path / "x.cfg")
    tree = experiment_tree(network, ("circle", "square", "triangle"))
    overrides = [f"data.root={tiny_data}", f"run_dir={tmp_path / 'run'}", "train.num_workers=0"]
    config = build_config(tree, tmp_path / "x.cfg", overrides)
    assert (config.loss.box, config.loss.box_weight, config.loss.ignore_threshold) == ("ciou", 0.07, 0.6)
    assert (config.train.max_steps, config.train.batch_size, config.train.policy.steps) == (3, 4, (2,))
    assert config.augment.multi_scale is not None
    assert (config.augment.multi_scale.min_size, config.augment.multi_scale.max_size) == (64, 96)
    network.save_weights(tmp_path / "start.weights")
    metrics = train(config, weights=str(tmp_path / "start.weights"))
    assert "ap50" in metrics
    loaded = load_detector(tmp_path / "run" / "best.safetensors")
    assert loaded.model.class_names == ("circle", "square", "triangle")
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").info["step"] == 3


def test_fine_tuning_reports_what_was_filled(trained_run: Path, tmp_path: Path) -> None:
    (tmp_path / "x.cfg").write_text(TRAIN_CFG)
    network = load_darknet(tmp_path / "x.cfg")
    network.save_weights(tmp_path / "all.weights")
    report = partial(str(tmp_path / "x.cfg"), str(tmp_path / "all.weights"), tmp_path / "first.1", num_layers=1)
    assert report["convolutions"] == 1
    other = load_darknet(tmp_path / "x.cfg")
    filled = load_initial_weights(other, tmp_path / "first.1")
    assert filled.summary() == "1 of 2 loaded; not in the file: layer 1 [convolutional]"
    assert torch.equal(other.convolutions()[0][1].conv.weight, network.convolutions()[0][1].conv.weight)
    (tmp_path / "odd").write_bytes((tmp_path / "all.weights").read_bytes()[:-4])
    with pytest.raises(InputError, match="does not end where a layer of this cfg ends"):
        load_initial_weights(other, tmp_path / "odd")
    native = load_config(ROOT / "configs/tiny.yaml").model
    bigger = build_detector(replace(native, class_names=("a", "b")))  # type: ignore[arg-type]
    matched = load_initial_weights(bigger, trained_run / "best.safetensors")
    assert sorted(matched.fresh) == [f"head.output.{i}.{kind}" for i in range(3) for kind in ("bias", "weight")]
    with pytest.raises(InputError, match="needs a model from a Darknet cfg"):
        load_initial_weights(bigger, tmp_path / "all.weights")


def test_convert_tool(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import runpy

    main = runpy.run_path(str(ROOT / "tools/convert.py"))["main"]
    main(["to-darknet", str(trained_run), str(tmp_path / "t.cfg"), "--json"])
    assert json.loads(capsys.readouterr().out)["largest_difference"] < 1e-5
