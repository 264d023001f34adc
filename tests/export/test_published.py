"""Published CSPDarknet53 classifiers in our notation: the same outputs as their own programs give."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from detector.checkpoint import load_checkpoint
from detector.config import ClassifierConfig, CSPDarknet53Config, load_config
from detector.darknet.export import export_detector
from detector.errors import InputError
from detector.export.published import from_published
from detector.models.build import build_classifier, build_detector
from detector.train.finetune import load_initial_weights

ROOT = Path(__file__).resolve().parents[2]
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
HOLOCRON = (  # its modules in the notation of timm; equal to its own program with these names, pylocron 0.3.0
    ("stem.conv1.conv", "features.stem.0"),
    ("stem.conv1.bn", "features.stem.1"),
    ("conv_down.conv", "base_layer.0"),
    ("conv_down.bn", "base_layer.1"),
    ("conv_exp.conv", "base_layer.3"),
    ("conv_exp.bn", "base_layer.4"),
    ("conv1.conv", "conv.0"),
    ("conv1.bn", "conv.1"),
    ("conv2.conv", "conv.3"),
    ("conv2.bn", "conv.4"),
    ("conv_transition.conv", "transition.0"),
    ("conv_transition.bn", "transition.1"),
    ("blocks.", "main."),
    ("head.fc", "classifier"),
)


@pytest.fixture(scope="module")
def published() -> nn.Module:
    """Timm's network with random weights, normalisation included."""
    torch.manual_seed(0)
    network = timm.create_model("cspdarknet53", num_classes=7).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network


def to_holocron(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        for theirs, other in HOLOCRON:
            name = name.replace(theirs, other)
        if ".conv_transition_b." in name:  # its last layers follow the blocks in one sequence
            stage = int(name.split(".")[1])
            for offset, part in enumerate(("conv", "bn")):
                name = name.replace(f"conv_transition_b.{part}", f"main.{(1, 2, 8, 8, 4)[stage] + offset}")
        renamed[name if name.startswith(("features", "classifier")) else f"features.{name}"] = value
    return renamed


def logits(path: Path, images: Tensor) -> Tensor:
    checkpoint = load_checkpoint(path)
    assert isinstance(checkpoint.model, ClassifierConfig)
    network = build_classifier(checkpoint.model)
    network.load_state_dict(checkpoint.weights())
    with torch.no_grad():
        out: Tensor = network.eval()(images)
    return out


def with_drop_block(name: str) -> str:
    """Holocron's network with Mish has a layer without tensors after each activation."""
    for sequence in ("base_layer", "conv"):
        name = name.replace(f"{sequence}.4.", f"{sequence}.5.").replace(f"{sequence}.3.", f"{sequence}.4.")
    return name


@pytest.mark.parametrize(
    ("name", "source"), [("cspdarknet53", "timm"), ("cspdarknet53", "holocron"), ("cspdarknet53_mish", "holocron")]
)
def test_the_outputs_are_those_of_the_published_network(
    published: nn.Module, name: str, source: str, tmp_path: Path
) -> None:
    published = copy.deepcopy(published)
    if name.endswith("mish"):
        for module in published.modules():
            if isinstance(module, BatchNormAct2d):
                module.act = nn.Mish()
    if source == "timm":
        save_file(published.state_dict(), tmp_path / "model.safetensors")
        file = tmp_path / "model.safetensors"
    else:
        file = tmp_path / "pytorch_model.bin"
        state = to_holocron(published.state_dict())
        torch.save({with_drop_block(key): state[key] for key in state} if name.endswith("mish") else state, file)
    if source == "holocron":
        other = "cspdarknet53" if name.endswith("mish") else "cspdarknet53_mish"
        with pytest.raises(InputError, match="is Holocron's other network"):
            from_published(other, file, tmp_path / "ours.safetensors")
    report = from_published(name, file, tmp_path / "ours.safetensors")
    assert (report["classes"], report["source"]) == (7, source)
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = published((images - MEAN) / STD)
    given = logits(tmp_path / "ours.safetensors", images)
    assert (given - expected).abs().max() / expected.abs().max() < 1e-5


def test_it_starts_a_detector_and_says_what_was_taken(published: nn.Module, tmp_path: Path) -> None:
    save_file(published.state_dict(), tmp_path / "model.safetensors")
    from_published("cspdarknet53", tmp_path / "model.safetensors", tmp_path / "ours.safetensors")
    config = load_config(ROOT / "configs/cspdarknet53_efm.yaml").model
    model = replace(config, backbone=CSPDarknet53Config("cspdarknet53", standardize=True), activation="leaky_001")
    detector = build_detector(model)  # type: ignore[arg-type]
    report = load_initial_weights(detector, tmp_path / "ours.safetensors", model)
    assert {name.partition(".")[0] for name in report.fresh} == {"neck", "head"}
    assert report.left == ["output.bias", "output.weight"]
    assert not report.warning
    with pytest.raises(InputError, match="cannot normalise images"):
        export_detector(detector, model, load_config(ROOT / "configs/cspdarknet53_efm.yaml").preprocess)  # type: ignore[arg-type]
    other = load_initial_weights(build_detector(config), tmp_path / "ours.safetensors", config)  # type: ignore[arg-type]
    assert "trained with model.activation=leaky_001, here it is leaky" in other.summary()
    assert "trained with model.backbone.standardize=True, here it is False" in other.summary()
    assert "left in the file: backbone.mean, backbone.std" in other.summary()


def test_another_slope_is_not_written_as_darknets(tmp_path: Path) -> None:
    config = load_config(ROOT / "configs/tiny.yaml")
    model = replace(config.model, activation="leaky_001")
    with pytest.raises(InputError, match=r"a slope of 0\.1, this network's 0\.01"):
        export_detector(build_detector(model), model, config.preprocess)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"stem.conv1.conv.weight": torch.zeros(1)}, "is not a CSPDarknet53 of timm or Holocron"),
        ({"stem.conv1.conv.weight": torch.tensor(0.0)}, "is not a CSPDarknet53 of timm or Holocron"),
        ({"a": 1}, "expected a dict of tensors"),
        (Path("x"), "holds code, which is not run"),
    ],
)
def test_other_files_are_refused(content: object, expected: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.bin")
    with pytest.raises(InputError, match=expected):
        from_published("cspdarknet53", tmp_path / "x.bin", tmp_path / "ours.safetensors")
    assert not (tmp_path / "ours.safetensors").exists()
    with pytest.raises(InputError, match="expected one of cspdarknet53, cspdarknet53_mish"):
        from_published("cspdarknet", tmp_path / "x.bin", tmp_path / "ours.safetensors")
