"""One optimiser step: forward, loss and backward for each part of the batch, then the update and the averaging."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detector.config import RunConfig
from detector.engine.distributed import Ranks, synchronize_batchnorm
from detector.engine.forensics import (
    explain_out_of_memory,
    first_nonfinite_gradient,
    first_nonfinite_layer,
)
from detector.engine.optim import learning_rate_at
from detector.engine.state import RunState
from detector.engine.task import AnyBatch, Loss, SaveBatch
from detector.errors import InputError


class TrainingStep:
    """Computes steps of a run on this rank.

    Args:
        config: of the experiment.
        state: is moved on, but for its step counter.
        ranks: of which this process is one.
        loss: (outputs of the network, batch) -> loss terms by name.
        save_batch: writes a batch with a value that is not finite into a folder.
    """

    def __init__(self, config: RunConfig, state: RunState, ranks: Ranks, loss: Loss, save_batch: SaveBatch) -> None:
        self.config = config
        self.state = state
        self.ranks = ranks
        self.loss = loss
        self.save_batch = save_batch
        self.precision = torch.bfloat16 if use_bf16(config.train.precision) else torch.float32
        if config.train.sync_batchnorm and ranks.size > 1:
            synchronize_batchnorm(state.network)

    def __call__(self, batches: Iterator[AnyBatch]) -> dict[str, float]:
        """The loss terms of this rank's images.

        Args:
            batches: gives the parts of this step's batch next.

        Raises:
            InputError: a value is not finite (the batch is saved in the run's folder), or the memory is used up.
        """
        settings = self.config.train
        with explain_out_of_memory(
            settings.batch_size // self.ranks.size, settings.subdivisions, fp32=self.precision == torch.float32
        ):
            return self._compute(batches)

    def _compute(self, batches: Iterator[AnyBatch]) -> dict[str, float]:
        state = self.state
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate_at(state.step, self.config.train)
        state.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        for _ in range(self.config.train.subdivisions):
            batch = next(batches)
            terms = self._forward(batch)
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + float(term.detach())
            bad_loss = not all(map(math.isfinite, sums.values()))
            self._stop_if(bad_loss, batch, partial(self._first_layer, batch))
            total: Any = sum(terms.values())
            total.backward()
            gradient = first_nonfinite_gradient(state.network)
            self._stop_if(gradient is not None, batch, partial(str, gradient))
        self.ranks.sum_gradients(state.network)
        state.optimizer.step()
        if state.ema is not None:
            state.ema.update(state.network, state.step)
        return sums

    def _stop_if(self, bad: bool, batch: AnyBatch, place: Callable[[], str]) -> None:
        """Stops all ranks together when one of them met a value that is not finite; each saves what it was at."""
        if self.ranks.sum([float(bad)])[0] > 0:
            where = place()  # on all ranks: it may exchange statistics
            raise self._nonfinite(where if bad else "another process", batch)

    def _first_layer(self, batch: AnyBatch) -> str:
        with self._autocast():
            return first_nonfinite_layer(self.state.network, self._input(batch))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.ranks.device.type, self.precision, enabled=self.precision != torch.float32)

    def _input(self, batch: AnyBatch) -> Tensor:
        return to_network_input(batch.images, self.ranks.device)  # (B, 3, H, W)

    def _forward(self, batch: AnyBatch) -> dict[str, Tensor]:
        with self._autocast():
            outputs = self.state.network(self._input(batch))
        return self.loss(outputs, batch)

    def _nonfinite(self, where: str, batch: AnyBatch) -> InputError:
        assert self.config.run_dir is not None
        step = self.state.step + 1
        rank = f"_rank_{self.ranks.rank}" if self.ranks.size > 1 else ""
        folder = Path(self.config.run_dir) / f"nonfinite_step_{step}{rank}"
        try:
            self.save_batch(folder, batch)
        except OSError as error:
            folder = Path(f"(not saved: {error.strerror})")
        return InputError(
            f"step {step}: the first value that is not finite is in {where}, images {batch.image_ids}, saved in "
            f"{folder}; lower train.learning_rate, lengthen train.burn_in, or look at these images"
        )


def to_network_input(images: Tensor, device: torch.device) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 in [0, 1] on the device, channels_last."""
    return images.to(device, non_blocking=True).to(memory_format=torch.channels_last).float().div_(255)


def use_bf16(precision: str) -> bool:
    """Whether to compute in bfloat16; `auto` asks the processor, or the GPU where there is one."""
    if precision == "auto":
        if torch.cuda.is_available():
            return bool(torch.cuda.is_bf16_supported())
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and torch.cpu._is_avx512_bf16_supported()
    return precision == "bf16"
