"""Banded sliding-window and global attention: the kernels of Longformer, on torch alone. See ``kernels/README.md``."""

from .api import IMPLEMENTATIONS, choose, global_attention, sliding_window_attention, sliding_window_probabilities
from .banded import BandProbabilities, banded_product, banded_scores
from .dispatch import attend, attend_globally
from .pattern import AttentionPattern, Tokens
from .reference import attention_pairs

__all__ = [
    "IMPLEMENTATIONS",
    "AttentionPattern",
    "BandProbabilities",
    "Tokens",
    "attend",
    "attend_globally",
    "attention_pairs",
    "banded_product",
    "banded_scores",
    "choose",
    "global_attention",
    "sliding_window_attention",
    "sliding_window_probabilities",
]
