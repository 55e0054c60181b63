"""LongformerConfig: the numbers that define a model. It reads and writes the hub's ``config.json``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longformer.errors import ConfigError, quoted, unknown_name
from longformer.files import read_json, write_text
from longformer.pattern_entries import FULL, LayerEntry, entries_of

if TYPE_CHECKING:
    from longformer.kernels import AttentionPattern
    from longformer.kernels.masks import Pattern

PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
LARGEST = 2**31 - 1  # of a size; larger ones fit no memory, and torch says of them what nobody understands
_MOST = {  # sizes, and their largest values; of what is counted in lists, no more than a list can hold
    "vocab_size": LARGEST,
    "hidden_size": LARGEST,
    "num_hidden_layers": 2**10,
    "num_attention_heads": 2**16,
    "intermediate_size": LARGEST,
    "max_position_embeddings": LARGEST,
    "type_vocab_size": LARGEST,
    "num_labels": 2**20,
}
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu")


@dataclass(unsafe_hash=True, kw_only=True)
class LongformerConfig:
    """Architecture of a Longformer. It cannot be changed, and its values are checked once, when it is made.

    :meth:`replace` makes another one. An attribute may be assigned the value that it has, since transformers' Trainer
    does so. Any other assignment is a ``ConfigError``: the layers have been made from the values that there are.

    The defaults are those of ``allenai/longformer-base-4096``, the released base model (149M parameters).

    Args:
        vocab_size: rows of the word embeddings.
        hidden_size: C, width of the residual stream; a multiple of ``num_attention_heads``.
        num_hidden_layers: number of layers.
        num_attention_heads: H, heads per layer; each has dimension D = C / H.
        intermediate_size: width of the feed-forward's inner layer.
        hidden_act: feed-forward activation, one of ``ACTIVATIONS``. ``"gelu"`` is the exact GELU.
        hidden_dropout_prob: dropout on embeddings and on each sublayer's output.
        attention_probs_dropout_prob: dropout on attention probabilities.
        max_position_embeddings: rows of the position embeddings. Positions start at ``pad_token_id + 1``. So 4,098 rows
            and ``pad_token_id`` 1 are enough for 4,096 tokens (see ``max_tokens``).
        type_vocab_size: rows of the token type embeddings.
        layer_norm_eps: epsilon of every LayerNorm.
        initializer_range: standard deviation of freshly drawn weights.
        attention_window: two-sided window of each layer, as the hub counts it: 512 lets a token see 256 tokens on
            each side of itself. One number for all layers, or a list of one number for each layer.
        attention_dilation: gap between the tokens of the window. One number for all layers, or a list with an entry for
            each layer; an entry is one number for all heads, or a list of one number for each head. Weights do not
            depend on it, so any checkpoint loads with any dilation. transformers' model has no dilation.
        attention_pattern: who attends to whom, where windows do not say it: causal, full or asymmetric layers, unions,
            global tokens of a layer's own. A text such as ``"window=128/full"``, a mapping, a pattern of
            ``longformer.kernels``, or a list of these, see :mod:`longformer.pattern_entries`. Fewer than there are
            layers are repeated in turn. transformers ignores it.
        pad_token_id, bos_token_id, eos_token_id, sep_token_id: ids of the special tokens.
        num_labels: outputs of the head: 2 (start and end) for question answering.
        label_names: the labels' names, in the order of their numbers; by default ``LABEL_0`` and so on. The hub's
            ``id2label`` says the same.
        problem_type: what sequence classification computes a loss for, one of ``PROBLEM_TYPES``; None lets it follow
            from the labels.

    Raises:
        ConfigError: a value is out of range. The message gives its name and the value.
    """

    vocab_size: int = 50265
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 4098
    type_vocab_size: int = 1
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    attention_window: int | tuple[int, ...] = 512
    attention_dilation: int | tuple[int | tuple[int, ...], ...] = 1
    attention_pattern: Any = None
    pad_token_id: int = 1
    bos_token_id: int = 0
    eos_token_id: int = 2
    sep_token_id: int = 2
    num_labels: int = 2
    label_names: tuple[str, ...] = ()
    problem_type: str | None = None

    model_type = "longformer"
    use_cache = False  # an encoder keeps no keys and values for a next token

    def __setattr__(self, name: str, value: Any) -> None:
        is_new = name in self.__dataclass_fields__ and name not in self.__dict__
        if is_new:  # __init__ assigns it
            object.__setattr__(self, name, value)
        elif not hasattr(self, name):
            raise ConfigError(f"LongformerConfig has no {name!r}, so it cannot be set to {value!r}")
        elif getattr(self, name) != value:
            change = f"{name}={value!r}"
            remedy = f"make another with config.replace({change}), and a model from it"
            raise ConfigError(
                f"{name} is {getattr(self, name)!r}, and a config cannot be changed; "
                f"{remedy if name in (*self.__dict__, 'id2label', 'label2id') else f'leave out {change}'}"
            )

    def __delattr__(self, name: str) -> None:
        raise ConfigError(f"{name} cannot be deleted: a config cannot be changed")

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            value = getattr(self, name)
            _require(_is_int(value) and 1 <= value <= most, name, value, f"an int >= 1 and at most {most}")
        for name in ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id"):
            value = getattr(self, name)
            _require(_is_int(value) and 0 <= value < self.vocab_size, name, value, f"an int in [0, {self.vocab_size})")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            value = getattr(self, name)
            _require(_is_number(value) and 0 <= value < 1, name, value, "a number in [0, 1)")
        for name in ("layer_norm_eps", "initializer_range"):
            value = getattr(self, name)
            _require(_is_number(value) and 0 < value < 1e30, name, value, "a number > 0 and below 1e30")
        _require(self.hidden_act in ACTIVATIONS, "hidden_act", self.hidden_act, f"one of {', '.join(ACTIVATIONS)}")
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        _require(
            self.max_position_embeddings > self.pad_token_id + 1,
            "max_position_embeddings",
            self.max_position_embeddings,
            f"more than pad_token_id + 1 = {self.pad_token_id + 1}, because positions start after the padding's",
        )
        _require(
            self.problem_type is None or self.problem_type in PROBLEM_TYPES,
            "problem_type",
            self.problem_type,
            f"None or one of {', '.join(PROBLEM_TYPES)}",
        )
        object.__setattr__(self, "label_names", self._label_names())
        object.__setattr__(self, "attention_window", self._windows())
        object.__setattr__(self, "attention_dilation", self._dilations())
        sizes = (self.num_hidden_layers, self.num_attention_heads, self.vocab_size)
        object.__setattr__(self, "attention_pattern", entries_of(self.attention_pattern, *sizes))

    def _label_names(self) -> tuple[str, ...]:
        names = tuple(self.label_names) or tuple(f"LABEL_{i}" for i in range(self.num_labels))
        if len(names) != self.num_labels or not all(isinstance(name, str) for name in names):
            raise ConfigError(
                f"label_names is {quoted(names)}; it must be one name for each of num_labels, of which there are "
                f"{self.num_labels}"
            )
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ConfigError(f"label_names has {twice!r} twice; each label needs a name of its own")
        return names

    def _windows(self) -> tuple[int, ...]:
        given: object = self.attention_window
        windows = (given,) * self.num_hidden_layers if _is_int(given) else given
        if not isinstance(windows, (list, tuple)) or not all(_is_count(w) for w in windows):
            raise ConfigError(
                f"attention_window is {quoted(given)}; it must be an int >= 1, or a list of one such int for each "
                f"layer; at most {LARGEST}"
            )
        if len(windows) != self.num_hidden_layers:
            raise ConfigError(
                f"attention_window lists {len(windows)} windows for num_hidden_layers {self.num_hidden_layers}; "
                "give one for each layer, or a single number for all"
            )
        return tuple(windows)

    def _dilations(self) -> int | tuple[int | tuple[int, ...], ...]:
        """The checked dilations in their shortest form: equal heads become one number, and so do equal layers."""
        given: object = self.attention_dilation
        layers = (given,) * self.num_hidden_layers if _is_int(given) else given
        must = (
            "an int >= 1, or a list with an entry for each layer: such an int, or a list of one for each head; "
            f"at most {LARGEST}"
        )
        _require(isinstance(layers, (list, tuple)), "attention_dilation", given, must)
        assert isinstance(layers, (list, tuple))
        checked: list[int | tuple[int, ...]] = []
        for layer in layers:
            heads = (layer,) * self.num_attention_heads if _is_int(layer) else layer
            valid = isinstance(heads, (list, tuple)) and all(_is_count(d) for d in heads)
            _require(valid, "attention_dilation", given, must)
            if len(heads) != self.num_attention_heads:
                raise ConfigError(
                    f"attention_dilation lists {len(heads)} gaps in a layer for num_attention_heads "
                    f"{self.num_attention_heads}; give one for each head, or a single number for all"
                )
            checked.append(heads[0] if len(set(heads)) == 1 else tuple(heads))
        if len(checked) != self.num_hidden_layers:
            raise ConfigError(
                f"attention_dilation lists {len(checked)} layers for num_hidden_layers {self.num_hidden_layers}; "
                "give one for each layer, or a single number for all"
            )
        first = checked[0]
        return first if isinstance(first, int) and set(checked) == {first} else tuple(checked)

    @property
    def head_dim(self) -> int:
        """D, the dimension of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def max_tokens(self) -> int:
        """Length of the longest sequence for which there are position embeddings, in tokens."""
        return self.max_position_embeddings - self.pad_token_id - 1

    @property
    def id2label(self) -> dict[int, str]:
        """The labels' names, by their numbers."""
        return dict(enumerate(self.label_names))

    @property
    def label2id(self) -> dict[str, int]:
        """The labels' numbers, by their names."""
        return {name: i for i, name in enumerate(self.label_names)}

    def window(self, layer: int) -> tuple[int, int]:
        """(left, right): how many tokens layer ``layer`` sees on each side by ``attention_window`` alone."""
        assert isinstance(self.attention_window, tuple)
        return self.attention_window[layer] // 2, self.attention_window[layer] // 2

    def dilation(self, layer: int) -> tuple[int, ...]:
        """Gap between the tokens of layer ``layer``'s window by ``attention_dilation`` alone, one for each head."""
        given = self.attention_dilation if isinstance(self.attention_dilation, int) else self.attention_dilation[layer]
        return (given,) * self.num_attention_heads if isinstance(given, int) else given

    def pattern(self, layer: int) -> Pattern:
        """Who attends to whom in layer ``layer``, apart from padding and the global tokens that a batch names.

        Raises:
            ConfigError: the layer was made with a function, which a config cannot keep.
        """
        entry = None if self.attention_pattern is None else self.attention_pattern[layer]
        if entry is not None and entry.function is not None:
            raise ConfigError(
                f"layer {layer} was made with the function {entry.function}, which a config cannot keep; give it again "
                f"as attention={entry.function}"
            )
        return self.pattern_without_function(layer)

    def pattern_without_function(self, layer: int) -> Pattern:
        """The same as far as a config can keep it: what a score's function is put on."""
        from longformer.kernels.pattern import AttentionPattern  # imports torch, which a config does not need otherwise

        if self.attention_pattern is None:
            return AttentionPattern(self.window(layer), self.dilation(layer))
        from longformer.kernels.global_tokens import GlobalTokens
        from longformer.kernels.masks import MaskPattern

        entry: LayerEntry = self.attention_pattern[layer]
        named = None if entry.global_tokens is None else GlobalTokens(**dataclasses.asdict(entry.global_tokens))
        if entry.union:
            return MaskPattern(tuple(self._band(layer, part) for part in entry.union), global_tokens=named)
        return dataclasses.replace(self._band(layer, entry), global_tokens=named)

    def _band(self, layer: int, entry: LayerEntry) -> AttentionPattern:
        """The window of an entry; what it leaves open, ``attention_window`` and ``attention_dilation`` say."""
        from longformer.kernels.pattern import AttentionPattern

        if entry.window == FULL:
            return AttentionPattern(None, causal=entry.causal)
        window = self.window(layer) if entry.window is None else entry.window
        left, right = map(int, window)
        gaps = self.dilation(layer) if entry.dilation is None else entry.dilation
        return AttentionPattern((left, 0 if entry.causal else right), gaps, entry.causal)

    def replace(self, **changes: Any) -> LongformerConfig:
        """A copy with ``changes``. If ``num_hidden_layers`` changes, give ``attention_window`` as well.

        ``id2label`` or ``label2id`` may be given too, and say the labels' names and number. Another number alone gives
        them new names.
        """
        label2id = changes.pop("label2id", None)
        if label2id is not None:
            changes.setdefault("id2label", {number: name for name, number in dict(label2id).items()})
        if "id2label" in changes:
            names = _names_of(changes.pop("id2label"))
            changes = {"num_labels": len(names), "label_names": names, **changes}
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise ConfigError(unknown_name(name, known, "entry of a config"))
        if changes.get("num_labels", self.num_labels) != self.num_labels:
            changes.setdefault("label_names", ())
        return dataclasses.replace(self, **changes)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LongformerConfig:
        """The config for the entries of a hub ``config.json``. Entries with other names are ignored.

        Raises:
            ConfigError: the config is for another architecture or for a variant that this model does not compute, or a
                value is out of range.
        """
        model_type = values.get("model_type")
        # The authors' script for making RoBERTa long leaves the model's type as it was, and adds the windows.
        is_long = model_type == "roberta" and "attention_window" in values
        if model_type != "longformer" and not is_long:
            raise ConfigError(
                f'config has model_type {quoted(model_type)}, not "longformer"; '
                "a BERT or RoBERTa checkpoint becomes one with `longformer convert --to-long`"
            )
        _refuse_variants(values)
        known = {field.name for field in dataclasses.fields(cls)}
        arguments = {key: value for key, value in values.items() if key in known and value is not None}
        missing = [key for key in _REQUIRED if key not in arguments]
        if missing:
            raise ConfigError(f"config lacks {', '.join(missing)}; a Longformer config.json states them")
        if isinstance(values.get("id2label"), Mapping):
            arguments.setdefault("num_labels", len(values["id2label"]))
            arguments.setdefault("label_names", _usable_names(values["id2label"], arguments["num_labels"]))
        if isinstance(arguments.get("attention_window"), list):
            arguments["attention_window"] = tuple(arguments["attention_window"])
        return cls(**arguments)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        **changes: Any,
    ) -> LongformerConfig:
        """The config of a checkpoint.

        Args:
            name_or_path: a folder, or a model's name on the hub such as ``"allenai/longformer-base-4096"``.
            revision, local_files_only, cache_dir, token: as for :meth:`LongformerModel.from_pretrained`.
            changes: as for :meth:`replace`, such as ``num_labels=3``.

        Raises:
            CheckpointError: there is no such folder or model, or it has no ``config.json``.
            ConfigError: ``config.json`` does not describe a Longformer.
        """
        from longformer.hub import find_config  # imports what a config does not need otherwise

        where: dict[str, Any] = {
            "revision": revision,
            "local_files_only": local_files_only,
            "cache_dir": cache_dir,
            "token": token,
        }
        return cls.from_file(find_config(name_or_path, **where)).replace(**changes)

    @classmethod
    def from_file(cls, path: str | Path) -> LongformerConfig:
        """Read a ``config.json``. Raises ``ConfigError``, which names the file, if it cannot be read or is not one."""
        values = read_json(path, error=ConfigError)
        try:
            return cls.from_dict(values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """The entries of ``config.json``, as the hub's other readers expect them."""
        values = dataclasses.asdict(self)
        values["attention_window"] = list(values["attention_window"])
        dilation = values.pop("attention_dilation")
        if dilation != 1:
            each = dilation if isinstance(dilation, tuple) else (dilation,) * self.num_hidden_layers
            values["attention_dilation"] = [list(d) if isinstance(d, tuple) else d for d in each]
        if values.pop("attention_pattern") is not None:
            values["attention_pattern"] = [entry.as_json() for entry in self.attention_pattern]
        del values["num_labels"], values["label_names"]
        values["id2label"] = {str(i): name for i, name in self.id2label.items()}
        values["label2id"] = self.label2id
        if values["problem_type"] is None:
            del values["problem_type"]
        return {"model_type": self.model_type, **values}

    def to_json_string(self, **extra: Any) -> str:
        """The text of ``config.json``, with further entries ``extra``."""
        return json.dumps({**self.to_dict(), **extra}, indent=2, sort_keys=True) + "\n"

    def get_text_config(self) -> LongformerConfig:
        """Itself: the config's part for text, which transformers' Trainer and peft ask for, is all of it."""
        return self

    def save(self, path: str | Path, **extra: Any) -> None:
        """Write ``config.json`` completely or not at all. ``extra`` adds entries such as ``architectures``.

        Raises:
            ConfigError: the file cannot be written.
        """
        write_text(path, self.to_json_string(**extra), error=ConfigError)


# A config must have these entries. from_dict does not guess them: with a wrong value a model might load and run, and
# give wrong answers.
_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "attention_window",
)


def _names_of(id2label: object) -> tuple[str, ...]:
    """The labels' names in the order of their numbers, from a mapping of numbers, or numbers in text, to names."""
    try:
        names = {int(number): name for number, name in dict(id2label).items()}  # type: ignore[call-overload]
    except (TypeError, ValueError):
        names = {}
    if not names or sorted(names) != list(range(len(names))):
        raise ConfigError(f"id2label is {quoted(id2label)}; it must give a name to each number from 0 on")
    return tuple(names[i] for i in range(len(names)))


def _usable_names(id2label: Mapping[Any, Any], number: object) -> tuple[str, ...]:
    """The labels' names in a config.json; none where they are not ``number`` different names, which nothing needs."""
    try:
        names = _names_of(id2label)
    except ConfigError:
        return ()
    usable = len(names) == number and all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
    return names if usable else ()


def _refuse_variants(values: Mapping[str, Any]) -> None:
    positions = values.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise ConfigError(f"position_embedding_type {quoted(positions)} is not supported, only 'absolute'")
    if "attention_mode" in values:
        raise ConfigError(
            f"attention_mode {quoted(values['attention_mode'])} is of allenai/longformer's own configs, whose "
            "attention_window counts the tokens of one side; double the windows, and leave attention_mode out"
        )
    if values.get("autoregressive"):
        raise ConfigError("autoregressive is set, but this model attends in both directions")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _require(holds: bool, name: str, value: object, must: str) -> None:
    if not holds:
        raise ConfigError(f"{name} is {quoted(value)}; it must be {must}")
