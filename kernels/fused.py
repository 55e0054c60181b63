"""Torch's own fused attention inside tiles of the band, for processors with matrix instructions in half precision.

As in ``blocked.py`` a tile is T rows, the columns of their band, and here behind them the global columns; a mask of the
tile says which of them a row sees. Torch keeps a tile's scores in float32 where the inputs are bfloat16 or float16. The
backward pass is that of ``blocked.py``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import compat
from .problem import LOG2_E, Problem
from .tiles import Block, Piece, columns_of, new_result, pieces_of, rows_of


def forward(query: Tensor, key: Tensor, value: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exp, see ``problem.py``. It has no dropout, see :func:`refusal`."""
    query, key, value = (_without_gaps(x) for x in (query, key, value))
    out = new_result(query, query.dtype, zero=problem.tokens.keep is not None)
    wide = torch.promote_types(query.dtype, torch.float32)
    lse = query.new_full((*query.shape[:3], 1), math.inf, dtype=wide)
    for piece in pieces_of(query, key, problem):
        rows, keys, values = rows_of(piece, query), columns_of(piece, key), columns_of(piece, value)
        global_keys, global_values = (
            None if piece.global_index is None else x[piece.batch, piece.heads][:, piece.global_index]
            for x in (key, value)
        )
        to_out, to_lse = (x[piece.batch, piece.heads, piece.rows] for x in (out, lse))
        for block in piece.blocks(query.dtype, True):
            found, found_lse = _attention(
                _tiles(rows, block, block.rows),
                _beside_globals(_tiles(keys, block, block.columns), global_keys),
                _beside_globals(_tiles(values, block, block.columns), global_values),
                _bias(piece, block, query.dtype),
                problem.scale,
            )
            to_out[:, block.all_rows] = found.transpose(0, 1).flatten(1, 2)
            torch.mul(found_lse.transpose(0, 1).flatten(1)[..., None], LOG2_E, out=to_lse[:, block.all_rows])
        if piece.column_mask is not None and piece.padded_rows:
            # Padding has perhaps nothing to attend to, and is 0 in any case.
            to_out.masked_fill_(~piece.column_mask[:, None], 0.0)
            to_lse.masked_fill_(~piece.column_mask[:, None], math.inf)
    return out, lse.squeeze(-1)


def refusal(query: Tensor, dropout_p: float) -> str | None:
    """Why torch's fused attention cannot serve ``query``; None if it can."""
    if query.device.type != "cpu" or compat.flash_attention_for_cpu is None:
        return f"this torch has no fused attention with a log-sum-exp on {query.device.type}"
    return "torch's fused attention has no dropout on a CPU" if dropout_p else None


def _attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Torch's: (repeats, H, T, D), and the natural logarithm of the sum of exponentials, (repeats, H, T)."""
    attention = compat.flash_attention_for_cpu
    assert attention is not None
    return attention(query, key, value, attn_mask=bias, scale=scale)


def _without_gaps(x: Tensor) -> Tensor:
    """``x`` with a head's numbers side by side, as torch's fused attention wants them."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _tiles(x: Tensor, block: Block, first: slice) -> Tensor:
    """(H, length, ...) to (repeats, H, size, ...): overlapping views, the first at ``first``, each a tile on."""
    size, step = first.stop - first.start, block.rows.stop - block.rows.start
    rows = x[:, first.start : first.stop + (block.repeats - 1) * step]
    return rows.unfold(1, size, step).movedim(-1, 2).transpose(0, 1)


def _beside_globals(columns: Tensor, global_columns: Tensor | None) -> Tensor:
    """(repeats, H, size, D) with (H, G, D) behind the columns of each tile."""
    if global_columns is None:
        return columns
    return torch.cat([columns, global_columns.expand(columns.shape[0], -1, -1, -1)], dim=2)


def _bias(piece: Piece, block: Block, dtype: torch.dtype) -> Tensor | None:
    """-inf where a row does not see a column and 0 elsewhere, (repeats or 1, 1, T, size); None if all is seen."""
    hidden = piece.global_hidden(block.all_rows)
    if not block.ceilings and piece.column_mask is None and hidden is None:
        return None
    count = 0 if piece.global_index is None else len(piece.global_index)
    step, width = block.rows.stop - block.rows.start, block.columns.stop - block.columns.start
    repeats = 1 if piece.column_mask is None and hidden is None else block.repeats
    bias = torch.zeros(repeats, 1, step, width + count, dtype=dtype)
    for span, ceiling in block.ceilings:
        band = bias[..., span]
        torch.minimum(band, ceiling, out=band)
    if piece.column_mask is not None:
        bias[..., :width].masked_fill_(~_tiles(piece.column_mask[None], block, block.columns)[:, :, None], -math.inf)
    if hidden is not None:
        bias[..., width:].masked_fill_(hidden.view(repeats, 1, step, count), -math.inf)
    return bias
