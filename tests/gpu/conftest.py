"""What the checks on a GPU share. They are run by `make gpu-check`, and skipped where there is no GPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "gpu" and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no GPU here, or PyTorch cannot use it"))


@pytest.fixture(scope="session")
def figures() -> Iterator[dict[str, Any]]:
    """What the checks measure; printed as one line of JSON at their end."""
    found: dict[str, Any] = {}
    yield found
    print("\n" + json.dumps(found))  # noqa: T201


@pytest.fixture(autouse=True)
def show_figures(figures: dict[str, Any]) -> Iterator[None]:
    """Prints each figure as soon as it is known, so that a check that is stopped shows what it has."""
    before = set(figures)
    yield
    for name in figures.keys() - before:
        print(f"\n{name}: {figures[name]}")  # noqa: T201
