"""Peak memory of one run, above what is loaded before it, measured in a process of its own.

``in_subprocess`` starts ``python -m longformer.bench.peak``, which reads from its argument what to run, and prints the
bytes. It does not count inputs, weights and results, nor what libraries load in a first, smaller run.
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
from longformer.bench.problem import Problem, make_document, make_inputs, make_training_inputs
from longformer.bench.timing import Contender, UnavailableError, one_line
from longformer.config import LongformerConfig
from longformer.errors import LongformerError

WARM_UP_TOKENS = 1024
MISSING = 3  # exit status of a process whose contender cannot take part; it prints the reason on standard output


def in_subprocess(task: dict[str, Any]) -> int:
    """Bytes at the peak of ``task``.

    Args:
        task: a key of ``TASKS`` as "what", and the arguments of that function.

    Raises:
        UnavailableError: the contender cannot take part, or there was not enough memory.
        LongformerError: the process failed for another reason. The message has the last line of its errors.
    """
    task = {**task, "threads": torch.get_num_threads()}
    command = [sys.executable, "-m", "longformer.bench.peak", json.dumps(task)]
    # Otherwise a process that is to measure with one thread would still start threads for all cores.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return int(lines[-1])
    if done.returncode == MISSING and lines:
        raise UnavailableError(lines[-1])
    if done.returncode < 0:
        raise UnavailableError(f"was killed by signal {-done.returncode}, most likely because memory ran out")
    last_line = (done.stderr.strip().splitlines() or ["it printed no error"])[-1]
    raise LongformerError(f"measuring {task['what']} of {task['name']} failed: {last_line}")


def attention_forward(name: str, problem: dict[str, Any]) -> int:
    """Of a contender of ``bench attention``, above inputs and output."""
    full = Problem(**problem)
    warm_up = full
    if "compiled" not in name:  # what is compiled for one problem has to run that very problem first
        window = max(1, 2 * full.window)
        warm_up = full.shortened(window * max(1, WARM_UP_TOKENS // window))  # whole windows, as transformers wants
    _once(attention.contender(name, warm_up, make_inputs(warm_up)))
    return above(attention.contender(name, full, make_inputs(full)))


def model_forward(name: str, variant: str, config: dict[str, Any], tokens: int, global_tokens: int) -> int:
    """Of a forward pass of the whole model, above its weights."""
    architecture = LongformerConfig.from_dict(config)
    if name == model.TRANSFORMERS:
        made = model.reference_model(architecture).to(model.VARIANTS[variant].against)
    else:
        made = model.VARIANTS[variant].make(model.our_model(architecture)).eval()

    def forward(length: int) -> Contender:
        ids = make_document(architecture, length, min(global_tokens, length - 4))
        return Contender(name, lambda: model.logits(made, input_ids=ids))

    _once(forward(min(tokens, WARM_UP_TOKENS // 4)))
    return above(forward(tokens))


def exported_forward(name: str, file: str, config: dict[str, Any], tokens: int, global_tokens: int) -> int:
    """Of a forward pass of a model that was exported to ONNX, above its weights."""
    from longformer.exporting import OnnxModel

    architecture = LongformerConfig.from_dict(config)
    made = OnnxModel(file, threads=torch.get_num_threads())

    def forward(length: int) -> Contender:
        ids = make_document(architecture, length, min(global_tokens, length - 4))
        return Contender(name, lambda: model.logits(made, input_ids=ids))

    _once(forward(min(tokens, WARM_UP_TOKENS // 4)))
    return above(forward(tokens))


def training_step(name: str, config: dict[str, Any], tokens: int, global_tokens: int, dropout_p: float) -> int:
    """Of a training step, above weights and AdamW's moments."""
    steps = training.Steps(LongformerConfig.from_dict(config), tokens, global_tokens, dropout_p)
    step = steps.get(name, alone=True)
    inputs = step.inputs
    short = min(tokens, WARM_UP_TOKENS // 4)  # the first step makes the moments
    step.inputs = make_training_inputs(steps.config, short, min(global_tokens, short - 4))
    contender = training.contender(name, lambda: step)
    _once(contender)
    step.inputs = inputs
    return above(contender)


TASKS: dict[str, Callable[..., int]] = {
    "attention forward": attention_forward,
    "model forward": model_forward,
    "exported forward": exported_forward,
    "training step": training_step,
}


def above(contender: Contender) -> int:
    """Bytes at the peak of one run above those in use before it, not counting its result."""
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
    """Make the allocator return free memory to the system. A run that used it again would not be counted."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def reset_peak() -> None:
    """Forget the peak so far, if the system can do so. If it cannot, a run counts only where it exceeds that peak."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def resident() -> int:
    """Bytes of memory in use now; on systems without /proc, the most so far."""
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
            "this system does not tell a process how much memory it uses; measure on Linux or macOS"
        ) from None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def main() -> None:
    """Run the task in the only argument, and print its bytes."""
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
