"""Training: one visible loop. A run is a function of its config; resuming is starting at step N.

Legend: B images in a part of the batch.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from detector.config import ClassifyConfig, RunConfig
from detector.data.loader import explain_lost_workers
from detector.data.synthetic import ensure_synthetic_dataset
from detector.engine.classification import ClassificationTask
from detector.engine.detection import DetectionTask
from detector.engine.distributed import Ranks, join_ranks
from detector.engine.ema import ExponentialMovingAverage
from detector.engine.finetune import load_initial_weights
from detector.engine.log import RunLog, SilentLog
from detector.engine.memory import keep_freed_memory
from detector.engine.optim import learning_rate_at
from detector.engine.pace import Pace
from detector.engine.state import RunState, save_state, save_weights, start_run
from detector.engine.step import TrainingStep
from detector.engine.task import Task
from detector.errors import InputError
from detector.render import tile
from detector.structures import Image


class InterruptedRunError(Exception):
    """The user asked to stop; everything is saved."""


def train(
    config: RunConfig, *, resume: bool = False, weights: str | None = None, progress: bool = False
) -> dict[str, Any]:
    """Trains and evaluates; writes config.yaml, metrics.jsonl, {last,best}.safetensors, report.html and tensorboard/.

    Args:
        config: with run_dir set.
        resume: go on with the run in run_dir; start it where there is none yet.
        weights: start a new run from what fits of this file (see `load_initial_weights`).
        progress: show a bar on stderr.

    Returns:
        The metrics of the last evaluation; `images_per_second` of this session's steps and
        `share_of_steps_that_waited` for the loader by more than 20 ms (None without any step).

    Raises:
        InputError: bad data, a run that is in the way, a loss that is not finite.
        InterruptedRunError: Ctrl-C or SIGTERM; the state is saved.
    """
    assert config.run_dir is not None, "load_config sets it"
    run_dir = Path(config.run_dir)
    keep_freed_memory()
    with join_ranks() as ranks:
        _check_ranks(config, ranks)
        task = open_task(config, ranks)
        if weights is not None and not Path(weights).is_file():
            raise InputError(f"{weights}: no such weights file")
        state = start_run(config, ranks, resume=resume, notes=task.notes)
        filled = _fill(state, config, weights)
        log = RunLog(run_dir, state.step, config.train.max_steps, progress) if ranks.first else SilentLog()
        for line in (filled, *task.describe_data()):
            if line:
                log.say(line)
        try:
            return _run(config, state, log, task, ranks)
        finally:
            log.close()


def open_task(config: RunConfig, ranks: Ranks) -> Task:
    """The data of a run, ready to be read. Raises: InputError."""
    if isinstance(config, ClassifyConfig):
        return ClassificationTask(config, ranks)
    if ranks.first and config.data.synthetic is not None:
        ensure_synthetic_dataset(Path(config.data.root), config.data.synthetic)
    ranks.wait()
    return DetectionTask(config, ranks)


def _check_ranks(config: RunConfig, ranks: Ranks) -> None:
    settings = config.train
    parts = ranks.size * settings.subdivisions
    if settings.batch_size % parts:
        raise InputError(
            f"train.batch_size {settings.batch_size} cannot be shared by {ranks.size} processes in "
            f"{settings.subdivisions} parts; make it a multiple of {parts}"
        )


def _fill(state: RunState, config: RunConfig, weights: str | None) -> str:
    """Starts a new run from a weights file; returns what to tell the user."""
    if weights is None:
        return ""
    if state.step > 0:
        return f"{weights}: not used, the run goes on from its own step {state.step}"
    report = load_initial_weights(state.network, weights)
    if state.ema is not None:
        state.ema = ExponentialMovingAverage(state.network, config.train.ema_decay)
    return f"{weights}: {report.summary()}"


def _run(config: RunConfig, state: RunState, log: RunLog | SilentLog, task: Task, ranks: Ranks) -> dict[str, Any]:
    """The loop over the optimiser steps."""
    settings, run_dir = config.train, Path(config.run_dir or "")
    step_function = TrainingStep(config, state, ranks, task.build_loss(state.network), task.save_batch)
    source = task.batches(state.step, run_dir / f"stuck_loader_{ranks.rank}.txt")
    pace = Pace(source, settings.batch_size)
    metrics: dict[str, Any] = {}
    with _deferred_interrupt() as received, explain_lost_workers(), closing(source):
        if not state.evaluated:  # a picture stopped the evaluation when the run was saved last
            metrics = _evaluate(config, state, log, task, ranks)
        while state.step < settings.max_steps:
            with pace.step():
                *sums, interrupted = ranks.sum([*step_function(pace).values(), len(received)])
            state.step += 1
            _report(state, log, dict(zip(task.terms, sums, strict=True)), pace.figures(), config)
            last = state.step == settings.max_steps
            if last or (config.evaluate.every and state.step % config.evaluate.every == 0):
                try:
                    metrics = _evaluate(config, state, log, task, ranks)
                except Exception:
                    _save(config, state, ranks)  # a bad picture costs no training; the evaluation is made up for
                    raise
            if last or interrupted or state.step % settings.save_every == 0:
                _save(config, state, ranks)
            if interrupted and not last:
                raise InterruptedRunError(f"stopped after step {state.step}; the same command with --resume goes on")
    if not metrics:  # resumed after the last step: measured again, recorded already
        metrics = _measure(state, log, task, ranks)[0]
    if ranks.first:
        report = run_dir / "report.html"
        task.write_report(report, state, progress=log.shows_progress)
        log.say(f"report: {report}")
    speeds = pace.figures()
    return {**metrics, **{name: speeds.get(name) for name in ("images_per_second", "share_of_steps_that_waited")}}


def _save(config: RunConfig, state: RunState, ranks: Ranks) -> None:
    if ranks.first:
        save_state(Path(config.run_dir or "") / "last.safetensors", config, state)


def _report(
    state: RunState, log: RunLog | SilentLog, terms: dict[str, float], speeds: dict[str, float], config: RunConfig
) -> None:
    """Advances the bar; every `log_every` steps writes the mean loss terms since the last line."""
    for name, value in {**terms, "steps": 1.0}.items():
        state.window[name] = state.window.get(name, 0.0) + value
    log.advance(
        " ".join(f"{name[:3]} {value:.2f}" for name, value in terms.items())
        + f" {speeds['images_per_second']:.1f} img/s"
    )
    if state.step % config.train.log_every == 0:
        count = state.window["steps"]
        means = {f"loss/{name}": state.window[name] / count for name in terms}
        rate = learning_rate_at(state.step - 1, config.train)
        log.write(state.step, {**means, "loss/total": sum(means.values()), "learning_rate": rate})
        for name, value in speeds.items():
            log.scalar(f"speed/{name}", value, state.step)
        state.window.update(dict.fromkeys(state.window, 0.0))


def _evaluate(config: RunConfig, state: RunState, log: RunLog | SilentLog, task: Task, ranks: Ranks) -> dict[str, Any]:
    """Measures and records; keeps the network as best.safetensors when it is the best so far."""
    state.evaluated = False
    metrics, pictures, words = _measure(state, log, task, ranks)
    log.write(state.step, {f"val/{name}": value for name, value in metrics.items() if not isinstance(value, dict)})
    if pictures:
        log.picture("val/predictions", tile(pictures, columns=4, cell_hw=(240, 320)), state.step)
    log.say(f"step {state.step}: {words}")
    value = metrics[task.metric]
    if value is not None and value > state.best:
        if ranks.first:
            save_weights(Path(config.run_dir or "") / "best.safetensors", config, state, metrics)
        state.best = value
    state.evaluated = True
    return metrics


def _measure(
    state: RunState, log: RunLog | SilentLog, task: Task, ranks: Ranks
) -> tuple[dict[str, Any], list[Image], str]:
    ranks.copy_first(state.evaluated_network().buffers())  # statistics differ from rank to rank, weights do not
    return task.measure(state, log, ranks)


@contextmanager
def _deferred_interrupt() -> Iterator[list[int]]:
    """Puts the first Ctrl-C or SIGTERM into the yielded list, so that the step ends properly; a second one stops."""
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
