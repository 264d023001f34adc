"""Starting weights for a new run: all that fits of a weights file, with a report of what fitted and what not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from detector.checkpoint import load_checkpoint
from detector.darknet import DarknetNetwork
from detector.errors import InputError


@dataclass(frozen=True)
class LoadReport:
    """Names of tensors or layers that were filled, and of those that keep their fresh values."""

    loaded: list[str]
    fresh: list[str]

    def summary(self) -> str:
        """One line for people."""
        left = f"; fresh: {', '.join(self.fresh[:6])}{' ...' if len(self.fresh) > 6 else ''}" if self.fresh else ""
        return f"{len(self.loaded)} of {len(self.loaded) + len(self.fresh)} filled{left}"


def load_initial_weights(network: nn.Module, path: str | Path) -> LoadReport:
    """Fills a network for fine-tuning; the schedule starts at step 0 (Darknet's `-clear`).

    Args:
        network: from `build_network`.
        path: .safetensors: tensors of the same name and shape are taken. .weights, for networks from a cfg: whole, or
            the first layers only, as `darknet partial` and tools/convert.py partial write them.

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
        raise InputError(f"{path}: not one of its tensors fits this network")
    network.load_state_dict(matching, strict=False)
    return LoadReport(sorted(matching), sorted(wanted.keys() - matching.keys()))
