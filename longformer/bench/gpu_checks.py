"""What ``bench gpu`` checks before it measures: our kernels against the float64 reference.

:func:`check_ours` checks each problem that is to be measured. :func:`check_case` checks arguments of the kernels that
those problems do not have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from longformer.bench import machine
from longformer.bench.attention import our_attention
from longformer.bench.problem import Inputs, Problem, draw, make_inputs
from longformer.bench.rivals import Attention
from longformer.bench.timing import DisagreementError
from longformer.kernels import AttentionPattern, Tokens, attend

# By the way of multiplying: the largest distance that rounding explains, far less than half of the terms of a sum
# cost. In float32 with "ieee" products it is the largest difference over the largest value, which a single product in
# TF32 would exceed. Otherwise it is the norm of the difference over the norm.
ALLOWED = {"float64": 1e-9, "ieee": 1e-5, "tf32": 2e-3, "bfloat16": 2e-2, "float16": 5e-3}
DENSE_TOKENS = 2048  # up to here the dense reference is the judge
CHECKED_HEADS = 2
BATCH, HEADS, TOKENS = 2, 2, 700  # of the cases: several blocks, the last of which is not full
WINDOW = (100, 60)
NAMES = ("output", "query's gradient", "key's gradient", "value's gradient")

Build = Callable[[Problem, Inputs], Attention]


class Case(NamedTuple):
    """Arguments of the kernel, to be checked."""

    name: str
    pattern: AttentionPattern
    dtype: torch.dtype = torch.bfloat16
    head_dim: int = 64
    padding: bool = False
    dropout_p: float = 0.0


CASES = (
    Case("padding and dilation", AttentionPattern(WINDOW, dilation=(1, 3)), padding=True),
    Case("causal", AttentionPattern((WINDOW[0], 0), causal=True)),
    Case("float16, heads of 80", AttentionPattern(WINDOW), dtype=torch.float16, head_dim=80),
    Case("dropout", AttentionPattern(WINDOW), dropout_p=0.1, padding=True),
)


def check_case(case: Case, device: torch.device | str, impl: str) -> None:
    """Compare ``impl`` with the reference.

    Raises:
        DisagreementError: rounding does not explain the distance, or dropout is not what it should be.
    """
    generator = torch.Generator(device=device).manual_seed(0)
    size = (BATCH, TOKENS, HEADS, case.head_dim)
    drawn = [draw(size, case.dtype, generator).transpose(1, 2) for _ in range(4)]
    tokens = _tokens(case, device)
    if case.dropout_p:
        _check_dropout(case, drawn, tokens, impl)
        return
    exact = _results(case, [x.double() for x in drawn], tokens, "reference")
    kind = machine.dtype_name(case.dtype)
    for name, found, wanted in zip(NAMES, _results(case, drawn, tokens, impl), exact, strict=True):
        far = distance([found], [wanted], kind)
        if far > ALLOWED[kind]:
            allowed = f"{ALLOWED[kind]:g} is allowed"
            raise DisagreementError(f"{name} is {far:.2g} from the reference in float64, and {allowed}")


def _tokens(case: Case, device: torch.device | str) -> Tokens:
    """Global tokens here and there and, if the case wants it, padding behind one example."""
    position = torch.arange(TOKENS, device=device).expand(BATCH, TOKENS)
    lengths = torch.tensor([[TOKENS], [TOKENS - 150]], device=device)
    return Tokens.of(keep=position < lengths if case.padding else None, is_global=position % 300 == 7)


def _check_dropout(case: Case, drawn: list[Tensor], tokens: Tokens, impl: str) -> None:
    """Equal seeds give equal bits, different seeds different ones, and the average over many numbers stays the same."""
    plain = _results(case, drawn, tokens, impl)
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(_results(case, drawn, tokens, impl, case.dropout_p))
    for name, first, again, other, without in zip(NAMES, *runs, plain, strict=True):
        if not torch.equal(first, again):
            raise DisagreementError(f"{name} differs between two runs with the same seed")
        if torch.equal(first, other) or torch.equal(first, without):
            raise DisagreementError(f"{name} is the same with another seed, or without dropout")
        # Dropped probabilities are noise of about sqrt(p / (1 - p)) = 1/3 on each one, and move no average.
        slope = float((first.double() * without.double()).sum() / without.double().square().sum())
        if not 0.8 <= slope <= 1.25:
            raise DisagreementError(f"{name} with dropout is on average {slope:.2g} times what it is without")


def _results(case: Case, drawn: list[Tensor], tokens: Tokens, impl: str, dropout_p: float = 0.0) -> list[Tensor]:
    """Output and the three gradients."""
    query, key, value = (x.detach().requires_grad_() for x in drawn[:3])
    out = attend(query, key, value, case.pattern, tokens, dropout_p=dropout_p, impl=impl)
    return [out.detach(), *torch.autograd.grad(out, (query, key, value), drawn[3])]


def check_ours(build: Build, problem: Problem, device: torch.device | str, kind: str) -> float:
    """Distance of what ``build`` makes from float64, over two heads of ``problem``.

    The judge is the dense reference at up to ``DENSE_TOKENS`` tokens, and at more tokens also the blocked kernel.

    Args:
        kind: how ``build``'s kernels multiply, a key of ``ALLOWED``.

    Raises:
        DisagreementError: rounding does not explain the distance.
    """
    judges = {"reference": DENSE_TOKENS}
    if problem.seq_len > DENSE_TOKENS:
        judges["blocked"] = problem.seq_len
    found = []
    for judge, tokens in judges.items():
        small = problem.replace(heads=CHECKED_HEADS).shortened(tokens)
        inputs = make_inputs(small, backward=True, device=device, seed=99)
        wide = inputs.to(torch.float64)
        exact = our_attention(small.replace(dtype="float64"), wide, judge)
        far = distance(results_of(build(small, inputs), inputs), results_of(exact, wide), kind)
        if far > ALLOWED[kind]:
            raise DisagreementError(
                f"ours is {far:.2g} from the float64 {judge} at {small}, and {ALLOWED[kind]:g} is allowed for {kind} "
                "products; nothing was timed"
            )
        found.append(far)
    return max(found)


def results_of(attention: Attention, inputs: Inputs) -> list[Tensor]:
    """Output and gradients of one run."""
    attention.prepare()
    out = attention.forward()
    return [out.detach(), *torch.autograd.grad(out, inputs.leaves, inputs.grad)]


def distance(found: Sequence[Tensor], exact: Sequence[Tensor], kind: str) -> float:
    """The largest of the tensors' distances, as ``ALLOWED`` measures ``kind``; infinite if a value is not finite."""
    pairs = [(a.double(), b.double()) for a, b in zip(found, exact, strict=True)]
    order = float("inf") if kind == "ieee" else 2.0
    norm = partial(torch.linalg.vector_norm, ord=order)
    far = [float(norm(a - b) / norm(b).clamp(min=1e-30)) for a, b in pairs]
    return max(x if x == x else float("inf") for x in far)
