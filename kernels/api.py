"""The public operators and their contract: arguments are checked here, once, and handed on as a pattern and tokens.

Shapes: B batch, H heads, S sequence, D head dimension, G global tokens, W = left + 1 + right width of the band.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import EllipsisType

import torch
from torch import Tensor

from . import banded, call
from .arguments import DTYPES, check_dropout, check_mask, check_qkv, check_scale
from .banded import BandProbabilities
from .dispatch import IMPLEMENTATIONS, Choice, choose
from .masks import MaskPattern, Pattern
from .pattern import FARTHEST, AttentionPattern, Tokens, own_tokens, shown
from .problem import Problem

Window = tuple[int, int] | EllipsisType | None  # ... where it is not given, but a pattern instead

__all__ = [
    "DTYPES",
    "IMPLEMENTATIONS",
    "Choice",
    "attention_pairs",
    "choose",
    "global_attention",
    "sliding_window_attention",
    "sliding_window_probabilities",
]


def sliding_window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: Window = ...,
    *,
    dilation: int | Sequence[int] = 1,
    causal: bool = False,
    pattern: Pattern | None = None,
    key_mask: Tensor | None = None,
    global_mask: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    impl: str = "auto",
) -> Tensor:
    """Attention of every token to its neighbours and to the global tokens (Longformer, arXiv 2004.05150, §3.1).

    Row i attends to the columns i - left·d, …, i - d, i, i + d, …, i + right·d that exist, d being its head's
    dilation, and to every global column, all in one softmax; a column that is both counts once. The softmax is
    computed in at least float32. A row with nothing to attend to is 0.

    Args:
        query, key, value: (B, H, S, D), any S >= 1 and D >= 1; float64, float32, bfloat16 or float16, all alike.
        window: (left, right), tokens seen on each side; None is every token. The hub's ``attention_window=512`` is
            (256, 256).
        dilation: gap between the tokens of the window, one for all heads or one for each head. Without a window it
            is 1.
        causal: no row sees a later column, global columns included. The window's right side is then 0.
        pattern: window, dilation and causality as one object, in place of these three, with global tokens of its own,
            if their positions say them; or a MaskPattern, any mask and score, which "flex" and "reference" compute.
        key_mask: (B, S) bool. False is padding: nobody attends to it, and its own row is exactly 0. What stands there,
            NaN included, changes nothing.
        global_mask: (B, S) bool. True is a column that every row sees. Padding wins over global.
        scale: factor on the scores; 1/sqrt(D) if None.
        dropout_p: probability with which an attention probability is set to 0, the others being divided by
            1 - dropout_p. Drawn from torch's default generator.
        impl: "auto" (see :func:`choose`), "reference", "banded", "blocked", "fused", "triton" or "flex".

    Returns:
        (B, H, S, D), dtype of ``query``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range; the message names it.
        ValueError: ``impl`` cannot serve these arguments here; the message says why.
    """
    check_qkv(query, key, value, same_length=True)
    pattern = _pattern(window, dilation, causal, pattern, query.shape[1])
    tokens = _tokens(key_mask, global_mask, key, pattern)
    check_scale(scale)
    check_dropout(dropout_p)
    return call.attend(query, key, value, pattern, tokens, scale=scale, dropout_p=dropout_p, impl=impl)


def global_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    impl: str = "auto",
) -> Tensor:
    """Attention of a few rows, the global tokens, to every token (Longformer, arXiv 2004.05150, §3.1, "Global").

    Args:
        query: (B, H, G, D), projected with the global projections.
        key, value: (B, H, S, D), likewise; dtype of ``query``.
        key_mask: (B, S) bool, False is padding.
        scale, dropout_p, impl: as for :func:`sliding_window_attention`.

    Returns:
        (B, H, G, D), dtype of ``query``. Rows over a fully masked sequence are 0.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range; the message names it.
        ValueError: ``impl`` cannot serve these arguments here; the message says why.
    """
    check_qkv(query, key, value, same_length=False)
    check_mask("key_mask", key_mask, key)
    check_scale(scale)
    check_dropout(dropout_p)
    return call.attend_rows(query, key, value, key_mask, scale=scale, dropout_p=dropout_p, impl=impl)


def sliding_window_probabilities(
    query: Tensor,
    key: Tensor,
    window: Window = ...,
    *,
    dilation: int | Sequence[int] = 1,
    causal: bool = False,
    pattern: Pattern | None = None,
    key_mask: Tensor | None = None,
    global_mask: Tensor | None = None,
    scale: float | None = None,
) -> BandProbabilities:
    """The attention probabilities of :func:`sliding_window_attention`, by diagonals, before dropout.

    Arguments, and errors for them, as there. Returns ``BandProbabilities``: ``band`` (B, H, S, W), ``columns``
    (B, H, S, G) and ``column_index`` (B, G). Without a window left and right are S - 1.
    """
    check_qkv(query, key, key, same_length=True)
    pattern = _pattern(window, dilation, causal, pattern, query.shape[1])
    tokens = _tokens(key_mask, global_mask, key, pattern)
    check_scale(scale)
    return banded.probabilities(query, key, Problem(pattern, tokens, call.scale_of(query, scale)))


def attention_pairs(
    seq_len: int,
    window: tuple[int, int] | None,
    *,
    dilation: int | Sequence[int] = 1,
    causal: bool = False,
    key_mask: Tensor | None = None,
    global_mask: Tensor | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Which column each row attends to: (B or 1, H or 1, S, S) bool, True where row i sees column j.

    It is :meth:`AttentionPattern.pairs` with its arguments written out; these are as for
    :func:`sliding_window_attention`. ``device``: where to make the mask if no other mask is given.
    """
    pattern = _pattern(window, dilation, causal, None, None)
    if not isinstance(seq_len, int) or isinstance(seq_len, bool) or not 1 <= seq_len <= FARTHEST:
        raise ValueError(f"seq_len is {shown(seq_len)}; it must be an int >= 1 and at most {FARTHEST}")
    first = next((mask for mask in (key_mask, global_mask) if isinstance(mask, Tensor) and mask.dim()), None)
    key = torch.empty(1, 1, seq_len, 0) if first is None else first.new_empty(len(first), 1, seq_len, 0)
    check_mask("key_mask", key_mask, key)
    check_mask("global_mask", global_mask, key)
    return pattern.pairs(seq_len, Tokens.of(key_mask, global_mask), device=device)


def _pattern(
    window: Window,
    dilation: int | Sequence[int],
    causal: bool,
    pattern: Pattern | None,
    heads: int | None,
) -> Pattern:
    if pattern is None:
        if window is ...:
            raise TypeError("give a window, (left, right), or None for every token; or a pattern")
        pattern = AttentionPattern(window, dilation, causal)
    elif not isinstance(pattern, (AttentionPattern, MaskPattern)):
        raise TypeError(f"pattern is a {type(pattern).__name__}, not an AttentionPattern or a MaskPattern")
    else:
        for name, given, default in (("window", window, ...), ("dilation", dilation, 1), ("causal", causal, False)):
            if type(given) is not type(default) or given != default:
                raise ValueError(f"pattern is given and so is {name}={shown(given)}; give one or the other")
    if heads is not None:
        pattern.gaps(heads)  # raises where it has dilations for another number of heads
    return pattern


def _tokens(key_mask: Tensor | None, global_mask: Tensor | None, key: Tensor, pattern: Pattern) -> Tokens:
    check_mask("key_mask", key_mask, key)
    check_mask("global_mask", global_mask, key)
    tokens = Tokens.of(key_mask, global_mask)
    return own_tokens(pattern.global_tokens, tokens, key[:, 0, :, 0]) or tokens
