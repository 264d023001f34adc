"""A GPU for tests on machines without one: tensors that claim to be on it, and hold their values in ordinary memory.

Inside the context, what is made on or moved to `cuda` becomes a `DeviceTensor`. Since its values are real, the real
training step runs, data-dependent parts included. What a GPU would refuse is refused; what would make the CPU wait for
it, and what would start a kernel, is counted.

    with PretendGPU() as gpu:
        step = training_step(config, gpu.device)
        step()
    gpu.waits, gpu.launches
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
GPU = torch.device("cuda", 0)
ANSWERS = {
    aten._local_scalar_dense.default: "item",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten.equal.default: "equal",
    aten.is_nonzero.default: "bool",
    aten._unique2.default: "unique",
    aten.unique_dim.default: "unique",
    aten.repeat_interleave.Tensor: "repeat_interleave",
}
"""Operations whose result, or its size, the CPU has to know."""
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


class DeviceError(Exception):
    """What a GPU would have refused."""


class DeviceTensor(Tensor):
    """A tensor on the pretended GPU. To PyTorch's C++ parts it is on `meta`, so that autograd needs no GPU's thread."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> DeviceTensor:
        self = Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device="meta",
        )
        self.values = values
        return self

    device = property(lambda self: GPU)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = is_meta = property(lambda self: False)  # type: ignore[assignment]

    def numpy(self, **_: Any) -> Any:
        raise DeviceError("numpy() of a tensor on the GPU")

    __array__ = numpy

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, **_: Any) -> str:
        return f"DeviceTensor({self.values})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise DeviceError(f"{func}: outside of the pretended GPU's context")


class PretendGPU(TorchDispatchMode):
    """The context.

    Attributes:
        device: what code under test gets as its device.
        waits: how often the CPU waited for the GPU, by kind and place in our code.
        launches: number of kernels started (a lower bound: some operations start several), by operation.
        uploads: copies to the GPU, by kind and place.
    """

    device = GPU

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0
        self._pinned: list[Tensor] = []  # kept, so that no other memory gets their address
        self._patches = [
            mock.patch.object(torch.cuda, "_lazy_init", return_value=None),
            mock.patch.object(torch.cuda, "is_available", return_value=True),
            mock.patch.object(torch.cuda, "device_count", return_value=1),
            mock.patch.object(Tensor, "pin_memory", lambda tensor, device=None: self.pin(tensor)),
        ]
        self.forget()

    def forget(self) -> None:
        """Starts the counts again."""
        self.waits: Counter[tuple[str, str]] = Counter()
        self.launches: Counter[str] = Counter()
        self.uploads: Counter[tuple[str, str]] = Counter()

    def pin(self, tensor: Tensor) -> Tensor:
        """Stands in for `Tensor.pin_memory`."""
        copy = tensor.clone(memory_format=torch.preserve_format)
        self._pinned.append(copy)
        return copy

    def __enter__(self) -> PretendGPU:
        if self._depth == 0:
            torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(device=...) is made here, and then moved
            for patch in self._patches:
                patch.start()
        self._depth += 1
        super().__enter__()
        return self

    def __exit__(self, *details: Any) -> None:
        super().__exit__(*details)
        self._depth -= 1
        if self._depth == 0:
            for patch in self._patches:
                patch.stop()
            torch._C._set_only_lift_cpu_tensors(False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if torch.is_inference_mode_enabled() and func._can_decompose():  # else autograd has done it
            with self:
                return func.decompose(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = any(isinstance(each, DeviceTensor) for each in tensors)
        stays = there
        if kwargs.get("device") is not None:
            # C++ creates the numbers of an operation where it believes its tensors to be, on meta.
            stays = torch.device(kwargs["device"]).type in ("cuda", "meta")
            kwargs["device"] = torch.device("cpu")
        if func in (aten._to_copy.default, aten.copy_.default):
            to_device = stays if func is aten._to_copy.default else _on_gpu(tensors[0])
            self._copy(tensors[-1], to_device=to_device, **kwargs)
        elif there:
            self._check(func, args, tensors)
        result = func(*tree_map(_values, args), **tree_map(_values, kwargs))
        if there and func in ANSWERS:
            self._wait(ANSWERS[func])
        if stays and not _is_free(func):
            self.launches[str(func.overloadpacket)] += 1
        if func._schema.is_mutable and args and not isinstance(args[0], (list, tuple)):
            return args[0]  # in place, or its out argument: the same object
        return tree_map(_wrapped, result) if stays else result

    def _check(self, func: Any, args: Sequence[Any], tensors: Sequence[Tensor]) -> None:
        """Refuses tensors of two devices; a GPU takes single numbers from the CPU, and indices, for which it waits."""
        strangers = [each for each in tensors if not isinstance(each, DeviceTensor) and each.dim() > 0]
        if func in INDEXING:
            indices = [each for each in args[1] if isinstance(each, Tensor)]
            if any(each.dtype in (torch.bool, torch.uint8) for each in indices):
                self._wait("mask as index")
            if _on_gpu(args[0]) and all(any(each is index for index in indices) for each in strangers):
                for _ in strangers:
                    self._wait("indices from the CPU")
                return
        if strangers:
            raise DeviceError(f"{func}: tensors on two devices, at {_place()}")

    def _copy(self, source: Tensor, *, to_device: bool, non_blocking: bool = False, **_: Any) -> None:
        if _on_gpu(source) and not to_device:
            self._wait("copy to the CPU")
        elif not _on_gpu(source) and to_device:
            address = source.untyped_storage().data_ptr()
            pinned = any(address == each.untyped_storage().data_ptr() for each in self._pinned)
            self.uploads["does not wait" if pinned and non_blocking else "waits", _place()] += 1

    def _wait(self, kind: str) -> None:
        self.waits[kind, _place()] += 1


class PretendNCCL:
    """`torch.distributed` as one of `size` equal processes on GPUs sees it; tensors on the CPU are refused."""

    def __init__(self, size: int = 2) -> None:
        self.size = size
        self.calls: Counter[str] = Counter()

    def patch(self) -> Any:
        """The context in which it stands in."""
        return mock.patch.multiple(
            dist,
            all_reduce=self._all_reduce,
            broadcast=self._broadcast,
            barrier=lambda: None,
            broadcast_object_list=lambda box: None,
            gather_object=lambda item, parts: parts.__setitem__(slice(None), [item] * self.size),
        )

    def _all_reduce(self, tensor: Tensor) -> None:
        self._take("all_reduce", tensor)
        tensor.mul_(self.size)

    def _broadcast(self, tensor: Tensor, source: int) -> None:
        self._take("broadcast", tensor)

    def _take(self, what: str, tensor: Tensor) -> None:
        self.calls[what] += 1
        if not _on_gpu(tensor):
            raise DeviceError(f"{what}: a tensor on the CPU")
        if not tensor.is_contiguous():
            raise DeviceError(f"{what}: a tensor with gaps")


def _on_gpu(tensor: object) -> bool:
    return isinstance(tensor, DeviceTensor)


def _values(leaf: Any) -> Any:
    return leaf.values if isinstance(leaf, DeviceTensor) else leaf


def _wrapped(leaf: Any) -> Any:
    return DeviceTensor(leaf) if isinstance(leaf, Tensor) else leaf


def _is_free(func: Any) -> bool:
    """Whether an operation starts no kernel: views and memory without values."""
    return func.is_view or "empty" in func.name() or func in (aten.detach.default, aten._local_scalar_dense.default)


def _place() -> str:
    """The innermost line of our own code."""
    frame = sys._getframe(1)
    while frame is not None:
        _, found, inside = frame.f_code.co_filename.rpartition("/detector/")
        if found and "site-packages" not in frame.f_code.co_filename:
            return f"{inside}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "?"
