"""``bench attention``: the attention of one layer, from projected query, key and value to the output.

Letters: B batch, S sequence, H heads, D head dimension, G global tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from longformer.bench import rivals
from longformer.bench.problem import Inputs, Problem, make_inputs
from longformer.bench.timing import Case, Contender
from longformer.kernels import attend, global_attention, sliding_window_attention

OURS = "longformer"
RIVALS = {
    "transformers": rivals.transformers_attention,
    "FlexAttention, compiled": rivals.flex_attention,
    "dense SDPA": rivals.dense_attention,
}


def our_attention(
    problem: Problem, inputs: Inputs, impl: str = "auto", *, index_given: bool = False
) -> rivals.Attention:
    """Our two operators, or one implementation of them.

    Args:
        index_given: the index of the global columns is made in advance, as a model does it for all of its layers.
            Otherwise the operator makes it from the mask of global tokens in each run.
    """
    query, key, value = (x.transpose(1, 2) for x in inputs.local)
    tokens, window = problem.tokens(query.device), (problem.window, problem.window)
    local = partial(sliding_window_attention, query, key, value, window, global_mask=tokens.is_global, impl=impl)
    if index_given:
        local = partial(attend, query, key, value, problem.pattern, tokens.with_index(counted=True), impl=impl)
    if inputs.global_ is None:
        return rivals.Attention(lambda: local().transpose(1, 2))
    of_global_rows = [x.transpose(1, 2) for x in inputs.global_]
    return rivals.Attention(
        lambda: rivals.replace_global_rows(local().transpose(1, 2), global_attention(*of_global_rows, impl=impl))
    )


def contender(name: str, problem: Problem, inputs: Inputs, *, backward: bool = False) -> Contender:
    """``name`` at work on ``inputs``. It returns the output (B, S, H, D) and, if ``backward``, the inputs' gradients.

    Args:
        name: a key of ``RIVALS``, or ours: "longformer", or "longformer (banded)" for one of its implementations.

    Raises:
        UnavailableError: it is not installed, or cannot solve this problem.
    """
    if name in RIVALS:
        attention = RIVALS[name](problem, inputs)
    else:
        attention = our_attention(problem, inputs, name.removeprefix(OURS).strip(" ()") or "auto")

    def run() -> Sequence[Tensor]:
        with torch.set_grad_enabled(backward):
            out = attention.forward()
            if not backward:
                return [out]
            return [out, *torch.autograd.grad(out, inputs.leaves, inputs.grad)]

    def prepare() -> None:
        with torch.set_grad_enabled(backward):
            attention.prepare()

    return Contender(name, run, prepare)


def cases(problem: Problem, *, ours: Sequence[str], backward: bool) -> list[Case]:
    """The forward pass of ours and every rival and, if ``backward``, forward and backward together."""
    found = []
    for with_backward in (False, True) if backward else (False,):
        what = "forward + backward" if with_backward else "forward"
        title = f"attention {what}, {problem.seq_len} tokens, {problem.global_tokens} global, {problem.dtype}"
        found.append(make_case(title, problem, (*ours, *RIVALS), backward=with_backward))
        found[-1].settings["backward"] = with_backward
    return found


def make_case(title: str, problem: Problem, names: Sequence[str], *, backward: bool = False) -> Case:
    """The contenders ``names`` at one problem, all on the same inputs."""
    inputs = make_inputs(problem, backward=backward)
    return Case(
        name=title,
        settings={**problem.settings(), "threads": torch.get_num_threads()},
        dtype=problem.torch_dtype,
        builders={name: partial(contender, name, problem, inputs, backward=backward) for name in names},
        reference=partial(_in_float32, problem, inputs, backward) if problem.torch_dtype.itemsize < 4 else None,
        flop=problem.forward_flop + (problem.backward_flop if backward else 0),
        items=(problem.batch * problem.seq_len, "tokens"),
    )


def _in_float32(problem: Problem, inputs: Inputs, backward: bool) -> Sequence[Tensor]:
    """What ours gives in float32 for the same rounded inputs."""
    exact = contender(OURS, problem.replace(dtype="float32"), inputs.to(torch.float32), backward=backward)
    return exact.run()
