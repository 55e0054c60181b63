"""The training loop: steps, whose gradients are summed over parts and processes; evaluations; checkpoints.

A :class:`Task` gives the data and the loss.
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

from longformer.checkpoints.folder import dtype_name, write_checkpoint
from longformer.checkpoints.weights import SAFETENSORS
from longformer.distributed import Processes, fail_together, unsharded
from longformer.errors import CheckpointError, LongformerError
from longformer.files import sync
from longformer.hub import CONFIG
from longformer.models.pretrained import Pretrained
from longformer.training import checkpoints
from longformer.training.batches import Part, parts_of_step, steps_of_epoch
from longformer.training.checkpoints import CHECKPOINTS
from longformer.training.log import Log, plot_curves, read_log
from longformer.training.optimizer import make_optimizer, set_learning_rate
from longformer.training.options import TrainingOptions
from longformer.training.parallel import Parallel
from longformer.training.signals import Signals, exit_by_signal

CPU_OUT_OF_MEMORY = "DefaultCPUAllocator: can't allocate memory"  # torch's message; for a GPU it has an error class
STATE_KEYS = (  # what a checkpoint holds besides its tensors
    "step", "best", "best_step", "worse", "stopped", "evaluated", "processes", "data", "origin", "log",
)  # fmt: skip


class Task(Protocol):
    """What a model is trained on.

    Attributes:
        lengths: tokens of each row.
        score: name of the score that decides which weights are best.
        higher_is_better: whether the best value of that score is the highest. Otherwise it is the lowest.
        fingerprint: a hash of all data. Equal fingerprints mean the same rows in the same order.
    """

    score: str
    higher_is_better: bool
    lengths: list[int]
    fingerprint: str

    def collate(self, rows: Sequence[int], epoch: int) -> tuple[dict[str, Tensor], int]:
        """The inputs for these rows, and the number of terms whose mean is their loss."""

    def loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """Mean loss over the rows of ``inputs``, which ``collate`` made. It depends on these rows alone.

        ``model`` may be wrapped for several processes.
        """

    def evaluate(self, model: Pretrained, group: Processes) -> dict[str, float]:
        """The scores of ``model`` by name, the same in all processes."""


class StepResult(NamedTuple):
    """Of one step: mean loss over all processes, gradient norm before clipping, number of tokens, and time."""

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
        folder: the run's folder, which exists.
        origin: hash of the checkpoint to start from. A resumed run must start from the same one.
    """

    def __init__(
        self, model: Pretrained, task: Task, options: TrainingOptions, group: Processes, folder: Path, *, origin: str
    ) -> None:
        self.task, self.options, self.group, self.folder, self.origin = task, options, group, folder, origin
        self.parallel = Parallel(model, options, group)
        self.optimizer = make_optimizer(self.parallel.model, options, fused=not self.parallel.sharded)
        self.steps_per_epoch = math.ceil(len(task.lengths) / options.batch_size)
        all_steps = options.epochs * self.steps_per_epoch
        self.steps = all_steps if options.max_steps is None else min(all_steps, options.max_steps)
        self.step = 0
        self.best: float | None = None
        self.best_step = 0
        self.since_best = 0  # evaluations
        self.stopped = False
        self.evaluated = True  # False from a checkpoint until the evaluation at its step is done
        self.log_state: dict[str, Any] | None = None
        self.signals = Signals(group)
        # Each process draws its own dropout.
        torch.manual_seed(options.seed + group.rank)

    def run(self, *, note: str = "") -> None:
        """Train to the end, from the start or from where :meth:`resume` continues.

        Args:
            note: written to the log; says which options a resumed run has changed.

        Raises:
            LongformerError: the loss is not finite, or there is too little memory or disk space. The last checkpoint is
                intact.
            SystemExit, KeyboardInterrupt: after SIGTERM or SIGINT, when the step is finished and saved.
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
            with self.signals.recorded():
                if note:
                    log.note(self.step, note)
                if not self.step and options.evaluates:
                    self._measure_the_start(log)
                    self._exit_if(self.signals.agreed(), log)
                if not self.evaluated:
                    self._evaluate(log)
                    self._exit_if(self.signals.agreed(), log)
                while self._unfinished():
                    epoch, first = divmod(self.step, self.steps_per_epoch)
                    order = steps_of_epoch(self.task.lengths, options.batch_size, seed=options.seed, epoch=epoch)
                    for rows in order[first : first + self.steps - self.step]:
                        self._advance(rows, epoch, log)
                        if not self._unfinished():
                            break
        except RuntimeError as error:
            if not isinstance(error, torch.cuda.OutOfMemoryError) and CPU_OUT_OF_MEMORY not in str(error):
                raise
            raise LongformerError(
                f"the device has too little memory for parts of {options.batch_tokens} tokens; "
                "lower batch_tokens, or set gradient_checkpointing"
            ) from None
        finally:
            log.close()
        if not options.evaluates:
            self._save_weights()
        self._say_if_worse(log)
        with fail_together(self.group):
            if options.plot and self.group.is_first:
                plot_curves(self.folder)

    def _unfinished(self) -> bool:
        return self.step < self.steps and not self.stopped

    def _advance(self, rows: Sequence[int], epoch: int, log: Log) -> None:
        """Train one step. Then log, save and evaluate, if that is due."""
        rate = set_learning_rate(self.optimizer, self.options, self.step, self.steps)
        result = self._train(rows, epoch)
        self.step += 1
        log.step(step=self.step, epoch=epoch + 1, rate=rate, **result._asdict())
        last = self.step == self.steps
        every = self.options.evaluate_every
        due = self.step % self.steps_per_epoch == 0 if every is None else self.step % every == 0
        self.evaluated = not (self.options.evaluates and (due or last))
        received = self.signals.agreed()
        # Save before an evaluation. Then a failed evaluation costs nothing. And the best weights always belong to a
        # step that has a checkpoint, so that a killed run continues from there or later.
        if received or last or not self.evaluated or self.step % self.options.checkpoint_every == 0:
            self.save(log)
        if not self.evaluated and not received:
            self._evaluate(log)
            received = self.signals.agreed()
        self._exit_if(received, log)

    def _exit_if(self, received: signal.Signals | None, log: Log) -> None:
        """End the process if a signal was received. The step has been saved by now."""
        if received:
            where = f"at step {self.step} of {self.steps}, which is saved"
            log.say(f"stopped by {received.name} {where}; continue with --resume")
            exit_by_signal(received)

    def _train(self, rows: Sequence[int], epoch: int) -> StepResult:
        group, options = self.group, self.options
        start = time.perf_counter()
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
        norm = float(unsharded(clip_grad_norm_(self.parallel.model.parameters(), options.max_grad_norm)))
        self._check_finite("norm of the gradient", norm)
        self.optimizer.step()
        return StepResult(loss, norm, int(all_tokens), time.perf_counter() - start)

    def _backward(self, part: Part, inputs: dict[str, Tensor], share: float) -> float:
        """Forward and backward of one part. ``share`` is its weight in the step's loss; returns the weighted loss."""
        device = self.group.device
        with self.autocast():
            loss = self.task.loss(self.parallel.wrapped, {name: x.to(device) for name, x in inputs.items()})
        (loss * (share * self.group.size)).backward()  # DDP and FSDP divide by the number of processes
        return loss.item() * share if part.counts else 0.0

    def autocast(self) -> Any:
        """Matrix products in bfloat16, if the options ask for it."""
        if self.options.precision == "float32":
            return nullcontext()
        return torch.autocast(self.group.device.type, torch.bfloat16)

    def _check_finite(self, what: str, value: float) -> None:
        if math.isfinite(value):
            return
        saved = checkpoints.saved_steps(self.folder / CHECKPOINTS)
        kept = f" ({saved[-1].name})" if saved else ""
        raise LongformerError(
            f"the {what} is {value} in step {self.step + 1}; continue from the last checkpoint{kept}, with --resume "
            "and a lower learning_rate, a longer warmup or a smaller max_grad_norm; or start in another folder"
        )

    def _measure_the_start(self, log: Log) -> None:
        """Measure the model that training begins with. It does not count as a result of the training."""
        log.evaluation(0, self._scores())

    def _say_if_worse(self, log: Log) -> None:
        """Say so where no step of the training was better than the model that it began with."""
        if self.best is None or not self.group.is_first:
            return
        score = self.task.score
        before = next((line[score] for line in read_log(self.folder) if line["step"] == 0 and score in line), None)
        if before is None or self._is_better(self.best, before):
            return
        if self.task.higher_is_better and before >= 100:  # such scores are in percent
            remedy = "nothing is better than 100: measure on harder examples to see what training does"
        else:
            remedy = "try another learning rate, more data, or more or fewer epochs"
        log.say(
            f"training did not help: {score} was {before:.4g} before it and {self.best:.4g} at best "
            f"(step {self.best_step}), whose weights are kept; {remedy}"
        )

    def _is_better(self, value: float, than: float) -> bool:
        return value > than if self.task.higher_is_better else value < than

    def _scores(self) -> dict[str, float]:
        with self.parallel.for_evaluation() as model, self.autocast():
            return self.task.evaluate(model, self.group)

    def _evaluate(self, log: Log) -> None:
        scores = self._scores()
        log.evaluation(self.step, scores)
        value = scores[self.task.score]
        if self.best is None or self._is_better(value, self.best):
            self.best, self.best_step, self.since_best = value, self.step, 0
            self._save_weights()
        else:
            self.since_best += 1
        if self.options.patience is not None and self.since_best >= self.options.patience:
            log.say(f"stopped: {self.task.score} has not improved since step {self.best_step}")
            self.stopped = True
        self.evaluated = True
        with fail_together(self.group):
            if self.group.is_first:
                checkpoints.update_values(self.folder / CHECKPOINTS, self._values(log))

    def _save_weights(self) -> None:
        """Write the present weights as the run's result. All processes must call this."""
        weights = self.parallel.weights()
        with fail_together(self.group):
            if self.group.is_first:
                dtype = getattr(torch, self.options.store)
                tensors = {name: tensor.to("cpu", dtype) for name, tensor in weights.items()}
                extra = {"architectures": [self.parallel.model_class.__name__], "dtype": dtype_name(tensors.values())}
                write_checkpoint(self.folder, tensors, lambda path: self.parallel.config.save(path, **extra))
                # The weights must be on the disk before a checkpoint calls them the best.
                try:
                    for path in (self.folder / SAFETENSORS, self.folder / CONFIG, self.folder):
                        sync(path)
                except OSError as error:
                    raise CheckpointError(
                        f"the weights cannot be written into {self.folder}: {error.strerror}; free disk space or fix "
                        "the cause, then continue with --resume"
                    ) from None

    def _values(self, log: Log) -> dict[str, Any]:
        return {
            "step": self.step,
            "best": self.best,
            "best_step": self.best_step,
            "worse": self.since_best,
            "stopped": self.stopped,
            "evaluated": self.evaluated,
            "processes": self.group.size,
            "data": self.task.fingerprint,
            "origin": self.origin,
            "log": log.state(),
        }

    def save(self, log: Log) -> None:
        """Write a checkpoint to resume from. All processes must call this."""
        weights = {f"model/{name}": tensor.cpu() for name, tensor in self.parallel.weights().items()}
        moments = self.parallel.optimizer_state(self.optimizer)
        rng = {"cpu": torch.get_rng_state()}
        if self.group.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.group.device)
        tensors = {**weights, **moments, **checkpoints.rng_tensors(self.group.gather(rng))}
        with fail_together(self.group):
            if self.group.is_first:
                state = checkpoints.RunState(tensors, self._values(log))
                checkpoints.save_state(self.folder / CHECKPOINTS, state, keep=self.options.keep_checkpoints)

    def resume(self) -> bool:
        """Restore the last checkpoint in the run's folder; False if there is none. All processes must call this.

        Raises:
            CheckpointError: the checkpoint is corrupt, or another version of longformer wrote it.
            LongformerError: the run began with other data, or from another checkpoint.
        """
        state = None
        with fail_together(self.group):
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
        self.since_best, self.stopped = values["worse"], values["stopped"]
        self.evaluated, self.log_state = values["evaluated"], values["log"]
        return True

    def _check_same(self, values: dict[str, Any]) -> None:
        """Raise unless this run can continue from a checkpoint with these values."""
        missing = [name for name in STATE_KEYS if name not in values]
        if missing:
            raise CheckpointError(
                f"the last checkpoint in {self.folder} lacks {missing[0]!r}; another version of longformer wrote it: "
                "continue with that version, or start again in another folder"
            )
        if values["origin"] != self.origin:
            raise LongformerError(
                f"{self.options.source} has other weights or another config now than when {self.folder} was started; "
                "resume with the former checkpoint, or start again in another folder"
            )
        if values["data"] != self.task.fingerprint:
            raise LongformerError(
                f"the files hold other data now than when {self.folder} was started; "
                "resume with the former files, or start again in another folder"
            )

    def _restore_rng(self, rng: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Restore this process's random states. If the number of processes has changed, seed new ones."""
        if values["processes"] != self.group.size:
            torch.manual_seed(self.options.seed + self.group.rank + 1_000_003 * values["step"])
            return
        torch.set_rng_state(rng["cpu"])
        if self.group.device.type == "cuda" and "cuda" in rng:
            torch.cuda.set_rng_state(rng["cuda"], self.group.device)
