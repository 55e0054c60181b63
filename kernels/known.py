"""Patterns that the literature knows, each in a line or two, to run, to draw and to compare.

Each function gives a pattern for :func:`longformer.kernels.sliding_window_attention` or
``LongformerModel(config, attention=...)``. ``GALLERY`` has one of each, at a size that a picture shows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .global_tokens import GlobalTokens
from .masks import MaskPattern, Pattern
from .pattern import EVERYTHING, FARTHEST, AttentionPattern


def strided(stride: int) -> MaskPattern:
    """The last ``stride`` tokens, and every ``stride``-th before them (Sparse Transformer, arXiv 1904.10509, §4.2)."""
    far = AttentionPattern((FARTHEST, 0), stride, causal=True)
    return MaskPattern((AttentionPattern((stride, 0), causal=True), far))


def fixed(block: int, summaries: int = 1) -> MaskPattern:
    """Earlier tokens of one's own block, and the last few of each block before it (the same paper, §4.2)."""

    def fixed_blocks(b: Tensor, h: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return (row // block == column // block) | (column % block >= block - summaries)

    return MaskPattern((fixed_blocks,), causal=True)


def in_blocks(block: int) -> MaskPattern:
    """The tokens of one's own block (blockwise attention, arXiv 1911.02972)."""

    def same_block(b: Tensor, h: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return row // block == column // block

    return MaskPattern((same_block,))


def big_bird(block: int, blocks: int, *, random_blocks: int = 3, global_blocks: int = 1, seed: int = 0) -> MaskPattern:
    """Blocks: one's own and its two neighbours, some drawn at random, and the first ones (arXiv 2007.14062, §2).

    Which blocks are drawn follows from the numbers of row block and draw by a hash, so that it needs no table.
    BigBird draws without the blocks that are seen anyway; here some draws may fall on them.

    Args:
        block: tokens of a block.
        blocks: how many the longest sequence has; in a shorter one fewer random blocks exist.
        random_blocks: draws for each row block.
        global_blocks: so many, from the first, are global.
        seed: another one draws other blocks.
    """

    def window_and_random(b: Tensor, h: Tensor, row: Tensor, column: Tensor) -> Tensor:
        mine, other = row // block, column // block
        seen = (mine - other).abs() <= 1
        for draw in range(random_blocks):
            mixed = ((mine + 1) * 2654435761 + (draw + 1) * 40503 + seed * 97) % 1000003
            seen = seen | (other == (mixed * 48271 + 11) % 1000003 % blocks)
        return seen

    return MaskPattern((window_and_random,), global_tokens=GlobalTokens(tuple(range(block * global_blocks))))


def prefix(length: int) -> MaskPattern:
    """Every token of a prefix, and no later token behind it (prefix language model, arXiv 1910.10683, §3.2.1)."""

    def prefix_or_earlier(b: Tensor, h: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return (column <= row) | (column < length)

    return MaskPattern((prefix_or_earlier,))


def sinks(window: int, first: int = 4) -> MaskPattern:
    """The last ``window`` tokens and the first few of the sequence (attention sinks, arXiv 2309.17453, §3.2)."""

    def first_tokens(b: Tensor, h: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return column < first

    return MaskPattern((AttentionPattern((window, 0), causal=True), first_tokens), causal=True)


def powers_of_two() -> MaskPattern:
    """Oneself, and tokens at distances 1, 2, 4, 8 and so on before (LogSparse, arXiv 1907.00235, §4.2)."""

    def at_powers(b: Tensor, h: Tensor, row: Tensor, column: Tensor) -> Tensor:
        distance = row - column
        return (distance & (distance - 1)) == 0

    return MaskPattern((at_powers,), causal=True)


def alibi(heads: int, within: Pattern = AttentionPattern(None, causal=True)) -> MaskPattern:  # noqa: B008
    """Scores fall linearly with distance, for each head with its own slope (ALiBi, arXiv 2108.12409, §3).

    Head h of H, from 0 on, has the slope 2^(-8(h + 1)/H), which is the paper's where H is a power of 2.
    """

    def linear_bias(score: Tensor, b: Tensor, h: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return score - torch.exp2(-8 * (h + 1) / heads) * (row - column).abs()

    return MaskPattern((within,), linear_bias)  # type: ignore[arg-type]


def relative_bias(table: Tensor, *, farthest: int = 128, within: Pattern = EVERYTHING) -> MaskPattern:
    """A learned number for each head and bucket of distance is added to the score (T5, arXiv 1910.10683, §2.1).

    Half of the buckets are for later tokens. In each half, half are for single distances, the others grow with the
    logarithm up to ``farthest``.

    Args:
        table: (H, buckets), on the device of the tensors; it may require a gradient.
        farthest: distance from which all fall into the last bucket.
        within: who attends to whom.
    """
    half = table.shape[1] // 2
    exact = half // 2

    def bucketed_bias(score: Tensor, b: Tensor, h: Tensor, row: Tensor, column: Tensor) -> Tensor:
        distance = (row - column).abs()
        far = (distance.clamp(min=1) / exact).log() / math.log(farthest / exact) * (half - exact)
        bucket = torch.where(distance < exact, distance, (exact + far.long()).clamp(max=half - 1))
        return score + table[h, bucket + half * (column > row)]

    return MaskPattern((within,), bucketed_bias)  # type: ignore[arg-type]


GALLERY: dict[str, Pattern] = {
    "full": EVERYTHING,
    "causal": AttentionPattern(None, causal=True),
    "sliding window": AttentionPattern((4, 4)),
    "causal window": AttentionPattern((8, 0), causal=True),
    "dilated window": AttentionPattern((3, 3), 3),
    "Longformer": AttentionPattern((4, 4), global_tokens=GlobalTokens((0, 1, 2))),
    "landmarks": AttentionPattern((3, 3), global_tokens=GlobalTokens(every=12)),
    "strided": strided(7),
    "fixed": fixed(8),
    "blocks": in_blocks(8),
    "BigBird": big_bird(4, 12, random_blocks=2),
    "prefix": prefix(12),
    "attention sinks": sinks(8, 3),
    "LogSparse": powers_of_two(),
    "ALiBi": alibi(4),
    "relative bias": relative_bias(torch.linspace(1, -3, 16).repeat(1, 2), farthest=32),
}
"""One of each kind, for pictures of about 48 tokens. Heads that differ are drawn by their first."""
