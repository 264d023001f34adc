"""Training: one visible loop. A run is a function of its config; resuming is starting at step N.

Legend: B images in a part of the batch.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from detector.config import ExperimentConfig
from detector.data import open_dataset
from detector.data.dataset import DetectionDataset, summarize
from detector.data.loader import explain_lost_workers, training_batches
from detector.data.synthetic import ensure_synthetic_dataset
from detector.engine.distributed import Ranks, join_ranks
from detector.engine.ema import ExponentialMovingAverage
from detector.engine.evaluate import MAX_DETECTIONS, detect_all, score
from detector.engine.finetune import load_initial_weights
from detector.engine.log import RunLog, SilentLog
from detector.engine.memory import keep_freed_memory
from detector.engine.optim import learning_rate_at
from detector.engine.pace import Pace
from detector.engine.run_report import write_run_report
from detector.engine.state import TERMS, RunState, save_state, save_weights, start_run
from detector.engine.step import TrainingStep
from detector.errors import InputError
from detector.predict import Predictor
from detector.render import draw, tile
from detector.structures import Detections, Image, Sample

NUM_PICTURES = 8


class InterruptedRunError(Exception):
    """The user asked to stop; everything is saved."""


def train(
    config: ExperimentConfig, *, resume: bool = False, weights: str | None = None, progress: bool = False
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
        if ranks.first and config.data.synthetic is not None:
            ensure_synthetic_dataset(Path(config.data.root), config.data.synthetic)
        ranks.wait()
        train_set, val_set = open_split(config, config.data.train), open_split(config, config.data.val)
        if weights is not None and not Path(weights).is_file():
            raise InputError(f"{weights}: no such weights file")
        state = start_run(config, ranks, resume=resume)
        filled = _fill(state, config, weights)
        log = RunLog(run_dir, state.step, config.train.max_steps, progress) if ranks.first else SilentLog()
        if filled:
            log.say(filled)
        for dataset in (train_set, val_set):
            problems = summarize(dataset.problems)
            log.say(f"{dataset.name}: {len(dataset)} images, {len(dataset.labels)} objects, {problems}")
        try:
            return _run(config, state, log, train_set, val_set, ranks)
        finally:
            log.close()


def _check_ranks(config: ExperimentConfig, ranks: Ranks) -> None:
    settings = config.train
    parts = ranks.size * settings.subdivisions
    if settings.batch_size % parts:
        raise InputError(
            f"train.batch_size {settings.batch_size} cannot be shared by {ranks.size} processes in "
            f"{settings.subdivisions} parts; make it a multiple of {parts}"
        )


def _fill(state: RunState, config: ExperimentConfig, weights: str | None) -> str:
    """Starts a new run from a weights file; returns what to tell the user."""
    if weights is None:
        return ""
    if state.step > 0:
        return f"{weights}: not used, the run goes on from its own step {state.step}"
    report = load_initial_weights(state.network, weights)
    if state.ema is not None:
        state.ema = ExponentialMovingAverage(state.network, config.train.ema_decay)
    return f"{weights}: {report.summary()}"


def open_split(config: ExperimentConfig, split: str) -> DetectionDataset:
    """A split of the config's data set with the model's classes. Raises: InputError."""
    return open_dataset(config.data.root, split, class_names=config.model.class_names, policy=config.data.bad_labels)


def _run(
    config: ExperimentConfig,
    state: RunState,
    log: RunLog | SilentLog,
    train_set: DetectionDataset,
    val_set: DetectionDataset,
    ranks: Ranks,
) -> dict[str, Any]:
    """The loop over the optimiser steps."""
    settings, run_dir = config.train, Path(config.run_dir or "")
    step_function = TrainingStep(config, state, ranks)
    source = training_batches(
        train_set,
        config,
        start_step=state.step,
        end_step=settings.max_steps,
        rank=ranks.rank,
        num_ranks=ranks.size,
        report=run_dir / f"stuck_loader_{ranks.rank}.txt",
    )
    pace = Pace(source, settings.batch_size)
    metrics: dict[str, Any] = {}
    with _deferred_interrupt() as received, explain_lost_workers(), closing(source):
        if not state.evaluated:  # a picture stopped the evaluation when the run was saved last
            metrics = _evaluate(config, state, log, val_set, ranks)
        while state.step < settings.max_steps:
            with pace.step():
                *sums, interrupted = ranks.sum([*step_function(pace).values(), len(received)])
            state.step += 1
            _report(state, log, dict(zip(TERMS, sums, strict=True)), pace.figures(), config)
            last = state.step == settings.max_steps
            if last or (config.evaluate.every and state.step % config.evaluate.every == 0):
                try:
                    metrics = _evaluate(config, state, log, val_set, ranks)
                except Exception:
                    _save(config, state, ranks)  # a bad picture costs no training; the evaluation is made up for
                    raise
            if last or interrupted or state.step % settings.save_every == 0:
                _save(config, state, ranks)
            if interrupted and not last:
                raise InterruptedRunError(f"stopped after step {state.step}; the same command with --resume goes on")
    if not metrics:  # resumed after the last step: measured again, recorded already
        metrics = _measure(config, state, log, val_set, ranks)[0]
    if ranks.first:
        predictor = _predictor(config, state)
        write_run_report(run_dir / "report.html", config, predictor, train_set, val_set, progress=log.shows_progress)
        log.say(f"report: {run_dir / 'report.html'}")
    speeds = pace.figures()
    return {**metrics, **{name: speeds.get(name) for name in ("images_per_second", "share_of_steps_that_waited")}}


def _save(config: ExperimentConfig, state: RunState, ranks: Ranks) -> None:
    if ranks.first:
        save_state(Path(config.run_dir or "") / "last.safetensors", config, state)


def _report(
    state: RunState,
    log: RunLog | SilentLog,
    terms: dict[str, float],
    speeds: dict[str, float],
    config: ExperimentConfig,
) -> None:
    """Advances the bar; every `log_every` steps writes the mean loss terms since the last line."""
    for name in TERMS:
        state.window[name] += terms[name]
    state.window["steps"] += 1
    log.advance(
        " ".join(f"{name[:3]} {terms[name]:.2f}" for name in TERMS) + f" {speeds['images_per_second']:.1f} img/s"
    )
    if state.step % config.train.log_every == 0:
        count = state.window["steps"]
        means = {f"loss/{name}": state.window[name] / count for name in TERMS}
        rate = learning_rate_at(state.step - 1, config.train)
        log.write(state.step, {**means, "loss/total": sum(means.values()), "learning_rate": rate})
        for name, value in speeds.items():
            log.scalar(f"speed/{name}", value, state.step)
        state.window.update(dict.fromkeys(state.window, 0.0))


def _evaluate(
    config: ExperimentConfig, state: RunState, log: RunLog | SilentLog, dataset: DetectionDataset, ranks: Ranks
) -> dict[str, Any]:
    """Measures and records; keeps the network as best.safetensors when it is the best so far."""
    state.evaluated = False
    metrics, pictures = _measure(config, state, log, dataset, ranks)
    log.write(state.step, {f"val/{name}": value for name, value in metrics.items() if not isinstance(value, dict)})
    log.picture("val/predictions", tile(pictures, columns=4, cell_hw=(240, 320)), state.step)
    log.say(f"step {state.step}: AP50 {metrics['ap50'] or 0:.4f}, AP {metrics['ap'] or 0:.4f}")
    value = metrics[config.evaluate.metric]
    if value is not None and value > state.best:
        if ranks.first:
            save_weights(Path(config.run_dir or "") / "best.safetensors", config, state, metrics)
        state.best = value
    state.evaluated = True
    return metrics


def _measure(
    config: ExperimentConfig, state: RunState, log: RunLog | SilentLog, dataset: DetectionDataset, ranks: Ranks
) -> tuple[dict[str, Any], list[Image]]:
    """Metrics of the network that would be released, and some pictures with its detections."""
    settings = config.evaluate
    ranks.copy_first(state.evaluated_network().buffers())  # statistics differ from rank to rank, weights do not
    predictor = _predictor(config, state)
    pictures: list[Image] = []

    def keep_picture(sample: Sample, detections: Detections) -> None:
        if len(pictures) < NUM_PICTURES:
            pictures.append(draw(sample.image, detections.above(0.25), predictor.class_names))

    mine = range(ranks.rank, len(dataset), ranks.size)
    results = ranks.gather(detect_all(predictor, dataset, mine, progress=log.shows_progress, on_image=keep_picture))
    metrics = score(dataset, results, coco_detections=settings.max_detections).compute() if ranks.first else {}
    return ranks.agree(metrics), pictures


def _predictor(config: ExperimentConfig, state: RunState) -> Predictor:
    """The network that would be released, with the thresholds of the evaluation."""
    return Predictor.from_network(
        state.evaluated_network(),
        config.model,
        config.preprocess,
        score_threshold=config.evaluate.score_threshold,
        nms_threshold=config.evaluate.nms_threshold,
        max_detections=MAX_DETECTIONS,
    )


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
