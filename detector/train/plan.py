"""Decides what a config leaves to the data: splits, classes, size, anchors, and how many steps fit into the time."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detector.anchors import best_possible_recall, fit_anchors
from detector.config import DetectConfig, ModelConfig, build_config
from detector.config.load import apply_overrides, leaves_to_data
from detector.darknet.adapt import for_classes
from detector.data.dataset import DetectionDataset, nothing_to_learn, summarize
from detector.data.loader import training_batches
from detector.data.open import find_layout, open_dataset
from detector.data.sampler import network_size
from detector.data.splits import same_split
from detector.errors import InputError
from detector.inference.predictor import Predictor
from detector.models.precision import autocast, to_network_input
from detector.train.detection import loss_terms
from detector.train.parts import resolve_subdivisions
from detector.train.state import fresh_state

LONG_SIDE = 416
SMALL_OBJECTS = 12
"""Pixels of the network's input; if a quarter of the objects is smaller, the input is larger."""
LARGE_SIDE = 608
NUM_ANCHORS = 9
MEASURED_STEPS = 6
LONG_RUN = 1.14
"""Seconds of a step in a run of minutes / in the first steps, when the loader is ahead; runs took 8 and 17 % longer."""
EVALUATIONS = 4
START_UP_SECONDS = 8.0
"""Opening the data once more, TensorBoard, and the pages of the report."""


@dataclass(frozen=True)
class Plan:
    """What was decided. Attributes: config: complete; lines: what to tell the user."""

    config: DetectConfig
    lines: list[str]


def make_plan(
    tree: dict[str, Any], path: Path, data: Path, overrides: Sequence[str] = (), *, minutes: float | None = None
) -> Plan:
    """Completes a config for a data set.

    Args:
        tree: a config in which `auto` stands for what the data decide.
        path: its file.
        data: what `open_dataset` takes.
        overrides: `a.b=value`.
        minutes: how long the run may take, evaluation and report included; None = 30 if the config leaves it open.

    Raises:
        InputError: no data set, nothing to learn from, or too little time.
    """
    started = time.monotonic()
    tree = apply_overrides(tree, overrides)
    stated = _stated(tree, path)
    lines, splits = _choose_splits(data)
    sets = {part: open_dataset(data, split) for part, split in splits.items()}
    names, dropped = _class_names(sets.values(), tree["model"]["class_names"])
    sets = {part: open_dataset(data, split, class_names=names) for part, split in splits.items()}
    lines += _describe(sets, names, dropped)
    train_set = sets["train"]
    if train_set.crowd.all():
        raise InputError(f"{nothing_to_learn(train_set)}; tools/doctor.py {data} lists all problems")
    open_keys = leaves_to_data(tree)
    size_hw, anchors, chosen = _choose_shapes(train_set, stated, open_keys)
    lines += chosen
    decided: dict[str, Any] = {
        "data": {"root": str(data), "train": splits["train"], "val": splits["val"]},
        "model": {"class_names": list(names), "anchors": anchors},
        "preprocess": {"size_hw": list(size_hw)},
    }
    tree = {**_fill(tree, decided), "run_dir": str(run_folder(tree, data))}
    tree["data"] = {**tree["data"], **decided["data"]}
    tree["model"] = _for_classes(tree["model"], names, path)
    if minutes is not None or "train.max_steps" in open_keys:
        if any(override.startswith("train.max_steps=") for override in overrides):
            raise InputError("--minutes and train.max_steps both say how long to train; give one of them")
        spent = time.monotonic() - started
        draft = build_config(_fill(tree, {"train": _schedule(1000), "evaluate": {"every": 0}}), path, overrides)
        assert isinstance(draft, DetectConfig)
        draft = resolve_subdivisions(draft, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        assert isinstance(draft, DetectConfig)
        steps, line = _fit_to_time(draft, sets, minutes=30.0 if minutes is None else minutes, spent_seconds=spent)
        lines.append(line)
        tree["train"] = {**tree["train"], **_schedule(steps)}
        tree["evaluate"] = {**tree["evaluate"], "every": math.ceil(steps / EVALUATIONS)}
    else:
        steps = stated.train.max_steps
        tree = _fill(tree, {"train": _schedule(steps), "evaluate": {"every": math.ceil(steps / EVALUATIONS)}})
    config = build_config(tree, path, overrides)
    assert isinstance(config, DetectConfig)
    return Plan(config, lines)


def _for_classes(model: dict[str, Any], names: Sequence[str], path: Path) -> dict[str, Any]:
    """The model section for these classes; a Darknet cfg is adapted to them. Raises: InputError."""
    model = {**model, "class_names": list(names)}
    if "darknet_cfg" in model:
        model["darknet_cfg"] = for_classes(model["darknet_cfg"], len(names), str(path))
    return model


def _stated(tree: dict[str, Any], path: Path) -> DetectConfig:
    """The config's own values, checked; anything stands where they are auto. Raises: InputError."""
    anything = {
        "model": {"class_names": ["object"], "anchors": [[8, 8]] * NUM_ANCHORS},
        "preprocess": {"size_hw": [LONG_SIDE, LONG_SIDE]},
        "data": dict.fromkeys(("root", "train", "val"), "as given"),
        "train": _schedule(1000),
        "evaluate": {"every": 0},
    }
    if tree.get("task") == "classify":
        raise InputError(f"{path}: --data is for detectors, and this config trains a classifier")
    config = build_config(_fill(tree, anything), path)
    assert isinstance(config, DetectConfig)
    return config


def run_folder(tree: Mapping[str, Any], data: Path) -> Path:
    """Where a run on this data goes: the config's run_dir, or weights/<name of the data's folder or file>."""
    return Path(tree.get("run_dir") or Path("weights") / (data.stem if data.is_file() else data.resolve().name))


def _fit_to_time(
    draft: DetectConfig, sets: Mapping[str, DetectionDataset], *, minutes: float, spent_seconds: float
) -> tuple[int, str]:
    """The steps for which the time is enough, and what to tell the user. Raises: InputError: too little time."""
    step_seconds, image_seconds = _measure(draft, sets["train"])
    num_evaluated = EVALUATIONS * len(sets["val"]) + len(sets["train"])  # the report audits the training labels
    rest = minutes * 60 - spent_seconds - START_UP_SECONDS - num_evaluated * image_seconds
    steps = int(rest / step_seconds)
    if steps < 20:
        least = math.ceil(minutes - min(rest, 0) / 60 + 1)
        raise InputError(f"--minutes {minutes:g}: too short for this data; give at least {least}")
    batch_size = draft.train.batch_size
    return steps, (
        f"{steps} steps of {batch_size} images ({steps * batch_size / len(sets['train']):.0f} epochs) at "
        f"{batch_size / step_seconds:.1f} images/s, {EVALUATIONS} evaluations: about {minutes:g} minutes"
    )


def _fill(tree: dict[str, Any], decided: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with `decided` in the place of `auto`."""
    filled = dict(tree)
    for section, values in decided.items():
        old = dict(filled.get(section) or {})
        filled[section] = {**old, **{key: value for key, value in values.items() if old.get(key) == "auto"}}
    return filled


def _choose_splits(data: Path) -> tuple[list[str], dict[str, str]]:
    layout = find_layout(data)
    also = f"; also there: {', '.join(layout.others)} (give the file to choose)" if layout.others else ""
    splits = f"splits {', '.join(layout.splits)}" if len(layout.splits) > 1 else "one split"
    lines = [f"{data}: {layout.format}, {splits}{also}"]
    train = same_split("train", layout.splits) or layout.splits[0]
    val = same_split("val", layout.splits)
    if val is None or val == train:
        lines.append(f"no split for validation: a hash of each image's content holds out 20 % of {train!r}")
        return lines, {"train": f"{train}[:80%]", "val": f"{train}[80%:]"}
    return lines, {"train": train, "val": val}


def _class_names(sets: Any, wanted: Any) -> tuple[tuple[str, ...], list[str]]:
    """The config's classes if they cover the data's, else those of the data that occur; and those left out."""
    counts: Counter[str] = Counter()
    order: dict[str, None] = {}
    for dataset in sets:
        order |= dict.fromkeys(dataset.class_names)
        counts.update(dataset.class_names[label] for label in dataset.labels.tolist())
    if wanted != "auto" and set(counts) <= set(wanted):
        return tuple(wanted), []
    present = tuple(name for name in order if counts[name])
    return present or tuple(order) or ("object",), [name for name in order if not counts[name]]


def _describe(sets: Mapping[str, DetectionDataset], names: Sequence[str], dropped: Sequence[str]) -> list[str]:
    lines = []
    per_split = {}
    for part, dataset in sets.items():
        counts = Counter(dataset.class_names[label] for label in dataset.labels.tolist())
        per_split[part] = counts
        shown = ", ".join(f"{name} {counts[name]}" for name in names[:12]) + (", ..." if len(names) > 12 else "")
        found = f"{len(dataset)} images, {len(dataset.labels)} objects ({shown})"
        lines.append(f"{part}: {found}; {summarize(dataset.problems)}")
    if dropped:
        lines.append(f"classes without an object, left out: {_shortened(dropped)}")
    for part, other in (("train", "val"), ("val", "train")):
        missing = [name for name in names if per_split[part][name] == 0 < per_split[other][name]]
        if missing:
            lines.append(f"warning: {_shortened(missing)}: no object in {part}")
    if len(names) > len(sets["train"]):
        lines.append(f"warning: {len(names)} classes, but {len(sets['train'])} training images")
    return lines


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _choose_shapes(
    dataset: DetectionDataset, stated: DetectConfig, open_keys: Sequence[str]
) -> tuple[tuple[int, int], list[list[int]], list[str]]:
    """The network's size and the anchors, those stated unless they are open, and what to tell the user."""
    size_hw, reason = stated.preprocess.size_hw, "as the config states"
    if "preprocess.size_hw" in open_keys:
        size_hw, reason = _choose_size(dataset)
    sized = f"size {size_hw[1]}x{size_hw[0]}: {reason}"
    if not isinstance(stated.model, ModelConfig):
        return size_hw, [], [sized, "anchors as the cfg states"]
    sizes = _object_sizes(dataset, size_hw)
    anchors, source = torch.tensor(stated.model.anchors, dtype=torch.float32), "as the config states"
    if "model.anchors" in open_keys:
        anchors, source = _choose_anchors(sizes, size_hw)
    recall, rounded = best_possible_recall(sizes, anchors), anchors.round().int().tolist()
    return (
        size_hw,
        rounded,
        [
            sized,
            f"anchors {source}, best possible recall {recall:.3f} at IoU 0.5: {rounded}",
        ],
    )


def _choose_size(dataset: DetectionDataset) -> tuple[tuple[int, int], str]:
    """The network's size from the images' shapes and the objects' sizes, and why."""
    height, width = (np.median(dataset.sizes_hw[:, axis]) for axis in (0, 1))
    shapes = dataset.sizes_hw[:, 1] / dataset.sizes_hw[:, 0]
    long_side = min(LONG_SIDE, _to_32(max(height, width), up=True))
    low, high = np.quantile(shapes, [0.1, 0.9])
    aspect = width / height if high / low < 1.3 else 1.0
    reason = "the images' usual shape" if high / low < 1.3 else "the images have different shapes"
    sides = np.sqrt(np.prod(dataset.boxes_xyxy[:, 2:] - dataset.boxes_xyxy[:, :2], axis=1))
    small = float(np.quantile(sides, 0.25)) * long_side / max(height, width)
    if small < SMALL_OBJECTS and long_side == LONG_SIDE and max(height, width) > LONG_SIDE:
        long_side = min(LARGE_SIDE, _to_32(max(height, width), up=True))
        reason += f", larger for small objects (a quarter is below {small:.0f} pixels at {LONG_SIDE})"
    short_side = _to_32(long_side / max(aspect, 1 / aspect))
    return ((short_side, long_side) if aspect >= 1 else (long_side, short_side)), reason


def _to_32(side: float, *, up: bool = False) -> int:
    return max(32 * (math.ceil(side / 32) if up else round(side / 32)), 64)


def _object_sizes(dataset: DetectionDataset, size_hw: tuple[int, int]) -> Tensor:
    """Widths and heights of the objects in network pixels, without crowds: (n, 2)."""
    per_image = torch.from_numpy(dataset.offsets).diff()
    images = torch.from_numpy(dataset.sizes_hw).repeat_interleave(per_image, dim=0).flip(1)  # (n, 2) width, height
    boxes = torch.from_numpy(dataset.boxes_xyxy)
    sizes = (boxes[:, 2:] - boxes[:, :2]) * torch.tensor(size_hw[::-1]) / images
    return sizes[~torch.from_numpy(dataset.crowd)]


def _choose_anchors(sizes: Tensor, size_hw: tuple[int, int]) -> tuple[Tensor, str]:
    """Anchors (9, 2) in whole pixels fitted to the objects' sizes, and that they are; where there are too few, COCO's,
    scaled.
    """
    from detector.data.doctor import COCO_ANCHORS

    anchors = torch.tensor(COCO_ANCHORS, dtype=torch.float32) * max(size_hw) / 416
    source = "COCO's, scaled"
    if len(sizes) >= NUM_ANCHORS:
        fitted = fit_anchors(sizes, NUM_ANCHORS)
        if best_possible_recall(sizes, fitted, threshold=0.7) >= best_possible_recall(sizes, anchors, threshold=0.7):
            anchors, source = fitted, "fitted"
    return anchors.round().clamp(min=1), source


def _schedule(steps: int) -> dict[str, Any]:
    """What depends on the number of steps."""
    return {
        "max_steps": steps,
        "burn_in": min(200, max(steps // 10, 1)),
        "ema_decay": round(min(max(1 - 5.6 / steps, 0.9), 0.9998), 4),
        "save_every": max(steps // 20, 20),
    }


def _measure(config: DetectConfig, dataset: DetectionDataset) -> tuple[float, float]:
    """Seconds of a training step, on average over the run, and of an evaluated image on this machine."""
    full = config.preprocess.size_hw
    step, image = _measure_at(full, config, dataset)
    if config.augment.progressive is None:
        return step, image
    sizes = [
        network_size(seed=0, step=number, max_steps=1000, base_hw=full, augment=config.augment)
        for number in range(1000)
    ]
    smallest, pixels = sizes[0], np.prod(sizes, axis=1)
    if smallest == full:
        return step, image
    small_step, _ = _measure_at(smallest, config, dataset)
    return float(np.interp(pixels, (pixels.min(), pixels.max()), (small_step, step)).mean()), image


def _measure_at(size_hw: tuple[int, int], config: DetectConfig, dataset: DetectionDataset) -> tuple[float, float]:
    """`_measure` at one network size, loader included."""
    config = replace(
        config,
        preprocess=replace(config.preprocess, size_hw=size_hw),
        augment=replace(config.augment, progressive=None),
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    state = fresh_state(config, device)
    loss_of, times = loss_terms(config, state.network, device), []
    config = replace(config, train=replace(config.train, max_steps=MEASURED_STEPS * config.train.subdivisions))
    batches = training_batches(dataset, config, start_step=0)
    try:
        for batch in batches:
            started = time.perf_counter()
            with autocast(device, config.train.precision):
                outputs = state.network(to_network_input(batch.images, device))
            loss_of(outputs, batch).sum().backward()  # type: ignore[no-untyped-call]
            state.optimizer.step()
            state.optimizer.zero_grad(set_to_none=True)
            if state.ema is not None:
                state.ema.update(state.network, 0)
            times.append(time.perf_counter() - started)
    finally:
        batches.close()
    step = float(np.median(times[2:])) * config.train.subdivisions * LONG_RUN
    predictor = Predictor.from_network(state.network, config.model, config.preprocess)
    image = np.zeros((*config.preprocess.size_hw, 3), np.uint8)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        predictor.predict_batch([image] * 4)
        times.append((time.perf_counter() - started) / 4)
    return step, float(np.median(times)) * 1.3  # reading and suppression come on top
