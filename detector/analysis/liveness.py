"""How much memory feature maps take at once, from the lifetime of every tensor while the network runs."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, follows the storage of every tensor that an operation makes, until nothing holds it any more.

    Views share their storage and add nothing. Weights and tensors from before are not counted.

    Attributes:
        live_bytes: held now.
        peak_bytes: the most so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes = 0
        self.peak_bytes = 0
        self._sizes: dict[int, int] = {}
        self._holders: Counter[int] = Counter()

    def follow(self, tensor: Tensor) -> None:
        """Counts a tensor's storage from now on."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.live_bytes += self._sizes[key]
            self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        self._holders[key] += 1
        weakref.finalize(tensor, self._release, key)

    def _release(self, key: int) -> None:
        self._holders[key] -= 1
        if self._holders[key] == 0:
            del self._holders[key]
            self.live_bytes -= self._sizes.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        mine = {id(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and id(tensor) not in mine:  # an in-place operation returns its argument
                self.follow(tensor)
        return result


def activation_memory(network: nn.Module, size_hw: tuple[int, int]) -> tuple[int, dict[str, int]]:
    """Bytes of the input and the feature maps of one image, with the network in eval mode.

    Args:
        network: takes images (B, 3, H, W); its mode is restored.
        size_hw: height and width of the input in pixels.

    Returns:
        the most that is held at any time; what is held after each module, by name.
    """
    held: dict[str, int] = {}
    training = network.training
    network.eval()
    reference = next(network.parameters())
    images = torch.zeros(1, 3, *size_hw, device=reference.device, dtype=reference.dtype)
    with torch.no_grad(), LiveTensors() as live:
        live.follow(images)

        def note(name: str) -> Any:
            return lambda *_: held.__setitem__(name, live.live_bytes)

        handles = [module.register_forward_hook(note(name)) for name, module in network.named_modules()]
        try:
            network(images)
        finally:
            network.train(training)
            for handle in handles:
                handle.remove()
    return live.peak_bytes, held
