"""Top-1 and top-5 by hand."""

import numpy as np
import pytest

from detector.evaluate.top_k import ranks_of_truth, top_k


def test_ranks_by_hand() -> None:
    logits = np.array([[3.0, 1.0, 2.0], [1.0, 1.0, 0.0]], np.float32)
    assert ranks_of_truth(logits, np.array([2, 0])).tolist() == [1, 1], "an equal logit counts as larger"
    assert ranks_of_truth(logits, np.array([0, 2])).tolist() == [0, 2]


def test_shares() -> None:
    assert top_k([0, 4, 5, 0]) == {"top1": 0.5, "top5": 0.75}
    assert top_k([]) == {"top1": None, "top5": None}
    assert top_k([0])["top1"] == pytest.approx(1)
