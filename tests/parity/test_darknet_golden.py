"""Layer by layer against outputs of the Darknet C program (tests skip where the reference files are absent)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from detector.analysis.complexity import section_bflops
from detector.darknet import load_darknet

DARKNET = Path(__file__).resolve().parents[3] / "shared" / "darknet"
CFGS = sorted(DARKNET.glob("cfg/*.cfg"))
LAYERS = json.loads((DARKNET / "layers.json").read_text()) if (DARKNET / "layers.json").exists() else {}

pytestmark = pytest.mark.skipif(
    not DARKNET.is_dir(), reason="the Darknet reference files ../shared/darknet are not here"
)


@pytest.mark.parametrize("name", ["dev_layers", "dev_classifier"])
def test_every_section_gives_what_darknet_gives(name: str) -> None:
    golden = np.load(DARKNET / f"golden/{name}.npz")
    network = load_darknet(DARKNET / f"golden/{name}.cfg", DARKNET / f"golden/{name}.weights")
    with torch.no_grad():
        outputs = network(torch.from_numpy(golden["input"]), all_layers=True)
    assert len(outputs) == len(golden.files) - 1
    for index, output in enumerate(outputs):
        expected = golden[f"layer{index:03d}"]
        assert tuple(output.shape) == expected.shape, index
        scale = max(float(np.abs(expected).max()), 1e-6)
        # Measured 1e-6 or less: float32 sums in another order. Mish and swish use Darknet's own approximations.
        assert np.abs(output.numpy() - expected).max() / scale < 1e-5, (index, network.kinds[index])


def test_yolo_fastest_reads_the_real_picture_as_darknet_does() -> None:
    golden = np.load(DARKNET / "golden/yolo-fastest-1.1.npz")
    weights = DARKNET / "weights/yolo-fastest-1.1.weights"
    network = load_darknet(weights.with_suffix(".cfg"), weights)
    images = torch.from_numpy(golden["input"])
    with torch.no_grad():
        raw_maps, every = network(images), network(images, all_layers=True)
    for raw_map, source, activated in zip(raw_maps, (120, 129), (121, 130), strict=True):
        assert np.abs(raw_map.numpy() - golden[f"layer{source}"]).max() < 1e-3
        assert np.abs(every[activated].numpy() - golden[f"layer{activated}"]).max() < 1e-3


@pytest.mark.parametrize("path", CFGS, ids=lambda path: path.stem)
def test_every_cfg_has_darknets_shapes_costs_and_parameters(path: Path) -> None:
    network = load_darknet(path)
    shapes, bflops = section_bflops(network)
    params = sum(p.numel() for p in network.parameters())
    reference = LAYERS.get(path.stem)
    if reference is None:  # the program of today refuses them; PAPER: 22.73, 22.19, 5.24 M and 9.74, 10.11, 2.273
        published = {"resnet10": (5.24, 2.273), "resnet50": (22.73, 9.74), "resnext50": (22.19, 10.11)}[path.stem]
        convolutions = sum(p.numel() for n, p in network.named_parameters() if ".norm." not in n)
        assert convolutions / 1e6 == pytest.approx(published[0], abs=0.006)  # resnet50 is 22.735, published as 22.73
        assert sum(bflops) == pytest.approx(published[1], rel=0.002)
        return
    # The program leaves the shape of a softmax at 0; ours has the shape of its input.
    ours = [[0, 0, 0] if kind == "softmax" else list(shape) for kind, shape in zip(network.kinds, shapes, strict=True)]
    assert ours == [layer["out"] for layer in reference["layers"]]
    # layers.json has six decimals
    assert bflops == pytest.approx([layer["bflops"] for layer in reference["layers"]], abs=6e-7)
    assert params == reference["params_with_bn_affine"]


@pytest.mark.parametrize("path", CFGS, ids=lambda path: path.stem)
def test_weights_round_trip_byte_for_byte(path: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = load_darknet(path)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor))
    network.save_weights(tmp_path / "a.weights")
    again = load_darknet(path, tmp_path / "a.weights")
    again.save_weights(tmp_path / "b.weights")
    assert (tmp_path / "a.weights").read_bytes() == (tmp_path / "b.weights").read_bytes()
    for name, tensor in network.state_dict().items():
        assert "num_batches" in name or torch.equal(tensor, again.state_dict()[name])


@pytest.mark.parametrize("name", ["dev_layers", "dev_classifier"])
def test_darknets_own_weights_survive(name: str, tmp_path: Path) -> None:
    weights = DARKNET / f"golden/{name}.weights"
    network = load_darknet(weights.with_suffix(".cfg"), weights)
    network.save_weights(tmp_path / "w.weights")
    assert (tmp_path / "w.weights").read_bytes() == weights.read_bytes()
