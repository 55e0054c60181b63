"""Outputs in the hands of tools that take them apart and build them again: torch's, accelerate's, transformers'."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from tiny_heads import batch, build_class, flat
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.parallel import scatter_gather

from longformer import (
    LongformerForMultipleChoice,
    LongformerForQuestionAnswering,
    LongformerForSequenceClassification,
    LongformerModel,
)
from longformer.models.outputs import Output

ASKED: dict[str, dict[str, Any]] = {
    "least": {},
    "all": {"output_hidden_states": True, "output_attentions": True},
}
TARGETS: dict[type, dict[str, Tensor]] = {
    LongformerModel: {},
    LongformerForQuestionAnswering: dict.fromkeys(("start_positions", "end_positions"), torch.tensor([4, 5, 6, 7])),
    LongformerForSequenceClassification: {"labels": torch.tensor([0, 1, 1, 0])},
}
CASES = [
    (cls, how, labelled) for cls, targets in TARGETS.items() for how in ASKED for labelled in {False, bool(targets)}
]


def made(cls: type, how: str, labelled: bool) -> Any:
    with torch.no_grad():
        return build_class(cls)(*batch(), **ASKED[how], **(TARGETS[cls] if labelled else {}))


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0].__name__}-{case[1]}{'-labelled' * case[2]}")
def output(request: pytest.FixtureRequest) -> Any:
    return made(*request.param)


def assert_same(actual: Any, expected: Any, *, change: Callable[[Tensor], Tensor] = lambda x: x) -> None:
    """The same kind of output with the same names, and every tensor in it changed."""
    assert type(actual) is type(expected) and actual.keys() == expected.keys()
    leaves = [pytree.tree_leaves(tuple(each)) for each in (actual, expected)]
    assert len(leaves[0]) == len(leaves[1]) >= len(expected)
    for x, y in zip(*leaves, strict=True):
        torch.testing.assert_close(x, change(y), rtol=0, atol=0)


# ---- torch and Python


def test_pytrees(output: Any) -> None:
    leaves, spec = pytree.tree_flatten(output)
    assert all(isinstance(leaf, Tensor) for leaf in leaves)
    assert_same(pytree.tree_unflatten(leaves, spec), output)
    assert_same(pytree.tree_map(lambda x: 2 * x, output), output, change=lambda x: 2 * x)
    restored = pytree.treespec_loads(pytree.treespec_dumps(spec))
    assert_same(pytree.tree_unflatten(leaves, restored), output)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_and_pickles(copied: Callable[[Any], Any], output: Any) -> None:
    assert_same(copied(output), output)


def test_saved_by_torch(output: Any, tmp_path: Path) -> None:
    torch.save(output, tmp_path / "output.pt")
    assert_same(torch.load(tmp_path / "output.pt", weights_only=False), output)


def test_gathered_from_replicas(output: Any) -> None:
    """What DataParallel does with the outputs of its devices; here they are all on the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scatter_gather.Gather, "apply", lambda device, dim, *parts: torch.cat(torch.atleast_1d(*parts)))
        gathered = scatter_gather.gather([output, output], "cpu")
    assert_same(gathered, output, change=lambda x: torch.cat([torch.atleast_1d(x)] * 2))


def test_a_hook_of_the_whole_model_may_give_another_output() -> None:
    model = build_class(LongformerForSequenceClassification)
    before = model(*batch())
    model.register_full_backward_hook(lambda *given: None)  # torch then makes the output anew from its parts
    after = model(*batch())
    assert_same(after, before)
    after.logits.sum().backward()


def test_vmap_and_functional_call() -> None:
    model = build_class(LongformerForSequenceClassification, impl="reference")
    weights = dict(model.named_parameters())

    def one(*example: Tensor) -> Output:
        return functional_call(model, weights, tuple(x[None] for x in example))

    with torch.no_grad():
        mapped, expected = vmap(one)(*batch()), model(*batch())
    assert type(mapped) is type(expected)
    torch.testing.assert_close(mapped.logits[:, 0], expected.logits, rtol=1e-11, atol=1e-11)


def exported_inputs(cls: type) -> tuple[Tensor, ...]:
    return tuple(x[:, None].expand(-1, 2, -1) for x in batch()) if cls is LongformerForMultipleChoice else batch()


@pytest.mark.parametrize("cls", [LongformerModel, LongformerForQuestionAnswering, LongformerForMultipleChoice])
def test_export_gives_an_output(cls: type, tmp_path: Path) -> None:
    model, inputs = build_class(cls), exported_inputs(cls)
    program = torch.export.export(model, inputs)
    torch.export.save(program, tmp_path / "model.pt2")
    with torch.no_grad():
        actual, expected = torch.export.load(tmp_path / "model.pt2").module()(*inputs), model(*inputs)
    assert type(actual) is type(expected)
    torch.testing.assert_close(flat(actual), flat(expected), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("asked", [{}, {"output_hidden_states": True}, ASKED["all"]], ids=["least", "hidden", "all"])
@pytest.mark.slow
def test_compiled_code_gives_an_output(asked: dict[str, Any]) -> None:
    """In one graph, but for attentions, whose shape depends on how many tokens are global."""
    torch._dynamo.reset()
    model = build_class(LongformerForSequenceClassification)
    compiled = torch.compile(model, backend="eager", fullgraph="output_attentions" not in asked)
    with torch.no_grad():
        actual, expected = (m(*batch(), **asked, **TARGETS[type(model)]) for m in (compiled, model))
    assert type(actual) is type(expected) and actual.keys() == expected.keys()
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-11, atol=1e-11)


# ---- accelerate and transformers


@pytest.fixture
def operations() -> Any:
    return pytest.importorskip("accelerate.utils.operations", reason="needs transformers and accelerate")


def test_accelerate_takes_it_apart(operations: Any, output: Any) -> None:
    halves = operations.recursively_apply(lambda x: x.bfloat16(), output)
    assert all(x.dtype == torch.bfloat16 for x in pytree.tree_leaves(halves))
    assert_same(operations.convert_to_fp32(halves), output, change=lambda x: x.bfloat16().float())
    assert_same(operations.send_to_device(output, "cpu"), output)
    assert_same(operations.gather(output), output)
    assert_same(operations.pad_across_processes(output, dim=1), output)
    if output[0].dim():  # a loss has no examples
        assert operations.find_batch_size(output) == 4
        assert_same(operations.slice_tensors(output, slice(1, 3)), output, change=lambda x: x[1:3])
        assert_same(operations.concatenate([output, output]), output, change=lambda x: torch.cat([x, x]))


def test_transformers_nested_operations(output: Any) -> None:
    nested = pytest.importorskip(
        "transformers.trainer_pt_utils", reason="accelerate and transformers are not installed"
    )
    assert_same(nested.nested_detach(output), output)
    if output[0].dim():
        assert_same(nested.nested_concat(output, output), output, change=lambda x: torch.cat([x, x]))
        assert_same(nested.nested_truncate(output, 3), output, change=lambda x: x[:3])
    numbers = nested.nested_numpify(output)
    assert_same(pytree.tree_map(torch.from_numpy, numbers), output)


class Twice(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Any:
        return self.model(*inputs), self.model(*inputs)


def test_an_output_within_a_tuple() -> None:
    """As of a model of somebody else's that holds ours, exported."""
    model, inputs = Twice(build_class(LongformerForQuestionAnswering)), batch()
    actual = torch.export.export(model, inputs).module()(*inputs)
    assert [type(each).__name__ for each in actual] == ["QuestionAnsweringOutput"] * 2
