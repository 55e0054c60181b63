"""Fine-tuning: features that point at the answer, batches that lose nothing, a loop that learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from tiny_checkpoint import save_tiny_checkpoint

from longformer import DataError, LongformerError, LongformerForQuestionAnswering, LongformerTokenizer, QuestionAnswerer
from longformer.cli import cli
from longformer.squad import read_squad
from longformer.training import Feature, Recipe, collate, finetune_qa, make_batches, make_features

QUESTIONS = [
    ("Who met?", "Ann met Bob.", "Ann"),
    ("Who was met?", "Ann met Bob.", "Bob"),
    ("Who fell?", "Dan fell down.", "Dan"),
    ("What is red?", "A red hat.", "hat"),
    ("Where?", "It is in Rome.", "Rome"),
    ("When?", "In 1066, at noon.", "1066"),
]


def squad_file(folder: Path, questions: list[tuple[str, str, str]] = QUESTIONS) -> Path:
    """A SQuAD file with two articles, the last question alone in the second."""
    paragraphs: list[dict[str, Any]] = [
        {
            "context": context,
            "qas": [
                {
                    "id": str(i),
                    "question": question,
                    "answers": [{"text": answer, "answer_start": context.find(answer)}],
                }
            ],
        }
        for i, (question, context, answer) in enumerate(questions)
    ]
    data = [{"title": "many", "paragraphs": paragraphs[:-1]}, {"title": "last", "paragraphs": paragraphs[-1:]}]
    path = folder / "squad.json"
    path.write_text(json.dumps({"version": "1.1", "data": data}), encoding="utf-8")
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_tiny_checkpoint(tmp_path / "tiny")


def test_features_point_at_the_answer(checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = LongformerTokenizer.from_pretrained(checkpoint)
    features, dropped = make_features(read_squad(squad_file(tmp_path)), tokenizer, max_length=60)
    assert dropped == 0
    for feature, (_, _, answer) in zip(features, QUESTIONS, strict=True):
        assert tokenizer.decode(feature.input_ids[feature.start : feature.end + 1]) == answer


def test_what_cannot_be_used_is_left_out_and_counted(checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = LongformerTokenizer.from_pretrained(checkpoint)
    examples = read_squad(squad_file(tmp_path, [*QUESTIONS, ("Who?", "Nobody is here.", "Zoe")]))
    assert make_features(examples, tokenizer, max_length=60)[1] == 1
    features, dropped = make_features(examples, tokenizer, max_length=20)
    assert dropped == len(examples) - len(features) > 1
    assert all(len(feature.input_ids) <= 20 for feature in features)


def test_batches_hold_everything_once_in_like_lengths() -> None:
    features = [Feature([0] * (1 + i % 90), i, i) for i in range(1003)]
    batches = list(make_batches(features, 8, torch.Generator().manual_seed(0)))
    assert sorted(feature.start for batch in batches for feature in batch) == list(range(1003))
    assert max(len(batch) for batch in batches) == 8
    padding = sum(max(len(f.input_ids) for f in batch) * len(batch) for batch in batches)
    assert padding < 1.1 * sum(len(feature.input_ids) for feature in features)


def test_collate() -> None:
    batch = collate([Feature([5, 6], 0, 1), Feature([7], 0, 0)], pad_token_id=9)
    assert batch["input_ids"].tolist() == [[5, 6], [7, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["end_positions"].tolist() == [1, 0]


def test_it_learns_what_it_is_shown(checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = LongformerTokenizer.from_pretrained(checkpoint)
    model = LongformerForQuestionAnswering.from_pretrained(checkpoint)
    shown, seen = QUESTIONS[2:5], []
    examples = read_squad(squad_file(tmp_path, shown))
    recipe = Recipe(epochs=80, batch_size=3, learning_rate=1e-2, freeze_embeddings=False)
    finetune_qa(model, tokenizer, examples, recipe, after_epoch=seen.append, progress=False)
    assert seen == list(range(1, 81))
    assert not model.training
    answerer = QuestionAnswerer(model, tokenizer)
    assert [answerer.answer(q, context)[0].text for q, context, _ in shown] == [answer for *_, answer in shown]


def test_embeddings_stay_as_they_are_unless_asked(checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = LongformerTokenizer.from_pretrained(checkpoint)
    examples = read_squad(squad_file(tmp_path))
    for freeze in (True, False):
        model = LongformerForQuestionAnswering.from_pretrained(checkpoint)
        before = model.longformer.embeddings.word_embeddings.weight.clone()
        finetune_qa(model, tokenizer, examples, Recipe(epochs=1, freeze_embeddings=freeze), progress=False)
        assert torch.equal(model.longformer.embeddings.word_embeddings.weight, before) == freeze
        assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"warmup": 1.0}, "warmup is 1.0"),
        ({"precision": "int8"}, "precision is 'int8'"),
    ],
)
def test_bad_recipe(change: dict[str, Any], message: str) -> None:
    with pytest.raises(LongformerError, match=message):
        Recipe(**change)


def test_nothing_to_train_on(checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = LongformerTokenizer.from_pretrained(checkpoint)
    model = LongformerForQuestionAnswering.from_pretrained(checkpoint)
    examples = read_squad(squad_file(tmp_path, [("Who?", "Nobody is here.", "Zoe")]))
    with pytest.raises(DataError, match="none of the 1 questions has an answer"):
        finetune_qa(model, tokenizer, examples, Recipe(), progress=False)


def test_command(checkpoint: Path, tmp_path: Path) -> None:
    file = str(squad_file(tmp_path))
    arguments = ["train", "qa", str(checkpoint), str(tmp_path / "out"), file, "--epochs", "1", "--hold-out"]
    result = CliRunner().invoke(cli, [*arguments, "last"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "exact match" in result.stdout.lower()
    trained, source = (LongformerForQuestionAnswering.from_pretrained(f) for f in (tmp_path / "out", checkpoint))
    assert not torch.equal(trained.qa_outputs.weight, source.qa_outputs.weight)
    with pytest.raises(DataError, match="no file has an article of that title"):
        CliRunner().invoke(cli, [*arguments, "other"], catch_exceptions=False)
