"""``longformer bench needle``: where in a document must the answer stand for each attention pattern to find it?

A document is random words, among which one word, the needle, says the document's class. It is read by a classifier at
the first token. With windows alone that token hears of nothing farther away than its layers' windows reach together;
with that token global, or with full attention, it can hear of every place. How often the class is found at each place
is measured, with a model of each pattern trained on needles at all places.

Letters: N documents, S tokens of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longformer.bench import machine
from longformer.bench.report import format_table
from longformer.config import LongformerConfig
from longformer.errors import LongformerError
from longformer.models.heads import LongformerForSequenceClassification
from longformer.plotting.curves import draw_needle
from longformer.plotting.figures import write_figure

FIRST, WORDS = 3, 40  # id of the first word, behind the special tokens; number of words that say nothing
PATTERNS = ("window", "global", "full")


@dataclass(frozen=True, kw_only=True)
class Needle:
    """The task, the model, and its training.

    Args:
        tokens: S, length of a document.
        classes: how many needles there are.
        window: the two-sided window of each layer.
        layers, hidden_size, heads: of the model.
        steps, batch_size, learning_rate: of the training.
        documents: measured at each place.
        places: how many places of the needle are measured, evenly spaced.
        seed: of weights and documents.

    Raises:
        LongformerError: a number is out of range.
    """

    tokens: int = 64
    classes: int = 4
    window: int = 16
    layers: int = 2
    hidden_size: int = 32
    heads: int = 2
    steps: int = 400
    batch_size: int = 32
    learning_rate: float = 3e-3
    documents: int = 64
    places: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            least = {"seed": 0, "learning_rate": 0, "tokens": 2, "classes": 2, "window": 2}.get(name, 1)
            if value < least:
                raise LongformerError(f"{name} is {value}; it must be at least {least}")

    @property
    def reach(self) -> int:
        """The farthest place of which the first token hears through windows."""
        return self.layers * (self.window // 2)

    def measured_places(self) -> list[int]:
        """Positions of the needle, from the token after the first to the last."""
        count = min(self.places, self.tokens - 1)
        return torch.linspace(1, self.tokens - 1, count).round().long().unique().tolist()

    def config(self, pattern: str) -> LongformerConfig:
        """The model for one of ``PATTERNS``."""
        return LongformerConfig(
            vocab_size=FIRST + WORDS + self.classes,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=2 * self.hidden_size,
            max_position_embeddings=self.tokens + 2,
            attention_window=self.window,
            attention_pattern="full" if pattern == "full" else None,
            num_labels=self.classes,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.1,
        )


def documents(needle: Needle, places: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Documents with the needle at ``places`` (N,), each at least 1: ids (N, S), and classes (N,)."""
    count = len(places)
    ids = torch.randint(FIRST, FIRST + WORDS, (count, needle.tokens), generator=generator)
    classes = torch.randint(needle.classes, (count,), generator=generator)
    ids[:, 0] = 0  # the token that is read
    ids[torch.arange(count), places] = FIRST + WORDS + classes
    return ids, classes


def global_mask(pattern: str, ids: Tensor) -> Tensor:
    """(N, S): the first token is global with the pattern "global", and none with the others."""
    mask = torch.zeros_like(ids)
    mask[:, 0] = int(pattern == "global")
    return mask


def train(needle: Needle, pattern: str, progress: Callable[[], Any] = lambda: None) -> Any:
    """A model of one of ``PATTERNS``, trained on needles at all places; ``progress`` is called after each step."""
    torch.manual_seed(needle.seed)
    # Of documents this short, dense attention computes a whole batch in the time in which windows compute a few.
    model = LongformerForSequenceClassification(needle.config(pattern), impl="reference").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=needle.learning_rate)
    generator = torch.Generator().manual_seed(needle.seed)
    for _ in range(needle.steps):
        places = torch.randint(1, needle.tokens, (needle.batch_size,), generator=generator)
        ids, classes = documents(needle, places, generator)
        optimizer.zero_grad()
        model(ids, global_attention_mask=global_mask(pattern, ids), labels=classes).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        progress()
    return model.eval()


def found_by_place(needle: Needle, pattern: str, model: Any) -> list[float]:
    """The share of new documents whose class is found, at each of the measured places."""
    generator = torch.Generator().manual_seed(needle.seed + 1)
    shares = []
    for place in needle.measured_places():
        ids, classes = documents(needle, torch.full((needle.documents,), place), generator)
        with torch.inference_mode():
            logits = model(ids, global_attention_mask=global_mask(pattern, ids)).logits
        shares.append(float((logits.argmax(1) == classes).double().mean()))
    return shares


def run(needle: Needle, progress: Callable[[], Any] = lambda: None) -> dict[str, Any]:
    """Train and measure each of ``PATTERNS``. ``progress`` is called after each step of training.

    Returns:
        ``benchmark``, ``options``, ``machine``, ``reach`` (of windows), ``chance``, ``places``, and ``found``: by
        pattern the share of documents whose class was found, at each place.
    """
    found = {pattern: found_by_place(needle, pattern, train(needle, pattern, progress)) for pattern in PATTERNS}
    return {
        "benchmark": "needle",
        "options": asdict(needle),
        "machine": machine.brief(),
        "reach": needle.reach,
        "chance": 1 / needle.classes,
        "places": needle.measured_places(),
        "found": found,
    }


def rows(result: dict[str, Any]) -> list[tuple[str, ...] | str]:
    """The share found by each pattern within the windows' reach and beyond it, below the columns' titles."""
    places = result["places"]
    reach = min(result["reach"], places[-1])
    lines: list[tuple[str, ...] | str] = [("needle at", *result["found"])]
    for title, chosen in (
        (f"1 to {reach}, within reach", [i for i, place in enumerate(places) if place <= reach]),
        (f"beyond {reach}", [i for i, place in enumerate(places) if place > reach]),
    ):
        if chosen:
            means = [sum(shares[i] for i in chosen) / len(chosen) for shares in result["found"].values()]
            lines.append((title, *(f"{mean:.2f}" for mean in means)))
    return lines


def table(result: dict[str, Any]) -> str:
    """The same, and the share found at each place, as lines of text."""
    lines = rows(result)
    lines += [
        (str(place), *(f"{shares[i]:.2f}" for shares in result["found"].values()))
        for i, place in enumerate(result["places"])
    ]
    return f"share found, by the needle's place; by chance {result['chance']:.2f}\n{format_table(lines)}"


def draw(result: dict[str, Any], path: str | Path) -> None:
    """Draw the curves into a picture, see :func:`longformer.plotting.draw_needle`.

    Raises:
        LongformerError: matplotlib is not installed or has no such format.
        DataError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    draw_needle(figure.subplots(), result)
    write_figure(path, figure, dpi=110)
