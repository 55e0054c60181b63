"""Banded sliding-window and global attention: the kernels of Longformer, on torch alone. See ``kernels/README.md``."""

# transformers looks for a distribution called "kernels", and where a checkout is on the path it imports this folder by
# that name. Then nothing may be loaded: torch's operators would be defined a second time.
if __name__ != "kernels":
    from .api import attention_pairs, global_attention, sliding_window_attention, sliding_window_probabilities
    from .banded import BandProbabilities, banded_product, banded_scores
    from .call import attend, attend_globally, attend_rows
    from .dispatch import IMPLEMENTATIONS, Choice, choose
    from .global_tokens import GlobalTokens
    from .masks import MaskPattern
    from .pattern import AttentionPattern, Tokens

__all__ = [
    "IMPLEMENTATIONS",
    "AttentionPattern",
    "BandProbabilities",
    "Choice",
    "GlobalTokens",
    "MaskPattern",
    "Tokens",
    "attend",
    "attend_globally",
    "attend_rows",
    "attention_pairs",
    "banded_product",
    "banded_scores",
    "choose",
    "global_attention",
    "sliding_window_attention",
    "sliding_window_probabilities",
]
