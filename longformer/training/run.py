"""A complete run, from its options to its result. Everything is checked before the loop starts."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

import longformer
from longformer.answering.answerer import QuestionAnswerer
from longformer.answering.evaluation import check_questions
from longformer.answering.settings import AnswerSettings
from longformer.answering.squad import Example, offset_report, read_squad
from longformer.checkpoints.folder import files_of, files_to_write
from longformer.checkpoints.names import todays_name
from longformer.checkpoints.weights import SAFETENSORS, find_weights, read_tensors
from longformer.claims import claimed
from longformer.classifying.labels import REGRESSION
from longformer.config import LongformerConfig
from longformer.distributed import check_agreement, fail_together, processes
from longformer.errors import CheckpointError, DataError, LongformerError, listed
from longformer.files import check_overwrites
from longformer.generating.characters import Characters
from longformer.hub import CONFIG
from longformer.models.attention import LongformerSelfAttention
from longformer.models.heads import (
    Head,
    LongformerForMaskedLM,
    LongformerForQuestionAnswering,
    LongformerForSequenceClassification,
)
from longformer.models.loading import check_implementation
from longformer.models.pretrained import Pretrained
from longformer.tokenizer import LongformerTokenizer, load_tokenizer
from longformer.training.checkpoints import CHECKPOINTS, remove_abandoned, replace_text
from longformer.training.classification import ClassificationData, ClassificationTask, read_data
from longformer.training.log import CURVES, LOG, check_plotting
from longformer.training.loop import Task, Trainer
from longformer.training.mlm import MaskedLMTask, read_documents
from longformer.training.options import ClassificationOptions, MLMOptions, QAOptions, TrainingOptions
from longformer.training.qa import QuestionAnsweringTask

OPTIONS_FILE = "training.toml"


def train_qa(options: QAOptions, *, resume: bool = False) -> None:
    """Fine-tune on SQuAD-format files (v1.1, or v2 with unanswerable questions).

    Afterwards ``options.output`` holds the best weights as a checkpoint, the options, the log and the checkpoints to
    resume from. If nothing was evaluated, the weights are the last ones. Under torchrun all processes call this.

    Args:
        options: the choices.
        resume: continue the run in ``options.output`` from its last checkpoint. If there is none, start from the
            beginning.

    Raises:
        LongformerError: options, files, checkpoint or folder cannot be used; this is raised before any computation. Or
            the loss is not finite, or there is too little memory or disk space.
    """

    def prepare(model: Any, tokenizer: LongformerTokenizer, say: Callable[[str], None]) -> QuestionAnsweringTask:
        train, held_out = _read_questions(options, say)
        settings = AnswerSettings(max_answer_tokens=options.max_answer_tokens)
        check_questions(held_out, QuestionAnswerer(model, tokenizer), settings)
        task = QuestionAnsweringTask(train, held_out, tokenizer, options)
        left_out = f", {len(task.unusable)} questions left out" if task.unusable else ""
        say(
            f"{len(train)} questions to train on, {len(task.features)} windows{left_out}; {len(held_out)} to measure on"
        )
        return task

    _train(options, LongformerForQuestionAnswering, prepare, resume)


def train_classification(options: ClassificationOptions, *, resume: bool = False) -> None:
    """Fine-tune on texts with labels or numbers, from CSV files or JSON lines. The rest is as in :func:`train_qa`.

    A head that the checkpoint has keeps its labels, unless ``options.new_head`` is set.
    """
    found: list[ClassificationData] = []

    def head_config(head: LongformerConfig | None) -> dict[str, Any]:
        found.append(read_data(options, head))
        labels = found[0].labels
        return {"id2label": dict(enumerate(labels.names)), "problem_type": labels.problem_type}

    def prepare(model: Any, tokenizer: LongformerTokenizer, say: Callable[[str], None]) -> ClassificationTask:
        task = ClassificationTask(found.pop(), tokenizer, options)
        labels = task.labels
        shown = "" if labels.problem_type == REGRESSION else f", {len(labels.names)} labels: {listed(labels.names)}"
        say(f"{len(task.rows)} texts to train on, {len(task.held_out)} to measure on; {labels.problem_type}{shown}")
        if task.cut:
            say(f"cut off at {options.max_length} tokens: {task.cut} texts")
        return task

    _train(options, LongformerForSequenceClassification, prepare, resume, head_config, new_head=options.new_head)


def train_mlm(options: MLMOptions, *, resume: bool = False) -> None:
    """Continue pretraining by masked language modelling on text files. Everything else is as in :func:`train_qa`."""

    def prepare(model: Any, tokenizer: LongformerTokenizer, say: Callable[[str], None]) -> MaskedLMTask:
        train, held_out = (
            [document for file in files for document in read_documents(file)]
            for files in (options.files, options.evaluate_on)
        )
        task = MaskedLMTask(train, held_out, tokenizer, options)
        measured = 0 if task.held_out is None else len(task.held_out)
        say(f"{len(train)} documents, {len(task.lengths)} rows to train on; {measured} rows to measure on")
        return task

    _train(options, LongformerForMaskedLM, prepare, resume)


def _train(
    options: TrainingOptions,
    head_class: type[Head],
    prepare: Callable[[Any, LongformerTokenizer, Callable[[str], None]], Task],
    resume: bool,
    head_config: Callable[[LongformerConfig | None], dict[str, Any]] = lambda head: {},
    *,
    new_head: bool = False,
) -> None:
    """Check everything, then train.

    Args:
        options, resume: as for the functions above.
        head_class: the model's class.
        prepare: the task for the model and its tokenizer; its third argument says a line to the user.
        head_config: changes of the model's config, given the config of the head in the checkpoint, or None if a new one
            is to be drawn.
        new_head: draw a new head even if the checkpoint has one.
    """
    folder = Path(options.output)
    with processes(options.device) as group, ExitStack() as until_the_end:

        def say(message: str) -> None:
            if group.is_first:
                tqdm.write(message, file=sys.stderr)

        if options.parallel == "fsdp" and not group.joined:
            raise LongformerError("parallel is 'fsdp', which shards over several processes; start them with torchrun")
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
                if folder.is_dir() or not folder.exists():
                    until_the_end.enter_context(claimed(folder))
                changed = check_folder(options, resume)
                read = [path for name in (options.source, options.tokenizer) if name for path in files_of(name)]
                written = [*files_to_write(options.output), *(folder / name for name in (OPTIONS_FILE, LOG, CURVES))]
                check_overwrites(written, [*options.files, *options.evaluate_on, *read])
            check_implementation(options.impl, group.device, torch.float32)
            tokenizer = load_tokenizer(options.tokenizer, options.source, revision=options.revision)
            model = _load(options, head_class, head_config, new_head, say)
            _check_tokenizer(options.source, model.config, tokenizer)
            task = prepare(model, tokenizer, say)
            origin = digest_of(model)
        check_agreement(
            group,
            options=options.to_toml(),
            data=task.fingerprint,
            weights=origin[:16],
            versions=f"longformer {longformer.__version__}, torch {torch.__version__}",
            device=group.device.type,
        )
        with fail_together(group):
            if group.is_first:
                prepare_folder(folder, options, tokenizer)
        trainer = Trainer(model, task, options, group, folder, origin=origin)
        if resume:
            found = trainer.resume()
            say(f"resumed at step {trainer.step} of {trainer.steps}" if found else "nothing to resume: starting anew")
        trainer.run(note=f"{'; '.join(changed)} (before, now)" if changed else "")
        if trainer.best is not None:
            say(f"best {task.score} {trainer.best:.4g} at step {trainer.best_step}")
        say(f"wrote {folder}")


def _read_questions(options: QAOptions, say: Callable[[str], None]) -> tuple[list[Example], list[Example]]:
    """Questions to train on, and questions to measure on. Wrong offsets of answers are reported by ``say``."""
    train = _read_files(options.files, say)
    if not options.hold_out:
        return train, _read_files(options.evaluate_on, say)
    titles = {example.title for example in train}
    for title in options.hold_out:
        if title not in titles:
            raise DataError(f"hold_out is {title!r}; no file has an article of that title")
    held_out = [example for example in train if example.title in options.hold_out]
    train = [example for example in train if example.title not in options.hold_out]
    if not train:
        raise DataError("hold_out leaves nothing to train on")
    return train, held_out


def _read_files(files: Sequence[str], say: Callable[[str], None]) -> list[Example]:
    found = []
    for file in files:
        examples = read_squad(file)
        offsets = offset_report(examples)
        if offsets.realigned or offsets.unusable:
            say(f"{file}: {offsets}")
        found += examples
    return found


def check_folder(options: TrainingOptions, resume: bool) -> list[str]:
    """Check the run's folder. Returns the options that differ from those of the run to resume, and may differ.

    Raises:
        LongformerError: the folder cannot be used for this run.
    """
    folder = Path(options.output)
    if folder.exists() and not folder.is_dir():
        raise LongformerError(f"{folder} is a file; give a folder for the run")
    source = Path(options.source)
    if options.source and source.is_dir() and source.resolve() == folder.resolve():
        raise LongformerError(f"{folder} is the checkpoint to start from and would be overwritten; name another folder")
    saved = folder / OPTIONS_FILE
    if not resume:
        present = [name for name in (OPTIONS_FILE, CHECKPOINTS, SAFETENSORS) if (folder / name).exists()]
        if present:
            what = "another run" if present[0] != SAFETENSORS else "a checkpoint"
            raise LongformerError(
                f"{folder} already holds {what} ({present[0]}); continue it with --resume, or name another folder"
            )
        return []
    if not saved.exists():
        for name in (CHECKPOINTS, SAFETENSORS):
            if (folder / name).exists():
                raise LongformerError(
                    f"{folder} holds {name} but no {OPTIONS_FILE}, so the run cannot be resumed; name another folder"
                )
        return []
    before = type(options).read(saved)
    different = before.differences(options)
    if different:
        raise LongformerError(
            f"{folder} was started with other options: {'; '.join(different)} (then, now); "
            f"resume with `--config {saved} --resume`, or start in another folder"
        )
    return before.differences(options, changeable=True)


def _load(
    options: TrainingOptions,
    head_class: type[Head],
    head_config: Callable[[LongformerConfig | None], dict[str, Any]],
    new_head: bool,
    say: Callable[[str], None],
) -> Head:
    weights = read_tensors(find_weights(options.source, revision=options.revision))
    has_head = any(todays_name(name) in head_class.weights for name in weights)
    new_head = new_head or not has_head
    known = None if new_head else LongformerConfig.from_pretrained(options.source, revision=options.revision)
    changes = head_config(known)
    if new_head:
        why = (
            f"the head of {options.source} is replaced"
            if has_head
            else f"{options.source} has no head {head_class.part}"
        )
        say(f"{why}: a new one is drawn at random")
    torch.manual_seed(options.seed)
    model = head_class.from_pretrained(
        options.source, revision=options.revision, impl=options.impl, new_head=new_head, **changes
    )
    if options.max_length > model.config.max_tokens:
        raise LongformerError(
            f"max_length is {options.max_length}; the model has positions for {model.config.max_tokens} tokens"
        )
    _set_dropout(model, options.hidden_dropout, options.attention_dropout)
    base: Any = getattr(model, model.base_model_prefix)
    base.encoder.gradient_checkpointing = options.gradient_checkpointing
    parts = {"none": None, "positions": base.embeddings.position_embeddings, "embeddings": base.embeddings}
    frozen = parts[options.freeze]
    if frozen is not None:
        frozen.requires_grad_(False)
    if head_class is LongformerForMaskedLM:  # no token is global, and what has no part must not decay either
        for name, weight in model.named_parameters():
            if "_global." in name:
                weight.requires_grad_(False)
    return model


def _check_tokenizer(source: str, config: LongformerConfig, tokenizer: LongformerTokenizer) -> None:
    for name in ("pad_token_id", "sep_token_id"):
        if getattr(config, name) != getattr(tokenizer, name):
            raise CheckpointError(
                f"{source}: {name} is {getattr(config, name)} for the model and {getattr(tokenizer, name)} for the "
                "tokenizer"
            )
    tokenizer.check_rows(config.vocab_size)


def _set_dropout(model: nn.Module, hidden: float | None, attention: float | None) -> None:
    for part in model.modules():
        if isinstance(part, nn.Dropout) and hidden is not None:
            part.p = hidden
        if isinstance(part, LongformerSelfAttention) and attention is not None:
            part.dropout_p = attention


def digest_of(model: Pretrained) -> str:
    """A hash of the weights and the config. It shows whether processes and resumed runs start from the same model."""
    digest = hashlib.sha256(repr(model.config).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def prepare_folder(folder: Path, options: TrainingOptions, tokenizer: LongformerTokenizer | Characters) -> None:
    """Make the run's folder, and write the tokenizer, or the characters, and the options into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_abandoned(folder, (SAFETENSORS, CONFIG, OPTIONS_FILE, LOG, CURVES))
        if not (folder / OPTIONS_FILE).exists():  # otherwise the tokenizer is complete, and rewriting it is a risk
            tokenizer.save_pretrained(folder)
        replace_text(folder / OPTIONS_FILE, options.to_toml())
    except OSError as error:
        raise LongformerError(
            f"{folder} cannot be written: {error.strerror}; free disk space, or name another folder"
        ) from None
