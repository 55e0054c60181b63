"""A model as a program of ``torch.export``: a graph in which batch, length and global tokens are free.

Letters: B batch, S sequence, N choices, C hidden size.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from longformer.errors import LongformerError
from longformer.models.encoder import LongformerModel
from longformer.models.heads import HEADS, Head, LongformerForCausalLM, LongformerForMultipleChoice
from longformer.models.outputs import Output

OWN = -1  # in a global attention mask: let the head decide
CLASSES: dict[str, Any] = {"LongformerModel": LongformerModel, **{head.__name__: head for head in HEADS}}
# Modules whose results are inner values. No two of them give the same tensor, nor one of the outputs.
TRACED = re.compile(
    r"(?:longformer\.)?(?:embeddings|encoder\.layer\.\d+(?:\.attention(?:\.self(?:\.(?:query|key|value))?)?"
    r"|\.intermediate(?:\.dense)?)?)"
)


def export_program(
    model: LongformerModel | Head, *, portable: bool = True, dtype: torch.dtype | None = None
) -> ExportedProgram:
    """A model as a program for ``torch.export.save``, for batches of any number and for 2 or more tokens.

    It takes ``input_ids``, ``attention_mask`` and ``global_attention_mask``, three (B, S) of int64, or (B, N, S) for
    multiple choice. In the last, 1 is global, 0 is not, and -1 lets the head decide as the model does without a mask.
    It gives a tuple of the model's outputs.

    Args:
        model: ours, in any mode; what it computes in ``eval()`` mode is exported, and it is not changed.
        portable: the program has torch's own operators alone, so that it runs where this package is not. Its attention
            is ``impl="chunked"``. Otherwise it has our operator, which chooses the fastest kernel when it runs, and
            whoever loads it imports ``longformer.kernels`` first.
        dtype: precision of the weights and the arithmetic; None is the model's.

    Raises:
        LongformerError: it is another class, has parts that are not its class's own, or a dilation that no graph has;
            or a layer's attention is a mask, a score, a union or a predicate.
    """
    copy = copied(model, "chunked" if portable else "auto", model.dtype if dtype is None else dtype)
    program, _ = traced(copy, masks_by_token=True)
    return program


def copied(model: LongformerModel | Head, impl: str, dtype: torch.dtype) -> Any:
    """The model in ``eval()`` mode on the CPU, with attention by ``impl``. Weights that need no change are shared.

    Raises:
        LongformerError: as :func:`export_program`.
    """
    kind = type(model)
    if CLASSES.get(kind.__name__) is not kind:
        raise LongformerError(_why_not(kind))
    encoder: Any = model.base_model
    for layer, pattern in enumerate(encoder.patterns or ()):
        if not pattern.is_band or (pattern.global_tokens is not None and pattern.global_tokens.predicates):
            raise LongformerError(
                f"the attention of layer {layer} is a mask, a score, a union or a predicate, and cannot be exported: "
                "there are windows alone, full or causal too, and global tokens by positions and ids"
            )
    longest = max(gap for pattern in _patterns(model) for gap in pattern.gaps(model.config.num_attention_heads))
    if longest > model.config.max_tokens:
        raise LongformerError(
            f"attention_dilation {longest} is larger than the model's {model.config.max_tokens} positions, and cannot "
            "be exported: a graph has so many classes of tokens for every input; choose one of at most the positions"
        )
    pooler = {"add_pooling_layer": model.pooler is not None} if isinstance(model, LongformerModel) else {}
    with torch.device("meta"):
        copy = kind(model.config, impl=impl, **pooler)
    weights = model.state_dict()
    other = sorted(weights.keys() ^ copy.state_dict().keys()) + [
        name for name, weight in weights.items() if type(weight) is not Tensor or weight.is_meta
    ]
    if other:
        raise LongformerError(
            f"the model has other parts than {kind.__name__}, such as {other[0]}: merge adapters into it, and load a "
            "quantised model in float32, before it is exported"
        )
    copy.load_state_dict({name: weight.detach().to("cpu", dtype) for name, weight in weights.items()}, assign=True)
    return copy.eval().requires_grad_(False)


def _why_not(kind: type) -> str:
    """Why an object of a class is nothing to export, and what is."""
    if issubclass(kind, LongformerForCausalLM):
        why = "it computes its relative positions block by block, a loop that no graph of ours has; "
    elif issubclass(kind, (str, Path)):
        why = "load the model first by from_pretrained, or run longformer export; "
    else:
        why = "of a subclass or a wrapper nobody knows that its graph computes the same; export the model inside it; "
    return f"{kind.__name__} cannot be exported: {why}there are {', '.join(CLASSES)}"


def _patterns(model: Any) -> list[Any]:
    return [model.config.pattern(layer) for layer in range(model.config.num_hidden_layers)]


def traced(model: Any, *, masks_by_token: bool, inner_values: bool = False) -> tuple[ExportedProgram, tuple[str, ...]]:
    """The program of a model that :func:`copied` gave, and the names of its outputs.

    Args:
        masks_by_token: whether masks are of the shape of the ids. Otherwise they are one number, which is expanded; a
            runtime that expands as numpy does then takes either.
        inner_values: whether the modules of ``TRACED`` are outputs too, under their paths in the model.
    """
    wrapped = _Exported(model, inner_values)
    batch, choices, length = 2, 3, 16  # of the example: other numbers than 0 and 1, for which torch would be special
    of_choices = isinstance(model, LongformerForMultipleChoice)
    ids = torch.full((batch, choices, length) if of_choices else (batch, length), model.config.bos_token_id)
    dims = dict.fromkeys(range(ids.dim()), Dim.DYNAMIC)
    mask = torch.ones_like(ids) if masks_by_token else ids.new_ones((1,) * ids.dim())
    with torch.no_grad():
        wrapped(ids, mask, mask)  # which says the names; torch.export undoes what a module notes
        program = torch.export.export(
            wrapped,
            (ids, mask, mask.clone()),  # one tensor twice would be one input
            dynamic_shapes=(dims, *[dims if masks_by_token else None] * 2),
            strict=False,
            # Else a length would be refused for a product of sizes of which it is hard to prove that it fits.
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    return program, wrapped.names


class _Exported(nn.Module):
    """A model whose masks are tensors in any case, and whose output is a plain tuple.

    names: of the outputs, as soon as it has run.
    """

    def __init__(self, model: Any, inner_values: bool) -> None:
        super().__init__()
        self.model = model
        self.names: tuple[str, ...] = ()
        self.inner_values = inner_values

    def forward(self, input_ids: Tensor, attention_mask: Tensor, global_attention_mask: Tensor) -> tuple[Tensor, ...]:
        """The outputs, and the inner values behind them."""
        attention_mask = attention_mask.expand(input_ids.shape)
        given = global_attention_mask.expand(input_ids.shape)
        # Whether a row has its separators only the caller can say: a graph would refuse rows whose mask is given.
        own = None
        if isinstance(self.model, Head):
            own = self.model.automatic_global_mask(input_ids.flatten(0, -2), checked=False)
        own = torch.zeros_like(given, dtype=torch.bool) if own is None else own.view(input_ids.shape)
        is_global = (given > 0) | (own & (given == OWN))  # torch.where of bool is nothing that ONNX Runtime has
        found: dict[str, Tensor] = {}
        handles = [
            module.register_forward_hook(lambda _, arguments, output, path=path: found.__setitem__(path, output))
            for path, module in self.model.named_modules()
            if self.inner_values and TRACED.fullmatch(path)
        ]
        try:
            output: Output = self.model(input_ids, attention_mask, is_global)
        finally:
            for handle in handles:
                handle.remove()
        self.names = (*output.keys(), *found)
        return (*output.to_tuple(), *found.values())
