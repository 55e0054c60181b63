"""``trace``: record what a model computes, with forward hooks, and leave nothing behind.

Letters: B batch, S sequence, C hidden size, H heads, D head dimension, G global tokens.
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
from longformer.kernels import Tokens, choose
from longformer.models.attention import LongformerSelfAttention, attention_probabilities
from longformer.models.causal import CausalSelfAttention
from longformer.parity import probabilities as probs
from longformer.parity.compiled import compiled_in_parts, compiled_parts, of_whole_parts, runs_compiled, uncompiled
from longformer.parity.format import FORMAT, INPUT, VERSION, Trace, TraceFile, TraceWriter, describe_model
from longformer.parity.layout import TARGETS, Layout, LongformerLayout, PlainLayout, choose_layout, global_name
from longformer.parity.operations import CoarsestSeen, coarsest
from longformer.parity.table import GLOBAL_ROWS, GRADIENT, PARAMETER, PROBABILITIES, Table, Value, order

Sink = Callable[[str, Tensor], None]


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
    """Record the intermediate values of the one forward pass that you run inside.

        with trace(model) as t:
            model(input_ids)
        t["layer.0.query"]  # (B, H, S, D)

    Every value is a copy on the CPU, in the dtype in which it was computed. A Longformer's values have the length of
    the input, (B, S, ...), whatever the implementation pads or leaves out inside. Since hooks are on it, our model runs
    as the plain model. After the block the model is as before, also if there was an exception.

    Args:
        model: ours, transformers' Longformer, or any module together with a ``table``. Of one that torch.compile made,
            the values of whole parts are recorded, see :mod:`longformer.parity.compiled`.
        table: which modules are recorded under which names; None for a Longformer.
        only: names or patterns such as ``"layer.*.output"`` of the values to record; None is all.
        probabilities: record attention probabilities too. Our model then computes its attention with
            ``impl="banded"``, which has them, and each layer's result is checked against the layer's own ``impl``,
            unless another hook, such as that of an edit, may have changed it.
        gradients: allow :meth:`Trace.backward` inside.
        path: write a trace file as the values come, instead of holding them in memory. Read it after the block.
        metadata: strings for the trace file, beside those that are found out.
        digests: put the weights' digests into the metadata; this takes a second for every 300M parameters or so.

    Raises:
        LongformerError: the table does not fit the model; the model runs twice inside, or not at all; a pattern of
            ``only`` matches nothing; a part of the model is compiled by itself; or, with ``probabilities``, two
            implementations disagree.
        DataError: ``path`` cannot be written.
    """
    given, is_compiled, model = model, runs_compiled(model), uncompiled(model)
    if parts := compiled_parts(model):
        raise LongformerError(
            f"{parts[0] or 'the model'} was compiled by itself, so that nobody sees the values inside it; record the "
            "model before that, or what torch.compile makes of the whole model: trace(torch.compile(model))"
        )
    layout = choose_layout(model, table)
    if is_compiled:
        if probabilities:
            raise LongformerError("attention probabilities are inside what is compiled; record the model without it")
        layout.table = of_whole_parts(layout.table) if table is None else layout.table
    recorder = Recorder(model, layout, only=only, probabilities=probabilities, gradients=gradients)
    result = Trace()
    result._backward = recorder.backward if gradients else None
    result.metadata = {"format": FORMAT, "version": str(VERSION), **layout.describe()}
    result.metadata.update(describe_model(model, digests=digests))
    result.metadata.update({"compiled": "in parts"} if is_compiled else {})
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
        with ExitStack() as stack:
            if is_compiled:
                stack.enter_context(compiled_in_parts(given, list(recorder.values)))
            stack.enter_context(recorder.attached())
            stack.enter_context(recorder.watching())
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
    """The hooks on one model. They hand what they see to ``sink``, and the inputs to ``input_sink``."""

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
        self.probabilities_of: probs.Of = attention_probabilities
        self.has_run = False
        self.notes: dict[str, str] = {}
        self._pieces: dict[str, list[Tensor]] = {}
        self._value_of = {value.name: value for value in self.values.values()}
        self._handles: ExitStack
        self._given: set[str] = set()
        self._impl = ""
        self._kernels: dict[str, None] = {}
        self._watch: CoarsestSeen | None = None
        self._precisions: dict[str, str] = {}
        if probabilities and not isinstance(layout, LongformerLayout):
            raise LongformerError("attention probabilities are recorded of a Longformer, not of a module with a table")
        _check_mode(model, self.values, probabilities=probabilities, gradients=gradients)

    def names_in_order(self) -> Iterator[str]:
        """Names of the values, without gradients, in the order in which they are computed."""
        for name, value in self._value_of.items():
            yield name
            if value.kind == "attention":
                yield global_name(name)

    def possible_names(self) -> list[str]:
        """Names of all tensors that this recording may give."""
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
            for path, value in self.values.items():
                stack.callback(modules[path].register_forward_hook(self._hook(value)).remove)
                if self.probabilities and value.kind == "attention":
                    self._switch(stack, modules[path])
            stack.callback(self.model.register_forward_hook(lambda *_: self._flush()).remove)
            yield

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note in ``notes`` which values are computed in a coarser precision than they have."""
        self.notes["precisions"] = "{}"
        with CoarsestSeen() as self._watch:
            yield
        self._watch = None

    def take(self, inputs: Mapping[str, Tensor], results: Mapping[str, Tensor]) -> None:
        """Record a run that happened elsewhere, by the ``results`` of modules under their paths in the model."""
        self._begin(self.layout.root, (), dict(inputs))
        for path, value in self.values.items():
            if path in results:
                self._pieces[value.name] = [results[path]]
        self._flush()

    def _switch(self, stack: ExitStack, attention: nn.Module) -> None:
        """Let an attention module compute its probabilities."""
        if isinstance(attention, LongformerSelfAttention):
            self._impl = attention.impl
            stack.callback(setattr, attention, "impl", attention.impl)
            if attention.pattern.is_band:  # any mask's probabilities are those of a dense matrix
                attention.impl = "banded"
            return
        if isinstance(attention, CausalSelfAttention):
            stack.callback(attention.register_forward_pre_hook(_with_list).remove)
            return

        def ask(module: nn.Module, arguments: Any, keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return arguments, {**keywords, "output_attentions": True}

        stack.callback(attention.register_forward_pre_hook(ask, with_kwargs=True).remove)

    def _begin(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if self.has_run:
            raise LongformerError("the model ran twice inside one trace(); open one for each run")
        self.has_run = True
        if self._watch is not None:
            self._watch.take()  # what was computed before the run, such as weights read in their own precision
        for name, tensor in self.layout.begin(arguments, keywords).items():
            self.input_sink(name, tensor)

    def _targets(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        for name, tensor in self.layout.targets(module, arguments, keywords).items():
            if self.gradients:  # without gradients, nothing that is recorded depends on them
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
            self._note_precision(value.name, first)
            if isinstance(module, LongformerSelfAttention):
                if module.has_own_tokens:
                    self.layout.own_tokens[value.name] = Tokens(*(None if x is None else x.cpu() for x in arguments[1]))
                self._kernels[_kernel_of(module, arguments[0], first)] = None
                self.notes["kernel"] = ", ".join(self._kernels)
            if value.kind == "attention" and self.probabilities:
                self._record_probabilities(value, module, arguments, output)
            if last_of_layer or isinstance(self.layout, PlainLayout):
                self._flush()
            if self._watch is not None:
                self._watch.take()  # what the recorder itself did
            if self.gradients and first.requires_grad:
                return with_first(output, self._with_gradient(value, first))
            return None

        return record

    def _note_precision(self, name: str, result: Tensor) -> None:
        """Note the coarsest precision of what was computed since the value before, if ``result`` has a finer one."""
        if self._watch is None or not result.is_floating_point():
            return
        dtype = coarsest([result.dtype, *self._watch.take()])
        if dtype != result.dtype:
            self._precisions[name] = str(dtype).removeprefix("torch.")
            self.notes["precisions"] = json.dumps(self._precisions)

    def _flush(self) -> None:
        """Hand on what has come so far."""
        for name in sorted(self._pieces, key=order):
            self._emit(self._value_of[name], self.layout.rows(self._pieces.pop(name), self._value_of[name]), "")

    def _emit(self, value: Value, rows: Tensor, prefix: str) -> None:
        for name, tensor in self.layout.split(value, rows):
            self._give(prefix + name, tensor)

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
        layer = value.name.removesuffix("local_output")

        def by_heads(name: str) -> Tensor:
            rows = layout.rows(self._pieces[name], self._value_of[name])
            return rows.unflatten(-1, (layout.table.heads or 1, -1)).transpose(1, 2)

        if isinstance(module, CausalSelfAttention):
            found = {PROBABILITIES[0]: arguments[2][-1].band.detach().cpu()}
        elif not isinstance(module, LongformerSelfAttention):
            found = probs.of_reference(output, layout.tokens)
        else:
            query, key, values = (by_heads(layer + part) for part in ("query", "key", "value"))
            tokens = layout.tokens_of(value.name)
            projected = probs.Projected(query, key, values, tokens)
            # Another hook, such as an edit's, may have changed what attention gave.
            if self.check and len(module._forward_hooks) == 1:
                probs.check_agreement(value.name, module, self._impl, projected, by_heads(value.name))
            found = probs.of_ours(module, projected, layout.rows([arguments[0].detach()], value), self.probabilities_of)
            # As check_agreement has it run: without gradients and dropout.
            impl = choose(query, impl=self._impl, pattern=module.pattern).impl
            self.notes["kernel"] = f"banded, which agrees with {impl}" if module.pattern.is_band else impl
        for name, tensor in found.items():
            self._give(layer + name, tensor)

    def _with_gradient(self, value: Value, output: Tensor) -> Tensor:
        """A copy of ``output`` with which the model goes on, and whose gradient is recorded.

        It is a copy because a projection may give a view. If the model then changes that view in place, autograd drops
        it from the graph, and the hooks on it too.
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


def _with_list(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a causal layer's attention, with a list for its probabilities, which it then computes."""
    hidden, tokens, probabilities = arguments
    return hidden, tokens, [] if probabilities is None else probabilities


def with_first(output: Any, first: Tensor) -> Any:
    """A module's output with ``first`` in place of its tensor, or of the first of its tensors."""
    if isinstance(output, Tensor):
        return first
    if hasattr(output, "_fields"):
        return output._replace(**{output._fields[0]: first})
    return type(output)([first, *output[1:]])


def _check_mode(model: nn.Module, values: Mapping[str, Value], *, probabilities: bool, gradients: bool) -> None:
    """Raise LongformerError, before ``model`` runs, if it is in a mode that cannot be recorded.

    Args:
        values: by the path of the module that gives them.
    """
    parts = dict(model.named_modules())
    for path, value in values.items():
        part = parts[path]
        dropout_p = getattr(part, "dropout_p", getattr(part, "dropout", 0))  # ours and transformers' name for it
        if probabilities and value.kind == "attention" and part.training and dropout_p:
            raise LongformerError(
                f"attention probabilities are recorded without dropout, and {path} is in training mode with a "
                f"dropout of {dropout_p}: call model.eval(), or set the config's attention_probs_dropout_prob to 0"
            )
    twice = [path for path, part in parts.items() if getattr(part, "gradient_checkpointing", False) and part.training]
    if gradients and twice:
        raise LongformerError(
            f"{twice[0] or 'the model'} has gradient_checkpointing, by which layers run a second time in the backward "
            "pass, but a value has one result: set it to False to record gradients, or call model.eval()"
        )


def _kernel_of(attention: LongformerSelfAttention, hidden: Tensor, output: Tensor) -> str:
    """Which kernel computed ``output`` from ``hidden``. If ``impl`` is "auto", the layer's queries decided."""
    weights = [part.weight for part in (attention.query, attention.key, attention.value)]
    return choose(
        output.new_empty(1, 1, hidden.shape[1], attention.head_dim),
        impl=attention.impl,
        dropout_p=attention.dropout_p if attention.training else 0.0,
        backward=torch.is_grad_enabled() and any(x.requires_grad for x in (hidden, *weights)),
        pattern=attention.pattern,
    ).impl
