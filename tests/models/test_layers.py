"""Layers against hand-computed numbers; folding changes no output."""

import pytest
import torch
from torch import nn

from detector.models.layers import (
    ACTIVATIONS,
    ConvBN,
    Maxout,
    SpatialAttention,
    concatenate,
    fold_batchnorm,
    init_weights,
)


def test_maxout_takes_strided_groups() -> None:
    x = torch.tensor([1.0, 5.0, 3.0, 2.0, 4.0, 0.0]).view(1, 6, 1, 1)
    assert Maxout(2)(x).flatten().tolist() == [4, 5]  # channels 0, 2, 4 and 1, 3, 5
    assert Maxout(3)(x).flatten().tolist() == [2, 5, 3]  # 0, 3 and 1, 4 and 2, 5


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_maxout_is_the_same_while_training(memory_format: torch.memory_format) -> None:
    x = torch.randn(2, 12, 5, 7).contiguous(memory_format=memory_format).requires_grad_()
    maxout = Maxout(4)
    expected = maxout.eval()(x)
    weights = torch.randn_like(expected)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), x)
    found = maxout.train()(x)
    (gradient,) = torch.autograd.grad((found * weights).sum(), x)
    assert torch.equal(found, expected)
    assert torch.equal(gradient, expected_gradient)


def test_maxout_gives_the_gradient_of_a_tie_once() -> None:
    x = torch.zeros(1, 6, 1, 1, requires_grad=True)
    Maxout(2).train()(x).sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [1, 1, 0, 0, 0, 0]  # the first of equals, as in Darknet


def test_concatenation_equals_cat_in_value_and_gradient() -> None:
    maps = [torch.randn(2, channels, 3, 3, requires_grad=True) for channels in (1, 4, 2)]
    weights = torch.randn(2, 7, 3, 3)
    expected = torch.autograd.grad((torch.cat(maps, dim=1) * weights).sum(), maps)
    found = torch.autograd.grad((concatenate(*maps) * weights).sum(), maps)
    assert torch.equal(concatenate(*maps), torch.cat(maps, dim=1))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(part.is_contiguous(memory_format=torch.channels_last) for part in found)
    with torch.no_grad():
        assert concatenate(*maps).grad_fn is None


def test_spatial_attention_scales_each_channel() -> None:
    layer = SpatialAttention(2)
    nn.init.zeros_(layer.gate.weight)
    assert layer.gate.bias is not None
    nn.init.zeros_(layer.gate.bias)
    x = torch.rand(1, 2, 3, 3)
    assert torch.allclose(layer(x), x / 2)


@pytest.mark.parametrize(("kernel_size", "stride", "side"), [(1, 1, 7), (3, 1, 7), (3, 2, 4), (7, 2, 4)])
def test_padding_keeps_darknets_sizes(kernel_size: int, stride: int, side: int) -> None:
    assert ConvBN(1, 1, kernel_size, stride=stride)(torch.zeros(2, 1, 7, 7)).shape[2:] == (side, side)


def test_leaky_slope_is_darknets() -> None:
    assert ACTIVATIONS["leaky"]()(torch.tensor([-2.0])).item() == pytest.approx(-0.2)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_folding_changes_no_output(activation: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(ConvBN(3, 8, 3, activation=activation), ConvBN(8, 4, 1, groups=2, activation=activation))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
    images = torch.rand(2, 3, 16, 16)
    expected = network.eval()(images)
    folded = fold_batchnorm(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert (folded(images) - expected).abs().max() < 1e-5
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules()), "the original was changed"


def test_init_is_darknets() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 256, 3, groups=2)
    init_weights(conv)
    assert float(conv.weight.detach().std()) == pytest.approx((2 / (3 * 3 * 32)) ** 0.5, rel=0.02)
    assert conv.bias is not None
    assert conv.bias.abs().max() == 0
