"""``longformer parity`` of every head: results, gradients of its own loss, answers chosen or given, known slips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from head_cases import CASES, Inputs, answers, question_batch
from reference import TINY, build
from torch import nn
from torch.nn import functional as F

from longformer import LongformerForMultipleChoice
from longformer.cli import main
from longformer.models.heads import IGNORED
from longformer.parity import Truth, compare, read_trace, trace
from longformer.parity.contest import expected_shapes
from longformer.parity.runs import draw

IDS = [[0, 20, 21, 2, 2, 30, 31, 32, 2], [0, 22, 2, 2, 40, 41, 2]]
NARROW = TINY.replace(num_hidden_layers=1, attention_window=8)
OTHERS = [name for name in CASES if name != "question answering"]  # of which test_cli has the command


class Done:
    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    write("ids.json")

    def run(*arguments: str) -> Done:
        with pytest.raises(SystemExit) as end:
            main(["parity", *arguments])
        said = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return Done(end.value.code, said.out, said.err)

    return run


def write(path: str, **entries: Any) -> None:
    Path(path).write_text(json.dumps({"input_ids": IDS, **entries}))


def save(name: str) -> None:
    draw(NARROW.replace(**CASES[name].changes), 0, CASES[name].kind).save_pretrained("model")


RULE = {
    "masked words": [IDS[0], [*IDS[1], IGNORED, IGNORED]],
    "one number": [[0.0], [1.0]],
    "several numbers": [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]],
    "one class": [0, 1],
    "several classes": [0, 1],  # as integers one class is meant, unless the config says otherwise
    "tokens": [[i % 3 for i in IDS[0]], [*(i % 3 for i in IDS[1]), IGNORED, IGNORED]],
    "choices": [0],
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.slow
def test_answers_that_a_rule_chooses(command: Any, name: str) -> None:
    save(name)
    done = command("record", "model", "ids.json", "-o", "a.safetensors", "--gradients", "--reference", "transformers")
    assert done.status == 0, done.err
    recorded = read_trace("a.safetensors")
    assert recorded.inputs["labels"].tolist() == RULE[name]
    config = NARROW.replace(**CASES[name].changes)
    shapes = expected_shapes("model", config, recorded.inputs)
    assert {key: shapes[key] for key in recorded} == {key: tuple(value.shape) for key, value in recorded.items()}
    assert {"logits", "gradient.logits", "gradient.parameter.longformer.embeddings.LayerNorm.bias"} <= recorded.keys()
    assert ("pooler_output" in recorded) == (name == "choices")
    done = command("compare", "a.safetensors", "ours")
    assert (done.status, done.out.split(":")[0]) == (0, "rounding"), done.out
    assert "gradient.layer.0.output" in done.out


GIVEN = {
    "masked words": [[IGNORED, 7, *[IGNORED] * 7], [IGNORED] * 7],
    "one number": [0.3, -2.5],
    "several numbers": [[0.3, 1, 2], [-1.7, 0, 1]],
    "one class": [2, 0],
    "several classes": [[0.3, 1, 0], [1, 0, 1]],
    "tokens": [[1] * 9, [2] * 7],
    "choices": [1],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_answers_that_are_given(command: Any, name: str) -> None:
    """In both implementations, and in a precision that does not have the labels' digits."""
    save(name)
    write("given.json", labels=GIVEN[name])
    done = command("compare", "transformers:bfloat16", "ours", "given.json", "--model", "model", "--gradients")
    assert (done.status, done.out.split(":")[0]) == (0, "rounding"), done.out + done.err
    command("record", "model", "given.json", "-o", "b.safetensors", "--gradients", "--dtype", "bfloat16")
    done = command("compare", "b.safetensors", "ours")
    assert (done.status, done.out.split(":")[0]) == (0, "rounding"), done.out + done.err
    command("record", "model", "given.json", "-o", "c.safetensors")
    assert "labels" not in read_trace("c.safetensors").inputs


def test_labels_are_cut_with_the_tokens(command: Any) -> None:
    save("tokens")
    write("given.json", labels=GIVEN["tokens"])
    command("record", "model", "given.json", "-o", "a.safetensors", "--gradients", "--max-tokens", "8")
    assert read_trace("a.safetensors").inputs["labels"].tolist() == [[1] * 8, [*[2] * 7, IGNORED]]


def test_choices_of_several_questions(command: Any) -> None:
    """As many questions as labels; the rows are the choices of the first, then of the next."""
    save("choices")
    write("given.json", input_ids=IDS * 3, labels=[1, 0])
    done = command("record", "model", "given.json", "-o", "a.safetensors", "--gradients")
    assert done.status == 0, done.err
    found = read_trace("a.safetensors")
    logits = found["logits"].view(2, 3)
    expected = (logits.softmax(1) - F.one_hot(torch.tensor([1, 0]), 3)) / 2
    torch.testing.assert_close(found["gradient.logits"].view(2, 3), expected, rtol=0, atol=1e-6)
    done = command("compare", "a.safetensors", "transformers")
    assert (done.status, done.out.split(":")[0]) == (0, "rounding")


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("tokens", [[1] * 9, [2] * 6], "labels must have a label for each token, in rows of [9, 7]"),
        ("tokens", [[1] * 9, [3] * 7], "given.json: labels holds 3; it may hold -100 (not to be predicted) and the"),
        ("masked words", 4, "labels must have a label for each token"),
        ("one class", [[0], [1, 2]], "labels must be a list of numbers, or of lists of equally many"),
        ("one class", ["a", "b"], "labels must be a list of numbers"),
        ("one class", [0, 3], "labels holds 3"),
        ("choices", [0, 1, 0], "2 rows are no equal number of choices for each of 3 labels"),
        ("choices", [2], "labels holds 2; it may hold -100 (not to be predicted) and the choices 0 to 1"),
    ],
)
def test_labels_that_do_not_fit(command: Any, name: str, labels: Any, message: str) -> None:
    save(name)
    write("given.json", labels=labels)
    for reference in ([], ["--reference", "transformers"]):
        done = command("record", "model", "given.json", "-o", "a.safetensors", "--gradients", *reference)
        assert done.status == 2 and message in done.err, done.err
        assert not Path("a.safetensors").exists()


@pytest.mark.parametrize("name", ["masked words", "one class", "choices"])
def test_the_class_that_a_config_names(command: Any, name: str) -> None:
    """Without weights, they are drawn for it; question answering is what else they are drawn for."""
    case = CASES[name]
    NARROW.replace(**case.changes).save("tiny.json", architectures=["SomethingElse", case.kind.__name__])
    done = command("record", "tiny.json", "ids.json", "-o", "a.safetensors", "--gradients")
    assert done.status == 0, done.err
    assert read_trace("a.safetensors").inputs["labels"].tolist() == RULE[name]
    assert command("compare", "a.safetensors", "ours").out.startswith("identical")
    NARROW.save("base.json", architectures=["LongformerModel"])
    done = command("record", "base.json", "ids.json", "-o", "b.safetensors", "--gradients")
    assert (done.status, "is a base model, which has no loss" in done.err) == (2, True)


# ---- known slips


def spoilt(name: str, change: Any) -> tuple[str | None, list[str]]:
    """Where a model departs in which ``change`` has broken something, and the hints."""
    case = CASES[name]
    config = NARROW.replace(**case.changes)
    right, wrong = (build(config, kind=case.kind).ours for _ in range(2))
    inputs: Inputs = question_batch(TINY, case.kind)
    truth = Truth(right, inputs)
    change(wrong)
    with torch.no_grad(), trace(right) as expected:
        right(**inputs)
    with torch.no_grad(), trace(wrong) as found:
        wrong(**inputs)
    result = compare(found, expected, truth=truth)
    return None if result.first is None else result.first.name, result.hints


def forward_of(module: nn.Module, forward: Any) -> None:
    module.forward = forward  # type: ignore[method-assign]


def mean_token(model: Any) -> None:
    head = model.classifier
    forward_of(head, lambda hidden: head.out_proj(torch.tanh(head.dense(hidden.mean(1)))))


def without_tanh(model: Any) -> None:
    head = model.classifier
    forward_of(head, lambda hidden: head.out_proj(head.dense(hidden[:, 0])))


def tanh_gelu(model: Any) -> None:
    head = model.lm_head

    def forward(hidden: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        return F.linear(head.layer_norm(F.gelu(head.dense(hidden), approximate="tanh")), words, head.bias)

    forward_of(head, forward)


def zero(path: str) -> Any:
    return lambda model: nn.init.zeros_(model.get_parameter(path))


def last_token_pooled(model: Any) -> None:
    pooler = model.longformer.pooler
    forward_of(pooler, lambda hidden: torch.tanh(pooler.dense(hidden[:, -1])))


def other_weights(model: Any) -> None:
    nn.init.normal_(model.classifier.weight)


@pytest.mark.parametrize(
    ("name", "change", "first", "hint"),
    [
        ("one class", mean_token, "logits", "classifier.dense reads the mean of all tokens instead of the first"),
        ("several classes", without_tanh, "logits", "tanh after classifier.dense is left out"),
        ("one number", zero("classifier.out_proj.bias"), "logits", "the bias classifier.out_proj.bias is left out"),
        ("one class", zero("classifier.dense.bias"), "logits", "the bias classifier.dense.bias is left out"),
        ("tokens", zero("classifier.bias"), "logits", "the bias classifier.bias is left out"),
        ("tokens", other_weights, "logits", "classifier computes a linear layer, but not with these weights"),
        ("choices", zero("classifier.bias"), "logits", "the bias classifier.bias is left out"),
        ("choices", last_token_pooled, "pooler_output", "pooler.dense reads the last token instead of the first"),
        ("masked words", tanh_gelu, "logits", "lm_head's activation is GELU's tanh approximation"),
        ("masked words", zero("lm_head.bias"), "logits", "the bias lm_head.bias is left out"),
        ("masked words", zero("lm_head.layer_norm.bias"), "logits", "in lm_head LayerNorm's bias is left out"),
    ],
)
def test_slips_of_heads(name: str, change: Any, first: str, hint: str) -> None:
    found, hints = spoilt(name, change)
    assert found == first
    assert any(text.startswith(hint) for text in hints), hints


def test_what_a_trace_holds_of_choices() -> None:
    """All texts of all questions, one after the other, whatever the shape of the input."""
    model = draw(NARROW, 0, LongformerForMultipleChoice)
    inputs = question_batch(TINY, LongformerForMultipleChoice)
    labels = answers(CASES["choices"], TINY, inputs)
    with trace(model, gradients=True) as found:
        found.backward(model(**inputs, **labels).loss)
    assert found.inputs["input_ids"].shape == (4, 40) and found.inputs["labels"].shape == (2,)
    assert found["logits"].shape == (4, 1) and found["pooler_output"].shape == (4, 32)
