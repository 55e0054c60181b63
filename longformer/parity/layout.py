"""How each kind of model lays out its values: what it pads or transposes inside, and what its inputs mean.

Letters: B batch, S sequence, C hidden size.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from longformer.errors import LongformerError
from longformer.kernels import Tokens
from longformer.models.encoder import LongformerModel
from longformer.models.heads import HEADS, Head
from longformer.parity import probabilities as probs
from longformer.parity.table import BASE, GLOBAL_ROWS, Table, Value, longformer_table

Longformer = LongformerModel | Head
TARGETS = tuple(dict.fromkeys(name for head in HEADS for name in head.targets))  # the right answers, of any head


class Layout(ABC):
    """How one kind of model lays out its values.

    root: the module whose call begins a run.
    tokens: padding and global tokens of the run, with their index; nothing where a model has no such things.
    own_tokens: by value: of attention whose pattern has global tokens of its own.
    """

    def __init__(self, root: nn.Module, table: Table) -> None:
        self.root, self.table = root, table
        self.tokens = Tokens()
        self.own_tokens: dict[str, Tokens] = {}

    def tokens_of(self, name: str) -> Tokens:
        """The tokens of a value: the run's, but for attention whose pattern has global tokens of its own."""
        return self.own_tokens.get(name, self.tokens)

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """Metadata: ``implementation``, and whatever else is special about it."""

    @abstractmethod
    def begin(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> dict[str, Tensor]:
        """Learn the layout of the run that begins with these arguments. Returns the inputs that are to be recorded."""

    def targets(self, model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> dict[str, Tensor]:
        """Those of ``model``'s arguments that only its loss takes; nothing if that is not known."""
        return {}

    @abstractmethod
    def rows(self, pieces: list[Tensor], value: Value) -> Tensor:
        """A module's results, of which there are several if it works by pieces of the sequence, to (B, S, ...)."""

    def result(self, rows: Tensor, value: Value) -> Tensor:
        """The inverse of :meth:`rows` of one piece."""
        return rows

    def split(self, value: Value, rows: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The values of a trace, with their names, that a module's result gives.

        Args:
            value: which the module gives.
            rows: the result as :meth:`rows` has it: (B, S, H·D) where the value has heads.

        Raises:
            LongformerError: the value is one by heads, and the table does not say how many there are.
        """
        if value.kind in ("heads", "attention"):
            if self.table.heads is None:
                raise LongformerError(f"the table records {value.name} by heads, but does not say how many")
            rows = rows.unflatten(-1, (self.table.heads, -1)).transpose(1, 2)  # (B, H, S, D)
        tokens = self.tokens_of(value.name)
        if value.kind == "attention" and tokens.is_global is not None and tokens.global_index is not None:
            yield global_name(value.name), probs.global_rows(rows, tokens.global_index)
            rows = rows.masked_fill(tokens.is_global[:, None, :, None], 0)
        yield value.name, rows

    def join(self, value: Value, rows: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """The inverse of :meth:`split`: a module's result with the values ``given`` in place of its own.

        What is not given stays.
        """
        own = dict(self.split(value, rows))
        taken = {name: given.get(name, tensor) for name, tensor in own.items()}
        result = taken[value.name]
        tokens = self.tokens_of(value.name)
        if len(taken) > 1 and tokens.is_global is not None and tokens.global_index is not None:
            of_global = at_their_tokens(taken[global_name(value.name)], tokens.is_global)
            result = torch.where(tokens.is_global[:, None, :, None], of_global, result)
        if value.kind in ("heads", "attention"):
            result = result.transpose(1, 2).flatten(2)
        return result

    def counted(self, value: Value, name: str, x: Tensor) -> Tensor:
        """A value that ``value``'s module gives, or its gradient, with 0 at padding, whose rows do not count.

        What attention itself gives is 0 there, and counts; its gradient does not.
        """
        keep = self.tokens.keep
        counts = value.kind == "plain" or (name == value.name and value.kind == "attention")
        if keep is None or counts or name.endswith(GLOBAL_ROWS):
            return x
        return x.masked_fill(~keep[..., None] if value.kind == "tokens" else ~keep[:, None, :, None], 0)


def global_name(name: str) -> str:
    """The name of the global tokens' rows beside that of a layer's local output."""
    return name.removesuffix("local_output") + GLOBAL_ROWS


def at_their_tokens(rows: Tensor, is_global: Tensor) -> Tensor:
    """Rows of global tokens (B, H, G, D), as a trace has them, at their tokens in (B, H, S, D); any row at the others.

    Args:
        rows: of each example in ascending order of its tokens; the rows behind its last are not read.
        is_global: (B, S) bool.
    """
    index = is_global.cumsum(dim=1).clamp(min=1) - 1  # which of the rows is a token's
    return rows.gather(2, index[:, None, :, None].expand(-1, rows.shape[1], -1, rows.shape[3]))


def choose_layout(model: nn.Module, table: Table | None) -> Layout:
    """The layout of ``model``. Raises LongformerError for an unknown kind without a table."""
    if table is not None:
        return PlainLayout(model, table)
    if isinstance(model, Longformer):
        return OurLayout(model)
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if type(model).__module__.startswith("transformers.") and kind == "longformer":
        return PaddedLayout(model)
    raise LongformerError(
        f"{type(model).__name__} is neither our Longformer nor transformers'; say with table= which modules to record"
    )


class PlainLayout(Layout):
    """A module with a table of its own: batch and sequence are as they come."""

    def describe(self) -> dict[str, str]:
        return {"implementation": type(self.root).__qualname__}

    def begin(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> dict[str, Tensor]:
        given = {**{f"argument{i}": value for i, value in enumerate(arguments)}, **keywords}
        return {name: value.detach().cpu().clone() for name, value in given.items() if isinstance(value, Tensor)}

    def rows(self, pieces: list[Tensor], value: Value) -> Tensor:
        return pieces[0].transpose(0, 1) if value.axes == "sbc" else pieces[0]

    def result(self, rows: Tensor, value: Value) -> Tensor:
        return rows.transpose(0, 1) if value.axes == "sbc" else rows


class LongformerLayout(Layout):
    """What both Longformers share: the base model, its arguments, and the tokens that follow from them."""

    def __init__(self, model: nn.Module) -> None:
        config: Any = model.config
        is_head = hasattr(model, BASE)
        prefix = f"{BASE}." if is_head else ""
        super().__init__(
            getattr(model, BASE) if is_head else model, longformer_table(prefix, config.num_attention_heads)
        )

    def begin(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> dict[str, Tensor]:
        bound = self.named(arguments, keywords)
        ids = bound.get("input_ids")
        if ids is None:
            raise LongformerError("trace() records what a Longformer makes of input_ids; none were given")
        if ids.dim() != 2:
            raise LongformerError(f"input_ids has shape {tuple(ids.shape)}; it must be (B, S)")
        inputs = effective_inputs(bound)
        self.tokens = tokens_of(inputs)
        return inputs

    def named(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> dict[str, Any]:
        """The base model's arguments by name."""
        return dict(inspect.signature(self.root.forward).bind(*arguments, **keywords).arguments)

    def targets(self, model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> dict[str, Tensor]:
        bound = inspect.signature(model.forward).bind(*arguments, **keywords).arguments
        if bound.get("only_targets"):
            raise LongformerError("a trace has the scores of all tokens; call the model without only_targets")
        return {name: bound[name].detach().cpu() for name in TARGETS if isinstance(bound.get(name), Tensor)}


def effective_inputs(given: Mapping[str, Any]) -> dict[str, Tensor]:
    """A base model's arguments as a trace has them: int64, on the CPU, masks of 0 and 1, and no padding global.

    Args:
        given: ``input_ids`` (B, S) and, if there are any, ``attention_mask``, ``global_attention_mask``,
            ``token_type_ids`` and ``position_ids``.
    """
    ids, mask, global_mask = (given.get(name) for name in ("input_ids", "attention_mask", "global_attention_mask"))
    assert ids is not None
    mask = torch.ones_like(ids) if mask is None else mask.long()
    key_mask = mask != 0
    global_mask = torch.zeros_like(key_mask) if global_mask is None else global_mask.bool()
    inputs = {
        "input_ids": ids,
        "attention_mask": key_mask,
        "global_attention_mask": (global_mask | (mask == 2)) & key_mask,
        "token_type_ids": given.get("token_type_ids"),
        "position_ids": given.get("position_ids"),
    }
    return {name: value.detach().cpu().long() for name, value in inputs.items() if value is not None}


def tokens_of(inputs: Mapping[str, Tensor]) -> Tokens:
    """Padding and global tokens of :func:`effective_inputs`, with the index of the global ones."""
    keep, is_global = (inputs[name] != 0 for name in ("attention_mask", "global_attention_mask"))
    return Tokens.of(keep, is_global).with_index(counted=True)


class OurLayout(LongformerLayout):
    """Ours: batch and sequence are as they come, from the first module to the last."""

    def describe(self) -> dict[str, str]:
        return {"implementation": "longformer"}  # and "kernel", which is chosen when the model runs

    def rows(self, pieces: list[Tensor], value: Value) -> Tensor:
        return pieces[0]


class PaddedLayout(LongformerLayout):
    """transformers': padded to a multiple of the window inside the base model, and (S, B, C) in projections."""

    def describe(self) -> dict[str, str]:
        return {"implementation": "transformers"}

    def rows(self, pieces: list[Tensor], value: Value) -> Tensor:
        joined = torch.cat(pieces, 0 if value.axes == "sbc" else 1) if len(pieces) > 1 else pieces[0]
        joined = joined.transpose(0, 1) if value.axes == "sbc" else joined
        assert self.tokens.keep is not None
        return joined if value.kind == "plain" else joined[:, : self.tokens.keep.shape[1]]
