"""Programs of torch.export: portable ones need torch alone, the others have our operator."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from exported import build, global_tokens, questions

from longformer import LongformerError, LongformerForQuestionAnswering
from longformer.exporting import export_program

pytestmark = pytest.mark.slow

ALONE = """
import sys
sys.modules["longformer"] = None    # importing it would fail
import torch
program = torch.export.load(sys.argv[1]).module()
inputs, outputs = torch.load(sys.argv[2])
for given, expected in zip(inputs, outputs, strict=True):
    for actual, exact in zip(program(*given), expected, strict=True):
        torch.testing.assert_close(actual, exact, rtol=0, atol=1e-5)
"""


def test_a_portable_program_runs_where_this_package_is_not(tmp_path: Path) -> None:
    """At any batch and length, and with any number of global tokens."""
    model = build(LongformerForQuestionAnswering)
    torch.export.save(export_program(model), tmp_path / "model.pt2")
    inputs, outputs = [], []
    for batch, length, padding in ((2, 30, (0, 4)), (1, 65, (0,)), (3, 200, (0, 90, 7)), (1, 7, (0,))):
        ids, mask = questions(batch, length, padding)
        for given in (None, *(global_tokens(mask, number) for number in ("none", "one", "many"))):
            inputs.append((ids, mask, torch.full_like(ids, -1) if given is None else given))
            with torch.no_grad():
                outputs.append(tuple(model(ids, mask, given)))
    torch.save((inputs, outputs), tmp_path / "expected.pt")
    command = [sys.executable, "-c", ALONE, str(tmp_path / "model.pt2"), str(tmp_path / "expected.pt")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_program_of_ours_has_our_operator_and_a_portable_one_torchs_alone() -> None:
    model = build(LongformerForQuestionAnswering)
    for portable, number in ((False, 2), (True, 0)):
        program = export_program(model, portable=portable)
        targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
        assert targets.count(torch.ops.longformer.attention.default) == number
        ids, mask = questions(2, 50, (0, 9))
        with torch.no_grad():
            for actual, exact in zip(
                program.module()(ids, mask, torch.full_like(ids, -1)), model(ids, mask), strict=True
            ):
                torch.testing.assert_close(actual, exact, rtol=0, atol=1e-5)


def test_patterns_in_a_program() -> None:
    """Causal and full layers and global tokens by positions and ids are exported; what is no window is refused."""
    pattern = "causal,global=0/full,global-every=9,global-ids=2"
    model = build(LongformerForQuestionAnswering, num_hidden_layers=2, attention_pattern=pattern)
    program = export_program(model).module()
    for batch, length, padding in ((2, 30, (0, 4)), (1, 45, (0,))):
        ids, mask = questions(batch, length, padding)
        with torch.no_grad():
            expected = model(ids, mask)
        for actual, exact in zip(program(ids, mask, torch.full_like(ids, -1)), expected.to_tuple(), strict=True):
            torch.testing.assert_close(actual, exact, rtol=0, atol=1e-5)
    for other in (
        build(LongformerForQuestionAnswering, attention_pattern="window=4+window=2,dilation=3"),
        LongformerForQuestionAnswering(model.config, attention={1: lambda b, h, i, j: i == j}),
    ):
        with pytest.raises(LongformerError, match=r"of layer \d is a mask, a score, a union or a predicate, and"):
            export_program(other)
