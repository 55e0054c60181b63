"""Peak memory of one run, above what is loaded before it, measured in a process of its own.

``in_subprocess`` asks; the child, ``python -m longformer.bench.peak``, reads what to run from its argument and prints
the bytes. Not counted are inputs, weights and results, nor what libraries load on a first, smaller run.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from longformer.bench import attention, model, training
from longformer.bench.timing import Contender, UnavailableError, one_line
from longformer.config import LongformerConfig
from longformer.errors import LongformerError

WARM_UP_TOKENS = 1024
MISSING = 3  # exit status of a child whose contender cannot take part; it says why on standard output


def in_subprocess(task: dict[str, Any]) -> int:
    """Bytes at the peak of ``task``, a key of ``TASKS`` as "what" and that function's arguments.

    Raises:
        UnavailableError: the contender cannot take part, or memory did not suffice.
        LongformerError: the child failed otherwise; its last words are in the message.
    """
    task = {**task, "threads": torch.get_num_threads()}
    command = [sys.executable, "-m", "longformer.bench.peak", json.dumps(task)]
    # Else the threads of a child measuring with one would still be started for all cores.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return int(lines[-1])
    if done.returncode == MISSING and lines:
        raise UnavailableError(lines[-1])
    if done.returncode < 0:
        raise UnavailableError(f"was killed by signal {-done.returncode}, most likely for want of memory")
    said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    raise LongformerError(f"measuring {task['what']} of {task['name']} failed: {said}")


def attention_forward(name: str, shape: dict[str, Any]) -> int:
    """Of a contender of ``bench attention``, above inputs and output."""
    full = attention.Shape(**shape)
    warm_up = full
    if "compiled" not in name:  # that is compiled for one shape, by its first run at that very shape
        window = max(1, 2 * full.window)
        tokens = min(full.seq_len, window * max(1, WARM_UP_TOKENS // window))
        warm_up = full.replace(seq_len=tokens, global_tokens=min(full.global_tokens, tokens))
    _once(attention.contender(name, warm_up, attention.make_inputs(warm_up)))
    return above(attention.contender(name, full, attention.make_inputs(full)))


def model_forward(name: str, variant: str, config: dict[str, Any], tokens: int, global_tokens: int) -> int:
    """Of a forward of the whole model, above its weights."""
    architecture = LongformerConfig.from_dict(config)
    if name == model.TRANSFORMERS:
        made = model.reference_model(architecture).to(model.VARIANTS[variant].against)
    else:
        made = model.VARIANTS[variant].make(model.our_model(architecture)).eval()

    def forward(length: int) -> Contender:
        ids = model.make_pair(architecture, length, min(global_tokens, length - 4))
        return Contender(name, lambda: model.logits(made, input_ids=ids))

    _once(forward(min(tokens, WARM_UP_TOKENS // 4)))
    return above(forward(tokens))


def training_step(name: str, config: dict[str, Any], tokens: int, global_tokens: int, dropout_p: float) -> int:
    """Of a training step, above weights and AdamW's moments."""
    steps = training.Steps(LongformerConfig.from_dict(config), tokens, global_tokens, dropout_p)
    step = steps.get(name, alone=True)
    inputs = step.inputs
    short = min(tokens, WARM_UP_TOKENS // 4)  # the first step makes the moments
    positions = torch.tensor([0])
    ids = model.make_pair(steps.config, short, min(global_tokens, short - 4))
    step.inputs = {"input_ids": ids, "start_positions": positions, "end_positions": positions}
    contender = training.contender(name, lambda: step)
    _once(contender)
    step.inputs = inputs
    return above(contender)


TASKS: dict[str, Callable[..., int]] = {
    "attention forward": attention_forward,
    "model forward": model_forward,
    "training step": training_step,
}


def above(contender: Contender) -> int:
    """Bytes at the peak of one run above those before it, its result not counted."""
    contender.prepare()
    gc.collect()
    give_back_freed()
    reset_peak()
    before = resident()
    result = contender.run()
    found = peak() - before - sum(tensor.nbytes for tensor in result)
    return max(found, 0)


def _once(contender: Contender) -> None:
    contender.prepare()
    contender.run()


def give_back_freed() -> None:
    """Make the allocator return what is free to the system, so that a run cannot use it uncounted."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def reset_peak() -> None:
    """Start a new high-water mark, where the system can; elsewhere the old one stands, which a large run exceeds."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def resident() -> int:
    """Bytes of memory in use now; without /proc, the most so far."""
    return _status("VmRSS")


def peak() -> int:
    """The most bytes in use since the last reset, or since the process started."""
    return _status("VmHWM")


def _status(entry: str) -> int:
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{entry}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        raise LongformerError(
            "this system tells no process how much memory it uses: measure on Linux or macOS"
        ) from None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def main() -> None:
    """The child: run the task in the only argument, print its bytes."""
    task = json.loads(sys.argv[1])
    torch.set_num_threads(task.pop("threads"))
    try:
        found = TASKS[task.pop("what")](**task)
    except (UnavailableError, MemoryError, RuntimeError) as error:
        sys.stdout.write(f"{one_line(error)}\n")
        sys.exit(MISSING)
    sys.stdout.write(f"{found}\n")


if __name__ == "__main__":
    main()
