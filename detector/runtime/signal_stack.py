"""Keeps a library from leaving its own signal stack behind.

OpenVINO's CPU plugin gives the calling thread an alternate signal stack and later frees its memory (seen in 2026.4.1).
Every Python signal handler runs on that stack: the next Ctrl-C, SIGTERM or exit of a child would end the process with
SIGSEGV.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class SignalStack(ctypes.Structure):
    """C's `stack_t`, as Linux lays it out."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Restores this thread's signal stack afterwards; does nothing on systems other than Linux."""
    if not sys.platform.startswith("linux"):
        yield
        return
    before = signal_stack()
    try:
        yield
    finally:
        ctypes.CDLL(None).sigaltstack(ctypes.byref(before), None)


def signal_stack() -> SignalStack:
    """The signal stack of this thread, on Linux."""
    found = SignalStack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
    return found
