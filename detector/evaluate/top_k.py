"""How often the right class is ranked first, or among the first five."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detector.structures import Floats, Ints


def ranks_of_truth(logits: Floats, labels: Ints) -> Ints:
    """(I, K) and (I,) -> (I,): how many classes have a larger logit than the true one; equal ones count as larger."""
    true = np.take_along_axis(logits, labels[:, None], axis=1)
    return np.asarray((logits >= true).sum(axis=1) - 1, np.int64)


def top_k(ranks: Sequence[int]) -> dict[str, float | None]:
    """Shares of images whose true class is ranked first, and among the first five; None without images."""
    if not len(ranks):
        return {"top1": None, "top5": None}
    values = np.asarray(ranks)
    return {"top1": float((values < 1).mean()), "top5": float((values < 5).mean())}
