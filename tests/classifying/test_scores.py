"""Scores against their definitions, counted one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longformer.classifying.scores import label_scores, number_scores


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_labels(texts: int, labels: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    right, predicted = (draw.random((texts, labels)) < draw.random() for _ in range(2))
    by_label, counts = [], np.zeros(3)
    for j in range(labels):
        both = sum(1 for i in range(texts) if right[i, j] and predicted[i, j])
        only_predicted = sum(1 for i in range(texts) if predicted[i, j] and not right[i, j])
        only_right = sum(1 for i in range(texts) if right[i, j] and not predicted[i, j])
        counts += both, only_predicted, only_right
        if both + only_predicted + only_right:
            by_label.append(2 * both / (2 * both + only_predicted + only_right))
    found = label_scores(right, predicted)
    assert found["accuracy"] == pytest.approx(
        100 * np.mean([list(a) == list(b) for a, b in zip(right, predicted, strict=True)])
    )
    if by_label:
        assert found["macro_f1"] == pytest.approx(100 * np.mean(by_label))
        assert found["micro_f1"] == pytest.approx(100 * 2 * counts[0] / (2 * counts[0] + counts[1] + counts[2]))
    else:
        assert (found["micro_f1"], found["macro_f1"]) == (100, 100)


def test_one_label_a_text() -> None:
    """A label that is neither right nor predicted does not count."""
    right, predicted = np.eye(4, dtype=bool)[[0, 0, 1, 2]], np.eye(4, dtype=bool)[[0, 1, 1, 2]]
    found = label_scores(right, predicted)
    assert found["accuracy"] == found["micro_f1"] == 75
    assert found["macro_f1"] == pytest.approx(100 * (2 / 3 + 2 / 3 + 1) / 3)


def test_numbers() -> None:
    right, predicted = np.array([1.0, 2.0, 2.0, 5.0]), np.array([0.5, 3.0, 2.0, 90.0])
    found = number_scores(right, predicted)
    assert found["mean_squared_error"] == pytest.approx((0.25 + 1 + 0 + 85**2) / 4)
    assert found["pearson"] == pytest.approx(np.corrcoef(right, predicted)[0, 1])
    assert found["spearman"] == pytest.approx(np.corrcoef([1, 2.5, 2.5, 4], [1, 3, 2, 4])[0, 1])
    assert number_scores(right, -predicted)["spearman"] == pytest.approx(-found["spearman"])


def test_numbers_that_are_all_the_same() -> None:
    found = number_scores(np.array([1.0, 2.0]), np.array([3.0, 3.0]))
    assert found == {"mean_squared_error": 2.5, "pearson": 0.0, "spearman": 0.0}
