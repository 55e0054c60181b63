"""Sums in an order of one's own: what other libraries, compilers and loops make of the same formulas.

While :class:`Summation` is open, every matrix product and every sum of torch adds its terms in the order that it is
given, each partial sum rounded to the precision of the terms. Softmax, LayerNorm and the like are taken apart for that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from longformer.parity.operations import decompositions

aten = torch.ops.aten
Add = Callable[[Tensor], Tensor]


def one_after_another(terms: Tensor) -> Tensor:
    """(K, ...) to (...)."""
    total = torch.zeros_like(terms[0]) if len(terms) else terms.sum(dim=0)
    for term in terms:
        total = total + term
    return total


def backwards(terms: Tensor) -> Tensor:
    return one_after_another(terms.flip(0))


def in_pairs(terms: Tensor) -> Tensor:
    while len(terms) > 1:
        odd = terms[len(terms) // 2 * 2 :]
        terms = torch.cat([terms[0 : len(terms) // 2 * 2 : 2] + terms[1::2], odd])
    return terms.sum(dim=0)


def in_blocks(terms: Tensor, size: int = 32) -> Tensor:
    return one_after_another(torch.stack([one_after_another(block) for block in terms.split(size)]))


ORDERS: dict[str, Add] = {
    "one after another": one_after_another,
    "backwards": backwards,
    "in pairs": in_pairs,
    "in blocks": in_blocks,
}


class Summation(TorchDispatchMode):
    """While this is open, sums of floating-point numbers are added up by ``add``, an entry of ``ORDERS``."""

    def __init__(self, add: Add) -> None:
        super().__init__()
        self.add = add

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        composed = decompositions().get(func)
        if composed is not None:
            with self:
                return composed(*args, **kwargs)
        packet = func.overloadpacket
        if packet in (aten.mm, aten.bmm):
            return self._product(*args)
        if packet in (aten.addmm, aten.baddbmm) and not kwargs:
            return self._product(*args[1:]) + args[0]
        if packet in (aten.sum, aten.mean) and args[0].is_floating_point():
            return self._sum(*args, **kwargs, mean=packet is aten.mean)
        return func(*args, **kwargs)

    def _product(self, x: Tensor, y: Tensor) -> Tensor:
        # A block of rows at a time: all products at once would be K times as many numbers as the result.
        rows = max(1, 2**22 // max(1, x.shape[-1] * y.shape[-1] * (x.shape[0] if x.dim() == 3 else 1)))
        columns = y.movedim(-2, 0).unsqueeze(-2)  # (K, ..., 1, N)
        parts = [self.add(part.movedim(-1, 0).unsqueeze(-1) * columns) for part in x.split(rows, dim=-2)]
        return torch.cat(parts, dim=-2)

    def _sum(
        self, x: Tensor, dim: Any = None, keepdim: bool = False, *, mean: bool = False, dtype: Any = None
    ) -> Tensor:
        x = x if dtype is None else x.to(dtype)
        dims = list(range(x.dim())) if dim is None or dim == [] else [dim] if isinstance(dim, int) else list(dim)
        if not x.dim():
            return x.clone()
        dims = [each % x.dim() for each in dims]
        kept = [axis for axis in range(x.dim()) if axis not in dims]
        total = self.add(x.permute(dims + kept).reshape(-1, *(x.shape[axis] for axis in kept)))
        total = total / (x.numel() / max(1, total.numel())) if mean else total
        return total.reshape([1 if axis in dims else x.shape[axis] for axis in range(x.dim())]) if keepdim else total
