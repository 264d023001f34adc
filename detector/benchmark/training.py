"""How fast training is on this machine: each loader stage, and steps compared with plain fp32 and the peak.

Legend: B images per step.
"""

from __future__ import annotations

import multiprocessing
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import torch

from detector.analysis.complexity import measure_complexity, total_complexity
from detector.analysis.peak import matrix_product_gflops
from detector.config import DetectConfig
from detector.data.batch import Batch
from detector.data.collate import collate
from detector.data.dataset import DetectionDataset
from detector.data.samples import TrainingSamples
from detector.errors import InputError
from detector.inference.build import build_network
from detector.loss import LossTerms
from detector.models.precision import autocast, compute_dtype, to_network_input
from detector.runtime.device import find_device
from detector.train.detection import build_loss, loss_terms
from detector.train.forensics import is_finite
from detector.train.memory import keep_freed_memory
from detector.train.state import fresh_state

_TRAINING_COST = 3
"""A step costs one forward pass, and twice that for the gradients."""


def loader_table(config: DetectConfig, dataset: DetectionDataset, *, num_images: int) -> dict[str, Any]:
    """Milliseconds per image in one loader process, by stage, first with an empty cache and then with a filled one.

    Args:
        config: the experiment's config.
        dataset: to read.
        num_images: number of images to measure over; at least one batch is read.

    Returns:
        `cold` (the first images) and `warm` (the next ones), each: read, decode, augment, mosaic, collate, total (ms),
        images_per_second.
    """
    samples = TrainingSamples(dataset, config)
    batch_size = config.train.batch_size
    num_steps = max(num_images // batch_size, 1)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {
            name: _time_loader(samples, range(start, start + num_steps), batch_size)
            for name, start in (("cold", 0), ("warm", num_steps))
        }
    finally:
        torch.set_num_threads(num_threads)


def _time_loader(samples: TrainingSamples, steps: range, batch_size: int) -> dict[str, float]:
    before, collating = dict(samples.stage_seconds), 0.0
    started = time.perf_counter()
    for step in steps:
        batch = [samples[(step, slot)] for slot in range(batch_size)]
        collate_started = time.perf_counter()
        collate(batch)
        collating += time.perf_counter() - collate_started
    elapsed = time.perf_counter() - started
    count = len(steps) * batch_size
    stages = {name: seconds - before[name] for name, seconds in samples.stage_seconds.items()}
    row = {name: 1e3 * seconds / count for name, seconds in {**stages, "collate": collating, "total": elapsed}.items()}
    return {**row, "images_per_second": count / elapsed}


def training_table(config: DetectConfig, *, rounds: int, device: str = "cpu") -> dict[str, Any]:
    """Images per second of the config's training steps and of plain fp32 ones, measured in turn.

    Plain: the same network in fp32 with PyTorch's default memory format and memory allocation, without averaging and
    checks (it does have the faster gradients of Maxout and concatenation). Each side is its own process, since memory
    allocation is set per process. Batches are random and ready in memory.

    Args:
        config: the experiment's config, which sets batch size, network size and precision.
        rounds: number of rounds, with one step for each side; two warm-up rounds come first.
        device: see `find_device`.

    Returns:
        rows `fp32` and `ours`: images_per_second, gflops (achieved), share_of_peak; and `speedup`, `peak_gflops`, ...
    """
    seconds: dict[str, list[float]] = {"fp32": [], "ours": []}
    peak, dtype = 0.0, compute_dtype(config.train.precision, find_device(device))
    plain, full = (_steps_in_a_process(config, plain=plain, device=device) for plain in (True, False))
    with plain as fp32, full as ours:
        for number in range(rounds + 2):
            peak = max(peak, matrix_product_gflops(dtype, device=device))
            for name, run_step in (("fp32", fp32), ("ours", ours)):
                elapsed = run_step()
                if number >= 2:
                    seconds[name].append(elapsed)
    cost = _TRAINING_COST * _forward_gflop(config) * config.train.batch_size
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = {
        name: {
            "images_per_second": config.train.batch_size / median,
            "gflops": cost / median,
            "share_of_peak": cost / median / peak,
        }
        for name, median in medians.items()
    }
    ratios = [a / b for a, b in zip(seconds["fp32"], seconds["ours"], strict=True)]
    return {
        **rows,
        "speedup": statistics.median(ratios),
        "peak_gflops": peak,
        "gflop_per_image": cost / config.train.batch_size,
        "batch_size": config.train.batch_size,
        "size_hw": list(config.preprocess.size_hw),
        "threads": torch.get_num_threads(),
    }


@contextmanager
def _steps_in_a_process(config: DetectConfig, *, plain: bool, device: str) -> Iterator[Callable[[], float]]:
    """A function that computes one training step in another process and returns its seconds."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    arguments = (theirs, config, plain, device, torch.get_num_threads())
    process = context.Process(target=_answer_with_steps, args=arguments, daemon=True)
    process.start()
    theirs.close()

    def run_step() -> float:
        try:
            ours.send("step")
            answer = ours.recv()
        except (EOFError, OSError) as error:
            raise InputError(
                "benchmark: the training process ended, probably out of memory; raise train.subdivisions"
            ) from error
        if isinstance(answer, str):
            raise InputError(f"benchmark: {answer}")
        return float(answer)

    try:
        yield run_step
    finally:
        ours.close()
        process.join()


def _answer_with_steps(pipe: Connection, config: DetectConfig, plain: bool, device: str, num_threads: int) -> None:
    """Runs in the other process: one step for each message, until the pipe is closed; an error is sent as text."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the main process, which closes the pipe
    try:
        torch.set_num_threads(num_threads)
        if plain:
            step = _plain_step(config, torch.device(device))
        else:
            keep_freed_memory()
            step = training_step(config, torch.device(device))
        while pipe.recv():
            started = time.perf_counter()
            step()
            if device != "cpu":
                torch.cuda.synchronize()
            pipe.send(time.perf_counter() - started)
    except EOFError:
        pass
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")


def training_step(config: DetectConfig, device: torch.device) -> Callable[[], Any]:
    """A function that computes what the training loop computes in a step, and returns the loss terms (T,)."""
    state = fresh_state(config, device)
    loss_of, batch = loss_terms(config, state.network, device), random_batch(config)

    def step() -> Any:
        state.optimizer.zero_grad(set_to_none=True)
        totals, healthy = torch.zeros(len(LossTerms._fields), dtype=torch.float64, device=device), []
        for _ in range(config.train.subdivisions):
            with autocast(device, config.train.precision):
                raw_maps = state.network(to_network_input(batch.images, device))
            loss = loss_of(raw_maps, batch)
            loss.sum().backward()  # type: ignore[no-untyped-call]
            totals += loss.detach()
            healthy.append(is_finite(loss, state.network))
        *terms, num_healthy = torch.cat((totals, torch.stack(healthy).sum()[None])).tolist()
        if num_healthy < len(healthy):
            raise InputError("the loss or a gradient is not finite")
        state.optimizer.step()
        if state.ema is not None:
            state.ema.update(state.network, state.step)
        state.step += 1
        return terms

    return step


def _plain_step(config: DetectConfig, device: torch.device) -> Callable[[], None]:
    """The simplest version: float32, PyTorch's defaults, zero_grad, forward, loss, backward, step."""
    state = fresh_state(config, device)
    network = state.network.to(memory_format=torch.contiguous_format)
    loss, batch = build_loss(config, network), random_batch(config)
    images = batch.images.contiguous().to(device)
    boxes_xyxy, labels = batch.boxes_xyxy.to(device), batch.labels.to(device)

    def step() -> None:
        state.optimizer.zero_grad()
        for _ in range(config.train.subdivisions):
            raw_maps = network(images.float() / 255)
            terms = loss(raw_maps, boxes_xyxy, labels, batch_size=config.train.batch_size)
            terms.total().backward()  # type: ignore[no-untyped-call]
        state.optimizer.step()

    return step


def random_batch(config: DetectConfig, objects: int = 15) -> Batch:
    """Noise with boxes at random places, for one part of a step."""
    generator = torch.Generator().manual_seed(0)
    height, width = config.preprocess.size_hw
    count = config.train.batch_size // config.train.subdivisions
    corner = torch.rand(count, objects, 2, generator=generator) * torch.tensor([width * 0.8, height * 0.8])
    extent = (0.05 + 0.15 * torch.rand(count, objects, 2, generator=generator)) * min(height, width)
    labels = torch.randint(config.model.num_classes, (count, objects), generator=generator)
    return Batch(
        images=torch.randint(256, (count, height, width, 3), dtype=torch.uint8, generator=generator).permute(
            0, 3, 1, 2
        ),
        boxes_xyxy=torch.cat((corner, corner + extent), dim=2),
        labels=labels,
        image_ids=list(range(count)),
    )


def _forward_gflop(config: DetectConfig) -> float:
    network = build_network(config.model)
    costs = measure_complexity(network, config.preprocess.size_hw)
    return total_complexity(network, costs).bflops


def loader_text(table: dict[str, Any], num_workers: int) -> str:
    """`loader_table` as text."""
    stages = ("read", "decode", "augment", "mosaic", "collate", "total")
    lines = [f"{'ms per image':<14}" + "".join(f"{stage:>9}" for stage in stages) + f"{'images/s per worker':>22}"]
    for name, row in table.items():
        numbers = "".join(f"{row[stage]:>9.2f}" for stage in stages)
        lines.append(f"{name + ' cache':<14}{numbers}{row['images_per_second']:>22.1f}")
    return "\n".join([*lines, f"the config uses {num_workers} workers"])


def training_text(table: dict[str, Any]) -> str:
    """`training_table` as text."""
    height, width = table["size_hw"]
    lines = [
        f"batch {table['batch_size']}, {height}x{width}, {table['threads']} threads, "
        f"{table['gflop_per_image']:.1f} GFLOP per image, matrix-product peak {table['peak_gflops']:.0f} GFLOP/s",
        f"{'':<12}{'images/s':>10}{'GFLOP/s':>10}{'of peak':>10}",
    ]
    for name, title in (("fp32", "plain fp32"), ("ours", "this config")):
        row = table[name]
        lines.append(
            f"{title:<12}{row['images_per_second']:>10.2f}{row['gflops']:>10.0f}{100 * row['share_of_peak']:>9.1f}%"
        )
    return "\n".join([*lines, f"{table['speedup']:.2f} times as fast as plain fp32 (median of steps taken in turn)"])
