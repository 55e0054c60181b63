"""All options of a training run: one dataclass for each task, filled from the command line or from TOML.

The values are checked once and saved in the run's folder. A field's ``help`` is the text on the command line. Its
``decides_weights`` says whether the field influences the resulting weights. A run cannot be resumed with another value
of such a field, unless it is ``changeable``: those fields may be changed to get past a loss that is not finite.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from longformer.config import PROBLEM_TYPES
from longformer.errors import LongformerError
from longformer.files import read_toml

Options = TypeVar("Options", bound="TrainingOptions")


def choice(
    default: Any,
    help: str,
    *,
    among: tuple[str, ...] = (),
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    decides_weights: bool = True,
    changeable: bool = False,
) -> Any:
    """A field of an options class, with its allowed values and the sentence that explains it."""
    limits = {"least": least, "above": above, "most": most, "below": below}
    metadata = {
        "help": help,
        "among": among,
        "limits": limits,
        "decides_weights": decides_weights,
        "changeable": changeable,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The options that all kinds of training share. The defaults are those of fine-tuning.

    Raises:
        LongformerError: a value has the wrong type or is out of range, or two options contradict each other.
    """

    required: ClassVar[tuple[str, ...]] = ("source", "output", "files")
    unused: ClassVar[tuple[str, ...]] = ()  # fields that mean nothing to this kind of training

    source: str = choice("", "Checkpoint to start from: a folder, or a name on the hub.")
    tokenizer: str | None = choice(
        None, "Folder, or name on the hub, of the tokenizer, where it is not the checkpoint's own."
    )
    revision: str | None = choice(None, "Branch, tag or commit of SRC on the hub.")
    output: str = choice("", "Folder of the run; it will hold the best weights as a checkpoint.", decides_weights=False)
    files: tuple[str, ...] = choice((), "Files to train on.", decides_weights=False)
    evaluate_on: tuple[str, ...] = choice(
        (), "File to measure on during training; may be given several times.", decides_weights=False
    )
    epochs: int = choice(3, "Passes over the data.", least=1)
    max_steps: int | None = choice(None, "Stop after N steps; the learning rate falls to 0 there.", least=1)
    batch_size: int = choice(32, "Rows in one step, in all processes together.", least=1)
    batch_tokens: int = choice(
        8192,
        "Maximum tokens per batch of one process, without padding. A larger step uses gradient accumulation.",
        least=1,
        decides_weights=False,
    )
    max_length: int = choice(512, "Tokens in one row, including special tokens.", least=8)
    learning_rate: float = choice(
        3e-5,
        "Highest learning rate. It is reached after the warm-up, then falls linearly towards 0.",
        above=0,
        changeable=True,
    )
    warmup: float = choice(
        0.1, "Share of the steps in which the learning rate rises.", least=0, below=1, changeable=True
    )
    layer_decay: float = choice(
        1.0, "Learning rate of each layer relative to the layer above it; 1 makes all equal.", above=0, most=1
    )
    weight_decay: float = choice(0.01, "Weight decay of matrices; biases and LayerNorms have none.", least=0)
    adam_beta1: float = choice(0.9, "AdamW's decay rate for the mean of the gradient.", least=0, below=1)
    adam_beta2: float = choice(0.999, "AdamW's decay rate for the mean of the squared gradient.", least=0, below=1)
    adam_epsilon: float = choice(1e-8, "AdamW's epsilon.", above=0)
    max_grad_norm: float = choice(
        1.0, "A gradient with a larger norm is scaled down to this norm.", above=0, changeable=True
    )
    hidden_dropout: float | None = choice(None, "Replaces the checkpoint's value.", least=0, below=1)
    attention_dropout: float | None = choice(None, "Replaces the checkpoint's value.", least=0, below=1)
    freeze: str = choice(
        "none",
        "Parameters that are not trained. The position embeddings of a model made by convert --to-long are copies. If "
        "the training texts are shorter than the model, the copies stay equal only if positions are frozen.",
        among=("none", "positions", "embeddings"),
    )
    precision: str = choice(
        "float32",
        "bfloat16 computes matrix products in bfloat16; weights stay in float32.",
        among=("float32", "bfloat16"),
    )
    gradient_checkpointing: bool = choice(
        False,
        "Store only each layer's input, and compute the rest again in the backward pass: less memory, more time.",
        decides_weights=False,
    )
    impl: str = choice("auto", "How attention is computed.", among=("auto", "reference", "banded", "blocked", "triton"))
    device: str = choice("cpu", "Where to compute, such as cuda.", decides_weights=False)
    parallel: str = choice(
        "ddp",
        "Under torchrun: each process holds everything (ddp), or gradients and AdamW's moments are divided among the "
        "processes (fsdp). In both cases all weights must fit one device.",
        among=("ddp", "fsdp"),
        decides_weights=False,
    )
    seed: int = choice(0, "Seed of the order of the data, of new weights and of dropout.", least=0, most=2**63 - 1)
    evaluate_every: int | None = choice(
        None, "Steps between evaluations; without it, evaluate after each epoch.", least=1
    )
    patience: int | None = choice(None, "Stop after N evaluations without a better score.", least=1)
    checkpoint_every: int = choice(500, "Steps between checkpoints to resume from.", least=1, decides_weights=False)
    keep_checkpoints: int = choice(2, "Number of checkpoints to keep.", least=1, decides_weights=False)
    log_every: int = choice(10, "Steps between two lines of the log.", least=1, decides_weights=False)
    plot: bool = choice(False, "Draw the curves into curves.png; needs the extra `plot`.", decides_weights=False)
    store: str = choice(
        "float32", "Precision of the stored weights.", among=("float32", "bfloat16", "float16"), decides_weights=False
    )

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for entry in dataclasses.fields(self):
            value = _typed(entry.name, getattr(self, entry.name), hints[entry.name])
            object.__setattr__(self, entry.name, value)
            _check_range(entry.name, value, entry.metadata)
        for name in self.required:
            if not getattr(self, name):
                raise LongformerError(f"{name} is missing; name it on the command line or in the configuration file")
        if self.patience is not None and not self.evaluates:
            raise LongformerError(
                "patience stops by evaluations, but there is nothing to evaluate on; give evaluate_on"
            )
        if self.evaluate_every is not None and not self.evaluates:
            raise LongformerError("evaluate_every is given, but there is nothing to evaluate on; give evaluate_on")

    @property
    def evaluates(self) -> bool:
        """Whether there are files or articles to measure on."""
        return bool(self.evaluate_on)

    @classmethod
    def read(cls: type[Options], path: str | Path | None, **changes: Any) -> Options:
        """Options from a TOML file, or the defaults if ``path`` is None. ``changes`` replace single values.

        Raises:
            LongformerError: the file cannot be read, it has an unknown option, or the class refuses a value.
        """
        values: dict[str, Any] = {} if path is None else read_toml(path, error=LongformerError)
        known = {entry.name for entry in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise LongformerError(f"{path}: there is no option {name!r}; there are {', '.join(sorted(known))}")
        try:
            return cls(**{**values, **changes})
        except LongformerError as error:
            raise LongformerError(f"{path}: {error}" if path is not None and not changes else str(error)) from None

    def to_toml(self) -> str:
        """The options as TOML, which :meth:`read` reads. Options that are None are left out."""
        used = (entry.name for entry in dataclasses.fields(self) if entry.name not in self.unused)
        values = {name: getattr(self, name) for name in used}
        lines = [f"{name} = {_toml(value)}\n" for name, value in values.items() if value is not None]
        return "".join(lines)

    def differences(self, other: TrainingOptions, *, changeable: bool = False) -> list[str]:
        """Options that decide the weights and differ, each as "name (this, other)".

        Args:
            changeable: return those that may change when a run is resumed; otherwise those that may not.
        """
        return [
            f"{entry.name} ({getattr(self, entry.name)!r}, {getattr(other, entry.name)!r})"
            for entry in dataclasses.fields(self)
            if entry.metadata["decides_weights"]
            and entry.metadata["changeable"] == changeable
            and getattr(self, entry.name) != getattr(other, entry.name)
        ]


@dataclass(frozen=True, kw_only=True)
class QAOptions(TrainingOptions):
    """Options of ``longformer train qa``. The defaults are the recipe to reproduce the model card's figures."""

    hold_out: tuple[str, ...] = choice(
        (), "Title of an article to measure on instead of training on it; may be given several times."
    )
    stride: int | None = choice(
        None,
        "Tokens from the start of one window of a long context to the start of the next. The default is three quarters "
        "of a window.",
        least=1,
    )
    empty_windows: int | None = choice(
        None,
        "Most windows without the answer that each answerable question is trained on; without it, all of them.",
        least=0,
    )
    annotator: str = choice(
        "first",
        "If there are several annotators' answers, train on the first, or on a random one in each epoch.",
        among=("first", "random"),
    )
    max_answer_tokens: int = choice(30, "Longest answer in evaluations, in tokens.", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_way_to_measure(self)

    @property
    def evaluates(self) -> bool:
        return bool(self.evaluate_on or self.hold_out)


@dataclass(frozen=True, kw_only=True)
class ClassificationOptions(TrainingOptions):
    """Options of ``longformer train classification``."""

    max_length: int = choice(
        512, "Tokens in one row, including special tokens. The end of a longer text is cut off.", least=8
    )
    hold_out: float | None = choice(
        None, "Share of the texts to measure on instead of training on them, drawn by the seed.", above=0, below=1
    )
    problem_type: str | None = choice(
        None,
        "What the labels are. Without it, what SRC's head is for. For a new head it follows from the texts: numbers "
        "with a fraction mean regression, lists of labels several labels, anything else a single label.",
        among=PROBLEM_TYPES,
    )
    new_head: bool = choice(False, "Draw a new head for the labels of the texts, even if SRC has a head.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_way_to_measure(self)

    @property
    def evaluates(self) -> bool:
        return bool(self.evaluate_on or self.hold_out)


@dataclass(frozen=True, kw_only=True)
class MLMOptions(TrainingOptions):
    """Options of ``longformer train mlm``."""

    epochs: int = choice(1, "Passes over the data.", least=1)
    batch_size: int = choice(8, "Rows in one step, in all processes together.", least=1)
    max_length: int = choice(4096, "Tokens in one row, including special tokens.", least=8)
    mask_probability: float = choice(0.15, "Share of the tokens that are to be predicted.", above=0, below=1)


def check_one_way_to_measure(options: Any) -> None:
    """Raise LongformerError where options with ``hold_out`` and ``evaluate_on`` have both."""
    if options.hold_out and options.evaluate_on:
        raise LongformerError("hold_out and evaluate_on both say what to measure on; give only one of them")


def _typed(name: str, value: Any, hint: Any) -> Any:
    """``value`` with the type ``hint``. A list becomes a tuple, an int becomes a float; other types are an error."""
    optional = isinstance(hint, types.UnionType)
    kind = typing.get_args(hint)[0] if optional else hint
    if value is None and optional:
        return None
    if typing.get_origin(kind) is tuple:
        if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise LongformerError(f"{name} is {value!r}; it must be a list of strings")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise LongformerError(f"{name} is an integer beyond every number of 64 bits; give a smaller one") from None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        expected = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
        raise LongformerError(f"{name} is {value!r}; it must be {expected[kind]}")
    return value


def _check_range(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    if metadata["among"] and value is not None and value not in metadata["among"]:
        raise LongformerError(f"{name} is {value!r}; it must be one of {', '.join(metadata['among'])}")
    if value is None or isinstance(value, (str, tuple, bool)):
        return
    limits = metadata["limits"]
    least, above, most, below = (limits[key] for key in ("least", "above", "most", "below"))
    bounds = {
        f"at least {least}": least is None or value >= least,
        f"more than {above}": above is None or value > above,
        f"at most {most}": most is None or value <= most,
        f"less than {below}": below is None or value < below,
        f"at most {2**63 - 1}": isinstance(value, float) or value < 2**63,
        "finite": isinstance(value, int) or math.isfinite(value),
    }
    for bound, holds in bounds.items():
        if not holds:
            raise LongformerError(f"{name} is {value}; it must be {bound}")


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    # A JSON string is a TOML string, with two exceptions: surrogate pairs, which ensure_ascii would write, and DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") if isinstance(value, str) else repr(value)
