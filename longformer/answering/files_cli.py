"""Commands over files of questions: what they share, and ``longformer predict``.

What is slow to import is imported where it is run.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from longformer.answering.forms import FORMS
from longformer.answering.options import (
    MODEL_OPTIONS,
    Command,
    answer_options,
    batch_option,
    checkpoint_files,
    first_given,
    load_answerer,
    model_options,
    take_settings,
)
from longformer.errors import listed
from longformer.files import check_outputs, write_json
from longformer.options import COUNT

if TYPE_CHECKING:
    from longformer.answering.evaluation import Predicted


def question_options(command: Command) -> Command:
    """FILE, and options that say how it is read, for :class:`Questions`."""
    for option in (
        click.option("--skip-bad", is_flag=True, help="Leave out entries that cannot be used, say which, and go on."),
        click.option(
            "--format",
            "form",
            type=click.Choice([*FORMS]),
            help="What FILE holds: articles as SQuAD, contexts as MRQA, or rows of questions. By default, the keys in "
            "FILE decide.",
        ),
        click.argument("file"),
    ):
        command = option(command)
    return command


class Questions:
    """The questions of a file, and the entries that were left out, which are told on standard error as they are met.

    An entry is a question, or a part of the file in which questions should be, such as an article without paragraphs.
    """

    def __init__(self, file: str, form: str | None, skip_bad: bool, *, questions_only: bool = False) -> None:
        from longformer.answering.squad import read_squad

        self.file, self.skip_bad = file, skip_bad
        self.skipped: list[str] = []
        self.examples = read_squad(
            file, questions_only=questions_only, form=form, skipped=self.skipped if skip_bad else None
        )
        self._tell(self.skipped)

    def predict(self, options: dict[str, Any], **changes: Any) -> Predicted | None:
        """What a model answers, under a progress bar; in all processes but the first None.

        Args:
            options: those of ``model_options``, ``answer_options`` and ``batch_option``.
            changes: to the settings that are among these.
        """
        from longformer.answering.evaluation import predict
        from longformer.distributed import fail_together, processes

        model = {name: options[name] for name in MODEL_OPTIONS}
        settings, batch_tokens = replace(take_settings(options), **changes), options["batch_tokens"]
        with processes(model["device"]) as group:
            with fail_together(group):
                answerer = load_answerer(**{**model, "device": group.device if group.joined else model["device"]})
            predicted = predict(
                self.examples,
                answerer,
                group,
                settings,
                batch_tokens=batch_tokens,
                skip_bad=self.skip_bad,
                progress=True,
            )
            self.skipped += predicted.skipped
            self._tell(predicted.skipped)
            return predicted if group.is_first else None

    def _tell(self, skipped: Sequence[str]) -> None:
        for message in skipped if is_first_process() else ():
            click.echo(f"left out: {message}", err=True)

    def summary(self) -> str:
        """How many entries were left out, to stand at the end of a line; "" where none was."""
        return f", {counted(len(self.skipped), ('entry', 'entries'))} left out" if self.skipped else ""


def is_first_process() -> bool:
    """Whether this process, of those that torchrun started, is the one that talks to the user."""
    return os.environ.get("RANK", "0") == "0"


def counted(number: int, names: tuple[str, str] = ("question", "questions")) -> str:
    """How many there are, in a message. ``names``: what one of them is called, and what several are."""
    return f"{number} {names[number != 1]}"


def listed_questions(ids: Sequence[str]) -> str:
    """How many questions, and the ids of the first."""
    return f"{counted(len(ids))} ({listed(ids, most=5)})"


@click.command()
@question_options
@click.option("-o", "--output", required=True, metavar="OUT.json", help="Where to write the answers, {id: text}.")
@click.option("--n-best", metavar="OUT.json", help="Write several answers to each question too, with probabilities.")
@click.option(
    "--n-best-size",
    type=COUNT,
    default=20,
    show_default=True,
    metavar="N",
    help="With --n-best: how many answers.",
)
@click.option(
    "--null-scores",
    metavar="OUT.json",
    help="Write by how much no answer scores more than the best answer too, {id: number}.",
)
@click.option("--limit", type=COUNT, metavar="N", help="Answer the first N questions only.")
@batch_option
@answer_options
@model_options
def predict(
    file: str,
    output: str,
    n_best: str | None,
    n_best_size: int,
    null_scores: str | None,
    limit: int | None,
    form: str | None,
    skip_bad: bool,
    **options: Any,
) -> None:
    """Answer every question of FILE, in SQuAD's format or another. Under torchrun the processes share them."""
    if n_best is None and first_given("n_best_size") is not None:
        raise click.UsageError("--n-best-size needs --n-best, which says where to write the answers")
    outputs = [path for path in (output, n_best, null_scores) if path is not None]
    check_outputs(outputs, [file, *checkpoint_files(options["model"], options["tokenizer"])])
    questions = Questions(file, form, skip_bad, questions_only=True)
    questions.examples = questions.examples[:limit]
    predicted = questions.predict(options, top_k=1 if n_best is None else n_best_size)
    if predicted is None:
        return
    write_json(output, predicted.texts)
    if n_best is not None:
        write_json(n_best, {key: [asdict(answer) for answer in of.answers] for key, of in predicted.found.items()})
    if null_scores is not None:
        write_json(null_scores, {key: of.null_score for key, of in predicted.found.items()})
    written = counted(len(predicted.found), ("answer", "answers"))
    click.echo(f"wrote {written} to {output}{questions.summary()}", err=True)
