"""What a run reports: a progress bar, a log file with one JSON object on each line, and a picture of the curves."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from longformer.distributed import Processes, fail_together
from longformer.errors import LongformerError
from longformer.files import parse_json, replace_file
from longformer.training.checkpoints import replace_text

LOG = "log.jsonl"
CURVES = "curves.png"
AVERAGE_DECAY = 0.98  # the bar shows an average loss; each step multiplies the older losses by this


class Log:
    """The log file of a run, and a progress bar on standard error if that is a terminal.

    A training line holds ``step``, ``epoch``, ``loss`` (mean since the last line), ``learning_rate``, ``grad_norm``,
    ``tokens`` and ``tokens_per_second`` (without the time of evaluations and checkpoints). An evaluation line holds
    ``step`` and the scores. If a run is resumed with changed options, a line with ``step`` and ``note`` says so.

    Args:
        folder: of the run.
        step: steps done so far. Lines of later steps are removed, because a resumed run does these steps again.
        evaluated: False if the evaluation of that step will be done again.
        state: for a resumed run, what :meth:`state` returned at that step.
        steps: of the complete run.
        every: steps between lines.
        group: the processes. All of them must call every method. Only the first writes and shows; all raise its errors.

    Raises:
        LongformerError: the log cannot be written. Every method that writes raises it too.
    """

    def __init__(
        self,
        folder: Path,
        *,
        step: int,
        steps: int,
        every: int,
        group: Processes,
        evaluated: bool = True,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = folder / LOG
        self.every, self.steps, self.group = every, steps, group
        self.average, self.weight = 0.0, 0.0
        self._start_interval()
        if state is not None:
            self.losses += state["losses"]
            self.tokens, self.seconds = state["tokens"], state["seconds"]
            self.average, self.weight = state["average"], state["weight"]
        with fail_together(group):
            if group.is_first:
                self._remove_later_lines(step, evaluated)
        self.bar = tqdm(total=steps, initial=step, unit="step", disable=None if group.is_first else True)

    def _remove_later_lines(self, step: int, evaluated: bool) -> None:
        with _explaining_failed_write(self.path):
            kept = [
                line
                for line in read_log(self.path.parent)
                if line["step"] < step or (line["step"] == step and (evaluated or not _is_evaluation(line)))
            ]
            replace_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def _start_interval(self) -> None:
        self.losses: list[float] = []
        self.tokens, self.seconds = 0, 0.0

    def state(self) -> dict[str, Any]:
        """What has been recorded since the last line of the log."""
        return {
            "losses": self.losses,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "average": self.average,
            "weight": self.weight,
        }

    def step(
        self, *, step: int, epoch: int, loss: float, rate: float, grad_norm: float, tokens: int, seconds: float
    ) -> None:
        """Record a finished step. ``seconds`` is the time that it took."""
        self.losses.append(loss)
        self.tokens += tokens
        self.seconds += seconds
        self.average = AVERAGE_DECAY * self.average + (1 - AVERAGE_DECAY) * loss
        self.weight = AVERAGE_DECAY * self.weight + (1 - AVERAGE_DECAY)
        speed = self.tokens / max(1e-9, self.seconds)
        self.bar.update()
        self.bar.set_postfix_str(f"loss {self.average / self.weight:.3f}, rate {rate:.1e}, {speed:,.0f} tokens/s")
        if step % self.every and step != self.steps:
            return
        self._append(
            step=step,
            epoch=epoch,
            loss=sum(self.losses) / len(self.losses),
            learning_rate=rate,
            grad_norm=grad_norm,
            tokens=self.tokens,
            tokens_per_second=round(speed, 1),
        )
        self._start_interval()

    def evaluation(self, step: int, scores: dict[str, float]) -> None:
        """Record the scores of an evaluation."""
        self._append(step=step, **scores)
        self.say(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in scores.items()))

    def note(self, step: int, note: str) -> None:
        """Record something that a reader of the log must know."""
        self._append(step=step, note=note)
        self.say(f"from step {step} on: {note}")

    def say(self, message: str) -> None:
        """Write a line to standard error, above the bar."""
        if self.group.is_first:
            tqdm.write(message, file=sys.stderr)

    def close(self) -> None:
        """Close the progress bar."""
        self.bar.close()

    def _append(self, **values: Any) -> None:
        with fail_together(self.group):
            if self.group.is_first:
                with _explaining_failed_write(self.path), self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(values) + "\n")


@contextmanager
def _explaining_failed_write(path: Path) -> Iterator[None]:
    """Turn an OSError into a LongformerError that says what to do."""
    try:
        yield
    except OSError as error:
        raise LongformerError(
            f"{path} cannot be written: {error.strerror or error}; free disk space or fix the cause, then continue "
            "with --resume"
        ) from None


def _is_evaluation(line: Mapping[str, Any]) -> bool:
    return "loss" not in line and "note" not in line


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, without a line that was cut off when the run was killed."""
    lines = []
    if (folder / LOG).exists():
        for line in (folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                value = parse_json(line, LOG)
            except LongformerError:
                continue
            if isinstance(value.get("step"), int):
                lines.append(value)
    return lines


def check_plotting() -> None:
    """Raise LongformerError if curves cannot be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise LongformerError("plot needs matplotlib, which is not installed; run `pip install matplotlib`")


def plot_curves(folder: Path) -> None:
    """Draw loss, learning rate and, if there are any, evaluation scores into ``curves.png``.

    Raises:
        LongformerError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    with _explaining_failed_write(folder / CURVES):
        lines = read_log(folder)
    training = [line for line in lines if "loss" in line]
    scores = [line for line in lines if _is_evaluation(line)]
    names = sorted({name for line in scores for name in line if name not in ("step", "total")})
    figure = Figure(figsize=(5 + 5 * bool(names), 3.5), layout="constrained")
    panels = figure.subplots(1, 1 + bool(names), squeeze=False)[0]
    steps = [line["step"] for line in training]
    panels[0].plot(steps, [line["loss"] for line in training], color="#24608a", label="loss")
    panels[0].set(xlabel="step", ylabel="loss")
    rate = panels[0].twinx()
    rate.plot(steps, [line["learning_rate"] for line in training], color="#b9b9b9", linewidth=1)
    rate.set_ylabel("learning rate")
    for name in names:
        points = [(line["step"], line[name]) for line in scores if name in line]
        panels[1].plot(*zip(*points, strict=True), marker="o", markersize=3, label=name.replace("_", " "))
    if names:
        panels[1].set(xlabel="step", ylabel="evaluation")
        panels[1].legend()
    with _explaining_failed_write(folder / CURVES):
        replace_file(folder / CURVES, lambda new: figure.savefig(new, dpi=110, format="png"))
