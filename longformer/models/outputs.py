"""What a model returns: a tuple whose entries have names, and which has only the entries that there are.

Letters: B batch, S sequence, C hidden size, H heads, V vocabulary, G global tokens, W width of the window.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, combinations
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from longformer.kernels.compat import register_output

Kind = TypeVar("Kind", bound="Output")


class Output(tuple):
    """A tuple that can also be read by name: ``output.logits``, ``output["logits"]``, ``output[0]``, or unpacked.

    An optional entry that was not asked for is left out of the tuple, and its attribute is None. So unpacking and
    indices depend on what was asked for, and names do not. torch's and others' tools treat it as the tuple that it is.

    Every combination of entries has a class of its own, whose ``present`` are their names. Then a tool that takes the
    entries apart may build the same thing again from new ones: most do it by ``type(output)(entries)``, and torch's
    hooks by ``type(output)(*entries)``.
    """

    required: ClassVar[tuple[str, ...]] = ()
    names: ClassVar[tuple[str, ...]] = ()  # of all entries, in order
    present: ClassVar[tuple[str, ...]] = ()

    def __new__(cls: type[Kind], *entries: Any) -> Kind:
        one_by_one = len(entries) != 1 or isinstance(entries[0], Tensor)
        return tuple.__new__(cls, entries if one_by_one else entries[0])

    @classmethod
    def of(cls: type[Kind], **entries: Any) -> Kind:
        """An output with those of ``entries`` that are not None."""
        present = tuple(name for name in cls.names if entries.get(name) is not None)
        kind: type[Kind] = _KINDS[cls.__name__, present]
        return kind([entries[name] for name in present])

    def __getattr__(self, name: str) -> Any:
        kind = type(self)
        if name not in kind.names:
            raise AttributeError(f"{kind.__name__} has no entry {name!r}; it may have {', '.join(kind.names)}")
        return self[kind.present.index(name)] if name in kind.present else None

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return super().__getitem__(key)
        if key not in type(self).present:
            raise KeyError(key)
        return super().__getitem__(type(self).present.index(key))

    def __contains__(self, name: object) -> bool:
        return name in type(self).present

    def keys(self) -> tuple[str, ...]:
        """The names of the entries that there are."""
        return type(self).present

    def values(self) -> tuple[Any, ...]:
        """The entries."""
        return tuple(self)

    def items(self) -> tuple[tuple[str, Any], ...]:
        """Names and entries."""
        return tuple(zip(type(self).present, self, strict=True))

    def get(self, name: str, default: Any = None) -> Any:
        """An entry by its name, or ``default`` if it is not there."""
        return self[name] if name in self else default

    def to_tuple(self) -> tuple[Any, ...]:
        """The entries as a plain tuple."""
        return tuple(self)

    def as_asked(self, return_dict: bool | None) -> Any:
        """Itself; as a plain tuple if ``return_dict`` is False."""
        return self if return_dict in (None, True) else self.to_tuple()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={entry!r}' for name, entry in self.items())})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self).__name__, type(self).present, tuple(self))


class ModelOutput(Output):
    """Of the encoder.

    last_hidden_state: (B, S, C).
    pooler_output: (B, C), of a model with a pooler.
    hidden_states: if asked for, the embeddings and every layer's output, each (B, S, C).
    attentions: if asked for, of every layer (B, H, S, G + W): each token's probabilities for the global tokens, in
        ascending order, then for its window. Rows of global tokens and of padding are 0. In the window, the places of
        global tokens are 0. They are the probabilities before dropout. G is that of the example with most.
    global_attentions: with them, where a token is global: of every layer (B, H, S, G), each global token's
        probabilities for all tokens. :func:`longformer.attentions_to_dense` puts the two into one matrix.
    """

    required = ("last_hidden_state",)
    names = ("last_hidden_state", "pooler_output", "hidden_states", "attentions", "global_attentions")

    last_hidden_state: Tensor
    pooler_output: Tensor | None
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None
    global_attentions: tuple[Tensor, ...] | None


class LogitsOutput(Output):
    """Of the heads that have labels.

    loss: scalar, if labels were given.
    logits: unnormalised log-probabilities, or a regression's values; their shape is said by the head.
    hidden_states, attentions, global_attentions: as in :class:`ModelOutput`.
    """

    required = ("logits",)
    names = ("loss", "logits", "hidden_states", "attentions", "global_attentions")

    loss: Tensor | None
    logits: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None
    global_attentions: tuple[Tensor, ...] | None


class QuestionAnsweringOutput(Output):
    """Of question answering.

    loss: scalar, mean cross-entropy of start and end, if positions were given.
    start_logits, end_logits: (B, S), unnormalised log-probability that the answer starts or ends at a token.
    hidden_states, attentions, global_attentions: as in :class:`ModelOutput`.
    """

    required = ("start_logits", "end_logits")
    names = ("loss", "start_logits", "end_logits", "hidden_states", "attentions", "global_attentions")

    loss: Tensor | None
    start_logits: Tensor
    end_logits: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None
    global_attentions: tuple[Tensor, ...] | None


def _kinds(base: type[Output]) -> Iterable[type[Output]]:
    """The classes of every combination of a base's entries, known to torch as containers of what they hold."""
    optional = [name for name in base.names if name not in base.required]
    for chosen in chain.from_iterable(combinations(optional, n) for n in range(len(optional) + 1)):
        present = tuple(name for name in base.names if name in base.required or name in chosen)
        kind = type(base.__name__, (base,), {"present": present, "__doc__": base.__doc__, "__module__": __name__})
        register_output(kind, f"longformer.{base.__name__}({', '.join(present)})")
        yield kind


_KINDS: dict[tuple[str, tuple[str, ...]], Any] = {
    (base.__name__, kind.present): kind
    for base in (ModelOutput, LogitsOutput, QuestionAnsweringOutput)
    for kind in _kinds(base)
}


def _rebuilt(name: str, present: tuple[str, ...], entries: tuple[Any, ...]) -> Output:
    rebuilt: Output = _KINDS[name, present](entries)
    return rebuilt
