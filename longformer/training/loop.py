"""The training loop: steps, accumulated over parts and processes; evaluations; checkpoints; nothing else.

What is trained on is a :class:`Task`.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from longformer.checkpoints.folder import CONFIG, dtype_name, write_checkpoint
from longformer.checkpoints.weights import SAFETENSORS
from longformer.distributed import Processes, full, together
from longformer.errors import CheckpointError, LongformerError
from longformer.files import sync
from longformer.models.pretrained import Pretrained
from longformer.training import checkpoints
from longformer.training.batches import Part, parts_of_step, steps_of_epoch
from longformer.training.checkpoints import CHECKPOINTS
from longformer.training.log import Log, plot_curves
from longformer.training.optimizer import make_optimizer, set_learning_rate
from longformer.training.options import TrainingOptions
from longformer.training.parallel import Parallel
from longformer.training.signals import Signals, leave

NO_MEMORY = "DefaultCPUAllocator: can't allocate memory"  # torch's words; of a GPU it has a class of error
VALUES = (  # of a checkpoint, beside its tensors
    "step", "best", "best_step", "worse", "stopped", "evaluated", "processes", "data", "origin", "log",
)  # fmt: skip


class Task(Protocol):
    """What a model is trained on.

    Attributes:
        lengths: tokens of each row.
        score: which entry of an evaluation says what is best; the highest if ``higher``, else the lowest.
        some_unused: whether a step may leave parameters without a gradient.
        fingerprint: of all data, such that equal ones are the same rows in the same order.
    """

    score: str
    higher: bool
    some_unused: bool
    lengths: list[int]
    fingerprint: str

    def collate(self, rows: Sequence[int], epoch: int) -> tuple[dict[str, Tensor], int]:
        """Tensors of some rows, and of how many terms their loss is the mean."""

    def loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """Mean loss of what ``collate`` gave, by a model that may be wrapped; it depends on the rows alone."""

    def evaluate(self, model: Pretrained, group: Processes) -> dict[str, float]:
        """Scores of ``model``, the same in all processes."""


class Done(NamedTuple):
    """What a step gave: mean loss over all processes, norm of the gradient before clipping, tokens, and its time."""

    loss: float
    grad_norm: float
    tokens: int
    seconds: float


class Trainer:
    """One run.

    Args:
        model: with the weights to start from.
        task: what to train it on.
        options: the choices.
        group: the processes.
        folder: of the run; it exists.
        origin: hash of the checkpoint to start from; a run is resumed with the same.
    """

    def __init__(
        self, model: Pretrained, task: Task, options: TrainingOptions, group: Processes, folder: Path, *, origin: str
    ) -> None:
        self.task, self.options, self.group, self.folder, self.origin = task, options, group, folder, origin
        self.parallel = Parallel(model, options, group, some_unused=task.some_unused)
        self.optimizer = make_optimizer(self.parallel.model, options, fused=not self.parallel.sharded)
        self.per_epoch = math.ceil(len(task.lengths) / options.batch_size)
        whole = options.epochs * self.per_epoch
        self.steps = whole if options.max_steps is None else min(whole, options.max_steps)
        self.step = 0
        self.best: float | None = None
        self.best_step = 0
        self.worse = 0  # evaluations since the best
        self.stopped = False
        self.evaluated = True  # False between a checkpoint and the evaluation that is due at its step
        self.log_state: dict[str, Any] | None = None
        self.signals = Signals(group)
        # Each process draws dropout of its own.
        torch.manual_seed(options.seed + group.rank)

    def run(self, *, note: str = "") -> None:
        """Train until the end, from wherever :meth:`resume` put it.

        Args:
            note: for the log, where something is otherwise than before.

        Raises:
            LongformerError: the loss is not finite, memory or disk do not suffice. The last checkpoint is intact.
            SystemExit, KeyboardInterrupt: of SIGTERM and SIGINT, once a step is finished and saved.
        """
        options = self.options
        log = Log(
            self.folder,
            step=self.step,
            steps=self.steps,
            every=options.log_every,
            group=self.group,
            evaluated=self.evaluated,
            state=self.log_state,
        )
        self.parallel.model.train()
        try:
            with self.signals.noted():
                if note:
                    log.note(self.step, note)
                if not self.evaluated:
                    self._evaluate(log)
                    self._leave_if(self.signals.agreed(), log)
                while self._unfinished():
                    epoch, done = divmod(self.step, self.per_epoch)
                    order = steps_of_epoch(self.task.lengths, options.batch_size, seed=options.seed, epoch=epoch)
                    for rows in order[done : done + self.steps - self.step]:
                        self._advance(rows, epoch, log)
                        if not self._unfinished():
                            break
        except RuntimeError as error:
            if not isinstance(error, torch.cuda.OutOfMemoryError) and NO_MEMORY not in str(error):
                raise
            raise LongformerError(
                f"the device's memory does not suffice for parts of {options.batch_tokens} tokens; "
                "lower batch_tokens, or set gradient_checkpointing"
            ) from None
        finally:
            log.close()
        if not options.evaluates:
            self._save_weights()
        with together(self.group):
            if options.plot and self.group.is_first:
                plot_curves(self.folder)

    def _unfinished(self) -> bool:
        return self.step < self.steps and not self.stopped

    def _advance(self, rows: Sequence[int], epoch: int, log: Log) -> None:
        """One step, and what is due after it."""
        rate = set_learning_rate(self.optimizer, self.options, self.step, self.steps)
        done = self._train(rows, epoch)
        self.step += 1
        log.step(step=self.step, epoch=epoch + 1, rate=rate, **done._asdict())
        last = self.step == self.steps
        every = self.options.evaluate_every
        due = self.step % self.per_epoch == 0 if every is None else self.step % every == 0
        self.evaluated = not (self.options.evaluates and (due or last))
        asked = self.signals.agreed()
        # Before an evaluation, so that one that fails costs nothing, and that the best weights are never of a step
        # which a run that was killed does not come by again.
        if asked or last or not self.evaluated or self.step % self.options.checkpoint_every == 0:
            self.save(log)
        if not self.evaluated and not asked:
            self._evaluate(log)
            asked = self.signals.agreed()
        self._leave_if(asked, log)

    def _leave_if(self, asked: signal.Signals | None, log: Log) -> None:
        """Stop after a step that is saved, where a signal asked for it."""
        if asked:
            log.say(f"stopped by {asked.name} at step {self.step} of {self.steps}, which is saved; go on with --resume")
            leave(asked)

    def _train(self, rows: Sequence[int], epoch: int) -> Done:
        group, options = self.group, self.options
        began = time.perf_counter()
        parts = parts_of_step(rows, self.task.lengths, options.batch_tokens, rank=group.rank, size=group.size)
        collated = [self.task.collate(part.rows, epoch) for part in parts]
        terms = sum(count for part, (_, count) in zip(parts, collated, strict=True) if part.counts)
        tokens = sum(self.task.lengths[row] for part in parts if part.counts for row in part.rows)
        all_terms, all_tokens = group.sum([terms, tokens])
        self.optimizer.zero_grad()
        loss = 0.0
        for i, (part, (inputs, count)) in enumerate(zip(parts, collated, strict=True)):
            share = count / max(1.0, all_terms) if part.counts else 0.0
            with self.parallel.accumulating(last=i == len(parts) - 1):
                loss += self._backward(part, inputs, share)
        (loss,) = group.sum([loss])
        self._check_finite("loss", loss)
        norm = float(full(clip_grad_norm_(self.parallel.model.parameters(), options.max_grad_norm)))
        self._check_finite("norm of the gradient", norm)
        self.optimizer.step()
        return Done(loss, norm, int(all_tokens), time.perf_counter() - began)

    def _backward(self, part: Part, inputs: dict[str, Tensor], share: float) -> float:
        """Forward and backward of a part whose loss is ``share`` of the step's; returns that."""
        device = self.group.device
        with self.autocast():
            loss = self.task.loss(self.parallel.run, {name: x.to(device) for name, x in inputs.items()})
        (loss * (share * self.group.size)).backward()  # DDP and FSDP take the mean over the processes
        return loss.item() * share if part.counts else 0.0

    def autocast(self) -> Any:
        """Matrix products in bfloat16 where the options say so."""
        if self.options.precision == "float32":
            return nullcontext()
        return torch.autocast(self.group.device.type, torch.bfloat16)

    def _check_finite(self, what: str, value: float) -> None:
        if math.isfinite(value):
            return
        saved = checkpoints.saved_steps(self.folder / CHECKPOINTS)
        kept = f", which is {saved[-1].name}" if saved else ""
        raise LongformerError(
            f"the {what} is {value} in step {self.step + 1}; go on with --resume and a lower learning_rate, a longer "
            f"warmup or a smaller max_grad_norm from the last checkpoint{kept}, or begin in another folder"
        )

    def _evaluate(self, log: Log) -> None:
        with self.parallel.plain() as model, self.autocast():
            scores = self.task.evaluate(model, self.group)
        log.evaluation(self.step, scores)
        value = scores[self.task.score]
        better = self.best is None or (value > self.best if self.task.higher else value < self.best)
        if better:
            self.best, self.best_step, self.worse = value, self.step, 0
            self._save_weights()
        else:
            self.worse += 1
        if self.options.patience is not None and self.worse >= self.options.patience:
            log.say(f"stopped: no better {self.task.score} since step {self.best_step}")
            self.stopped = True
        self.evaluated = True
        with together(self.group):
            if self.group.is_first:
                checkpoints.update_values(self.folder / CHECKPOINTS, self._values(log))

    def _save_weights(self) -> None:
        """Write the weights as they are as the run's result; all processes must call this."""
        weights = self.parallel.weights()
        with together(self.group):
            if self.group.is_first:
                dtype = getattr(torch, self.options.store)
                tensors = {name: tensor.to("cpu", dtype) for name, tensor in weights.items()}
                extra = {"architectures": [self.parallel.kind.__name__], "dtype": dtype_name(tensors.values())}
                write_checkpoint(self.folder, tensors, lambda path: self.parallel.config.save(path, **extra))
                # Before a checkpoint says that these are the best.
                try:
                    for path in (self.folder / SAFETENSORS, self.folder / CONFIG, self.folder):
                        sync(path)
                except OSError as error:
                    raise CheckpointError(
                        f"the weights cannot be written into {self.folder}: {error.strerror}; make room or mend what "
                        "is wrong, then go on with --resume"
                    ) from None

    def _values(self, log: Log) -> dict[str, Any]:
        return {
            "step": self.step,
            "best": self.best,
            "best_step": self.best_step,
            "worse": self.worse,
            "stopped": self.stopped,
            "evaluated": self.evaluated,
            "processes": self.group.size,
            "data": self.task.fingerprint,
            "origin": self.origin,
            "log": log.state(),
        }

    def save(self, log: Log) -> None:
        """Write a checkpoint to resume from; all processes must call this."""
        weights = {f"model/{name}": tensor.cpu() for name, tensor in self.parallel.weights().items()}
        moments = self.parallel.optimizer_state(self.optimizer)
        rng = {"cpu": torch.get_rng_state()}
        if self.group.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.group.device)
        tensors = {**weights, **moments, **checkpoints.rng_tensors(self.group.gather(rng))}
        with together(self.group):
            if self.group.is_first:
                state = checkpoints.RunState(tensors, self._values(log))
                checkpoints.save_state(self.folder / CHECKPOINTS, state, keep=self.options.keep_checkpoints)

    def resume(self) -> bool:
        """Go back to the last checkpoint of the run's folder; False if it has none. All processes must call this.

        Raises:
            CheckpointError: it is corrupt, or of another version of longformer.
            LongformerError: it was made on other data, or from another checkpoint.
        """
        state = None
        with together(self.group):
            if self.group.is_first:
                state = checkpoints.load_state(self.folder / CHECKPOINTS)
                if state is not None:
                    self._check_same(state.values)
        values = self.group.gather(None if state is None else state.values)[0]
        if values is None:
            return False
        tensors = {} if state is None else state.tensors
        self.parallel.restore(self.optimizer, tensors)
        rng = self.group.gather({rank: checkpoints.rng_of(tensors, rank) for rank in range(self.group.size)})[0]
        self._restore_rng(rng[self.group.rank], values)
        self.step, self.best, self.best_step = values["step"], values["best"], values["best_step"]
        self.worse, self.stopped = values["worse"], values["stopped"]
        self.evaluated, self.log_state = values["evaluated"], values["log"]
        return True

    def _check_same(self, values: dict[str, Any]) -> None:
        """Raise where a checkpoint with these values is not one that this run can go on from."""
        lacking = [name for name in VALUES if name not in values]
        if lacking:
            raise CheckpointError(
                f"the last checkpoint in {self.folder} does not say {lacking[0]!r}; it is of another version of "
                "longformer, with which to go on, or begin anew in another folder"
            )
        if values["origin"] != self.origin:
            raise LongformerError(
                f"{self.folder} was begun from other weights or another config than {self.options.source} holds now; "
                "resume with that as it was, or begin anew in another folder"
            )
        if values["data"] != self.task.fingerprint:
            raise LongformerError(
                f"{self.folder} was trained on other data than the files hold now; "
                "resume with the files as they were, or begin anew in another folder"
            )

    def _restore_rng(self, rng: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Random states are of a process; among another number of processes new ones are drawn."""
        if values["processes"] != self.group.size:
            torch.manual_seed(self.options.seed + self.group.rank + 1_000_003 * values["step"])
            return
        torch.set_rng_state(rng["cpu"])
        if self.group.device.type == "cuda" and "cuda" in rng:
            torch.cuda.set_rng_state(rng["cuda"], self.group.device)
