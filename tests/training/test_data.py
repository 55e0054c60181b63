"""What a model is trained on: windows that point at the answer, steps that lose nothing, masks drawn anew."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoint import byte_level_tokenizer, tiny_model
from training_runs import QUESTIONS, qa_options, squad_file

from longformer import DataError, LongformerError, LongformerForMaskedLM, LongformerTokenizer
from longformer.answering.squad import Example, read_squad
from longformer.distributed import Processes
from longformer.models.heads import IGNORED
from longformer.training import MLMOptions
from longformer.training.batches import parts_of_step, steps_of_epoch
from longformer.training.mlm import MaskedLMTask, pack_documents, read_documents
from longformer.training.qa import NO_ANSWER, Feature, QuestionAnsweringTask, fingerprint, make_features

ALONE = Processes(0, 1, torch.device("cpu"), joined=False)


@pytest.fixture
def tokenizer(tmp_path: Path) -> LongformerTokenizer:
    return byte_level_tokenizer(tmp_path)


def options(**changes: Any) -> Any:
    return qa_options(Path("source"), Path("output"), "file", **changes)


def examples(tmp_path: Path, questions: Any = QUESTIONS) -> list[Example]:
    return read_squad(squad_file(tmp_path / "squad.json", questions))


# --- questions ------------------------------------------------------------------------------------------------------


def test_features_point_at_the_answer(tokenizer: LongformerTokenizer, tmp_path: Path) -> None:
    features, unusable = make_features(examples(tmp_path), tokenizer, options(max_length=60))
    assert unusable == []
    for feature, (question, context, answer) in zip(features, QUESTIONS, strict=True):
        ((first, last),) = feature.spans
        assert tokenizer.decode(feature.input_ids[first : last + 1]).strip() == answer
        assert feature.input_ids == tokenizer(question, context)["input_ids"]


def test_windows_of_a_long_context(tokenizer: LongformerTokenizer, tmp_path: Path) -> None:
    """Each holds the whole question and a part of the context; together they hold all of it, the answer where it is."""
    context = "It was long ago. " * 5 + "Zoe won." + " Nobody knows more than that." * 3
    (example,) = examples(tmp_path, [("Who won?", context, "Zoe")])
    rows, _ = make_features([example], tokenizer, options(max_length=40, stride=20))
    tokens = tokenizer(context)["input_ids"][1:-1]
    prefix = [*tokenizer("Who won?")["input_ids"], tokenizer.sep_token_id]
    capacity = 40 - len(prefix) - 1
    for i, row in enumerate(rows):
        assert row.input_ids == [*prefix, *tokens[20 * i : 20 * i + capacity], tokenizer.sep_token_id]
    assert 20 * (len(rows) - 1) + capacity >= len(tokens)
    found = [tokenizer.decode(row.input_ids[a : b + 1]) for row in rows for a, b in row.spans if (a, b) != NO_ANSWER]
    assert found
    assert {text.strip() for text in found} == {"Zoe"}
    empty = sum(row.spans == [NO_ANSWER] for row in rows)
    assert empty == len(rows) - len(found) > 1
    few, _ = make_features([example], tokenizer, options(max_length=40, stride=20, empty_windows=1))
    assert sum(row.spans == [NO_ANSWER] for row in few) == 1
    assert len(few) == len(found) + 1


def test_unanswerable_questions_point_at_the_start(tokenizer: LongformerTokenizer, tmp_path: Path) -> None:
    rows, unusable = make_features(examples(tmp_path, [("Who?", "Nobody is here.", None)]), tokenizer, options())
    assert (rows[0].spans, unusable) == ([NO_ANSWER], [])


def test_answers_without_a_certain_place_are_left_out(tokenizer: LongformerTokenizer, tmp_path: Path) -> None:
    questions = examples(tmp_path, [*QUESTIONS, ("Who?", "Nobody is here.", "Zoe")])
    assert make_features(questions, tokenizer, options()).unusable == ["q6"]
    with pytest.raises(DataError, match="none of the 1 questions has an answer that can be used"):
        QuestionAnsweringTask(questions[-1:], [], tokenizer, options())


def test_an_answer_that_no_window_holds_is_not_trained_as_absent(
    tokenizer: LongformerTokenizer, tmp_path: Path
) -> None:
    """Longer than a window, or, where a stride as long as windows are cuts it in two."""
    answer = "a cat and a dog and a very old owl, all three of them"
    questions = examples(tmp_path, [*QUESTIONS, ("Who?", f"It was {answer}.", answer)])
    rows, unusable = make_features(questions, tokenizer, options(max_length=40))
    assert unusable == ["q6"]
    assert len(rows) == len(QUESTIONS)
    assert make_features(questions, tokenizer, options(max_length=128)).unusable == []
    with pytest.raises(DataError, match="none of the 1 questions has an answer that can be used"):
        QuestionAnsweringTask(questions[-1:], [], tokenizer, options(max_length=40))


def test_questions_without_tokens_are_left_out(tmp_path: Path, pretrained_dir: Path) -> None:
    """U+200B is nothing to this tokenizer."""
    tokenizer = LongformerTokenizer.from_pretrained(pretrained_dir)
    assert len(tokenizer("\u200b")["input_ids"]) == 2
    for question, context, answer in (("\u200b", "Ann met Bob.", "Ann"), ("Who?", "\u200b Ann.", "\u200b")):
        questions = examples(tmp_path, [*QUESTIONS, (question, context, answer)])
        assert make_features(questions, tokenizer, options()).unusable == ["q6"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"max_length": 10},
            r"squad.json, data\[0\].*qas\[0\]: id 'q0': the question .* take 12 of the 10 tokens .*; raise max_length",
        ),
        ({"max_length": 16, "stride": 12}, r"\[0\]: id 'q0': stride is 12; with 4 tokens .* windows more than 4 apart"),
        ({"batch_tokens": 20}, r"batch_tokens is 20, and the longest window has 28 tokens"),
    ],
)
def test_what_cannot_fit(tokenizer: LongformerTokenizer, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        QuestionAnsweringTask(examples(tmp_path), [], tokenizer, options(**changes))


def test_several_annotators(tokenizer: LongformerTokenizer, tmp_path: Path) -> None:
    path = Path(squad_file(tmp_path / "squad.json", [("Who met?", "Ann met Bob.", "Ann")]))
    document = json.loads(path.read_text())
    entry = document["data"][1]["paragraphs"][0]["qas"][0]
    entry["answers"] += [{"text": "Bob", "answer_start": 8}]
    path.write_text(json.dumps(document))
    spans = {}
    for annotator in ("first", "random"):
        task = QuestionAnsweringTask(read_squad(path), [], tokenizer, options(annotator=annotator))
        spans[annotator] = [tuple(task.collate([0], epoch)[0]["spans"][0].tolist()) for epoch in range(20)]
        assert spans[annotator] == [tuple(task.collate([0], epoch)[0]["spans"][0].tolist()) for epoch in range(20)]
    assert len(set(spans["first"])) == 1
    assert len(set(spans["random"])) == 2


def test_a_row_s_loss_does_not_depend_on_the_rows_beside_it(tokenizer: LongformerTokenizer, tmp_path: Path) -> None:
    task = QuestionAnsweringTask(examples(tmp_path), [], tokenizer, options())
    model = tiny_model(tokenizer)
    alone = [task.loss(model, task.collate([row], 0)[0]).item() for row in range(6)]
    inputs, count = task.collate(range(6), 0)
    assert count == 6
    assert task.loss(model, inputs).item() == pytest.approx(sum(alone) / 6, rel=1e-5)


def test_the_fingerprint_is_of_everything_and_takes_no_room(tmp_path: Path) -> None:
    features = [Feature(list(range(i, i + 400)), [(i, i + 1)]) for i in range(500)]
    held = examples(tmp_path)
    text = repr(features) + repr([(e.id, e.question, e.context, e.answers) for e in held])
    tracemalloc.start()
    found = fingerprint(features, held)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < len(text) / 20
    assert found == hashlib.sha256(text.encode()).hexdigest()
    others = [fingerprint(features[::-1], held), fingerprint(features, held[1:])]
    others.append(fingerprint([*features[:-1], features[-1]._replace(spans=[(0, 0)])], held))
    assert len({found, *others}) == 4


# --- steps ----------------------------------------------------------------------------------------------------------


def test_steps_hold_every_row_once_in_like_lengths() -> None:
    lengths = [1 + i % 90 for i in range(1003)]
    epochs = [steps_of_epoch(lengths, 8, seed=0, epoch=epoch) for epoch in (0, 1)]
    for steps in epochs:
        assert sorted(row for step in steps for row in step) == list(range(1003))
        assert max(map(len, steps)) == 8
        padded = sum(max(lengths[row] for row in step) * len(step) for step in steps)
        assert padded < 1.15 * sum(lengths)
    assert epochs[0] != epochs[1]
    assert epochs[0] == steps_of_epoch(lengths, 8, seed=0, epoch=0)
    assert epochs[0] != steps_of_epoch(lengths, 8, seed=1, epoch=0)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_parts_share_a_step_out(size: int) -> None:
    """Each row once, none above the limit, as many parts in every process."""
    lengths = [7, 3, 9, 1, 1, 8, 2]
    rows = list(range(7)) if size < 5 else [0, 1, 2]
    shares = [parts_of_step(rows, lengths, 10, rank=rank, size=size) for rank in range(size)]
    assert len({len(parts) for parts in shares}) == 1
    assert sorted(row for parts in shares for part in parts if part.counts for row in part.rows) == rows
    assert all(sum(lengths[row] for row in part.rows) <= 10 for parts in shares for part in parts)
    assert all(part.rows for parts in shares for part in parts)


# --- text -----------------------------------------------------------------------------------------------------------


def mlm_options(**changes: Any) -> MLMOptions:
    values: dict[str, Any] = {"source": "s", "output": "o", "files": ("f",), "max_length": 64, **changes}
    return MLMOptions(**values)


def test_documents_are_packed(tokenizer: LongformerTokenizer) -> None:
    rows = pack_documents(["abc", "de", "fghi"], tokenizer, 8)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    ids = [tokenizer.convert_tokens_to_ids(c) for c in "abcdefghi"]
    assert rows.tolist() == [[cls, *ids[:3], sep, *ids[3:5], sep], [cls, sep, *ids[5:], sep, sep]][: len(rows)]
    (short,) = pack_documents(["abc"], tokenizer, 16).tolist()
    assert short == [cls, *ids[:3], sep, sep, *[tokenizer.pad_token_id] * 10]


def test_masks(tokenizer: LongformerTokenizer) -> None:
    """15 % of the tokens are to be predicted, eight in ten of them masked, one random, one as it is; others as are."""
    task = MaskedLMTask(["the quick brown fox. " * 2000], [], tokenizer, mlm_options())
    rows = list(range(len(task.lengths)))
    inputs, count = task.collate(rows, 0)
    ids, labels, plain = inputs["input_ids"], inputs["labels"], task.rows
    chosen = labels != IGNORED
    assert count == int(chosen.sum())
    assert torch.equal(labels[chosen], plain[chosen])
    assert torch.equal(ids[~chosen], plain[~chosen])
    assert not bool(torch.isin(plain[chosen], task.masking.special).any())
    assert count / plain.numel() == pytest.approx(0.15, abs=0.01)
    masked = float((ids[chosen] == tokenizer.mask_token_id).float().mean())
    kept = float((ids[chosen] == plain[chosen]).float().mean())
    assert masked == pytest.approx(0.8, abs=0.02)
    assert kept == pytest.approx(0.1, abs=0.02)
    again, other = task.collate(rows, 0)[0], task.collate(rows, 1)[0]
    assert torch.equal(again["input_ids"], ids)
    assert not torch.equal(other["labels"], labels)
    alone = task.collate(rows[3:5], 0)[0]
    assert torch.equal(alone["labels"], labels[3:5])


def test_bits_per_token_of_a_model_that_knows_nothing(tokenizer: LongformerTokenizer) -> None:
    """With a head of zeros every word is as likely, and a token takes the logarithm of the vocabulary."""
    model = LongformerForMaskedLM(tiny_model(tokenizer).config).eval()
    torch.nn.init.zeros_(model.lm_head.layer_norm.weight)
    task = MaskedLMTask(["x"], ["the quick brown fox. " * 30], tokenizer, mlm_options())
    wanted = float(torch.tensor(float(len(tokenizer))).log2())
    assert task.evaluate(model, ALONE)["bits_per_token"] == pytest.approx(wanted, rel=1e-5)


def test_held_out_text_in_which_nothing_is_masked(tokenizer: LongformerTokenizer) -> None:
    """0 bits would be the best of all."""
    few = mlm_options(evaluate_on=("a.txt", "b.txt"), mask_probability=0.001)
    with pytest.raises(
        DataError, match=r"none of the 3 tokens of a\.txt, b\.txt is drawn .* raise mask_probability, which is 0\.001"
    ):
        MaskedLMTask(["x"], ["ab", "c"], tokenizer, few)
    MaskedLMTask(["x"], ["ab" * 9999], tokenizer, few)


def test_a_step_in_which_nothing_is_masked(tokenizer: LongformerTokenizer) -> None:
    """Its loss is 0, and so are all gradients."""
    model = LongformerForMaskedLM(tiny_model(tokenizer).config)
    task = MaskedLMTask(["a few words"], [], tokenizer, mlm_options(mask_probability=1e-9))
    inputs, count = task.collate([0], 0)
    assert count == 0
    loss = task.loss(model, inputs)
    loss.backward()
    assert loss.item() == 0
    assert all(bool((p.grad == 0).all()) for p in model.parameters() if p.grad is not None)


def test_text_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One.\n\nStill one.", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"text": "two"}\n\n{"text": "three"}\n', encoding="utf-8")
    assert read_documents(tmp_path / "a.txt") == ["One.\n\nStill one."]
    assert read_documents(tmp_path / "b.jsonl") == ["two", "three"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b" \n", "a.txt is empty"),
        ("a.txt", b"a\xff", "a.txt is not UTF-8 text: byte 0xff at offset 1"),
        ("a.jsonl", b'{"text": "x"}\n{', r"a.jsonl, line 2, is not valid JSON"),
        ("a.jsonl", b'{"txt": "x"}', r'a.jsonl, line 1: must be an object with a string "text"'),
    ],
)
def test_text_files_that_are_none(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_documents(tmp_path / name)
    with pytest.raises(DataError, match="no file at"):
        read_documents(tmp_path / "absent")


def test_rows_of_text_that_cannot_fit(tokenizer: LongformerTokenizer) -> None:
    with pytest.raises(LongformerError, match="batch_tokens is 32 and max_length 64"):
        MaskedLMTask(["x"], [], tokenizer, mlm_options(batch_tokens=32))
    tokenizer.mask_token_id = None
    with pytest.raises(LongformerError, match="no mask token"):
        MaskedLMTask(["x"], [], tokenizer, mlm_options())
