"""A character language model is trained in phases that double, and is resumed to the bit."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_runs import assert_same_bits, command, in_processes, last_state, lm_options, run

from longformer import DataError, LongformerError, LongformerForCausalLM
from longformer.generating import TextGenerator, bits_per_character
from longformer.kernels import AttentionPattern
from longformer.training import LMOptions
from longformer.training.lm import LanguageModelTask, read_corpus
from longformer.training.log import read_log
from longformer.training.loop import Trainer

TEXT = "the cat sat on the mat, and the rat ran from the cat.\n" * 12


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return str(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, file: str) -> Path:
    folder = tmp_path_factory.mktemp("run") / "out"
    run(lm_options(folder, file))
    return folder


def test_each_phase_doubles_windows_and_rows_and_halves_the_rest(trained: Path, file: str) -> None:
    options = lm_options(trained, file)
    for phase, factor in enumerate((1, 2)):
        folder = trained / f"phase-{phase + 1}"
        chosen = LMOptions.read(folder / "training.toml", output=str(folder))
        assert (chosen.max_length, chosen.batch_size) == (16 * factor, 4 // factor)
        assert chosen.learning_rate == options.learning_rate / factor
        model = LongformerForCausalLM.from_pretrained(folder)
        patterns = [layer.attention.self.pattern for layer in model.longformer.encoder.layer]
        assert [pattern.window for pattern in patterns] == [(4 * factor, 0)] * 2
        assert [pattern.gaps(2) for pattern in patterns] == [(1, 1), (1, 2)] and all(p.causal for p in patterns)
        lines = read_log(folder)
        assert [line["step"] for line in lines if "bits_per_character" in line] == [0, 1, 2, 3, 4]
        assert next(line for line in lines if "loss" in line)["tokens"] == 4 * 4 * 16
    assert LongformerForCausalLM.from_pretrained(trained).config.pattern(0).window == (8, 0)


def test_the_second_phase_starts_from_the_best_of_the_first(trained: Path, file: str) -> None:
    options = lm_options(trained, file)
    corpus = read_corpus(options)
    model = LongformerForCausalLM.from_pretrained(trained / "phase-1")
    lines = read_log(trained / "phase-1")
    best = min(line["bits_per_character"] for line in lines if "bits_per_character" in line)
    assert bits_per_character(model, corpus.held_out[0], length=16, step=8) == pytest.approx(best, abs=1e-6)
    assert_same_bits(load_file(trained / "model.safetensors"), load_file(trained / "phase-2" / "model.safetensors"))
    assert len(corpus.train) == len(TEXT) - round(len(TEXT) / 10)


def test_a_union_of_windows_is_trained(file: str, tmp_path: Path) -> None:
    run(lm_options(tmp_path / "out", file, pattern="window=4+window=2,dilation=3/full"))
    lines = [line for phase in (1, 2) for line in read_log(tmp_path / "out" / f"phase-{phase}")]
    scores = [line["bits_per_character"] for line in lines if "bits_per_character" in line]
    assert len(scores) == 10 and scores[-1] < scores[0]
    parts = LongformerForCausalLM.from_pretrained(tmp_path / "out").config.pattern(0).parts
    assert parts == (AttentionPattern((4, 0), (1, 1), True), AttentionPattern((2, 0), 3, True))


def test_rows_foretell_each_character_once(file: str, tmp_path: Path) -> None:
    corpus = read_corpus(lm_options(tmp_path, file))
    task = LanguageModelTask(corpus, lm_options(tmp_path, file))
    inputs, count = task.collate([0, 1, 2], 0)
    assert count == 45 and torch.equal(inputs["input_ids"], inputs["labels"])
    assert corpus.characters.text(inputs["labels"][:, 1:].flatten().tolist()) == TEXT[1:46]


@pytest.mark.parametrize("at", [2, 6])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(
    at: int, trained: Path, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, train, done = lm_options(tmp_path / "out", file), Trainer._train, 0

    def stopped(self: Trainer, *arguments: Any) -> Any:
        nonlocal done
        if done == at:
            raise KeyboardInterrupt
        done += 1
        return train(self, *arguments)

    monkeypatch.setattr(Trainer, "_train", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(options)
    monkeypatch.setattr(Trainer, "_train", train)
    assert not (tmp_path / "out" / "model.safetensors").exists()
    run(options, resume=True)
    for phase in ("phase-1", "phase-2"):
        assert_same_bits(last_state(tmp_path / "out" / phase), last_state(trained / phase))
    assert_same_bits(load_file(tmp_path / "out" / "model.safetensors"), load_file(trained / "model.safetensors"))
    run(options, resume=True)  # of what is done, nothing is done again
    assert_same_bits(load_file(tmp_path / "out" / "model.safetensors"), load_file(trained / "model.safetensors"))


@pytest.mark.slow
def test_several_processes_train_as_one(file: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_steps": 2, "hidden_dropout": 0.0, "attention_dropout": 0.0}
    alone, together = (lm_options(tmp_path / name, file, **settings) for name in ("alone", "together"))
    run(alone)
    assert in_processes(run, [(together,), (together,)]) == [None, None]
    for phase in ("phase-1", "phase-2"):
        one, other = (read_log(tmp_path / name / phase) for name in ("alone", "together"))
        scores = [[line["bits_per_character"] for line in log if "bits_per_character" in line] for log in (one, other)]
        assert len(scores[0]) == 3 and scores[0] == pytest.approx(scores[1], abs=1e-4)


@pytest.mark.slow
def test_it_foretells_what_it_has_read(file: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_steps": 100, "learning_rate": 1e-2, "phases": 1, "evaluate_every": 100}
    command_line = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    shape = ["--layers=2", "--hidden-size=32", "--heads=2", "--max-length=32", "--batch-size=8", "--hold-out=0.1"]
    assert command("train", "lm", str(tmp_path / "out"), file, "--pattern=window=32", *shape, *command_line) == 0
    generator = TextGenerator.from_pretrained(tmp_path / "out")
    bits = bits_per_character(generator.model, generator.characters.ids(TEXT), length=32)
    shares = [count / len(TEXT) for count in Counter(TEXT).values()]
    entropy = -sum(share * math.log2(share) for share in shares)  # what counting characters alone would give
    assert bits < entropy / 3, (bits, entropy)
    assert generator.generate("the cat sat on", max_characters=20, temperature=0) in TEXT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pattern": "window=32"}, r"pattern \('window=8/window=8,dilation=1:2', 'window=32'\)"),
        ({"max_length": 32}, r"max_length \(16, 32\)"),
        ({"positions": "absolute"}, r"positions \('relative', 'absolute'\)"),
    ],
)
def test_a_resumed_run_may_not_change_its_pattern(
    changes: dict[str, Any], message: str, trained: Path, file: str
) -> None:
    with pytest.raises(LongformerError, match=f"was started with other options: {message}.*then, now"):
        run(lm_options(trained, file, **changes), resume=True)
    with pytest.raises(LongformerError, match="already holds another run"):
        run(lm_options(trained, file))


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        ("ab" * 10, {}, "has 18 characters, but rows or windows of the last phase reach over 32"),
        (
            TEXT[:100],
            {"pattern": "window=160"},
            "90 characters, but rows or windows of the last phase reach over 161",
        ),
        (TEXT[:100], {"pattern": "window=2+window=40,dilation=2:4"}, "last phase reach over 161"),
        ("a" * 500, {}, "the one character 'a'"),
        ("", {}, "is empty"),
        (TEXT, {"hold_out": 0.0001}, "a text to measure on has 0 characters"),
        (TEXT, {"batch_tokens": 31}, "batch_tokens is 31, and a row of the last phase has 32"),
        (TEXT, {"evaluation_step": 17}, "evaluation_step is 17 and max_length 16"),
    ],
)
def test_what_cannot_be_trained_is_said(text: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(text)
    with pytest.raises(LongformerError, match=message) as failure:
        run(lm_options(tmp_path / "out", str(tmp_path / "text.txt"), **changes))
    assert isinstance(failure.value, DataError) or text == TEXT
    assert not (tmp_path / "out" / "phase-1").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pattern": "causal"}, "say window=N or full of each"),
        ({"pattern": "window=8+causal"}, "say window=N or full of each"),
        ({"pattern": "window=8,global=0"}, "say window=N or full of each"),
        ({"pattern": "window=8+window=16,global=0"}, "say window=N or full of each"),
        ({"pattern": "window=0:4"}, "at least one character back"),
        ({"pattern": "widow=8"}, "did you mean 'window'"),
        ({"pattern": "window=8,dilation=1:2:3"}, "3 gaps for num_attention_heads 2"),
        ({"pattern": "window=8/full/full"}, "lists 3 layers"),
        ({"hidden_size": 15}, "hidden_size 15 is not a multiple"),
        ({"evaluate_on": ("a",)}, "hold_out and evaluate_on"),
    ],
)
def test_options_that_describe_no_model_are_said(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(LongformerError, match=message):
        lm_options(tmp_path, "text.txt", **changes)


def test_the_command_asks_for_a_folder_and_texts() -> None:
    assert command("train", "lm") == 2
    assert command("train", "lm", "out") == 2
