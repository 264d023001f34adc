"""The state of a run: created, saved, and restored so that training resumes bit for bit."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detector.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from detector.config import RunConfig, TimmBackboneConfig, parse_config_text, to_yaml
from detector.errors import InputError
from detector.files import write_atomically
from detector.inference.build import build_network
from detector.models.precision import compute_dtype
from detector.models.timm_backbone import TimmBackbone
from detector.train.distributed import Ranks
from detector.train.ema import ExponentialMovingAverage
from detector.train.muon import Muon
from detector.train.optim import LossScale, build_optimizer
from detector.zoo.table import fetched

_FREE_TO_CHANGE = ("run_dir", "evaluate", "data.cache_mb", "train.num_workers", "train.log_every", "train.save_every")
"""Settings that change nothing of what is learned."""


@dataclass
class RunState:
    """Everything that changes during training; the saved part is enough to resume bit for bit.

    Attributes:
        network, optimizer, ema: what is trained; ema is None without averaging.
        step: optimiser steps done.
        best: the best value of the chosen metric so far.
        window: sums of the loss terms since the last log line; empty right after it.
        window_steps: how many steps they are summed over.
        evaluated: whether the evaluation due at this step, if any, is done.
        scale: what the loss is multiplied by in fp16.
        changes: settings that were changed when the run was resumed, each with its step.
        notes: facts about the data that must not change when the run resumes (a classifier's class names).
    """

    network: nn.Module
    optimizer: torch.optim.SGD | Muon
    ema: ExponentialMovingAverage | None
    step: int = 0
    best: float = -1.0
    window: list[float] = field(default_factory=list)
    window_steps: int = 0
    evaluated: bool = True
    scale: LossScale = field(default_factory=LossScale)
    changes: list[str] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def evaluated_network(self) -> nn.Module:
        """The averaged network where there is one, else the network itself."""
        return self.ema.average if self.ema is not None else self.network

    def restart_average(self, config: RunConfig) -> None:
        """Restarts the average from the network's current weights."""
        decay = config.train.ema_decay
        self.ema = ExponentialMovingAverage(self.network, decay) if decay else None


def save_weights(path: Path, config: RunConfig, state: RunState, metrics: dict[str, Any]) -> None:
    """Writes what prediction needs, and how it was trained. Raises: InputError."""
    info = {**state.notes, "step": state.step, "metrics": metrics, "config": to_yaml(config)}
    tensors = {f"model.{name}": value for name, value in state.evaluated_network().state_dict().items()}
    save_checkpoint(path, model=config.model, preprocess=config.preprocess, info=info, tensors=tensors)


def save_state(path: Path, config: RunConfig, state: RunState) -> None:
    """Writes what is needed to resume training. Raises: InputError."""
    tensors = {f"model.{name}": value for name, value in state.network.state_dict().items()}
    if state.ema is not None:
        tensors |= {f"ema.{name}": value for name, value in state.ema.average.state_dict().items()}
    for name, parameter in state.network.named_parameters():
        buffer = state.optimizer.state[parameter].get("momentum_buffer")
        if buffer is not None:
            tensors[f"momentum.{name}"] = buffer
    info = {
        **state.notes,
        "step": state.step,
        "best": state.best,
        "window": state.window,
        "window_steps": state.window_steps,
        "evaluated": state.evaluated,
        "changes": state.changes,
        "loss_scale": [state.scale.value, state.scale.good_steps],
        "config": to_yaml(config),
    }
    save_checkpoint(path, model=config.model, preprocess=config.preprocess, info=info, tensors=tensors)


def start_run(
    config: RunConfig,
    ranks: Ranks,
    *,
    resume: bool,
    allow_change: bool = False,
    notes: dict[str, Any] | None = None,
) -> RunState:
    """A new run, or the saved one. Without `resume` an existing run is an error, never overwritten.

    With another config than the saved one it is refused, unless `allow_change`; the change is then recorded.

    Rank 0 reads and writes the files; the others receive its state.
    """
    state = fresh_state(config, ranks.device)
    state.notes = notes or {}
    problem = ""
    if ranks.first:
        try:
            _open_run_dir(state, config, resume=resume, allow_change=allow_change)
        except InputError as error:
            problem = str(error)
    problem = ranks.broadcast(problem)
    if problem:
        raise InputError(problem)
    _share(state, ranks)
    return state


def fresh_state(config: RunConfig, device: torch.device) -> RunState:
    """The state before the first step."""
    torch.manual_seed(config.train.seed)
    network = build_network(config.model)
    _take_published_weights(network, config)
    network = network.to(device).to(memory_format=torch.channels_last)
    network.train()
    state = RunState(network, build_optimizer(network, config.train), ema=None)
    state.scale = LossScale.start(compute_dtype(config.train.precision, device))
    state.restart_average(config)
    return state


def _take_published_weights(network: nn.Module, config: RunConfig) -> None:
    """Starts the backbone from the file that the config names, if any. Raises: InputError."""
    settings = getattr(config.model, "backbone", None)
    if isinstance(settings, TimmBackboneConfig) and (settings.pretrained or settings.file is not None):
        backbone = network.backbone
        assert isinstance(backbone, TimmBackbone)
        backbone.load_published(Path(settings.file) if settings.file is not None else fetched(settings.name))


def _share(state: RunState, ranks: Ranks) -> None:
    """Copies the state of rank 0 to all ranks."""
    counters = (state.step, state.best, state.window, state.window_steps, state.evaluated, state.scale)
    counters = ranks.broadcast(counters)
    state.step, state.best, state.window, state.window_steps, state.evaluated, state.scale = counters
    ranks.copy_from_first(state.network.state_dict().values())
    if state.ema is not None:
        ranks.copy_from_first(state.ema.average.state_dict().values())
    if state.step == 0:
        return
    for parameter in state.network.parameters():
        buffer = state.optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
        ranks.copy_from_first([buffer])


def _open_run_dir(state: RunState, config: RunConfig, *, resume: bool, allow_change: bool) -> None:
    """Restores the run from its folder, or prepares the folder for a new run. Raises: InputError."""
    run_dir = Path(config.run_dir or "")
    for half in run_dir.glob(".*.safetensors.*"):  # left by a process that was killed while writing
        half.unlink(missing_ok=True)
    last = run_dir / "last.safetensors"
    if last.exists() and not resume:
        raise InputError(
            f"{run_dir}: holds a run already; add --resume to continue it, or run_dir=PATH to use another folder"
        )
    if last.exists():
        _restore(state, load_checkpoint(last), config, last, allow_change=allow_change)
    else:
        best = run_dir / "best.safetensors"
        if best.exists() and not resume:
            raise InputError(f"{best}: exists without its run; move it, or use another folder with run_dir=PATH")
        # From a run that was killed before its first checkpoint; its best weights will be overwritten.
        (run_dir / "metrics.jsonl").unlink(missing_ok=True)
    write_atomically(run_dir / "config.yaml", to_yaml(config).encode())


def _restore(state: RunState, checkpoint: Checkpoint, config: RunConfig, path: Path, *, allow_change: bool) -> None:
    if checkpoint.model != config.model:
        raise InputError(f"{path}: its model section differs from the config's; resume with {path.parent}/config.yaml")
    for name, value in state.notes.items():
        if checkpoint.info.get(name, value) != value:
            raise InputError(f"{path}: was trained with different {name.replace('_', ' ')} than the data have now")
    state.changes = _changes(checkpoint, config, path, allow_change=allow_change)
    state.network.load_state_dict(checkpoint.group("model"))
    if state.ema is not None:
        averaged = checkpoint.group("ema")
        if not averaged:
            raise InputError(f"{path}: has no averaged weights; resume with train.ema_decay=0")
        state.ema.average.load_state_dict(averaged)
    momentum = checkpoint.group("momentum")
    for name, parameter in state.network.named_parameters():
        if name in momentum:
            buffer = torch.empty_like(parameter).copy_(momentum[name])  # in the parameter's memory format
            state.optimizer.state[parameter]["momentum_buffer"] = buffer
    if "loss_scale" not in checkpoint.info:
        raise InputError(f"{path}: was written by an older version; start the run again in another run_dir")
    state.step, state.best = checkpoint.info["step"], checkpoint.info["best"]
    state.window, state.window_steps = checkpoint.info["window"], checkpoint.info["window_steps"]
    state.evaluated = checkpoint.info["evaluated"]
    state.scale = LossScale(*checkpoint.info["loss_scale"])


def _changes(checkpoint: Checkpoint, config: RunConfig, path: Path, *, allow_change: bool) -> list[str]:
    """The recorded changes of a run, and those that this config makes now. Raises: InputError: they are not allowed."""
    recorded: list[str] = checkpoint.info.get("changes", [])
    before = flatten(asdict(parse_config_text(checkpoint.info["config"], str(path))))
    now = flatten(asdict(config))
    differing = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    free = set(_FREE_TO_CHANGE)
    constant = now.get("train.policy.name") == before.get("train.policy.name") == "steps"
    if constant and not any(key.startswith("augment.progressive.") for key in now):
        free.add("train.max_steps")  # on which the other schedules and progressive sizes depend
    changes = [
        f"{key}: {before.get(key)} -> {now.get(key)}"
        for key in differing
        if not any(key == name or key.startswith(f"{name}.") for name in free)
    ]
    if changes and not allow_change:
        raise InputError(
            f"{path}: was trained with other settings ({'; '.join(changes)}); resume with {path.parent}/config.yaml, "
            "or add --allow-change, which is recorded"
        )
    return [*recorded, *(f"step {checkpoint.info['step']}: {change}" for change in changes)]


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
