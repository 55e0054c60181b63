"""What the benchmarks compute on: problems of attention with their inputs, documents for a model, and questions.

Letters: B batch, S sequence, H heads, D head dimension, G global tokens.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longformer.answering.squad import Example, read_squad
from longformer.bench import machine
from longformer.bench.formats import gigabytes
from longformer.config import LongformerConfig
from longformer.errors import LongformerError
from longformer.kernels import AttentionPattern, Tokens

Projected = tuple[Tensor, Tensor, Tensor]  # query, key, value
FORWARD_PRODUCTS = 2  # scores; output
BACKWARD_PRODUCTS = 5  # scores once more; gradients of probabilities, query, key and value
MASK_ROWS = 1024  # rows of a dense mask that are made at once


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A problem of attention. Its first ``global_tokens`` tokens are global, like the tokens of a question.

    Args:
        batch, heads, seq_len, head_dim: B, H, S and D.
        window: tokens that a row sees on each side.
        global_tokens: G.
        dtype: name of the inputs' dtype in torch.

    Raises:
        LongformerError: a number is out of range, or the tensors do not fit into memory.
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
        needed, available = 4 * self.tensor_bytes, machine.available_memory()
        if available is not None and needed > available:
            raise LongformerError(
                f"query, key, value and output take {gigabytes(needed)} at seq_len {self.seq_len}, and "
                f"{gigabytes(available)} are free; take fewer heads or tokens"
            )

    def __str__(self) -> str:
        size = f"{self.batch} x {self.heads} heads, {self.seq_len} tokens, window {self.window}, D {self.head_dim}"
        return f"{size}, {self.dtype}, {self.global_tokens} global"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch's."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def tensor_bytes(self) -> int:
        """Size of one (B, H, S, D) tensor."""
        return self.batch * self.heads * self.seq_len * self.head_dim * self.torch_dtype.itemsize

    @property
    def pattern(self) -> AttentionPattern:
        """Who attends to whom, but for the global tokens."""
        return AttentionPattern((self.window, self.window))

    def settings(self) -> dict[str, Any]:
        """All fields as plain values, for the JSON. ``Problem(**settings)`` is the same problem."""
        return dataclasses.asdict(self)

    def replace(self, **changes: Any) -> Problem:
        """A copy with ``changes``."""
        return dataclasses.replace(self, **changes)

    def shortened(self, seq_len: int) -> Problem:
        """The same problem over at most ``seq_len`` tokens."""
        seq_len = min(self.seq_len, seq_len)
        return self.replace(seq_len=seq_len, global_tokens=min(self.global_tokens, seq_len))

    def tokens(self, device: torch.device | str = "cpu") -> Tokens:
        """Which tokens are global; none is padding."""
        if not self.global_tokens:
            return Tokens()
        is_global = torch.arange(self.seq_len, device=device) < self.global_tokens
        return Tokens.of(is_global=is_global.repeat(self.batch, 1))

    def mask(self) -> Tensor:
        """(S, S) bool on the CPU: which columns each row sees, rows of global tokens as if they were local.

        It is made a few rows at a time: ``pattern.pairs`` takes S × S numbers of 64 bits, which is 34 GB at 65,536.
        """
        sees = self.pattern.mask_mod(self.tokens(), device=torch.device("cpu"))
        columns, first = torch.arange(self.seq_len, device="cpu"), torch.tensor(0, device="cpu")
        mask = torch.empty(self.seq_len, self.seq_len, dtype=torch.bool, device="cpu")
        for rows, part in zip(columns.split(MASK_ROWS), mask.split(MASK_ROWS), strict=True):
            part.copy_(sees(first, first, rows[:, None], columns))
        return mask

    def pairs(self) -> int:
        """How many (row, column) pairs one head needs for one sequence.

        A local row sees its band and the global columns beside it, a global row sees every column.
        """

        def count(seq_len: int, global_tokens: int = 0) -> int:
            return self.pattern.cost(seq_len, global_tokens, heads=1).pairs

        band, globals_ = count(self.seq_len), self.global_tokens
        beside_band = count(self.seq_len, globals_) - band
        # Global rows mirror global columns, since the band is symmetric. Pairs of two global tokens are in both.
        in_both = globals_**2 - count(globals_)
        return band + 2 * beside_band - in_both

    @property
    def forward_flop(self) -> float:
        """Floating-point operations that the forward pass needs."""
        return 2.0 * FORWARD_PRODUCTS * self.batch * self.heads * self.head_dim * self.pairs()

    @property
    def backward_flop(self) -> float:
        """Floating-point operations that the backward pass needs; it computes the scores again."""
        return self.forward_flop * BACKWARD_PRODUCTS / FORWARD_PRODUCTS


class Inputs(NamedTuple):
    """What the projections of a layer give, laid out as they leave it: each (B, S, H, D).

    local: query, key, value. global_: the same by the global projections, its query being (B, G, H, D); None without
    global tokens. grad: gradient of the output; None if there is no backward pass.
    """

    local: Projected
    global_: Projected | None
    grad: Tensor | None

    @property
    def leaves(self) -> list[Tensor]:
        """All tensors that get a gradient."""
        return [*self.local, *(self.global_ or ())]

    def to(self, dtype: torch.dtype) -> Inputs:
        """The same numbers in another dtype, as new leaves."""

        def convert(projected: Projected) -> Projected:
            query, key, value = (x.detach().to(dtype).requires_grad_(x.requires_grad) for x in projected)
            return query, key, value

        return Inputs(
            convert(self.local),
            None if self.global_ is None else convert(self.global_),
            None if self.grad is None else self.grad.to(dtype),
        )


def draw(size: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Normal numbers on the generator's device, drawn in float32 and rounded to ``dtype``."""
    return torch.randn(size, generator=generator, device=generator.device, dtype=torch.float32).to(dtype)


def make_inputs(
    problem: Problem, *, backward: bool = False, device: torch.device | str = "cpu", seed: int = 0
) -> Inputs:
    """Seeded normal inputs on ``device``. If ``backward``, they are leaves that want a gradient."""
    generator = torch.Generator(device=device).manual_seed(seed)

    def projected(tokens: int) -> Tensor:
        size = (problem.batch, tokens, problem.heads, problem.head_dim)
        return draw(size, problem.torch_dtype, generator).requires_grad_(backward)

    length = problem.seq_len
    local = (projected(length), projected(length), projected(length))
    global_ = None
    if problem.global_tokens:
        global_ = (projected(problem.global_tokens), projected(length), projected(length))
    return Inputs(local, global_, projected(length).detach() if backward else None)


def make_document(config: LongformerConfig, tokens: int, global_tokens: int) -> Tensor:
    """(1, S) random ids in the order ``<s> question </s></s> context </s>``; <s> and the question are global.

    Raises:
        LongformerError: more tokens than the model has positions for, or too few for this order.
    """
    if tokens > config.max_tokens:
        raise LongformerError(f"{tokens} tokens are more than the {config.max_tokens} that the model has positions for")
    if not 1 <= global_tokens <= tokens - 4:
        raise LongformerError(
            f"{global_tokens} global tokens of {tokens} are impossible: <s> is one, and four tokens at least are local"
        )
    special = max(config.pad_token_id, config.bos_token_id, config.sep_token_id)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(special + 1, config.vocab_size, (1, tokens), generator=generator)
    ids[0, 0] = config.bos_token_id
    ids[0, [global_tokens, global_tokens + 1, tokens - 1]] = config.sep_token_id
    return ids


def make_training_inputs(config: LongformerConfig, tokens: int, global_tokens: int) -> dict[str, Tensor]:
    """One document with its answer in the middle, as keyword arguments of a question-answering model."""
    answer = torch.tensor([tokens // 2])
    ids = make_document(config, tokens, global_tokens)
    return {"input_ids": ids, "start_positions": answer, "end_positions": answer}


def read_questions(data: str | Path, limit: int | None) -> list[Example]:
    """The questions of a SQuAD-format file, or ``limit`` of them, evenly spaced over the file.

    Raises:
        DataError: the file cannot be read.
    """
    examples = read_squad(data, questions_only=True)
    if limit is None or limit >= len(examples):
        return examples
    return [examples[i * len(examples) // limit] for i in range(limit)]
