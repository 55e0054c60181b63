"""What every kernel is given, and what it gives back.

A kernel is a function, and its derivative a second one where torch does not find it by itself::

    forward(query, key, value, problem) -> out, lse
    backward(grad_out, query, key, value, out, lse, problem) -> grad_query, grad_key, grad_value

    query     (B, H, R, D)  R rows: the S tokens of the sequence, or some rows that were gathered
    key       (B, H, S, D)
    value     (B, H, S, D)
    out       (B, H, R, D)  of query's dtype, 0 in a row that has nothing to attend to
    lse       (B, H, R)     log-sum-exp of the row's scores in base 2, in at least float32; no gradient flows through it

The base is 2 because the kernels exponentiate in base 2, and because the largest score then enters ``lse`` as it is:
the error of ``lse`` is at most log₂ S, however large the scores are. With s(i, j) the scaled dot product of row i and a
column j that it sees,

    lse(i) = log₂ Σⱼ exp s(i, j)      and +inf where there is no such column,

so that exp(s) / 2^lse is the probability, and 0 in a row without columns. Parts of a row's attention over different
columns become one by

    lse = log₂(2^lse₁ + 2^lse₂)       out = 2^(lse₁ - lse) out₁ + 2^(lse₂ - lse) out₂.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .pattern import Tokens

LOG2_E = math.log2(math.e)


@dataclass
class Problem:
    """What a kernel is told besides query, key and value.

    Args:
        pattern: which columns a row sees: an AttentionPattern, or, for ``reference`` and ``flex``, a MaskPattern.
        tokens: padding and global tokens of the batch.
        scale: factor on the dot products.
        dropout_p: probability with which an attention probability is set to 0.
        seed: (1,) int64 on the tensors' device, from which dropout is drawn; None without dropout.
        gathered: the rows are some queries and not the S tokens. Each sees every column that is no padding, as the rows
            of global tokens do, and no row is padding.
        rows: (B, R) positions of gathered rows, none of which sees a later column; -1 is no row. None is no such bound.
        cut: what the forward pass worked out from the rest, for the backward pass of the same problem.
    """

    pattern: Any
    tokens: Tokens
    scale: float
    dropout_p: float = 0.0
    seed: Tensor | None = None
    gathered: bool = False
    rows: Tensor | None = None
    cut: Any = None
