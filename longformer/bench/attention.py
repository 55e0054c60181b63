"""``bench attention``: the attention of one layer alone, from projected query, key and value to the output.

Letters: B batch, S sequence, H heads, D head dimension, G global tokens, w tokens seen on each side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longformer.bench import machine, rivals
from longformer.bench.timing import Case, Contender
from longformer.errors import LongformerError
from longformer.kernels import global_attention, sliding_window_attention

OURS = "longformer"
Projected = tuple[Tensor, Tensor, Tensor]  # query, key, value
RIVALS = {
    "transformers": rivals.transformers_attention,
    "FlexAttention, compiled": rivals.flex_attention,
    "dense SDPA": rivals.dense_attention,
}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """An attention problem. The first ``global_tokens`` tokens are global, as a question's are.

    Raises:
        LongformerError: a number out of range, or tensors that do not fit into memory.
    """

    batch: int = 1
    heads: int = 12
    seq_len: int = 4096
    head_dim: int = 64
    window: int = 256
    global_tokens: int = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for field, least in (("batch", 1), ("heads", 1), ("seq_len", 1), ("head_dim", 1), ("window", 0)):
            if getattr(self, field) < least:
                raise LongformerError(f"{field} is {getattr(self, field)}; it must be at least {least}")
        if not 0 <= self.global_tokens <= self.seq_len:
            raise LongformerError(f"global_tokens is {self.global_tokens}; give 0 to seq_len = {self.seq_len}")
        wanted, available = 4 * self.tensor_bytes, machine.available_memory()
        if available is not None and wanted > available:
            raise LongformerError(
                f"query, key, value and output take {wanted / 1e9:.1f} GB at seq_len {self.seq_len}, and "
                f"{available / 1e9:.1f} GB are free; take fewer heads or tokens"
            )

    @property
    def torch_dtype(self) -> torch.dtype:
        """Its dtype as torch's."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def tensor_bytes(self) -> int:
        """Size of one (B, H, S, D) tensor."""
        return self.batch * self.heads * self.seq_len * self.head_dim * self.torch_dtype.itemsize

    def replace(self, **changes: Any) -> Shape:
        """A copy with ``changes``."""
        return dataclasses.replace(self, **changes)

    def pairs(self) -> int:
        """How many (row, column) pairs one head computes: exactly those of the pattern, edges taken off.

        A local row sees its band and the global columns outside it, a global row sees all.
        """
        row = torch.arange(self.global_tokens, self.seq_len)
        first, last = (row - self.window).clamp(min=0), (row + self.window).clamp(max=self.seq_len - 1)
        band = (last - first + 1).sum()
        outside = first.clamp(max=self.global_tokens).sum()
        return int(band + outside) + self.global_tokens * self.seq_len

    def flop(self, *, backward: bool) -> float:
        """Useful arithmetic: two products forward, and five backward, one of which recomputes the scores."""
        products = 7 if backward else 2
        return 2.0 * products * self.batch * self.heads * self.head_dim * self.pairs()


class Inputs(NamedTuple):
    """What the projections of a layer give, laid out as they leave it: each (B, S, H, D).

    local: query, key, value. global_: the same by the global projections, the query being (B, G, H, D); None without
    global tokens. grad: gradient of the output; None where no backward is asked for.
    """

    local: Projected
    global_: Projected | None
    grad: Tensor | None

    @property
    def leaves(self) -> list[Tensor]:
        """All that gets a gradient."""
        return [*self.local, *(self.global_ or ())]


def make_inputs(shape: Shape, *, backward: bool = False) -> Inputs:
    """Seeded inputs, normal, rounded to the shape's dtype; leaves that want gradients if ``backward``."""
    generator = torch.Generator().manual_seed(0)

    def draw(tokens: int) -> Tensor:
        size = (shape.batch, tokens, shape.heads, shape.head_dim)
        return torch.randn(size, generator=generator).to(shape.torch_dtype).requires_grad_(backward)

    local = (draw(shape.seq_len), draw(shape.seq_len), draw(shape.seq_len))
    global_ = None
    if shape.global_tokens:
        global_ = (draw(shape.global_tokens), draw(shape.seq_len), draw(shape.seq_len))
    return Inputs(local, global_, draw(shape.seq_len).detach() if backward else None)


def contender(name: str, shape: Shape, inputs: Inputs, *, backward: bool = False) -> Contender:
    """``name`` at work on ``inputs``: gives the output (B, S, H, D) and, if ``backward``, the gradients of the inputs.

    Args:
        name: a key of ``RIVALS``, or ours: "longformer", or "longformer (banded)" for one of its implementations.

    Raises:
        UnavailableError: it is not installed, or cannot do this.
    """
    if name in RIVALS:
        attention = RIVALS[name](shape, inputs)
    else:
        attention = rivals.Attention(partial(_ours, shape, inputs, name.removeprefix(OURS).strip(" ()") or "auto"))

    def run() -> Sequence[Tensor]:
        with torch.set_grad_enabled(backward):
            out = attention.forward()
            if not backward:
                return [out]
            return [out, *torch.autograd.grad(out, inputs.leaves, inputs.grad)]

    def prepare() -> None:
        with torch.set_grad_enabled(backward):
            attention.prepare()

    return Contender(name, run, prepare)


def _ours(shape: Shape, inputs: Inputs, impl: str) -> Tensor:
    query, key, value = (x.transpose(1, 2) for x in inputs.local)
    window = (shape.window, shape.window)
    if inputs.global_ is None:
        return sliding_window_attention(query, key, value, window, impl=impl).transpose(1, 2)
    global_mask = torch.zeros(shape.batch, shape.seq_len, dtype=torch.bool)
    global_mask[:, : shape.global_tokens] = True
    out = sliding_window_attention(query, key, value, window, global_mask=global_mask, impl=impl).transpose(1, 2)
    query, key, value = (x.transpose(1, 2) for x in inputs.global_)
    rows = global_attention(query, key, value, impl=impl).transpose(1, 2)
    return out.index_copy(1, torch.arange(shape.global_tokens), rows)


def cases(shape: Shape, *, ours: Sequence[str], backward: bool) -> list[Case]:
    """Forward and, if ``backward``, forward with backward, of ours and every rival at one shape."""
    found = []
    for with_backward in (False, True) if backward else (False,):
        inputs = make_inputs(shape, backward=with_backward)
        exact = None
        if shape.torch_dtype.itemsize < 4:
            exact = partial(_in_float32, shape, inputs, backward=with_backward)
        what = "forward + backward" if with_backward else "forward"
        found.append(
            Case(
                name=f"attention {what}, {shape.seq_len} tokens, {shape.global_tokens} global, {shape.dtype}",
                settings={**dataclasses.asdict(shape), "backward": with_backward, "threads": torch.get_num_threads()},
                dtype=shape.torch_dtype,
                builders={
                    name: partial(contender, name, shape, inputs, backward=with_backward) for name in (*ours, *RIVALS)
                },
                reference=exact,
                flop=shape.flop(backward=with_backward),
                items=(shape.batch * shape.seq_len, "tokens"),
            )
        )
    return found


def _in_float32(shape: Shape, inputs: Inputs, *, backward: bool) -> Sequence[Tensor]:
    """What ours gives in float32 for the same rounded inputs."""

    def widen(projected: Projected) -> Projected:
        query, key, value = (x.detach().float().requires_grad_(backward) for x in projected)
        return query, key, value

    wide = Inputs(
        widen(inputs.local),
        None if inputs.global_ is None else widen(inputs.global_),
        None if inputs.grad is None else inputs.grad.float(),
    )
    return contender(OURS, shape.replace(dtype="float32"), wide, backward=backward).run()
