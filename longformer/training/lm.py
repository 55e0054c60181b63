"""Training of a character language model in phases (Longformer, arXiv 2004.05150, §4.2).

The first phase has small windows and short rows, so that the many steps that learn what is near are cheap. Each phase
after it doubles both and halves the learning rate, and starts from the best weights of the one before. A phase is a run
of the training loop in a folder of its own, and is resumed as any run is.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import longformer
from longformer.checkpoints.folder import files_to_write
from longformer.claims import claimed
from longformer.config import LongformerConfig
from longformer.distributed import Processes, check_agreement, fail_together, processes
from longformer.errors import DataError, LongformerError
from longformer.files import check_overwrites
from longformer.generating.characters import CHARACTERS_FILE, Characters, read_characters
from longformer.generating.scoring import bits_of, pieces
from longformer.kernels import AttentionPattern, MaskPattern
from longformer.models.heads import LongformerForCausalLM
from longformer.models.pretrained import Pretrained
from longformer.training.lm_options import LMOptions
from longformer.training.log import check_plotting
from longformer.training.loop import Trainer
from longformer.training.run import OPTIONS_FILE, check_folder, digest_of, prepare_folder


class Corpus(NamedTuple):
    """characters: the vocabulary. train: (N,) int64, the text. held_out: texts to measure on, each (N,) int64."""

    characters: Characters
    train: Tensor
    held_out: list[Tensor]


def train_lm(options: LMOptions, *, resume: bool = False) -> list[float]:
    """Train a new character language model on text files, and write it into ``options.output``.

    Afterwards the folder holds the model after the last phase, its vocabulary and the options, and each phase's folder
    what a run's folder holds. Under torchrun all processes call this.

    Args:
        options: the choices.
        resume: continue the run in ``options.output``. If there is none, start from the beginning.

    Returns:
        The best bits per character on the held-out text in each phase; empty if there is nothing to measure on.

    Raises:
        LongformerError: options, files or folder cannot be used, or a text is too short; this is raised before any
            computation. Or the loss is not finite, or there is too little memory or disk space.
    """
    folder = Path(options.output)
    scores: list[float] = []
    with processes(options.device) as group, ExitStack() as until_the_end:

        def say(message: str) -> None:
            if group.is_first:
                tqdm.write(message, file=sys.stderr)

        changed: list[str] = []
        with fail_together(group):
            _check_sizes(options, group)
            if group.is_first:
                if folder.is_dir() or not folder.exists():
                    until_the_end.enter_context(claimed(folder))
                changed = check_folder(options, resume)
                written = [*files_to_write(options.output), folder / OPTIONS_FILE, folder / CHARACTERS_FILE]
                check_overwrites(written, [*options.files, *options.evaluate_on])
            corpus = read_corpus(options)
        check_agreement(
            group,
            options=options.to_toml(),
            versions=f"longformer {longformer.__version__}, torch {torch.__version__}",
            device=group.device.type,
        )
        say(
            f"{len(corpus.train)} characters to train on, {sum(map(len, corpus.held_out))} to measure on; "
            f"{len(corpus.characters.characters)} different ones"
        )
        with fail_together(group):
            if group.is_first:
                prepare_folder(folder, options, corpus.characters)
        note = f"{'; '.join(changed)} (before, now)" if changed else ""
        for phase in range(options.phases):
            best = _train_phase(options, phase, corpus, group, resume=resume, note=note, say=say)
            scores += [] if best is None else [best]
        with fail_together(group):
            if group.is_first:
                _phase_model(options, options.phases, corpus).save_pretrained(folder)
        say(f"wrote {folder}")
    return scores


def read_corpus(options: LMOptions) -> Corpus:
    """The texts to train on, joined, and the texts to measure on, by the characters of all of them.

    Raises:
        DataError: a file cannot be read, there is only one character, or a text is too short.
    """
    text = "".join(map(read_characters, options.files))
    held_out = [read_characters(file) for file in options.evaluate_on]
    if options.hold_out:
        kept = len(text) - round(options.hold_out * len(text))
        text, held_out = text[:kept], [text[kept:]]
    longest = options.rows(options.phases - 1)
    config = options.config(vocab_size=3, phase=options.phases - 1)
    for layer in range(options.layers):
        pattern = config.pattern(layer)
        for part in pattern.parts if isinstance(pattern, MaskPattern) else (pattern,):
            if isinstance(part, AttentionPattern) and part.window is not None:
                longest = max(longest, part.window[0] * max(part.gaps(options.heads)) + 1)
    characters = Characters.of([text, *held_out])
    if len(text) < longest:
        raise DataError(
            f"the text to train on has {len(text)} characters, but rows or windows of the last phase reach over "
            f"{longest}; give more text, or lower max_length, phases or the pattern's windows"
        )
    for measured in held_out:
        if len(measured) < 2:
            raise DataError(f"a text to measure on has {len(measured)} characters; give at least two, or no such text")
    return Corpus(characters, characters.ids(text), [characters.ids(measured) for measured in held_out])


def _check_sizes(options: LMOptions, group: Processes) -> None:
    longest, rows = options.rows(options.phases - 1), max(1, options.batch_size // 2 ** (options.phases - 1))
    if longest > options.batch_tokens:
        raise LongformerError(
            f"batch_tokens is {options.batch_tokens}, and a row of the last phase has {longest} characters and cannot "
            f"be split: raise batch_tokens to at least {longest}, or lower max_length or phases"
        )
    if rows < group.size:
        raise LongformerError(
            f"batch_size is {options.batch_size}, of which the last phase has {rows} rows, which {group.size} "
            "processes cannot share; raise it, or lower phases"
        )
    if options.evaluation_step is not None and options.evaluation_step > options.max_length:
        raise LongformerError(
            f"evaluation_step is {options.evaluation_step} and max_length {options.max_length}; a piece cannot count "
            "more characters than it reads"
        )
    if options.plot:
        check_plotting()


def phase_folder(options: LMOptions, phase: int) -> Path:
    """Where phase ``phase``, counted from 0, is trained."""
    return Path(options.output) / f"phase-{phase + 1}"


def _phase_model(options: LMOptions, phase: int, corpus: Corpus) -> LongformerForCausalLM:
    """The model that a phase starts from: a new one, or that of the phase before, with this phase's windows."""
    if phase == 0:
        torch.manual_seed(options.seed)
        return LongformerForCausalLM(options.config(len(corpus.characters), 0), impl=options.impl)
    config: LongformerConfig = options.config(len(corpus.characters), min(phase, options.phases - 1))
    before = phase_folder(options, phase - 1)
    model: LongformerForCausalLM = LongformerForCausalLM.from_pretrained(
        before, config=config, impl=options.impl, new_head=False
    )
    return model


def _train_phase(
    options: LMOptions,
    phase: int,
    corpus: Corpus,
    group: Processes,
    *,
    resume: bool,
    note: str,
    say: Callable[[str], None],
) -> float | None:
    """Train a phase, or what is left of it; the best bits per character."""
    folder = phase_folder(options, phase)
    chosen = options.of_phase(phase, folder)
    model = _phase_model(options, phase, corpus)
    model.longformer.encoder.gradient_checkpointing = options.gradient_checkpointing
    task = LanguageModelTask(corpus, chosen)
    with fail_together(group):
        if group.is_first:
            prepare_folder(folder, chosen, corpus.characters)
    trainer = Trainer(model, task, chosen, group, folder, origin=digest_of(model))
    say(
        f"phase {phase + 1} of {options.phases}: rows of {chosen.max_length} characters, {chosen.batch_size} a step, "
        f"learning rate {chosen.learning_rate:.2g}"
    )
    if resume and trainer.resume():
        say(f"resumed at step {trainer.step} of {trainer.steps}")
    trainer.run(note=note)
    return trainer.best


class LanguageModelTask:
    """Rows of a text to train on, and texts to measure on, for one phase.

    A row begins with the last character of the one before, so that each character but the first is foretold once.

    Args:
        corpus: the texts.
        options: of the phase.
    """

    score = "bits_per_character"
    higher_is_better = False

    def __init__(self, corpus: Corpus, options: LMOptions) -> None:
        length = options.max_length
        self.rows = corpus.train.unfold(0, length, length - 1)
        self.held_out = corpus.held_out
        self.length, self.step = length, options.evaluation_step or length // 2
        self.lengths: list[int] = [length] * len(self.rows)
        digest = hashlib.sha256(repr(corpus.characters.characters).encode())
        for ids in (corpus.train, *corpus.held_out):
            digest.update(f"{len(ids)} ".encode() + ids.numpy().tobytes())
        self.fingerprint = digest.hexdigest()

    def collate(self, rows: Sequence[int], epoch: int) -> tuple[dict[str, Tensor], int]:
        """input_ids and labels, (B, S) each, and the number of characters to foretell."""
        ids = self.rows[list(rows)]
        return {"input_ids": ids, "labels": ids}, ids.shape[0] * (ids.shape[1] - 1)

    def loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """Mean cross-entropy of the characters to be foretold."""
        loss: Tensor = model(**inputs).loss
        return loss

    def evaluate(self, model: Pretrained, group: Processes) -> dict[str, float]:
        """Bits per character of the held-out texts. Each process computes a share of their pieces."""
        bits, count = 0.0, 0
        with fail_together(group):
            for ids in self.held_out:
                share = group.share(pieces(len(ids), self.length, self.step))
                bits += math.fsum(bits_of(model, ids, share))
                count += sum(piece.stop - piece.first for piece in share)
        all_bits, all_count = group.sum([bits, float(count)])
        return {self.score: all_bits / all_count}
