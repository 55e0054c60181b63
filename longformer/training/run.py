"""A run from its options to its result: everything is checked first, then the loop is started."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

import longformer
from longformer.answering.answerer import QuestionAnswerer
from longformer.answering.evaluation import QuestionFile, check_questions
from longformer.answering.settings import AnswerSettings
from longformer.answering.squad import Example, offset_report, read_squad
from longformer.checkpoints.folder import CONFIG
from longformer.checkpoints.names import todays_name
from longformer.checkpoints.weights import SAFETENSORS, find_weights, read_tensors
from longformer.distributed import check_agreement, fail_together, processes
from longformer.errors import CheckpointError, DataError, LongformerError
from longformer.models.attention import LongformerSelfAttention
from longformer.models.heads import Head, LongformerForMaskedLM, LongformerForQuestionAnswering
from longformer.models.pretrained import Pretrained
from longformer.tokenizer import LongformerTokenizer
from longformer.training.checkpoints import CHECKPOINTS, remove_abandoned, replace_text
from longformer.training.log import CURVES, LOG, check_plotting
from longformer.training.loop import Task, Trainer
from longformer.training.mlm import MaskedLMTask, read_documents
from longformer.training.options import MLMOptions, QAOptions, TrainingOptions
from longformer.training.qa import QuestionAnsweringTask

OPTIONS = "training.toml"


def train_qa(options: QAOptions, *, resume: bool = False) -> None:
    """Fine-tune on SQuAD-format files (v1.1, or v2 with unanswerable questions).

    ``options.output`` then holds the best weights as a checkpoint (the last ones where nothing was evaluated), the
    options, the log and the checkpoints to resume from. Under torchrun all processes call this.

    Args:
        options: the choices.
        resume: go on with the run in ``options.output``, from its last checkpoint; begin where there is none.

    Raises:
        LongformerError: whatever is wrong with options, files, checkpoint or folder, before anything is computed; or
            a loss that is not finite, memory or a disk that do not suffice.
    """

    def prepare(model: Any, tokenizer: LongformerTokenizer, say: Callable[[str], None]) -> QuestionAnsweringTask:
        train, held_by_file = _read_questions(options, say)
        settings = AnswerSettings(max_answer_tokens=options.max_answer_tokens)
        check_questions(held_by_file, QuestionAnswerer(model, tokenizer), settings)
        held = [example for _, examples in held_by_file for example in examples]
        task = QuestionAnsweringTask(train, held, tokenizer, options)
        left_out = f", {len(task.unusable)} questions left out" if task.unusable else ""
        say(f"{len(train)} questions to train on, {len(task.features)} windows{left_out}; {len(held)} to measure on")
        return task

    _train(options, LongformerForQuestionAnswering, prepare, resume)


def train_mlm(options: MLMOptions, *, resume: bool = False) -> None:
    """Continue pretraining by masked language modelling on text files. Otherwise as :func:`train_qa`."""

    def prepare(model: Any, tokenizer: LongformerTokenizer, say: Callable[[str], None]) -> MaskedLMTask:
        train, held = (
            [document for file in files for document in read_documents(file)]
            for files in (options.files, options.evaluate_on)
        )
        task = MaskedLMTask(train, held, tokenizer, options)
        measured = 0 if task.held is None else len(task.held)
        say(f"{len(train)} documents, {len(task.lengths)} rows to train on; {measured} rows to measure on")
        return task

    _train(options, LongformerForMaskedLM, prepare, resume)


def _train(
    options: TrainingOptions,
    kind: type[Head],
    prepare: Callable[[Any, LongformerTokenizer, Callable[[str], None]], Task],
    resume: bool,
) -> None:
    with processes(options.device) as group:

        def say(message: str) -> None:
            if group.is_first:
                tqdm.write(message, file=sys.stderr)

        if options.parallel == "fsdp" and not group.joined:
            raise LongformerError("parallel is 'fsdp', which shards over processes; start them with torchrun")
        changed: list[str] = []
        with fail_together(group):
            if options.batch_size < group.size:
                raise LongformerError(
                    f"batch_size is {options.batch_size}, which {group.size} processes cannot share; "
                    f"give at least {group.size}"
                )
            if options.plot:
                check_plotting()
            if group.is_first:
                changed = _check_folder(options, resume)
            tokenizer = LongformerTokenizer.from_pretrained(options.source, revision=options.revision)
            model = _load(options, kind, tokenizer, say)
            task = prepare(model, tokenizer, say)
            origin = _digest(model)
        check_agreement(
            group,
            options=options.to_toml(),
            data=task.fingerprint,
            weights=origin[:16],
            versions=f"longformer {longformer.__version__}, torch {torch.__version__}",
            device=group.device.type,
        )
        folder = Path(options.output)
        with fail_together(group):
            if group.is_first:
                _begin(folder, options, tokenizer)
        trainer = Trainer(model, task, options, group, folder, origin=origin)
        if resume:
            found = trainer.resume()
            say(f"resumed at step {trainer.step} of {trainer.steps}" if found else "nothing to resume: from the start")
        trainer.run(note=f"{'; '.join(changed)} (before, now)" if changed else "")
        if trainer.best is not None:
            say(f"best {task.score} {trainer.best:.2f} at step {trainer.best_step}")
        say(f"wrote {folder}")


def _read_questions(options: QAOptions, say: Callable[[str], None]) -> tuple[list[Example], list[QuestionFile]]:
    """Questions to train on, and those to measure on by file; what is wrong with their answers' offsets is said."""
    files = _read_files(options.files, say)
    train = [example for _, examples in files for example in examples]
    if not options.hold_out:
        return train, _read_files(options.evaluate_on, say)
    titles = {example.title for example in train}
    for title in options.hold_out:
        if title not in titles:
            raise DataError(f"hold_out {title!r}: no file has an article of that title")
    held = [(file, [e for e in examples if e.title in options.hold_out]) for file, examples in files]
    train = [example for example in train if example.title not in options.hold_out]
    if not train:
        raise DataError("hold_out leaves nothing to train on")
    return train, held


def _read_files(files: Sequence[str], say: Callable[[str], None]) -> list[QuestionFile]:
    found = []
    for file in files:
        examples = read_squad(file)
        offsets = offset_report(examples)
        if offsets.realigned or offsets.unusable:
            say(f"{file}: {offsets}")
        found.append((file, examples))
    return found


def _check_folder(options: TrainingOptions, resume: bool) -> list[str]:
    """What is chosen otherwise than in the run to resume. Raises LongformerError where the folder is not this run's."""
    folder = Path(options.output)
    if folder.exists() and not folder.is_dir():
        raise LongformerError(f"{folder} is a file; give a folder for the run")
    source = Path(options.source)
    if source.is_dir() and source.resolve() == folder.resolve():
        raise LongformerError(
            f"{folder} is the checkpoint to start from, and would be overwritten; name another folder"
        )
    saved = folder / OPTIONS
    if not resume:
        there = [name for name in (OPTIONS, CHECKPOINTS, SAFETENSORS) if (folder / name).exists()]
        if there:
            what = "another run" if there[0] != SAFETENSORS else "a checkpoint"
            raise LongformerError(
                f"{folder} already holds {what} ({there[0]}); go on with it by --resume, or name another folder"
            )
        return []
    if not saved.exists():
        for name in (CHECKPOINTS, SAFETENSORS):
            if (folder / name).exists():
                raise LongformerError(
                    f"{folder} holds {name} but no {OPTIONS}: it is no run that can be resumed; name another folder"
                )
        return []
    before = type(options).read(saved)
    different = before.differences(options)
    if different:
        raise LongformerError(
            f"{folder} was begun with other choices: {'; '.join(different)} (then, now); "
            f"resume with `--config {saved} --resume`, or begin in another folder"
        )
    return before.differences(options, mendable=True)


def _load(
    options: TrainingOptions,
    kind: type[Head],
    tokenizer: LongformerTokenizer,
    say: Callable[[str], None],
) -> Head:
    weights = read_tensors(find_weights(options.source, revision=options.revision))
    has_head = any(todays_name(name).startswith(f"{kind.part}.") for name in weights)
    if not has_head:
        say(f"{options.source} has no such head ({kind.part}): it is drawn afresh")
    torch.manual_seed(options.seed)
    model = kind.from_pretrained(options.source, revision=options.revision, impl=options.impl, new_head=not has_head)
    if options.max_length > model.config.max_tokens:
        raise LongformerError(
            f"max_length is {options.max_length}; the model has positions for {model.config.max_tokens} tokens"
        )
    for name in ("pad_token_id", "sep_token_id"):
        if getattr(model.config, name) != getattr(tokenizer, name):
            raise CheckpointError(
                f"{options.source}: {name} is {getattr(model.config, name)} for the model and "
                f"{getattr(tokenizer, name)} for the tokenizer"
            )
    if tokenizer.vocab_size > model.config.vocab_size:
        raise CheckpointError(
            f"{options.source}: the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}"
        )
    _set_dropout(model, options.hidden_dropout, options.attention_dropout)
    base: Any = getattr(model, model.base_model_prefix)
    base.encoder.gradient_checkpointing = options.gradient_checkpointing
    frozen = {"none": None, "positions": base.embeddings.position_embeddings, "embeddings": base.embeddings}
    part = frozen[options.freeze]
    if part is not None:
        part.requires_grad_(False)
    return model


def _set_dropout(model: nn.Module, hidden: float | None, attention: float | None) -> None:
    for part in model.modules():
        if isinstance(part, nn.Dropout) and hidden is not None:
            part.p = hidden
        if isinstance(part, LongformerSelfAttention) and attention is not None:
            part.dropout_p = attention


def _digest(model: Pretrained) -> str:
    """A hash of the weights and the config, by which processes and resumed runs know that they begin alike."""
    digest = hashlib.sha256(repr(model.config).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _begin(folder: Path, options: TrainingOptions, tokenizer: LongformerTokenizer) -> None:
    """Write what a run's folder has from its first moment on."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_abandoned(folder, (SAFETENSORS, CONFIG, OPTIONS, LOG, CURVES))
        if not (folder / OPTIONS).exists():  # else it is there whole, and a run killed while writing would spoil it
            tokenizer.save_pretrained(folder)
        replace_text(folder / OPTIONS, options.to_toml())
    except OSError as error:
        raise LongformerError(
            f"{folder} cannot be written: {error.strerror}; make room, or name a folder that can be"
        ) from None
