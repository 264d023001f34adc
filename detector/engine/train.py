"""Training: one visible loop. A run is a function of its config; resuming is starting at step N.

Legend: B images in a part of the batch.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detector.build import build_decoder
from detector.config import ExperimentConfig
from detector.data import open_dataset
from detector.data.collate import build_loader
from detector.data.dataset import DetectionDataset, summarize
from detector.data.synthetic import ensure_synthetic_dataset
from detector.engine.ema import ExponentialMovingAverage
from detector.engine.evaluate import MAX_DETECTIONS, evaluate
from detector.engine.finetune import load_initial_weights
from detector.engine.log import RunLog
from detector.engine.optim import learning_rate_at
from detector.engine.state import TERMS, RunState, save_state, save_weights, start_run
from detector.errors import InputError
from detector.loss import LossTerms, YoloLoss
from detector.predict import Predictor, to_network_input
from detector.render import draw, tile
from detector.structures import Batch, Detections, Image, Sample

NUM_PICTURES = 8


class InterruptedRunError(Exception):
    """The user asked to stop; everything is saved."""


def train(
    config: ExperimentConfig, *, resume: bool = False, weights: str | None = None, progress: bool = False
) -> dict[str, Any]:
    """Trains and evaluates; writes config.yaml, metrics.jsonl, last.safetensors, best.safetensors and tensorboard/.

    Args:
        config: with run_dir set.
        resume: go on with the run in run_dir; start it where there is none yet.
        weights: start a new run from what fits of this file (see `load_initial_weights`).
        progress: show a bar on stderr.

    Returns:
        The metrics of the last evaluation, and `images_per_second` of this session's steps (None without any).

    Raises:
        InputError: bad data, a run that is in the way, a loss that is not finite.
        InterruptedRunError: Ctrl-C or SIGTERM; the state is saved.
    """
    assert config.run_dir is not None, "load_config sets it"
    run_dir = Path(config.run_dir)
    if config.data.synthetic is not None:
        ensure_synthetic_dataset(Path(config.data.root), config.data.synthetic)
    train_set, val_set = open_split(config, config.data.train), open_split(config, config.data.val)
    if weights is not None and not Path(weights).is_file():
        raise InputError(f"{weights}: no such weights file")
    state = start_run(config, run_dir, resume=resume)
    filled = _fill(state, config, weights)
    log = RunLog(run_dir, start_step=state.step, max_steps=config.train.max_steps, progress=progress)
    if filled:
        log.say(filled)
    for dataset in (train_set, val_set):
        log.say(f"{dataset.name}: {len(dataset)} images, {len(dataset.labels)} objects, {summarize(dataset.problems)}")
    try:
        return _run(config, state, log, train_set, val_set, run_dir)
    finally:
        log.close()


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
    log: RunLog,
    train_set: DetectionDataset,
    val_set: DetectionDataset,
    run_dir: Path,
) -> dict[str, Any]:
    """The loop over the optimiser steps."""
    settings = config.train
    step_function = _StepFunction(config, state)
    batches = iter(build_loader(train_set, config, start_step=state.step, end_step=settings.max_steps))
    metrics: dict[str, Any] = {}
    busy_seconds, first_step = 0.0, state.step
    with _deferred_interrupt() as interrupted:
        while state.step < settings.max_steps:
            started = time.perf_counter()
            terms = step_function(batches)
            busy_seconds += time.perf_counter() - started
            state.step += 1
            images_per_second = (state.step - first_step) * settings.batch_size / busy_seconds
            _report(
                state, log, terms, images_per_second, settings.log_every, learning_rate_at(state.step - 1, settings)
            )
            last = state.step == settings.max_steps
            if last or (config.evaluate.every and state.step % config.evaluate.every == 0):
                try:
                    metrics = _evaluate(config, state, log, val_set, run_dir)
                except Exception:
                    save_state(run_dir / "last.safetensors", config, state)  # a bad picture costs no training
                    raise
            if last or interrupted or state.step % settings.save_every == 0:
                save_state(run_dir / "last.safetensors", config, state)
            if interrupted and not last:
                raise InterruptedRunError(f"stopped after step {state.step}; the same command with --resume goes on")
    if not metrics:  # resumed after the last step: measured again, recorded already
        metrics = _measure(config, state, log, val_set)[0]
    done = (state.step - first_step) * settings.batch_size
    return {**metrics, "images_per_second": done / busy_seconds if done else None}


class _StepFunction:
    """One optimiser step: forward, loss and backward for each part of the batch, then SGD and averaging."""

    def __init__(self, config: ExperimentConfig, state: RunState) -> None:
        self.config = config
        self.state = state
        self.loss = build_loss(config, state.network)
        self.precision = torch.bfloat16 if use_bf16(config.train.precision) else torch.float32

    def __call__(self, batches: Iterator[Batch]) -> dict[str, float]:
        state, settings = self.state, self.config.train
        rate = learning_rate_at(state.step, settings)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.zero_grad(set_to_none=True)
        sums = dict.fromkeys(TERMS, 0.0)
        for _ in range(settings.subdivisions):
            batch = next(batches)
            terms = self._forward(batch)
            for name in TERMS:
                value = float(getattr(terms, name).detach())
                _require_finite(value, name, state.step, batch)
                sums[name] += value
            terms.total().backward()  # type: ignore[no-untyped-call]
        state.optimizer.step()
        if state.ema is not None:
            state.ema.update(state.network, state.step)
        return sums

    def _forward(self, batch: Batch) -> LossTerms:
        device = next(self.state.network.parameters()).device
        images = to_network_input(batch.images, device)  # (B, 3, H, W)
        with torch.autocast(device.type, self.precision, enabled=self.precision != torch.float32):
            raw_maps = self.state.network(images)
        return self.loss(
            [raw_map.float() for raw_map in raw_maps],
            [boxes.to(device) for boxes in batch.boxes_xyxy],
            [labels.to(device) for labels in batch.labels],
            batch_size=self.config.train.batch_size,
        )


def build_loss(config: ExperimentConfig, network: nn.Module) -> YoloLoss:
    """The loss that a config describes, for its network. Raises: InputError for maps that it cannot train."""
    decoder = build_decoder(config.model, network)
    if decoder.new_coords or len({len(anchors) for anchors in decoder.anchors_wh}) > 1:
        raise InputError("training needs [yolo] sections with new_coords=0 and masks of one length")
    return YoloLoss(
        anchors_wh=torch.stack(list(decoder.anchors_wh)).to(next(network.parameters()).device),
        strides=decoder.strides,
        num_classes=config.model.num_classes,
        scale_xy=decoder.scale_xy,
        box=config.loss.box,
        box_weight=config.loss.box_weight,
        objectness_weight=config.loss.objectness_weight,
        class_weight=config.loss.class_weight,
        ignore_threshold=config.loss.ignore_threshold,
        match_threshold=config.loss.match_threshold,
        label_smoothing=config.loss.label_smoothing,
    )


def use_bf16(precision: str) -> bool:
    """Whether to compute in bfloat16; `auto` asks the processor, or the GPU where there is one."""
    if precision == "auto":
        if torch.cuda.is_available():
            return bool(torch.cuda.is_bf16_supported())
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and torch.cpu._is_avx512_bf16_supported()
    return precision == "bf16"


def _require_finite(value: float, term: str, step: int, batch: Batch) -> None:
    if value - value != 0:
        raise InputError(
            f"step {step + 1}: the {term} loss is {value}, images {batch.image_ids}; lower train.learning_rate, "
            "lengthen train.burn_in, or look at these images with tools/doctor.py"
        )


def _report(
    state: RunState, log: RunLog, terms: dict[str, float], images_per_second: float, every: int, rate: float
) -> None:
    """Advances the bar; every `every` steps writes the mean loss terms since the last line."""
    for name in TERMS:
        state.window[name] += terms[name]
    state.window["steps"] += 1
    log.bar.update()
    log.bar.set_postfix_str(
        " ".join(f"{name[:3]} {terms[name]:.2f}" for name in TERMS) + f" {images_per_second:.1f} img/s", refresh=False
    )
    if state.step % every == 0:
        count = state.window["steps"]
        means = {f"loss/{name}": state.window[name] / count for name in TERMS}
        log.write(state.step, {**means, "loss/total": sum(means.values()), "learning_rate": rate})
        log.scalar("speed/images_per_second", images_per_second, state.step)
        state.window.update(dict.fromkeys(state.window, 0.0))


def _evaluate(
    config: ExperimentConfig, state: RunState, log: RunLog, dataset: DetectionDataset, run_dir: Path
) -> dict[str, Any]:
    """Measures and records; keeps the network as best.safetensors when it is the best so far."""
    metrics, pictures = _measure(config, state, log, dataset)
    log.write(state.step, {f"val/{name}": value for name, value in metrics.items() if not isinstance(value, dict)})
    log.picture("val/predictions", tile(pictures, columns=4, cell_hw=(240, 320)), state.step)
    log.say(f"step {state.step}: AP50 {metrics['ap50'] or 0:.4f}, AP {metrics['ap'] or 0:.4f}")
    value = metrics[config.evaluate.metric]
    if value is not None and value > state.best:
        state.best = value
        save_weights(run_dir / "best.safetensors", config, state, metrics)
    return metrics


def _measure(
    config: ExperimentConfig, state: RunState, log: RunLog, dataset: DetectionDataset
) -> tuple[dict[str, Any], list[Image]]:
    """Metrics of the network that would be released, and some pictures with its detections."""
    settings = config.evaluate
    predictor = Predictor.from_network(
        state.evaluated_network(),
        config.model,
        config.preprocess,
        score_threshold=settings.score_threshold,
        nms_threshold=settings.nms_threshold,
        max_detections=MAX_DETECTIONS,
    )
    pictures: list[Image] = []

    def keep_picture(sample: Sample, detections: Detections) -> None:
        if len(pictures) < NUM_PICTURES:
            pictures.append(draw(sample.image, detections.above(0.25), predictor.class_names))

    evaluation = evaluate(
        predictor,
        dataset,
        coco_detections=settings.max_detections,
        progress=not log.bar.disable,
        on_image=keep_picture,
    )
    return evaluation.compute(), pictures


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
