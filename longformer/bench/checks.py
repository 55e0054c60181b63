"""What ``bench gpu`` checks on the device before it measures: the kernels' arguments, each against the reference."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from longformer.bench.timing import DisagreementError
from longformer.kernels import sliding_window_attention

BATCH, HEADS, TOKENS = 2, 2, 700  # several blocks, and a ragged end
WINDOW = (100, 60)
# Norm of the difference from float64 over the norm, of output and gradients: rounding, and nothing else.
ALLOWED = {torch.bfloat16: 2e-2, torch.float16: 5e-3}


class Case(NamedTuple):
    """Arguments of the kernel that the shapes to be measured do not have."""

    name: str
    dtype: torch.dtype = torch.bfloat16
    head_dim: int = 64
    dilation: int | tuple[int, ...] = 1
    causal: bool = False
    padding: bool = False
    dropout_p: float = 0.0


CASES = (
    Case("padding and dilation", dilation=(1, 3), padding=True),
    Case("causal", causal=True),
    Case("float16, heads of 80", dtype=torch.float16, head_dim=80),
    Case("dropout", dropout_p=0.1, padding=True),
)


def check(case: Case, device: torch.device | str, impl: str) -> None:
    """Hold ``impl`` to the reference.

    Raises:
        DisagreementError: it is further away than rounding, or dropout is not what it should be.
    """
    generator = torch.Generator(device=device).manual_seed(0)
    size = (BATCH, TOKENS, HEADS, case.head_dim)
    drawn = [torch.randn(size, generator=generator, device=device).to(case.dtype).transpose(1, 2) for _ in range(4)]
    place = torch.arange(TOKENS, device=device).expand(BATCH, TOKENS)
    arguments: dict[str, Any] = {
        "dilation": case.dilation,
        "causal": case.causal,
        "global_mask": place % 300 == 7,
        "key_mask": place < torch.tensor([[TOKENS], [TOKENS - 150]], device=device) if case.padding else None,
    }
    if case.dropout_p:
        _check_dropout(case, drawn, impl, arguments)
        return
    exact = _results([x.double() for x in drawn], impl="reference", **arguments)
    for name, found, wanted in zip(NAMES, _results(drawn, impl=impl, **arguments), exact, strict=True):
        far = float((found - wanted).norm() / wanted.norm())
        if not far <= ALLOWED[case.dtype]:
            allowed = f"{ALLOWED[case.dtype]:g} is allowed"
            raise DisagreementError(f"{name} is {far:.2g} from the reference in float64, where {allowed}")


NAMES = ("output", "query's gradient", "key's gradient", "value's gradient")


def _check_dropout(case: Case, drawn: list[Tensor], impl: str, arguments: dict[str, Any]) -> None:
    """Equal seeds give equal bits, others other ones; and on average over many seeds nothing changes."""
    plain = _results(drawn, impl=impl, **arguments)
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(_results(drawn, impl=impl, dropout_p=case.dropout_p, **arguments))
    for name, first, again, other, whole in zip(NAMES, *runs, plain, strict=True):
        if not torch.equal(first, again):
            raise DisagreementError(f"{name} is another when the seed is the same")
        if torch.equal(first, other) or torch.equal(first, whole):
            raise DisagreementError(f"{name} is the same when the seed is another, or without dropout")
        # The drawn zeros are noise of about sqrt(p / (1 - p)) = 1/3 on each probability, and no drift.
        slope = float((first.double() * whole.double()).sum() / whole.double().square().sum())
        if not 0.8 <= slope <= 1.25:
            raise DisagreementError(f"{name} with dropout is on average {slope:.2g} times what it is without")


def _results(drawn: list[Tensor], **arguments: Any) -> list[Tensor]:
    """Output and the three gradients."""
    query, key, value = (x.detach().requires_grad_() for x in drawn[:3])
    out = sliding_window_attention(query, key, value, WINDOW, **arguments)
    return [out.detach(), *torch.autograd.grad(out, (query, key, value), drawn[3])]
