"""How good predictions are: accuracy and F1 of labels, error and correlation of numbers.

Letters: N texts, L labels.
"""

from __future__ import annotations

import numpy as np


def label_scores(right: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Accuracy, micro-F1 and macro-F1, in percent.

    With TP true and FP false positives, and FN false negatives, F1 = 2 TP / (2 TP + FP + FN). Micro-F1 counts over all
    labels together. Macro-F1 is the mean of the labels' own F1, over the labels that occur among the right or the
    predicted ones (Sebastiani 2002, "Machine learning in automated text categorization", section 7.1; of the two
    macro-F1 in use this is the mean of F1, see Opitz and Burst 2019, arXiv 1911.03347). A text is accurate if all its
    labels are predicted and no others. With one label a text, micro-F1 equals accuracy. If no label is right or
    predicted anywhere, F1 is 100.

    Args:
        right, predicted: (N, L) bool, N at least 1.
    """
    true_positives = (right & predicted).sum(axis=0)
    occurring = right.sum(axis=0) + predicted.sum(axis=0)  # 2 TP + FP + FN, by label
    any_at_all = occurring.sum() > 0
    by_label = 2 * true_positives[occurring > 0] / occurring[occurring > 0]
    return {
        "accuracy": 100 * float((right == predicted).all(axis=1).mean()),
        "micro_f1": 100 * float(2 * true_positives.sum() / occurring.sum()) if any_at_all else 100.0,
        "macro_f1": 100 * float(by_label.mean()) if any_at_all else 100.0,
    }


def number_scores(right: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Mean squared error, Pearson's and Spearman's correlation.

    Spearman's is Pearson's of the ranks, where equal numbers share the mean of their ranks. If all numbers of one side
    are equal, no correlation is defined, and 0 is given.

    Args:
        right, predicted: (N,) numbers, N at least 1.
    """
    right, predicted = right.astype(np.float64), predicted.astype(np.float64)
    return {
        "mean_squared_error": float(((right - predicted) ** 2).mean()),
        "pearson": _correlation(right, predicted),
        "spearman": _correlation(_ranks(right), _ranks(predicted)),
    }


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's: the covariance divided by both standard deviations."""
    a, b = one - one.mean(), other - other.mean()
    size = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / size) if size > 0 else 0.0


def _ranks(numbers: np.ndarray) -> np.ndarray:
    _, places, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[places]
