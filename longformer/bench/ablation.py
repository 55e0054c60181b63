"""``longformer bench patterns``: the paper's ablation of attention patterns (arXiv 2004.05150, table 4), made small.

The same character language model is trained with windows that grow from the bottom layer to the top, that shrink, that
are all alike, and that grow with gaps in two heads of the upper layers. Each is trained from several seeds. The result
is what was found, beside what the paper found at its own scale.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from longformer.bench import machine
from longformer.bench.report import format_table, write_json
from longformer.errors import DataError, LongformerError
from longformer.files import read_json, write_text
from longformer.generating.characters import read_characters
from longformer.training.lm import train_lm
from longformer.training.lm_options import LMOptions

RESULTS = "results.json"
TEXT = "text.txt"
DILATED_HEADS = 2
# Bits per character on the development set in the paper: windows 32 to 512 from bottom to top, 512 to 32, 230 in all
# layers, and 32 to 512 with dilation on two heads.
PAPER = {"growing": 1.21, "shrinking": 1.24, "fixed": 1.23, "dilated": 1.20}
# Of Student's t: how many standard errors a 95 % interval reaches to each side, by degrees of freedom.
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
NORMAL = 1.96


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """What is trained.

    Args:
        windows: how many characters each layer sees before itself, from the bottom to the top, growing.
        seeds: how many runs of each pattern.
        steps, batch_size, length, learning_rate: of each run.
        hidden_size, heads: of the model.
        hold_out: share of the text to measure on.

    Raises:
        LongformerError: the windows do not grow, or there are too few heads for gaps in two of them.
    """

    windows: tuple[int, ...] = (16, 32, 64, 128)
    seeds: int = 3
    steps: int = 1000
    batch_size: int = 16
    length: int = 256
    learning_rate: float = 2e-3
    hidden_size: int = 64
    heads: int = 4
    hold_out: float = 0.05

    def __post_init__(self) -> None:
        if len(self.windows) < 2 or list(self.windows) != sorted(set(self.windows)) or self.windows[0] < 1:
            shown = ",".join(map(str, self.windows))
            raise LongformerError(f"windows are {shown}; give two or more that grow, such as 16,32,64,128")
        if self.heads <= DILATED_HEADS:
            raise LongformerError(f"heads is {self.heads}; give more than the {DILATED_HEADS} that have gaps")

    def patterns(self) -> dict[str, str]:
        """The patterns by name, as :mod:`longformer.pattern_entries` writes them."""
        layers = len(self.windows)
        mean = round(statistics.mean(self.windows))
        gaps = [max(1, 2 + layer - layers // 2) for layer in range(layers)]  # 1 below; above 2, 3 and so on
        alike = ":".join(["1"] * (self.heads - DILATED_HEADS))
        dilated = [
            f"window={window}:0" + (f",dilation={alike}:{':'.join([str(gap)] * DILATED_HEADS)}" if gap > 1 else "")
            for window, gap in zip(self.windows, gaps, strict=True)
        ]
        return {
            "growing": "/".join(f"window={window}:0" for window in self.windows),
            "shrinking": "/".join(f"window={window}:0" for window in reversed(self.windows)),
            "fixed": f"window={mean}:0",
            "dilated": "/".join(dilated),
        }

    def options(self, name: str, seed: int, text: Path, folder: Path) -> LMOptions:
        """One run: a single phase, measured once, at its end."""
        return LMOptions(
            output=str(folder),
            files=(str(text),),
            layers=len(self.windows),
            hidden_size=self.hidden_size,
            heads=self.heads,
            pattern=self.patterns()[name],
            phases=1,
            max_steps=self.steps,
            batch_size=self.batch_size,
            batch_tokens=max(8192, self.length),
            max_length=self.length,
            learning_rate=self.learning_rate,
            hidden_dropout=0.0,  # so small a model does not learn its text by heart
            attention_dropout=0.0,
            hold_out=self.hold_out,
            evaluate_every=self.steps,
            seed=seed,
            keep_checkpoints=1,
        )


def standard_library(characters: int) -> str:
    """So many characters of the sources of Python's standard library, those in ASCII, in the order of their names.

    Raises:
        DataError: it is not here as sources.
    """
    found, size = [], 0
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        data = path.read_bytes()
        if data.isascii():
            found.append(data.decode("ascii").replace("\r\n", "\n"))
            size += len(found[-1])
        if size >= characters:
            break
    if not found:
        raise DataError("the standard library is not here as sources; name a text with --text")
    return "".join(found)[:characters]


def run(
    ablation: Ablation, folder: Path, text: str, *, say: Callable[[str], None] = lambda message: None
) -> dict[str, Any]:
    """Train everything, or what an earlier call in ``folder`` has left, and write ``results.json`` after each run.

    Args:
        ablation: what to train.
        folder: where results, the text and the run under way are kept.
        text: to train and measure on.
        say: is given a line before each run.

    Raises:
        LongformerError: the folder holds results of something else; or as for :func:`longformer.training.train_lm`.
    """
    results, text_file = folder / RESULTS, folder / TEXT
    options = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(ablation).items()}
    asked = {
        "options": options,
        "patterns": ablation.patterns(),
        "text": {"characters": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()},
    }
    found: dict[str, Any] = {"benchmark": "patterns", **asked, "machine": machine.brief(), "runs": []}
    if results.exists():
        found = read_json(results)
        for name, value in asked.items():
            if found.get(name) != value:
                raise LongformerError(
                    f"{results} holds results of other {name}: {_difference(found.get(name), value)} (then, now); give "
                    "what it was started with, or another folder"
                )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(text_file, text)
    done = {(one["pattern"], one["seed"]) for one in found["runs"]}
    wanted = [(name, seed) for seed in range(ablation.seeds) for name in ablation.patterns()]  # so that seeds are whole
    for number, (name, seed) in enumerate(wanted, 1):
        if (name, seed) in done:
            continue
        say(f"run {number} of {len(wanted)}: {name}, seed {seed}")
        started = time.perf_counter()
        place = folder / f"{name}-{seed}"
        (bits,) = train_lm(ablation.options(name, seed, text_file, place), resume=True)
        seconds = time.perf_counter() - started  # of the last process, where a run was resumed
        found["runs"].append({"pattern": name, "seed": seed, "bits_per_character": bits, "seconds": round(seconds, 1)})
        write_json(found, results)
        shutil.rmtree(place)
    return found


def _difference(before: Any, now: Any) -> str:
    if not isinstance(before, dict):
        return f"{before!r}, {now!r}"
    return "; ".join(f"{name} ({before.get(name)!r}, {now[name]!r})" for name in now if before.get(name) != now[name])


def read_text_of(path: str | None, characters: int) -> str:
    """The first ``characters`` of a text file, or of the standard library where none is named."""
    return standard_library(characters) if path is None else read_characters(path)[:characters]


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean over seeds, by Student's t; None for a single value."""
    if len(values) < 2:
        return None
    degrees = len(values) - 1
    reach = (T[degrees - 1] if degrees <= len(T) else NORMAL) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values) - reach, statistics.mean(values) + reach


def rows(found: dict[str, Any]) -> list[tuple[str, ...] | str]:
    """The result: bits per character of each pattern, how far each is from the growing windows, and the paper's.

    The first row has the columns' titles.
    """
    scores: dict[str, dict[int, float]] = {}
    for one in found["runs"]:
        scores.setdefault(one["pattern"], {})[one["seed"]] = one["bits_per_character"]
    lines: list[tuple[str, ...] | str] = [
        ("", "seeds", "bits per character", "95% interval", "minus growing", "95% interval", "paper")
    ]
    for name, by_seed in scores.items():
        values = list(by_seed.values())
        base = scores.get("growing", {})
        pairs = [value - base[seed] for seed, value in by_seed.items() if seed in base]
        apart = name != "growing" and bool(pairs)
        lines.append(
            (
                name,
                str(len(values)),
                f"{statistics.mean(values):.4f}",
                _shown(interval(values), "{:.4f} to {:.4f}"),
                f"{statistics.mean(pairs):+.4f}" if apart else "",
                _shown(interval(pairs), "{:+.4f} to {:+.4f}") if apart else "",
                f"{PAPER[name]:.2f}",
            )
        )
    return lines


def table(found: dict[str, Any]) -> str:
    """What the patterns are, and the result, as lines of text."""
    windows = [f"{name}: {pattern}" for name, pattern in found["patterns"].items()]
    return "\n".join([*windows, "", format_table(rows(found))])


def _shown(ends: tuple[float, float] | None, form: str) -> str:
    return "one seed" if ends is None else form.format(*ends)
