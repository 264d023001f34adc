"""Several processes that train one network together; torchrun starts them.

Each rank (process) computes its own slots of every batch; gradients and loss terms are summed over the ranks. A single
process is rank 0 of 1 and does not communicate.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from detector.errors import InputError

_T = TypeVar("_T")


@dataclass(frozen=True)
class Ranks:
    """One process among those that train together.

    Attributes:
        rank: this process's number; only rank 0 writes files.
        size: number of ranks.
        device: the device that this process computes on.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each number summed over the ranks, in float64."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(value) for value in total]

    def gather(self, items: list[_T]) -> list[_T]:
        """On rank 0 the items of all ranks, in rank order; on other ranks an empty list."""
        if self.size == 1:
            return items
        parts: list[Any] = [None] * self.size
        dist.gather_object(items, parts if self.first else None)
        return [item for part in parts for item in part] if self.first else []

    def broadcast(self, value: _T) -> _T:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box)
        answer: _T = box[0]
        return answer

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites tensors with those of rank 0; every rank passes the same ones in the same order."""
        if self.size > 1:
            with torch.no_grad():
                for tensor in tensors:
                    content = tensor.contiguous()  # gloo supports no other memory format
                    dist.broadcast(content, 0)
                    tensor.copy_(content)

    def wait(self) -> None:
        """Returns when all ranks have called it."""
        if self.size > 1:
            dist.barrier()

    def sum_gradients(self, network: nn.Module) -> None:
        """Adds up the gradients of all ranks, in one buffer whose layout never changes.

        DistributedDataParallel rebuilds its buckets after a process's first step. After a resume, sums over three or
        more ranks would then be rounded differently.
        """
        if self.size == 1:
            return
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        gradients = [
            parameter.grad if parameter.grad is not None else torch.zeros_like(parameter) for parameter in parameters
        ]
        buffer = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(buffer)
        sums = torch.split(buffer, [gradient.numel() for gradient in gradients])
        for parameter, gradient, total in zip(parameters, gradients, sums, strict=True):
            parameter.grad = gradient.copy_(total.view_as(gradient))


@contextmanager
def join_ranks() -> Iterator[Ranks]:
    """The processes that torchrun started (NCCL on GPUs, gloo otherwise), or this one alone.

    Raises:
        InputError: more processes than GPUs.
    """
    on_gpu = torch.cuda.is_available()
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield Ranks(0, 1, torch.device("cuda", 0) if on_gpu else torch.device("cpu"))
        return
    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if on_gpu and int(os.environ["LOCAL_WORLD_SIZE"]) > gpus:
        raise InputError(
            f"{os.environ['LOCAL_WORLD_SIZE']} processes for {gpus} GPU{'s' * (gpus > 1)}: start torchrun with "
            f"--nproc-per-node {gpus}"
        )
    device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(hours=1))
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


def first_process() -> bool:
    """Whether this process is rank 0, the only one that prints messages."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["RANK"] == "0"


class _SumOverRanks(torch.autograd.Function):
    """A differentiable sum over the ranks: each rank's gradient is the sum of all ranks' gradients."""

    @staticmethod
    def forward(_ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def _sum_over_ranks(values: Tensor) -> Tensor:
    total: Tensor = _SumOverRanks.apply(values)
    return total


class SynchronizedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation with statistics over all ranks' images; for CPUs, where PyTorch has no such layer.

    (B, C, H, W) -> the same shape.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        values = x.float()
        exact = values.double()  # the difference of two large sums would be lost in float32
        count = torch.full((1,), float(x.numel() // x.shape[1]), dtype=torch.float64, device=x.device)
        sums = torch.cat((count, exact.sum((0, 2, 3)), exact.square().sum((0, 2, 3))))  # (1 + 2C,)
        sums = _sum_over_ranks(sums)
        count, total, squares = torch.split(sums, [1, self.num_features, self.num_features])
        mean64 = total / count
        mean, variance = mean64.float(), (squares / count - mean64.square()).clamp(min=0).float()
        correction = float(count.detach() / (count.detach() - 1))
        self._remember(mean.detach(), variance.detach() * correction)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        centred = values - mean[:, None, None]
        out: Tensor = (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)
        return out

    @torch.no_grad()
    def _remember(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(unbiased_variance, self.momentum)
        self.num_batches_tracked += 1


def synchronize_batchnorm(network: nn.Module) -> None:
    """Replaces every BatchNorm2d with one that uses all ranks' statistics; parameters and names do not change."""
    for module in network.modules():
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, _synchronized(child))


def _synchronized(norm: nn.BatchNorm2d) -> nn.Module:
    if norm.weight.is_cuda:
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(norm)  # type: ignore[no-untyped-call]
        return converted
    twin = SynchronizedBatchNorm(norm.num_features, eps=norm.eps, momentum=norm.momentum)
    twin.weight, twin.bias = norm.weight, norm.bias
    twin.running_mean, twin.running_var = norm.running_mean, norm.running_var
    twin.num_batches_tracked = norm.num_batches_tracked
    return twin.train(norm.training)
