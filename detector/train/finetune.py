"""Starting weights for a new run: loads what fits from a weights file, and reports what did and did not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from torch import Tensor, nn

from detector.checkpoint import load_checkpoint
from detector.config import ClassifierConfig, ModelConfig, StoredModel
from detector.darknet import DarknetNetwork, load_darknet
from detector.darknet.cfg import parse_cfg
from detector.errors import InputError

SHOWN = 6
NOT_OPTIONS = ("name", "file", "pretrained")


@dataclass(frozen=True)
class LoadReport:
    """What a file gave.

    Attributes:
        loaded: names of the tensors or layers that were loaded.
        fresh: names of those that keep their initial values.
        reasons: why, for the summary.
        left: names of the file's tensors that this network does not have.
        warning: what makes the loaded ones of doubtful use; empty = nothing.
    """

    loaded: list[str]
    fresh: list[str]
    reasons: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    warning: str = ""

    def summary(self) -> str:
        """A one-line summary."""
        groups: dict[str, list[str]] = {}
        for name in self.fresh:
            groups.setdefault(self.reasons.get(name, "not in the file"), []).append(name)
        parts = [f"{len(self.loaded)} of {len(self.loaded) + len(self.fresh)} loaded"]
        parts += [f"{reason}: {_shorten(names)}" for reason, names in groups.items()]
        if self.left:
            parts.append(f"left in the file: {_shorten(self.left)}")
        if self.warning:
            parts.append(f"warning: {self.warning}")
        return "; ".join(parts)


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def load_initial_weights(network: nn.Module, path: str | Path, model: StoredModel | None = None) -> LoadReport:
    """Loads weights for fine-tuning into a network; the schedule starts at step 0 (Darknet's `-clear`).

    Args:
        network: from `build_network`.
        path: .safetensors: tensors with the same name and shape are loaded. .weights, for networks from a cfg: the
            same, if its own cfg is beside it and has the same layers; else the whole file, or one with only the
            first layers (from `darknet partial` or `tools/convert.py partial`).
        model: the config section of the network, to warn of weights that were trained with another activation.

    Raises:
        InputError: nothing fits, or the file is damaged.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _load_matching(network, path, model)
    if not isinstance(network, DarknetNetwork):
        raise InputError(f"{path}: needs a model from a Darknet cfg; convert it first (tools/convert.py)")
    cfg = path.with_suffix(".cfg")
    if cfg.is_file() and _layers(load_darknet(cfg)) == _layers(network):
        return _match(network, load_darknet(cfg, path).state_dict(), path)
    loaded, fresh = network.load_first_layers(path)
    return LoadReport(loaded, fresh)


def _layers(network: DarknetNetwork) -> list[tuple[str, str]]:
    """Kind and activation of each layer: networks that are alike in them differ in widths only."""
    sections = parse_cfg(network.cfg_text, "the cfg")[1:]
    return [(section.name, section.text("activation", "")) for section in sections]


def _load_matching(network: nn.Module, path: Path, model: StoredModel | None) -> LoadReport:
    checkpoint = load_checkpoint(path)
    return replace(_match(network, checkpoint.weights(), path), warning=_differences(checkpoint.model, model))


def _differences(theirs: StoredModel, ours: StoredModel | None) -> str:
    """Settings that change what tensors of the same shape mean; empty = none."""
    ours_by_key, theirs_by_key = _meanings(ours), _meanings(theirs)
    changed = [key for key in theirs_by_key.keys() & ours_by_key if theirs_by_key[key] != ours_by_key[key]]
    return "; ".join(
        f"they were trained with model.{key}={theirs_by_key[key]}, here it is {ours_by_key[key]}"
        for key in sorted(changed)
    )


def _meanings(model: StoredModel | None) -> dict[str, object]:
    """The activation, and the backbone's options, by key."""
    if not isinstance(model, ModelConfig | ClassifierConfig):
        return {}
    options = {f"backbone.{key}": value for key, value in asdict(model.backbone).items() if key not in NOT_OPTIONS}
    return {"activation": model.activation, **options}


def _match(network: nn.Module, offered: Mapping[str, Tensor], path: Path) -> LoadReport:
    """Loads the tensors that have a name and a shape of the network's."""
    wanted = network.state_dict()
    matching = {name: value for name, value in offered.items() if name in wanted and wanted[name].shape == value.shape}
    if not matching:
        raise InputError(f"{path}: none of its tensors fits this network; use weights of a similar network")
    network.load_state_dict(matching, strict=False)
    fresh = sorted(wanted.keys() - matching.keys())
    changed = [name for name in fresh if name in offered]
    example = changed and f"such as {tuple(offered[changed[0]].shape)} for {tuple(wanted[changed[0]].shape)}"
    reasons = dict.fromkeys(changed, f"other shapes ({example})")
    return LoadReport(sorted(matching), fresh, reasons, sorted(offered.keys() - wanted.keys()))
