"""Every choice of a training run, in one dataclass a task: from flags or TOML, checked once, saved beside the run.

The fields' ``help`` is what the command line shows; ``result`` says whether a field decides the weights, so that a run
cannot be resumed with another value of it, unless it is ``mendable``: what is changed to get over a loss that is no
number.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from longformer.errors import LongformerError
from longformer.files import read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

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
    result: bool = True,
    mendable: bool = False,
) -> Any:
    """A field of an options class, with its range and the sentence that explains it."""
    limits = {"least": least, "above": above, "most": most, "below": below}
    metadata = {"help": help, "among": among, "limits": limits, "result": result, "mendable": mendable}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What the two kinds of training share. The defaults of :class:`QAOptions` are those of fine-tuning.

    Raises:
        LongformerError: a value of the wrong type or out of range, or two that contradict each other.
    """

    source: str = choice("", "Checkpoint to start from: a folder, or a name on the hub.")
    revision: str | None = choice(None, "Branch, tag or commit of SRC on the hub.")
    output: str = choice("", "Folder of the run; the best weights lie there as a checkpoint.", result=False)
    files: tuple[str, ...] = choice((), "Files to train on.", result=False)
    evaluate_on: tuple[str, ...] = choice((), "File to measure on during training; may be given again.", result=False)
    epochs: int = choice(3, "Passes over the data.", least=1)
    max_steps: int | None = choice(None, "Stop after so many steps; the learning rate falls to 0 there.", least=1)
    batch_size: int = choice(32, "Rows a step, over all processes together.", least=1)
    batch_tokens: int = choice(
        8192,
        "Most tokens that one process computes at once, padding not counted; a step with more is accumulated.",
        least=1,
        result=False,
    )
    max_length: int = choice(512, "Tokens of a row, special tokens included.", least=8)
    learning_rate: float = choice(
        3e-5, "Peak, reached after the warm-up and left linearly towards 0.", above=0, mendable=True
    )
    warmup: float = choice(0.1, "Share of all steps in which the learning rate rises.", least=0, below=1, mendable=True)
    layer_decay: float = choice(
        1.0, "Factor on the learning rate from each layer to the one below it; 1 is the same for all.", above=0, most=1
    )
    weight_decay: float = choice(0.01, "Of matrices; biases and LayerNorms have none.", least=0)
    adam_beta1: float = choice(0.9, "AdamW's decay of the gradient's mean.", least=0, below=1)
    adam_beta2: float = choice(0.999, "AdamW's decay of the gradient's mean square.", least=0, below=1)
    adam_epsilon: float = choice(1e-8, "AdamW's epsilon.", above=0)
    max_grad_norm: float = choice(1.0, "A larger gradient is scaled down to this norm.", above=0, mendable=True)
    hidden_dropout: float | None = choice(None, "Instead of the checkpoint's own.", least=0, below=1)
    attention_dropout: float | None = choice(None, "Instead of the checkpoint's own.", least=0, below=1)
    freeze: str = choice(
        "none",
        "What stays as it is. In a model made long, positions beyond the training texts' are copies of earlier ones, "
        "and remain so only if those do not move.",
        among=("none", "positions", "embeddings"),
    )
    precision: str = choice(
        "float32", "bfloat16 computes matrix products in it, with float32 weights.", among=("float32", "bfloat16")
    )
    gradient_checkpointing: bool = choice(
        False,
        "Keep each layer's input alone and compute the rest again going back: less memory, more time.",
        result=False,
    )
    impl: str = choice("auto", "How attention is computed.", among=("auto", "reference", "banded", "blocked", "triton"))
    device: str = choice("cpu", "Where to compute, such as cuda.", result=False)
    parallel: str = choice(
        "ddp",
        "Under torchrun: each process holds all (ddp), or gradients and AdamW's moments are shared out (fsdp). The "
        "weights must fit a device either way.",
        among=("ddp", "fsdp"),
        result=False,
    )
    seed: int = choice(0, "Of the data's order, of new weights and of dropout.", least=0, most=2**63 - 1)
    evaluate_every: int | None = choice(None, "Steps between evaluations; one after each epoch unless given.", least=1)
    patience: int | None = choice(None, "Stop after so many evaluations without a better one.", least=1)
    checkpoint_every: int = choice(500, "Steps between checkpoints to resume from.", least=1, result=False)
    keep_checkpoints: int = choice(2, "How many of them to keep.", least=1, result=False)
    log_every: int = choice(10, "Steps between lines of the log.", least=1, result=False)
    plot: bool = choice(False, "Draw the curves into curves.png; needs the extra `plot`.", result=False)
    store: str = choice(
        "float32", "Precision of the stored weights.", among=("float32", "bfloat16", "float16"), result=False
    )

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for entry in dataclasses.fields(self):
            value = _typed(entry.name, getattr(self, entry.name), hints[entry.name])
            object.__setattr__(self, entry.name, value)
            _check_range(entry.name, value, entry.metadata)
        for name in ("source", "output", "files"):
            if not getattr(self, name):
                raise LongformerError(f"{name} is missing; name it on the command line or in the configuration file")
        if self.patience is not None and not self.evaluates:
            raise LongformerError(
                "patience stops by evaluations, and there is nothing to evaluate on; give evaluate_on"
            )
        if self.evaluate_every is not None and not self.evaluates:
            raise LongformerError("evaluate_every is given, and there is nothing to evaluate on; give evaluate_on")

    @property
    def evaluates(self) -> bool:
        """Whether there is something to measure on."""
        return bool(self.evaluate_on)

    @classmethod
    def read(cls: type[Options], path: str | Path | None, **changes: Any) -> Options:
        """From a TOML file, or from nothing, with ``changes`` on top.

        Raises:
            LongformerError: the file cannot be read, an unknown name in it, or what the class refuses.
        """
        values: dict[str, Any] = {} if path is None else _read_toml(Path(path))
        known = {entry.name for entry in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise LongformerError(f"{path}: there is no option {name!r}; there are {', '.join(sorted(known))}")
        try:
            return cls(**{**values, **changes})
        except LongformerError as error:
            raise LongformerError(f"{path}: {error}" if path is not None and not changes else str(error)) from None

    def to_toml(self) -> str:
        """What :meth:`read` reads; options that are None are left out."""
        values = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        lines = [f"{name} = {_toml(value)}\n" for name, value in values.items() if value is not None]
        return "".join(lines)

    def differences(self, other: TrainingOptions, *, mendable: bool = False) -> list[str]:
        """Options that decide the weights and differ, as "name (this, other)"; those that may, or all others."""
        return [
            f"{entry.name} ({getattr(self, entry.name)!r}, {getattr(other, entry.name)!r})"
            for entry in dataclasses.fields(self)
            if entry.metadata["result"]
            and entry.metadata["mendable"] == mendable
            and getattr(self, entry.name) != getattr(other, entry.name)
        ]


@dataclass(frozen=True, kw_only=True)
class QAOptions(TrainingOptions):
    """Choices of ``longformer train qa``. The defaults are the recipe to reproduce the model card's figures."""

    hold_out: tuple[str, ...] = choice((), "Article to leave out and measure on, by title; may be given again.")
    stride: int | None = choice(
        None,
        "Tokens between the starts of overlapping windows of a long context; three quarters of one unless given.",
        least=1,
    )
    empty_windows: int | None = choice(
        None, "Most windows without the answer to train on for a question that has one; all unless given.", least=0
    )
    annotator: str = choice(
        "first",
        "Of several annotators' answers take the first, or a random one in each epoch.",
        among=("first", "random"),
    )
    max_answer_tokens: int = choice(30, "Longest answer when measuring.", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hold_out and self.evaluate_on:
            raise LongformerError("hold_out and evaluate_on both say what to measure on; give one of them")

    @property
    def evaluates(self) -> bool:
        return bool(self.evaluate_on or self.hold_out)


@dataclass(frozen=True, kw_only=True)
class MLMOptions(TrainingOptions):
    """Choices of ``longformer train mlm``."""

    epochs: int = choice(1, "Passes over the data.", least=1)
    batch_size: int = choice(8, "Rows a step, over all processes together.", least=1)
    max_length: int = choice(4096, "Tokens of a row, special tokens included.", least=8)
    mask_probability: float = choice(0.15, "Share of the tokens to predict.", above=0, below=1)


def _typed(name: str, value: Any, hint: Any) -> Any:
    """``value`` as ``hint`` has it: a list for a tuple, an int for a float; or an error."""
    optional = isinstance(hint, types.UnionType)
    kind = typing.get_args(hint)[0] if optional else hint
    if value is None and optional:
        return None
    if typing.get_origin(kind) is tuple:
        if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise LongformerError(f"{name} is {value!r}; it must be a list of strings")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        words = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
        raise LongformerError(f"{name} is {value!r}; it must be {words[kind]}")
    return value


def _check_range(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    if metadata["among"] and value not in metadata["among"]:
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
        "finite": value - value == 0,
    }
    for what, holds in bounds.items():
        if not holds:
            raise LongformerError(f"{name} is {value}; it must be {what}")


def _read_toml(path: Path) -> dict[str, Any]:
    text = read_text(path, error=LongformerError)
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise LongformerError(f"{path} is not valid TOML: {error}") from None


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    # A JSON string is a TOML string, save for surrogate pairs, which ensure_ascii would write, and DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") if isinstance(value, str) else repr(value)
