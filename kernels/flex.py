"""torch's own FlexAttention, told the pattern by its ``mask_mod``: an implementation to compare with, for any pattern.

It compiles a kernel for each kind of pattern, and on a CPU for each length. It skips the blocks of 128 rows and columns
in which no row sees a column, and asks ``mask_mod`` where a block is seen in part.

On a GPU it has gradients and gives the log-sum-exp. On a CPU torch has neither of FlexAttention. There it serves for
inference, and the log-sum-exp is None.
"""

from __future__ import annotations

import functools
import math
import os
import shutil
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import compat
from .masks import MaskPattern, of_pairs
from .pattern import MaskMod
from .problem import LOG2_E, Problem

ABSENT: str | None = None  # why there is no FlexAttention in this torch
try:
    from torch.nn.attention import flex_attention as flex
except ImportError as error:
    ABSENT = str(error)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BLOCK = 128  # rows and columns, FlexAttention's own choice
LEAST_HEAD_DIM = 16  # on a GPU
GRAPHS = 256  # so many kinds and lengths may be compiled; torch's own limit of 8 ends in an S × S matrix


def refusal(query: Tensor, dropout_p: float, backward: bool) -> str | None:
    """Why FlexAttention cannot serve; None if it can.

    Args:
        backward: whether gradients will be asked for.
    """
    device, dtype, head_dim = query.device.type, query.dtype, query.shape[-1]
    if ABSENT is not None:
        return f"this torch has no FlexAttention ({ABSENT})"
    if device not in ("cuda", "cpu"):
        return f"FlexAttention serves on a GPU or a CPU, and this tensor is on {device}"
    if dtype not in DTYPES:
        return f"FlexAttention knows {', '.join(map(str, DTYPES))}, and not {dtype}"
    if dropout_p:
        return "FlexAttention has no dropout"
    if compat.in_transform():
        return "FlexAttention is compiled by itself here, and cannot stand under torch.func"
    if device == "cuda":
        small = head_dim < LEAST_HEAD_DIM
        return (
            f"FlexAttention takes heads of {LEAST_HEAD_DIM} or more dimensions on a GPU, not {head_dim}"
            if small
            else None
        )
    if backward:
        return "FlexAttention has no gradients on a CPU"
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return (
            f"FlexAttention needs a C++ compiler on a CPU, and there is no {compiler!r}; install one, or name it by CXX"
        )
    return None


def forward(query: Tensor, key: Tensor, value: Tensor, problem: Problem) -> tuple[Tensor, Tensor | None]:
    """Attention and its log-sum-exp, see ``problem.py``; None for the latter on a CPU. torch differentiates it.

    Raises:
        ValueError: FlexAttention could not be compiled for this; the message has the compiler's first line.
    """
    tokens, keep = problem.tokens, problem.tokens.keep
    key, value = tokens.without_padding(key), tokens.without_padding(value)
    score_mod = None
    asked = mask_mod = None
    if not problem.gathered:
        query = tokens.without_padding(query)
        asked = mask_mod = problem.pattern.mask_mod(tokens, heads=query.shape[1], device=query.device)
        if isinstance(problem.pattern, MaskPattern):
            asked, score_mod = of_pairs(mask_mod, problem.pattern.name), problem.pattern.score
    elif keep is not None:
        asked = mask_mod = lambda b, h, row, column: keep[b, column]
    blocks = None if mask_mod is None or asked is None else block_mask(mask_mod, query, key, asked)
    arguments: dict[str, Any] = {"block_mask": blocks, "scale": problem.scale, "score_mod": score_mod}
    with_lse = query.device.type == "cuda"
    if with_lse:
        # Its name of today, and the one of early releases.
        aux = getattr(flex, "AuxRequest", None)
        arguments |= {"return_lse": True} if aux is None else {"return_aux": aux(lse=True)}
    try:
        with compat.room_for_graphs(GRAPHS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's compiler, about itself
            result = _compiled(query.device.type)(query, key, value, **arguments)
    except RuntimeError as error:
        if not compat.is_compiler_error(error):
            raise
        first = str(error).strip().partition("\n")[0]
        raise compat.NotCompiledError(
            f'impl is "flex", and FlexAttention could not be compiled here ({first}); use "auto"'
        ) from error
    out, lse = result if with_lse else (result, None)
    if lse is not None:
        lse = getattr(lse, "lse", lse).detach() * LOG2_E
        lse = lse.masked_fill(lse == -math.inf, math.inf)
    # A padded row sees nothing and is 0. Its gradient may still be anything, and must not reach the values.
    return out if problem.gathered else tokens.without_padding(out), lse


@functools.cache
def _compiled(device: str) -> Any:
    # On a CPU it cannot be compiled for more lengths than one at once.
    return torch.compile(flex.flex_attention, dynamic=False if device == "cpu" else None)


def block_mask(mask_mod: MaskMod, query: Tensor, key: Tensor, asked: MaskMod | None = None) -> Any:
    """FlexAttention's account of a pattern: which blocks are seen in part, and which are seen wholly.

    It is what ``create_block_mask`` gives, without an S × S matrix of int64, which at 65,536 tokens takes 34 GB.

    Args:
        mask_mod: of one pair, as FlexAttention wants it.
        query, key: (B, H, S, D), of which the shapes count.
        asked: ``mask_mod`` as a function of index tensors that broadcast; None is ``mask_mod`` itself.
    """
    batch, heads, rows, _ = query.shape
    columns, device = key.shape[2], query.device
    count = math.ceil(columns / BLOCK)
    b, h = (torch.arange(n, device=device).view(-1, *shape) for n, shape in ((batch, (1, 1, 1)), (heads, (1, 1))))
    column = torch.arange(columns, device=device)
    partly, wholly = [], []
    for row in torch.arange(rows, device=device).split(BLOCK):
        seen = (asked or mask_mod)(b, h, row[:, None], column).expand(batch, heads, len(row), columns)
        seen = F.pad(seen, (0, count * BLOCK - columns)).unflatten(3, (count, BLOCK))
        every = seen.all(4).all(2) if len(row) == BLOCK else seen.new_zeros(batch, heads, count)
        partly.append(seen.any(4).any(2) & ~every)
        wholly.append(every)

    def listed(chosen: list[Tensor]) -> tuple[Tensor, Tensor]:
        """How many blocks of each row of blocks are chosen, and which, the chosen ones first: int32."""
        stacked = torch.stack(chosen, dim=2)  # (B, H, N, count)
        return stacked.sum(3).int(), stacked.int().argsort(dim=3, descending=True, stable=True).int()

    found = (*listed(partly), *listed(wholly))
    return flex.BlockMask.from_kv_blocks(*found, BLOCK_SIZE=BLOCK, mask_mod=mask_mod, seq_lengths=(rows, columns))
