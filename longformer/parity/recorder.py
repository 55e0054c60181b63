"""``trace``: record what a model computes, by forward hooks, and leave nothing behind.

Letters: B batch, S sequence, C hidden size, H heads, D head dimension, G global tokens, N packed tokens.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longformer.checkpoints.names import todays_name
from longformer.errors import LongformerError, listed
from longformer.kernels import choose
from longformer.models.attention import LongformerSelfAttention
from longformer.parity import probabilities as probs
from longformer.parity.format import FORMAT, INPUT, VERSION, TraceFile, TraceWriter, describe_model
from longformer.parity.layout import TARGETS, Layout, LongformerLayout, PackedLayout, PlainLayout, choose_layout
from longformer.parity.modes import check_mode, kernel_of
from longformer.parity.table import GLOBAL_ROWS, GRADIENT, PARAMETER, PROBABILITIES, Table, Value, order, order_of

Sink = Callable[[str, Tensor], None]


class Trace(Mapping[str, Tensor]):
    """What was recorded: names to tensors, in the order of computation.

    inputs: what the model was given, by argument: (B, S) int64 for a Longformer.
    metadata: strings, as in a trace file.
    """

    def __init__(self) -> None:
        self.tensors: Mapping[str, Tensor] = {}
        self.inputs: dict[str, Tensor] = {}
        self.metadata: dict[str, str] = {}
        self._backward: Callable[[Tensor], None] | None = None

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        given = self.metadata.get("order")
        return iter(sorted(self.tensors, key=order if given is None else order_of(json.loads(given))))

    def __len__(self) -> int:
        return len(self.tensors)

    def backward(self, loss: Tensor) -> None:
        """Record the gradients of the scalar ``loss``, inside a ``trace(..., gradients=True)``.

        By every recorded activation as ``gradient.<name>``, 0 at padding, and by every parameter that it depends on
        as ``gradient.parameter.<name>``. The parameters' own ``.grad`` stays as it is.
        """
        if self._backward is None:
            raise LongformerError("gradients are recorded only inside `with trace(model, gradients=True)`")
        self._backward(loss)

    def save(self, path: str | Path) -> None:
        """Write a trace file. Raises DataError where it cannot be written."""
        names = [INPUT + name for name in self.inputs] + list(self.tensors)
        writer = TraceWriter(path, names, self.metadata)
        try:
            for name, tensor in self.inputs.items():
                writer.write(INPUT + name, tensor)
            for name in self:
                writer.write(name, self[name])
            writer.close()
        finally:
            writer.discard()


def read_trace(path: str | Path) -> Trace:
    """A trace file, whose tensors are read when they are asked for.

    Raises:
        DataError: no such file, corrupt, no trace, or of another version of the format.
    """
    file = TraceFile(path)
    trace = Trace()
    trace.tensors, trace.inputs, trace.metadata = file, file.inputs, file.metadata
    return trace


@contextmanager
def trace(
    model: nn.Module,
    *,
    table: Table | None = None,
    only: Collection[str] | None = None,
    probabilities: bool = False,
    gradients: bool = False,
    path: str | Path | None = None,
    metadata: Mapping[str, str] | None = None,
    digests: bool = True,
) -> Iterator[Trace]:
    """Record the intermediate values of one forward pass that is run inside.

        with trace(model) as t:
            model(input_ids)
        t["layer.0.query"]  # (B, H, S, D)

    Every value is a copy on the CPU, in the dtype in which it was computed and, for a Longformer, of the input's own
    length: (B, S, ...), whatever the implementation pads or leaves out inside. On a GPU our model computes one document
    after the other meanwhile, and not the batch at once. After the block, by an exception too,
    the model is as before.

    Args:
        model: ours, transformers' Longformer, or any module together with a ``table``.
        table: which modules are recorded under which names; None for a Longformer.
        only: names or patterns such as ``"layer.*.output"`` of the values to record; None is all.
        probabilities: record attention probabilities too. Our model then computes its attention by ``impl="banded"``,
            which has them, and each layer's result is checked against that of the implementation it had.
        gradients: allow :meth:`Trace.backward` inside.
        path: write a trace file as the values come, instead of holding them in memory; read it after the block.
        metadata: strings for the trace file, beside those that are found out.
        digests: put the weights' digests into the metadata; they take a second for every 300M parameters or so.

    Raises:
        LongformerError: a model that the table does not fit, that runs twice inside, or not at all; a pattern of
            ``only`` that matches nothing; or, with ``probabilities``, implementations that disagree.
        DataError: ``path`` cannot be written.
    """
    layout = choose_layout(model, table)
    recorder = Recorder(model, layout, only=only, probabilities=probabilities, gradients=gradients)
    result = Trace()
    result._backward = recorder.backward if gradients else None
    result.metadata = {"format": FORMAT, "version": str(VERSION), **layout.describe()}
    result.metadata.update(describe_model(model, digests=digests))
    if table is not None:  # a Longformer's order is known
        result.metadata["order"] = json.dumps(list(recorder.names_in_order()))
    result.metadata.update(metadata or {})
    held: dict[str, Tensor] = {}
    writer: TraceWriter | None = None
    if path is not None:
        writer = TraceWriter(path, recorder.possible_names(), result.metadata)
        recorder.sink = writer.write
        recorder.input_sink = lambda name, tensor: writer.write(INPUT + name, tensor)
    else:
        recorder.sink = held.__setitem__
        recorder.input_sink = result.inputs.__setitem__
    try:
        with recorder.attached():
            yield result
        if not recorder.has_run:
            raise LongformerError("the model did not run inside trace(): nothing is recorded")
        recorder.check_patterns()
        result.metadata.update(recorder.notes)
        if writer is not None:
            writer.close(recorder.notes)
            result.tensors, result.inputs = (file := TraceFile(writer.path)), file.inputs
        else:
            result.tensors = held
    finally:
        result._backward = None
        if writer is not None:
            writer.discard()


class Recorder:
    """Hooks on one model, and what they hand to ``sink``."""

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        *,
        only: Collection[str] | None = None,
        probabilities: bool = False,
        gradients: bool = False,
        check: bool = True,
    ) -> None:
        self.model, self.layout = model, layout
        self.values = layout.table.fit(model)
        self.only, self.probabilities, self.gradients, self.check = only, probabilities, gradients, check
        self.sink: Sink = lambda name, tensor: None
        self.input_sink: Sink = lambda name, tensor: None
        self.has_run = False
        self.notes: dict[str, str] = {}
        self._pieces: dict[str, list[Tensor]] = {}
        self._value_of = {value.name: value for value in self.values.values()}
        self._handles: ExitStack
        self._given: set[str] = set()
        self._impl = ""
        self._kernels: dict[str, None] = {}
        if probabilities and not isinstance(layout, LongformerLayout):
            raise LongformerError("attention probabilities are recorded of a Longformer, not of a module with a table")
        check_mode(model, self.values, probabilities=probabilities, gradients=gradients)

    def names_in_order(self) -> Iterator[str]:
        """Names of the values in the order in which they are computed, without gradients."""
        for name, value in self._value_of.items():
            yield name
            if value.kind == "attention":
                yield name.removesuffix("local_output") + GLOBAL_ROWS

    def possible_names(self) -> list[str]:
        """All tensors that this recording may give."""
        names = list(self._value_of)
        layers = [name.removesuffix("local_output") for name in names if name.endswith(".local_output")]
        names += [layer + part for layer in layers for part in (GLOBAL_ROWS, *PROBABILITIES)]
        if self.gradients:
            names += [GRADIENT + name for name in names]
            names += [PARAMETER + todays_name(name) for name, _ in self.model.named_parameters()]
        inputs = {*inspect.signature(self.layout.root.forward).parameters, *TARGETS}
        return names + [INPUT + name for name in [*inputs, *(f"argument{i}" for i in range(32))]]

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks on, then off."""
        modules = dict(self.model.named_modules())
        with ExitStack() as stack:
            self._handles = stack
            stack.callback(self.model.register_forward_pre_hook(self._targets, with_kwargs=True).remove)
            begin = self.layout.root.register_forward_pre_hook(self._begin, with_kwargs=True)
            stack.callback(begin.remove)
            if isinstance(self.layout, PackedLayout):  # which a GPU would have departed from
                stack.callback(setattr, self.layout.root, "at_once", self.layout.root.at_once)
                self.layout.root.at_once = False
            for path, value in self.values.items():
                stack.callback(modules[path].register_forward_hook(self._hook(value)).remove)
                if self.probabilities and value.kind == "attention":
                    self._switch(stack, modules[path])
            stack.callback(self.model.register_forward_hook(lambda *_: self._flush()).remove)
            yield

    def _switch(self, stack: ExitStack, attention: nn.Module) -> None:
        """Let an attention module compute by what has its probabilities."""
        if isinstance(attention, LongformerSelfAttention):
            self._impl = attention.impl
            stack.callback(setattr, attention, "impl", attention.impl)
            attention.impl = "banded"
            return

        def ask(module: nn.Module, arguments: Any, keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return arguments, {**keywords, "output_attentions": True}

        stack.callback(attention.register_forward_pre_hook(ask, with_kwargs=True).remove)

    def _begin(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if self.has_run:
            raise LongformerError("the model ran twice inside one trace(); open one for each run")
        self.has_run = True
        for name, tensor in self.layout.begin(arguments, keywords).items():
            self.input_sink(name, tensor)

    def _targets(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        for name, tensor in self.layout.targets(module, arguments, keywords).items():
            if self.gradients:  # without, they say nothing of what is recorded
                self.input_sink(name, tensor)

    def _hook(self, value: Value) -> Callable[[nn.Module, Any, Any], None]:
        last_of_layer = value.name.startswith("layer.") and value.name.endswith(".output")

        def record(module: nn.Module, arguments: Any, output: Any) -> Any:
            first = output[0] if isinstance(output, (tuple, list)) else output
            if not isinstance(first, Tensor):
                raise LongformerError(
                    f"the module of {value.name} gave a {type(first).__name__}, not a tensor; the table does not fit"
                )
            # A copy at once: the model may go on to change its result in place, as the reference scales its queries.
            # (On the CPU `.cpu()` alone would be no copy.)
            copy = first.detach().cpu().clone() if first.device.type == "cpu" else first.detach().cpu()
            self._pieces.setdefault(value.name, []).append(copy)
            if isinstance(module, LongformerSelfAttention):
                self._kernels[kernel_of(module, arguments[0], first)] = None
                self.notes["kernel"] = ", ".join(self._kernels)
            if value.kind == "attention" and self.probabilities:
                self._record_probabilities(value, module, arguments, output)
            if last_of_layer or isinstance(self.layout, PlainLayout):
                self._flush()
            if self.gradients and first.requires_grad:
                return _with_first(output, self._with_gradient(value, first))
            return None

        return record

    def _flush(self) -> None:
        """Hand on what has come."""
        for name in sorted(self._pieces, key=order):
            self._emit(self._value_of[name], self.layout.rows(self._pieces.pop(name), self._value_of[name]), "")

    def _emit(self, value: Value, rows: Tensor, prefix: str) -> None:
        if value.kind == "heads" or value.kind == "attention":
            if self.layout.table.heads is None:
                raise LongformerError(f"the table records {value.name} by heads, but does not say how many")
            rows = rows.unflatten(-1, (self.layout.table.heads, -1)).transpose(1, 2)  # (B, H, S, D)
        if prefix and value.kind != "plain" and self.layout.key_mask is not None:
            padding = ~self.layout.key_mask
            rows = rows.masked_fill(padding[:, None, :, None] if rows.dim() == 4 else padding[..., None], 0)
        if value.kind == "attention":
            mask = self.layout.global_mask
            if mask is not None and bool(mask.any()):
                global_name = value.name.removesuffix("local_output") + GLOBAL_ROWS
                self._give(prefix + global_name, probs.global_rows(rows, mask))
                rows = rows.masked_fill(mask[:, None, :, None], 0)
        self._give(prefix + value.name, rows)

    def _give(self, name: str, tensor: Tensor) -> None:
        if name in self._given:
            raise LongformerError(f"the module of {name} ran twice inside one trace(); a value has one result")
        self._given.add(name)
        if self.only is None or any(fnmatchcase(name, pattern) for pattern in self.only):
            self.sink(name, tensor.contiguous())

    def check_patterns(self) -> None:
        """Raise LongformerError where a pattern of ``only`` matched nothing."""
        names = sorted(self._given, key=order)
        for pattern in self.only or ():
            if not any(fnmatchcase(name, pattern) for name in names):
                raise LongformerError(f"only={pattern!r} matches no value; there are {listed(names)}")

    def _record_probabilities(self, value: Value, module: nn.Module, arguments: Any, output: Any) -> None:
        layout = self.layout
        assert isinstance(layout, LongformerLayout) and layout.key_mask is not None and layout.global_mask is not None
        layer = value.name.removesuffix("local_output")
        if not isinstance(module, LongformerSelfAttention):
            found = probs.of_reference(output, layout.key_mask, layout.global_mask)
        else:
            query, key, v = (
                layout.rows(self._pieces[layer + part], self._value_of[layer + part])
                .unflatten(-1, (layout.table.heads or 1, -1))
                .transpose(1, 2)
                for part in ("query", "key", "value")
            )
            masks = layout.key_mask, layout.global_mask
            if self.check:
                rows = layout.rows(self._pieces[value.name], value).unflatten(-1, (query.shape[1], -1)).transpose(1, 2)
                probs.check_agreement(value.name, module, self._impl, query, key, v, rows, *masks)
            states = layout.rows([arguments[0].detach()], value)
            found = probs.of_ours(module, query, key, states, *masks)
            # As check_agreement has it run: without gradients and dropout.
            self.notes["kernel"] = f"banded, which agrees with {choose(query, impl=self._impl).impl}"
        for name, tensor in found.items():
            self._give(layer + name, tensor)

    def _with_gradient(self, value: Value, output: Tensor) -> Tensor:
        """A copy of ``output`` to compute on with, whose gradient is recorded.

        A copy, since a projection may give a view, and a view that the model goes on to change in place is cut out of
        the graph together with the hooks on it.
        """

        def record(gradient: Tensor) -> None:
            self._emit(value, self.layout.rows([gradient.detach().cpu().clone()], value), GRADIENT)

        copy = output.clone()
        self._handles.callback(copy.register_hook(record).remove)
        return copy

    def backward(self, loss: Tensor) -> None:
        """See :meth:`Trace.backward`."""
        self._flush()
        if not loss.requires_grad:
            raise LongformerError("the loss does not depend on any parameter: run the model with gradients enabled")
        named = [(name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        found = torch.autograd.grad(loss, [parameter for _, parameter in named], allow_unused=True)
        for (name, _), gradient in zip(named, found, strict=True):
            if gradient is not None:
                self._give(PARAMETER + todays_name(name), gradient.detach().cpu())


def _with_first(output: Any, first: Tensor) -> Any:
    """A module's output, of which the tensor, or the first of several, is another."""
    if isinstance(output, Tensor):
        return first
    if hasattr(output, "_fields"):
        return output._replace(**{output._fields[0]: first})
    return type(output)([first, *output[1:]])
