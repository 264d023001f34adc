"""Training: one visible loop. A run is a function of its config; resuming means starting at step N.

Legend: B images in a part of the batch, T loss terms.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detector.config import ClassifyConfig, RunConfig
from detector.data.images import write_image
from detector.data.loader import explain_lost_workers
from detector.data.synthetic import ensure_synthetic_dataset
from detector.errors import InputError
from detector.models.precision import autocast, gpu_arithmetic, to_network_input
from detector.render import tile
from detector.train.classification import ClassificationTask
from detector.train.detection import DetectionTask
from detector.train.distributed import Ranks, join_ranks, synchronize_batchnorm
from detector.train.finetune import load_initial_weights
from detector.train.forensics import Suspect, explain_nonfinite, explain_out_of_memory, is_finite
from detector.train.lock import run_lock
from detector.train.log import RunLog
from detector.train.memory import keep_freed_memory
from detector.train.optim import learning_rate_at
from detector.train.parts import resolve_subdivisions
from detector.train.scratch import scratch_folder
from detector.train.state import RunState, save_state, save_weights, start_run
from detector.train.task import Measurement, Task
from detector.train.throughput import Throughput


class InterruptedRunError(Exception):
    """The user asked to stop; everything is saved."""


def train(
    config: RunConfig,
    *,
    resume: bool = False,
    allow_change: bool = False,
    weights: str | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Trains and evaluates; writes config.yaml, metrics.jsonl, {last,best}.safetensors, report.html and tensorboard/.

    Args:
        config: the run's config, with run_dir set.
        resume: continue the run in run_dir, or start it if there is none.
        allow_change: resume also with other settings; the change is recorded in the run.
        weights: start a new run from the tensors of this file that fit (see `load_initial_weights`).
        progress: show a bar on stderr.

    Returns:
        The metrics of the last evaluation; for this session's steps also `images_per_second`, and
        `share_of_steps_that_waited` more than 20 ms for the loader (both None without any step).

    Raises:
        InputError: bad data, another run in the folder, a loss that is not finite.
        InterruptedRunError: Ctrl-C or SIGTERM; the state is saved.
    """
    keep_freed_memory()
    arithmetic = gpu_arithmetic(tf32=config.train.precision == "tf32", deterministic=config.train.deterministic)
    with arithmetic, join_ranks() as ranks, scratch_folder():
        config = ranks.broadcast(resolve_subdivisions(config, ranks.device, ranks.size) if ranks.first else config)
        _check_ranks(config, ranks)
        task = open_task(config, ranks)
        if weights is not None and not Path(weights).is_file():
            raise InputError(f"{weights}: no such weights file")
        with run_lock(_run_dir(config), ranks):
            state = start_run(config, ranks, resume=resume, allow_change=allow_change, notes=task.notes)
            message = _load_weights(state, config, weights)
            with RunLog(config, start_step=state.step, enabled=ranks.first, progress=progress) as log:
                for line in (message, *state.changes, *task.describe_data()):
                    log.print(line)
                return _run(config, state, task, ranks, log)


def _run(config: RunConfig, state: RunState, task: Task, ranks: Ranks, log: RunLog) -> dict[str, Any]:
    """The loop over the optimiser steps."""
    settings, network, device = config.train, state.network, ranks.device
    if settings.sync_batchnorm and ranks.size > 1:
        synchronize_batchnorm(network)
    loss_of = task.build_loss(network)
    batches = Throughput(task.batches(state.step), settings.batch_size)
    measured: Measurement | None = None
    with stop_signals() as signals, explain_lost_workers(), closing(batches):
        if not state.evaluated:  # the evaluation due at this step had failed when the run was last saved
            measured = _evaluate(config, state, task, ranks, log)
        while state.step < settings.max_steps:
            with batches.step(), explain_out_of_memory(config, ranks):
                for group in state.optimizer.param_groups:
                    group["lr"] = learning_rate_at(state.step, settings)
                state.optimizer.zero_grad(set_to_none=True)
                totals = torch.zeros(len(task.terms), dtype=torch.float64, device=device)
                parts: list[Suspect] = []
                healthy: list[Tensor] = []
                for _ in range(settings.subdivisions):
                    batch = next(batches)
                    with autocast(device, settings.precision):
                        outputs = network(to_network_input(batch.images, device))
                    loss = loss_of(outputs, batch)  # (T,)
                    (loss.sum() * state.scale.value).backward()  # type: ignore[no-untyped-call]
                    totals += loss.detach()
                    parts.append(Suspect(batch, loss.detach()))
                    healthy.append(is_finite(loss, network))
                # The only time that the CPU waits for the device; then one exchange for all that the ranks must agree
                # on, except the gradients.
                *sums, num_healthy = torch.cat((totals, torch.stack(healthy).sum()[None])).tolist()
                *sums, num_suspects, num_signals = ranks.sum([*sums, len(parts) - num_healthy, len(signals)])
                if num_suspects and not state.scale.active:
                    suspect = next((part for part, good in zip(parts, healthy, strict=True) if not good), None)
                    raise explain_nonfinite(config, state, ranks, suspect, batch, task.save_batch)
                state.scale.unscale(network)
                if not num_suspects:
                    ranks.sum_gradients(network)
                    state.optimizer.step()
                    if state.ema is not None:
                        state.ema.update(network, state.step)
                state.scale.update(finite=not num_suspects)
            state.step += 1
            _log_step(config, state, task, log, sums, batches.figures())

            is_last = state.step == settings.max_steps
            if is_last or (config.evaluate.every and state.step % config.evaluate.every == 0):
                try:
                    measured = _evaluate(config, state, task, ranks, log)
                except Exception:
                    _save(config, state, ranks)  # an unreadable image must not lose training; --resume evaluates again
                    raise
            if is_last or num_signals or state.step % settings.save_every == 0:
                _save(config, state, ranks)
            if num_signals and not is_last:
                raise InterruptedRunError(f"stopped after step {state.step}; continue with --resume")
        if ranks.sum([len(signals)])[0] > 0:  # during the last evaluation
            raise InterruptedRunError("stopped before the report; continue with --resume")
    return _finish(config, state, task, ranks, log, measured, batches.figures())


def open_task(config: RunConfig, ranks: Ranks) -> Task:
    """The run's task, with its data sets opened. Raises: InputError."""
    if isinstance(config, ClassifyConfig):
        return ClassificationTask(config, ranks)
    if ranks.first and config.data.synthetic is not None:
        ensure_synthetic_dataset(Path(config.data.root), config.data.synthetic)
    ranks.wait()
    return DetectionTask(config, ranks)


def _run_dir(config: RunConfig) -> Path:
    assert config.run_dir is not None, "load_config sets it"
    return Path(config.run_dir)


def _check_ranks(config: RunConfig, ranks: Ranks) -> None:
    settings = config.train
    parts = ranks.size * settings.subdivisions
    if settings.batch_size % parts:
        raise InputError(
            f"train.batch_size {settings.batch_size} cannot be shared by {ranks.size} processes in "
            f"{settings.subdivisions} parts; make it a multiple of {parts}, or lower train.subdivisions"
        )


def _load_weights(state: RunState, config: RunConfig, weights: str | None) -> str:
    """Starts a new run from a weights file; returns the message to print."""
    if weights is None:
        return ""
    if state.step > 0:
        return f"{weights}: not used, the run continues from its own step {state.step}"
    report = load_initial_weights(state.network, weights, config.model)
    state.restart_average(config)
    return f"{weights}: {report.summary()}"


def _log_step(
    config: RunConfig, state: RunState, task: Task, log: RunLog, sums: list[float], speeds: dict[str, float]
) -> None:
    """Advances the bar; every `log_every` steps writes the mean loss terms since the last line."""
    state.window = [before + value for before, value in zip(state.window or [0.0] * len(sums), sums, strict=True)]
    state.window_steps += 1
    words = " ".join(f"{name[:3]} {value:.2f}" for name, value in zip(task.terms, sums, strict=True))
    log.advance(f"{words} {speeds['images_per_second']:.1f} img/s")
    if state.step % config.train.log_every == 0:
        means = [value / state.window_steps for value in state.window]
        losses = {f"loss/{name}": value for name, value in zip(task.terms, means, strict=True)}
        rate = learning_rate_at(state.step - 1, config.train)
        log.write(state.step, {**losses, "loss/total": sum(means), "learning_rate": rate})
        for name, value in speeds.items():
            log.scalar(f"speed/{name}", value, state.step)
        state.window, state.window_steps = [], 0


def _evaluate(config: RunConfig, state: RunState, task: Task, ranks: Ranks, log: RunLog) -> Measurement:
    """Measures and records; saves the network as best.safetensors if it is the best so far."""
    state.evaluated = False
    measured = _measure(state, task, ranks, log)
    metrics = measured.metrics
    log.write(state.step, {f"val/{name}": value for name, value in metrics.items() if not isinstance(value, dict)})
    if measured.images:
        grid = tile(measured.images, columns=4, cell_hw=(240, 320))
        log.image("val/predictions", grid, state.step)
        write_image(_run_dir(config) / "predictions.jpg", grid)
    log.print(f"step {state.step}: {measured.summary}")
    if measured.warning:
        log.print(f"warning: {measured.warning}")
    value = metrics[task.metric]
    if value is not None and value > state.best:
        if ranks.first:
            save_weights(_run_dir(config) / "best.safetensors", config, state, metrics)
        state.best = value
    state.evaluated = True
    return measured


def _measure(state: RunState, task: Task, ranks: Ranks, log: RunLog) -> Measurement:
    ranks.copy_from_first(state.evaluated_network().buffers())  # statistics differ from rank to rank, weights do not
    return task.measure(state, ranks, progress=log.shows_progress)


def _save(config: RunConfig, state: RunState, ranks: Ranks) -> None:
    if ranks.first:
        save_state(_run_dir(config) / "last.safetensors", config, state)


def _finish(
    config: RunConfig,
    state: RunState,
    task: Task,
    ranks: Ranks,
    log: RunLog,
    measured: Measurement | None,
    speeds: dict[str, float],
) -> dict[str, Any]:
    """Writes the report; returns what `train` returns."""
    log.close_bar()
    if measured is None:  # resumed after the last step: already recorded, only measured again
        measured = _measure(state, task, ranks, log)
    if ranks.first:
        report = _run_dir(config) / "report.html"
        task.write_report(report, state, measured, progress=log.shows_progress)
        log.print(f"report: {report}")
    figures = ("images_per_second", "share_of_steps_that_waited")
    return {**measured.metrics, **{name: speeds.get(name) for name in figures}}


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Puts the first Ctrl-C or SIGTERM into the yielded list, so that the step can finish; a second one aborts."""
    received: list[int] = []

    def remember(number: int, _: object) -> None:
        received.append(number)
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    previous = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
