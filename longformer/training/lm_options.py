"""The options of ``longformer train lm``, and the phases of a staged training (Longformer, arXiv 2004.05150, §4.2)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from longformer.config import LARGEST, LongformerConfig
from longformer.errors import ConfigError, LongformerError
from longformer.pattern_entries import FULL, LayerEntry, entries_of
from longformer.training.options import TrainingOptions, check_one_way_to_measure, choice

INITIAL = 0.55  # standard deviation of new weights times √C, which is 0.02 at the width of the released base model
EVALUATIONS = 4  # in a phase, unless the options say otherwise
ENDLESS = 2**31 - 1  # epochs; the steps of a phase end it


@dataclass(frozen=True, kw_only=True)
class LMOptions(TrainingOptions):
    """Options of ``longformer train lm``. The model is a new one, which one machine without a GPU can train."""

    required: ClassVar[tuple[str, ...]] = ("output", "files")
    unused: ClassVar[tuple[str, ...]] = (  # there is no checkpoint to start from
        "source", "tokenizer", "revision", "epochs", "layer_decay", "freeze", "store",
    )  # fmt: skip

    layers: int = choice(4, "Layers.", least=1)
    hidden_size: int = choice(128, "Width of the model.", least=1)
    heads: int = choice(4, "Attention heads.", least=1)
    pattern: str = choice(
        "window=64",
        "Who attends to whom in the first phase, layers from the bottom with / between, repeated in turn: window=64 is "
        "the 32 characters before, window=32:0 too; window=64,dilation=1:1:2:2 has a gap for each head; full.",
    )
    positions: str = choice("relative", "Sinusoids of distances, or learned positions.", among=("relative", "absolute"))
    phases: int = choice(
        3,
        "Phases of training. Each doubles windows and rows of the one before, and halves learning rate and batch size.",
        least=1,
        most=16,
    )
    max_steps: int = choice(1000, "Steps of each phase.", least=1)
    batch_size: int = choice(32, "Rows in one step of the first phase, in all processes together.", least=1)
    max_length: int = choice(128, "Characters in one row of the first phase.", least=2)
    learning_rate: float = choice(
        1e-3,
        "Highest learning rate of the first phase. It is reached after the warm-up, then falls.",
        above=0,
        changeable=True,
    )
    hidden_dropout: float | None = choice(0.1, "Dropout of embeddings and sublayers.", least=0, below=1)
    attention_dropout: float | None = choice(0.1, "Dropout of attention probabilities.", least=0, below=1)
    hold_out: float | None = choice(
        None, "Share of the text, at its end, to measure on instead of training on it.", above=0, below=1
    )
    evaluate_every: int | None = choice(
        None, "Steps between evaluations; without it there are four in each phase.", least=1
    )
    evaluation_step: int | None = choice(
        None,
        "Characters at the end of a piece of the held-out text that count, of as many as a row has; half of them "
        "unless given.",
        least=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_way_to_measure(self)
        self.config(vocab_size=3, phase=0)

    @property
    def evaluates(self) -> bool:
        return bool(self.evaluate_on or self.hold_out)

    def config(self, vocab_size: int, phase: int) -> LongformerConfig:
        """The model of phase ``phase``, counted from 0.

        Raises:
            LongformerError: the pattern or another number describes no model.
        """
        try:
            given = entries_of(self.pattern, self.layers, self.heads, LARGEST)
            assert given is not None
            return LongformerConfig(
                vocab_size=vocab_size,
                hidden_size=self.hidden_size,
                num_hidden_layers=self.layers,
                num_attention_heads=self.heads,
                intermediate_size=4 * self.hidden_size,
                hidden_dropout_prob=self.hidden_dropout or 0.0,
                attention_probs_dropout_prob=self.attention_dropout or 0.0,
                max_position_embeddings=1 + self.rows(self.phases - 1),
                attention_pattern=[self._widened(entry, 2**phase) for entry in given],
                pad_token_id=0,
                bos_token_id=0,
                eos_token_id=0,
                sep_token_id=0,
                position_embedding_type=self.positions,
                initializer_range=INITIAL / math.sqrt(self.hidden_size),
            )
        except ConfigError as error:
            raise LongformerError(f"{error}".replace("attention_pattern", "pattern")) from None

    def _widened(self, entry: LayerEntry, factor: int) -> LayerEntry:
        """A layer of the first phase, looking back only, with a window so many times as large."""
        if entry.union and entry.global_tokens is None:
            return dataclasses.replace(entry, union=tuple(self._widened(part, factor) for part in entry.union))
        if entry.window is None or entry.global_tokens is not None:
            raise LongformerError(
                f"pattern is {self.pattern!r}; a layer of a causal language model has windows or is full, without "
                "global tokens: say window=N or full of each"
            )
        if entry.window == FULL:
            return dataclasses.replace(entry, causal=True)
        left = int(entry.window[0])
        if left < 1:
            raise LongformerError(f"pattern is {self.pattern!r}; a window must reach at least one character back")
        return dataclasses.replace(entry, window=(left * factor, 0), causal=True)

    def rows(self, phase: int) -> int:
        """Characters in one row of a phase."""
        return self.max_length * 2**phase

    def of_phase(self, phase: int, folder: Path) -> LMOptions:
        """The options of one phase, as a run of its own in ``folder``."""
        every = self.evaluate_every or max(1, self.max_steps // EVALUATIONS)
        return dataclasses.replace(
            self,
            evaluate_every=every if self.evaluates else None,
            output=str(folder),
            epochs=ENDLESS,
            max_length=self.rows(phase),
            batch_size=max(1, self.batch_size // 2**phase),
            learning_rate=self.learning_rate / 2**phase,
        )
