"""``bench model``: the whole question-answering model on one long document and on one short one.

Weights are random, and the same in all models: nothing has to be downloaded, and the time does not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from longformer.bench.machine import dtype_name
from longformer.bench.problem import make_document
from longformer.bench.rivals import import_transformers
from longformer.bench.timing import Case, Contender
from longformer.config import LongformerConfig
from longformer.errors import LongformerError
from longformer.models.heads import LongformerForQuestionAnswering

TRANSFORMERS = "transformers"


@dataclass(frozen=True)
class Variant:
    """One precision of our model.

    Args:
        make: makes that variant of a float32 model. It may change that model.
        against: the dtype in which transformers runs beside it.
        tolerance: allowed for its logits against float32; None allows what is usual in ``against``.
    """

    make: Callable[[LongformerForQuestionAnswering], nn.Module]
    against: torch.dtype
    tolerance: float | None = None


def _lowered(name: str, model: LongformerForQuestionAnswering) -> nn.Module:
    from longformer.models.precision import NAMED

    NAMED[name](model)
    return model


VARIANTS = {
    "float32": Variant(lambda model: model, torch.float32),
    "bfloat16": Variant(lambda model: model.to(torch.bfloat16), torch.bfloat16),
    "mixed": Variant(partial(_lowered, "mixed"), torch.bfloat16),
    "int8": Variant(partial(_lowered, "int8"), torch.float32, tolerance=0.3),  # random weights round badly
}


def read_config(path: str | None) -> LongformerConfig:
    """The architecture in a ``config.json``; None gives that of the released base model."""
    return LongformerConfig() if path is None else LongformerConfig.from_file(path)


@torch.no_grad()
def draw_weights(model: nn.Module, std: float) -> None:
    """Seeded random weights, equal in all models that have the same names.

    Biases and the factors of LayerNorms are random too. If they were 0 and 1, a model that left one out would agree
    with the others.
    """
    generator = torch.Generator().manual_seed(0)
    for name, weight in sorted(model.named_parameters()):
        weight.normal_(std=std if weight.dim() > 1 else 0.1, generator=generator)
        if name.endswith("LayerNorm.weight"):
            weight.add_(1)


def our_model(config: LongformerConfig) -> LongformerForQuestionAnswering:
    """Ours in float32, with random weights."""
    with torch.device("meta"):
        model = LongformerForQuestionAnswering(config)
    model.to_empty(device="cpu")
    draw_weights(model, config.initializer_range)
    return model.eval()


def reference_model(config: LongformerConfig, *, weights: nn.Module | None = None) -> nn.Module:
    """transformers' model in float32 with the same weights. It shares the memory of ``weights`` if that is given.

    Raises:
        UnavailableError: transformers is not installed.
    """
    transformers = import_transformers()
    with torch.device("meta"):
        model: nn.Module = transformers.LongformerForQuestionAnswering(
            transformers.LongformerConfig.from_dict(config.to_dict())
        )
    if weights is None:
        model.to_empty(device="cpu")
        draw_weights(model, config.initializer_range)
    else:
        model.load_state_dict(weights.state_dict(), assign=True)
    return model.eval()


def logits(model: nn.Module, **inputs: Tensor) -> list[Tensor]:
    """Start and end logits of either model."""
    with torch.inference_mode():
        out: Any = model(**inputs)
    return [out.start_logits, out.end_logits]


class Models:
    """The models of a benchmark, with the same weights. Each is made when it is first asked for."""

    def __init__(self, config: LongformerConfig) -> None:
        self.config = config
        self._made: dict[str, nn.Module] = {}

    def get(self, name: str, variant: str) -> nn.Module:
        """Our model, or transformers' if ``name`` is ``TRANSFORMERS``, in the precision of ``variant``."""
        key = f"{name} {variant}"
        if key not in self._made:
            wanted = VARIANTS[variant]
            if key == "longformer float32":
                self._made[key] = our_model(self.config)
            elif name == TRANSFORMERS:
                shared = self.get("longformer", "float32")
                self._made[key] = reference_model(self.config, weights=shared).to(wanted.against)
            else:
                self._made[key] = wanted.make(our_model(self.config)).eval()
        return self._made[key]


def contender(models: Models, name: str, variant: str, ids: Tensor) -> Contender:
    """A forward pass over one document."""
    model = models.get(name, variant)
    tolerance = None if name == TRANSFORMERS else VARIANTS[variant].tolerance
    return Contender(label(name, variant), partial(logits, model, input_ids=ids), tolerance=tolerance)


def label(name: str, variant: str) -> str:
    """``"longformer mixed"``; transformers is named with the dtype in which it runs beside that variant."""
    return f"{name} {dtype_name(VARIANTS[variant].against) if name == TRANSFORMERS else variant}"


def by_dtype(variants: Sequence[str]) -> dict[torch.dtype, list[str]]:
    """The variants by the dtype in which transformers runs beside them. Ratios refer to the first of each.

    Raises:
        LongformerError: there is no such variant.
    """
    groups: dict[torch.dtype, list[str]] = {}
    for variant in variants:
        if variant not in VARIANTS:
            raise LongformerError(f"{variant!r} is no variant; there are {', '.join(VARIANTS)}")
        groups.setdefault(VARIANTS[variant].against, []).append(variant)
    return groups


def cases(
    config: LongformerConfig, *, lengths: Sequence[int], global_tokens: int, variants: Sequence[str]
) -> list[Case]:
    """One forward pass at each length and in each dtype, of our variants and transformers."""
    models = Models(config)
    found = []
    for tokens in lengths:
        ids = make_document(config, tokens, global_tokens)
        for dtype, ours in by_dtype(variants).items():
            builders = {
                label(name, variant): partial(contender, models, name, variant, ids)
                for name, variant in (*(("longformer", variant) for variant in ours), (TRANSFORMERS, ours[0]))
            }
            short = dtype_name(dtype)
            found.append(
                Case(
                    name=f"model forward, {tokens} tokens, {global_tokens} global, {short}",
                    settings={
                        "shape": [1, tokens],
                        "global_tokens": global_tokens,
                        "dtype": short,
                        "threads": torch.get_num_threads(),
                        "config": config.to_dict(),
                    },
                    dtype=dtype,
                    builders=builders,
                    reference=lambda ids=ids: logits(models.get("longformer", "float32"), input_ids=ids),  # type: ignore[misc]
                    items=(tokens, "tokens"),
                )
            )
    return found
