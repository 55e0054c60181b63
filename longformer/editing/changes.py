"""``edit``: change values inside a model while it runs, by the names of a trace, and leave nothing behind.

Letters: B batch, S sequence, C hidden size, H heads, D head dimension, G global tokens.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from longformer.errors import LongformerError, quoted, unknown_name
from longformer.kernels import Tokens
from longformer.models.attention import LongformerSelfAttention
from longformer.models.causal import CausalSelfAttention
from longformer.parity.compiled import as_written, uncompiled
from longformer.parity.layout import LongformerLayout, OurLayout, PaddedLayout, at_their_tokens, choose_layout
from longformer.parity.table import GLOBAL_ROWS, Table, Value

LOCAL_OUTPUT = "local_output"
Where = int | Sequence[int] | slice | Tensor | None  # None is everywhere


class _Step(NamedTuple):
    """change: from a value's rows, and the tokens of the run, to new rows, of which those at the place are taken.
    head, tokens, batch: the place.
    is_global: of attention, whether the rows of global tokens are changed, or those of the others. None is all.
    may_be_nowhere: whether a run without global tokens is no mistake where their rows are to be changed.
    """

    change: Callable[[Tensor, Tokens], Tensor]
    head: Where
    tokens: Where
    batch: Where
    is_global: bool | None
    may_be_nowhere: bool


class Edit:
    """Changes of a model's values. Each method takes a value's name in a trace, such as ``"layer.3.local_output"``.

    ``head``, ``tokens`` and ``batch`` say where: an int, a list, a slice or an index tensor; None is everywhere.
    Changes of one value are made in the order in which they were asked for. Gradients go through them.

    The shape of a value is (B, H, S, D) if it has heads, else (B, S, C). ``layer.3.local_output`` is what attention
    gives to all tokens but the global ones; what it gives to these is ``layer.3.global_rows``.

    Attributes:
        names: of all values that can be changed.

    Raises (every method):
        LongformerError: the model has no such value; the message names the nearest. A head, token or row of the batch
            that is not there, or a tensor that does not fit, is said when the model runs.
    """

    def __init__(self, model: nn.Module, table: Table | None = None) -> None:
        self._given, self._model = model, uncompiled(model)
        self._layout = choose_layout(self._model, table)
        self._places: dict[str, tuple[str, Value]] = {}
        self._steps: dict[str, list[_Step]] = {}
        self._is_over = False
        self._beginning, self._running = threading.Lock(), threading.local()  # several threads may run the model
        with as_written(model):
            self._modules = dict(self._model.named_modules())
            fitted = self._layout.table.fit(self._model)
        for path, value in fitted.items():
            self._places[value.name] = path, value
            if value.kind == "attention" and not isinstance(self._modules[path], CausalSelfAttention):
                self._places[value.name.removesuffix(LOCAL_OUTPUT) + GLOBAL_ROWS] = path, value
        self.names = list(self._places)

    def apply(
        self,
        name: str,
        function: Callable[[Tensor], Tensor],
        *,
        head: Where = None,
        tokens: Where = None,
        batch: Where = None,
    ) -> None:
        """Put what ``function`` makes of the whole value there. The result must have, or broadcast to, its shape.

        The function is given a copy, which it may change.
        """
        if not callable(function):
            raise LongformerError(f"the function is {function!r}; it must be one of a tensor to a tensor")
        self._add(name, lambda rows, known: function(rows.clone()), head, tokens, batch)

    def zero(self, name: str, *, head: Where = None, tokens: Where = None, batch: Where = None) -> None:
        """Put 0 there."""
        self._add(name, _zeros, head, tokens, batch)

    def scale(
        self, name: str, factor: float | Tensor, *, head: Where = None, tokens: Where = None, batch: Where = None
    ) -> None:
        """Multiply what is there by ``factor``, a number or a tensor that broadcasts to the value."""
        given = _tensor("factor", factor)
        self._add(name, lambda rows, known: rows * _broadcast(given.to(rows), rows, name), head, tokens, batch)

    def add(self, name: str, vector: Tensor, *, head: Where = None, tokens: Where = None, batch: Where = None) -> None:
        """Add ``vector``: (C,), (D,), or whatever broadcasts to the value."""
        given = _tensor("vector", vector)
        self._add(name, lambda rows, known: rows + _broadcast(given.to(rows), rows, name), head, tokens, batch)

    def set(self, name: str, value: Tensor, *, head: Where = None, tokens: Where = None, batch: Where = None) -> None:
        """Put there what ``value`` has at that place: another run's value, as its trace has it, or what broadcasts."""
        given, of_global = _tensor("value", value), str(name).endswith(GLOBAL_ROWS)

        def change(rows: Tensor, known: Tokens) -> Tensor:
            new = given.to(rows)
            if of_global and known.is_global is not None and known.global_index is not None and new.dim() == 4:
                if new.shape[2] != known.global_index.shape[1]:
                    raise LongformerError(
                        f"the value has {new.shape[2]} global rows, but this run has {known.global_index.shape[1]}"
                    )
                if len(new) in (1, len(rows)):
                    new = at_their_tokens(new.expand(len(rows), -1, -1, -1), known.is_global.to(rows.device))
            return new

        self._add(name, change, head, tokens, batch)

    def mean(self, name: str, *, head: Where = None, tokens: Where = None, batch: Where = None) -> None:
        """Put the mean over the tokens there, padding left out, for each row of the batch by itself.

        For ``local_output`` and ``global_rows`` it is the mean over those tokens alone.
        """
        if self._place(name)[1].kind == "plain":
            raise LongformerError(f"{name} has no tokens of which there could be a mean; use zero, set or apply")
        self._add(name, self._mean_of(name), head, tokens, batch)

    def _mean_of(self, name: str) -> Callable[[Tensor, Tokens], Tensor]:
        is_global = self._which(name)

        def change(rows: Tensor, known: Tokens) -> Tensor:
            counted = torch.ones(rows.shape[0], rows.shape[-2], dtype=torch.bool, device=rows.device)
            wide = rows.to(torch.promote_types(rows.dtype, torch.float32))  # in which a sum of many tokens has room
            if known.keep is not None:
                counted &= known.keep.to(rows.device)
            if is_global is not None and known.is_global is not None:
                counted &= known.is_global.to(rows.device) == is_global
            weight = (counted[:, None, :, None] if rows.dim() == 4 else counted[..., None]).to(wide)
            return ((wide * weight).sum(-2, keepdim=True) / weight.sum(-2, keepdim=True).clamp(min=1)).to(rows)

        return change

    def take_out_head(self, layer: int, head: int, *, by: Literal["zero", "mean"] = "zero") -> None:
        """Put 0, or its mean over the tokens, in place of what a head gives: to all tokens, global ones included.

        The mean over global tokens and that over the others are each put in their own rows.
        """
        for part in (LOCAL_OUTPUT, GLOBAL_ROWS):
            name = f"layer.{layer}.{part}"
            if part == LOCAL_OUTPUT or name in self._places:  # a model that looks back has no global tokens
                change = _zeros if by == "zero" else self._mean_of(name)
                self._add(name, change, head, None, None, may_be_nowhere=True)

    def mask_heads(self, mask: Tensor) -> None:
        """Multiply what each head gives, to all tokens, by its entry of ``mask``: 0 takes the head out, 1 leaves it.

        Gradients go to the mask: they say what each head is worth (Michel et al. 2019, arXiv 1905.10650, §4.1).

        Args:
            mask: (L, H), or (H,) for all layers alike.

        Raises:
            LongformerError: another shape, or a model whose table names no attention.
        """
        layers = [name for name, (_, value) in self._places.items() if value.kind == "attention"]
        layers = [name for name in layers if not name.endswith(GLOBAL_ROWS)]
        if not layers:
            raise LongformerError("this model has no attention by its table, so there are no heads to mask")
        shape = (len(layers), self._layout.table.heads or 1)
        if not isinstance(mask, Tensor) or tuple(mask.shape) not in (shape, shape[1:]):
            what = f"a tensor of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"{mask!r}"
            raise LongformerError(
                f"the mask of heads is {what}; it must be a tensor of shape (L, H) = {shape} or (H,) = {shape[1:]}"
            )
        for name, weights in zip(layers, mask.expand(shape), strict=True):
            for part in {name, name.removesuffix(LOCAL_OUTPUT) + GLOBAL_ROWS} & self._places.keys():
                change = functools.partial(_weighted, weights)
                self._add(part, change, None, None, None, may_be_nowhere=True)

    def _add(
        self,
        name: str,
        change: Callable[[Tensor, Tokens], Tensor],
        head: Where,
        tokens: Where,
        batch: Where,
        *,
        may_be_nowhere: bool = False,
    ) -> None:
        if self._is_over:
            raise LongformerError(
                f"the block of this edit is over, so {name} cannot be changed; ask inside `with edit`"
            )
        path, value = self._place(name)
        if head is not None and value.kind not in ("heads", "attention"):
            raise LongformerError(f"head is {head!r}, but {name} has no heads; leave it out")
        if head is not None:
            _chosen(head, self._layout.table.heads or 1, name, "head")
        if tokens is not None and value.kind == "plain":
            raise LongformerError(f"tokens is {tokens!r}, but {name} has no tokens; leave it out")
        self._steps.setdefault(path, []).append(_Step(change, head, tokens, batch, self._which(name), may_be_nowhere))

    def _place(self, name: str) -> tuple[str, Value]:
        if name not in self._places:
            raise LongformerError(unknown_name(str(name), self.names, "value of this model"))
        return self._places[name]

    def _which(self, name: str) -> bool | None:
        return name.endswith(GLOBAL_ROWS) if self._place(name)[1].kind == "attention" else None

    # ---- while the model runs

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks on the modules of all values, then off."""
        with ExitStack() as stack:
            stack.enter_context(as_written(self._given))
            begin = self._layout.root.register_forward_pre_hook(self._begin, with_kwargs=True)
            stack.callback(begin.remove)
            # Behind a run nothing is known of the next, which may begin elsewhere: text is made layer by layer.
            stack.callback(self._model.register_forward_hook(self._end, always_call=True).remove)
            stack.callback(setattr, self, "_is_over", True)
            for path, value in dict(self._places.values()).items():
                stack.callback(self._modules[path].register_forward_hook(self._hook(path, value)).remove)
            yield

    def _begin(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if isinstance(self._layout, LongformerLayout):
            arguments, keywords = (), self._layout.named(arguments, keywords)
            if keywords.get("input_ids") is None and keywords.get("inputs_embeds") is not None:
                keywords["input_ids"] = keywords["inputs_embeds"][..., 0].long()  # of which the shape alone is asked
        with self._beginning:
            self._layout.begin(arguments, keywords)
            self._running.tokens = self._layout.tokens

    def _end(self, *_: Any) -> None:
        self._running.tokens = Tokens()

    @property
    def _tokens(self) -> Tokens:
        """Those of the run in this thread."""
        tokens: Tokens = getattr(self._running, "tokens", Tokens())
        return tokens

    def _hook(self, path: str, value: Value) -> Callable[[nn.Module, Any, Any], Any]:
        def change(module: nn.Module, arguments: Any, output: Any) -> Any:
            if path not in self._steps:
                return None
            rows = self._rows(output[0] if isinstance(output, (tuple, list)) else output, value)
            has_own = isinstance(module, LongformerSelfAttention) and module.has_own_tokens
            known = arguments[1] if has_own else self._tokens
            rows, padded = self._without_inner_padding(rows, value)
            for step in self._steps[path]:
                rows = _stepped(step, rows, known, value.name)
            new = self._as_given(rows if padded is None else torch.cat([rows, padded], -2), value)
            return new if isinstance(output, Tensor) else type(output)([new, *output[1:]])

        return change

    def _rows(self, output: Tensor, value: Value) -> Tensor:
        """What a module gives, as a trace has it."""
        rows = output.transpose(0, 1) if self._is_transposed(value) else output
        if value.kind in ("heads", "attention"):
            rows = rows.unflatten(-1, (self._layout.table.heads or 1, -1)).transpose(1, 2)
        return rows

    def _as_given(self, rows: Tensor, value: Value) -> Tensor:
        """The reverse of :meth:`_rows`."""
        if value.kind in ("heads", "attention"):
            rows = rows.transpose(1, 2).flatten(2)
        return rows.transpose(0, 1) if self._is_transposed(value) else rows

    def _without_inner_padding(self, rows: Tensor, value: Value) -> tuple[Tensor, Tensor | None]:
        """The rows of the run's tokens, and those with which transformers' model lengthens a sequence, if it does."""
        if not isinstance(self._layout, PaddedLayout) or value.kind == "plain" or self._tokens.keep is None:
            return rows, None
        length = self._tokens.keep.shape[1]
        if rows.shape[-2] < length:
            raise LongformerError(
                f"{value.name} comes in pieces, of which one has {rows.shape[-2]} of the {length} tokens; set the "
                "config's chunk_size_feed_forward to 0"
            )
        return rows[..., :length, :], rows[..., length:, :]

    def _is_transposed(self, value: Value) -> bool:
        return value.axes == "sbc" and not isinstance(self._layout, OurLayout)


def _zeros(rows: Tensor, known: Tokens) -> Tensor:
    return torch.zeros_like(rows)


def _weighted(weights: Tensor, rows: Tensor, known: Tokens) -> Tensor:
    """Rows (B, H, S, D) times weights (H,)."""
    return rows * weights.to(rows)[:, None, None]


def _tensor(what: str, given: Any) -> Tensor:
    """A number, a tensor, or what torch makes one of."""
    try:
        if isinstance(given, (bool, str)):
            raise TypeError
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        raise LongformerError(f"the {what} is {quoted(given)}; it must be a number or a tensor") from None


def _broadcast(new: Tensor, rows: Tensor, name: str) -> Tensor:
    try:
        return new.expand_as(rows)
    except RuntimeError:
        raise LongformerError(
            f"what is put into {name} has shape {tuple(new.shape)}, which does not broadcast to its {tuple(rows.shape)}"
        ) from None


def _stepped(step: _Step, rows: Tensor, known: Tokens, name: str) -> Tensor:
    """The rows after one step."""
    if step.is_global and not step.may_be_nowhere and (known.is_global is None or not bool(known.is_global.any())):
        raise LongformerError(
            f"{name.removesuffix(LOCAL_OUTPUT)}{GLOBAL_ROWS} is to be changed, but no token of this run is global; "
            "give the model a global_attention_mask"
        )
    new = step.change(rows, known)
    if not isinstance(new, Tensor):
        raise LongformerError(f"what the function made of {name} is no tensor; it must return one")
    new = _broadcast(new.to(rows), rows, name)
    chosen = _along(_chosen(step.batch, len(rows), name, "batch"), rows, 0)
    if step.tokens is not None:
        chosen = chosen & _along(_chosen(step.tokens, rows.shape[-2], name, "tokens"), rows, rows.dim() - 2)
    if step.head is not None:
        chosen = chosen & _along(_chosen(step.head, rows.shape[1], name, "head"), rows, 1)
    if step.is_global is not None:
        is_global = torch.zeros(rows.shape[0], rows.shape[-2], dtype=torch.bool, device=rows.device)
        if known.is_global is not None:
            is_global = known.is_global.to(rows.device)
        chosen = chosen & (is_global == step.is_global)[:, None, :, None]
    return torch.where(chosen, new, rows)


def _chosen(where: Where, size: int, name: str, what: str) -> Tensor:
    """Which of ``size`` places are chosen: (size,) bool."""
    chosen = torch.zeros(size, dtype=torch.bool)
    try:
        if isinstance(where, (bool, str)):
            raise TypeError("it must be an index")
        where = list(where) if isinstance(where, (tuple, range)) else where
        chosen[slice(None) if where is None else where] = True
        if isinstance(where, slice) and not chosen.any():
            raise IndexError("it chooses none")
    except (IndexError, TypeError) as error:
        shown = f"a tensor of shape {tuple(where.shape)}" if isinstance(where, Tensor) and where.dim() else repr(where)
        raise LongformerError(f"{what} is {shown}, but {name} has {size} of them, 0 to {size - 1}: {error}") from None
    return chosen


def _along(chosen: Tensor, rows: Tensor, dim: int) -> Tensor:
    """``chosen`` in a shape that broadcasts to ``rows`` along one dimension, on its device."""
    return chosen.to(rows.device).view([len(chosen) if i == dim else 1 for i in range(rows.dim())])


@contextmanager
def edit(model: nn.Module, *, table: Table | None = None) -> Iterator[Edit]:
    """Change values of every forward pass that runs inside.

        with edit(model) as e:
            e.zero("layer.3.local_output", head=5)
            answer = model(input_ids)

    Since hooks are on it, our model runs as the plain model; one that torch.compile made, or that has compiled parts,
    runs as it was written. After the block the model is as before, also if there was an exception. To see the changed
    values, open ``trace`` inside. Several threads may run the model meanwhile, each with inputs of its own.

    Args:
        model: ours, transformers' Longformer, or any module together with a ``table``.
        table: which modules have which names; None for a Longformer. See :class:`longformer.parity.Table`.

    Raises:
        LongformerError: the table does not fit the model, or :class:`Edit` refuses a change.
    """
    editor = Edit(model, table)
    with editor.attached():
        yield editor
