"""Starting weights for a new run: loads what fits from a weights file, and reports what did and did not fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from detector.checkpoint import load_checkpoint
from detector.darknet import DarknetNetwork
from detector.errors import InputError


@dataclass(frozen=True)
class LoadReport:
    """Names of the tensors or layers that were loaded, and of those that keep their initial values."""

    loaded: list[str]
    fresh: list[str]

    def summary(self) -> str:
        """A one-line summary."""
        left = f"; not loaded: {', '.join(self.fresh[:6])}{' ...' if len(self.fresh) > 6 else ''}" if self.fresh else ""
        return f"{len(self.loaded)} of {len(self.loaded) + len(self.fresh)} loaded{left}"


def load_initial_weights(network: nn.Module, path: str | Path) -> LoadReport:
    """Loads weights for fine-tuning into a network; the schedule starts at step 0 (Darknet's `-clear`).

    Args:
        network: from `build_network`.
        path: .safetensors: tensors with the same name and shape are loaded. .weights, for networks from a cfg: the
            whole file, or one with only the first layers (from `darknet partial` or `tools/convert.py partial`).

    Raises:
        InputError: nothing fits, or the file is damaged.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _load_matching(network, path)
    if not isinstance(network, DarknetNetwork):
        raise InputError(f"{path}: needs a model from a Darknet cfg; convert it first (tools/convert.py)")
    loaded, fresh = network.load_first_layers(path)
    return LoadReport(loaded, fresh)


def _load_matching(network: nn.Module, path: Path) -> LoadReport:
    offered, wanted = load_checkpoint(path).weights(), network.state_dict()
    matching = {name: value for name, value in offered.items() if name in wanted and wanted[name].shape == value.shape}
    if not matching:
        raise InputError(f"{path}: none of its tensors fits this network; use weights of a similar network")
    network.load_state_dict(matching, strict=False)
    return LoadReport(sorted(matching), sorted(wanted.keys() - matching.keys()))
