"""Bits per character are what a computation by hand says, and the vocabulary refuses what it does not know."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from causal_models import causal_config, causal_model
from training_runs import printed

from longformer import CheckpointError, DataError, LongformerError, LongformerForCausalLM
from longformer.generating import Characters, TextGenerator, bits_per_character
from longformer.generating.scoring import Piece, pieces

TEXT = "abacabadaba"


def test_pieces_overlap_and_foretell_each_character_once() -> None:
    # Reads characters 0 to 3, and foretells 1 to 4; then reads 3 to 6 and foretells 5 and 6 with 7; and so on.
    assert pieces(11, 4, 2) == [Piece(0, 1, 5), Piece(2, 5, 7), Piece(4, 7, 9), Piece(6, 9, 11)]
    assert pieces(10, 4, 3) == [Piece(0, 1, 5), Piece(3, 5, 8), Piece(5, 8, 10)]
    assert pieces(3, 4, 4) == [Piece(0, 1, 3)]
    for count in range(2, 40):
        for length in range(1, 9):
            for step in range(1, length + 1):
                found = pieces(count, length, step)
                assert [i for piece in found for i in range(piece.first, piece.stop)] == list(range(1, count))
                read = [piece.stop - 1 - piece.start for piece in found]
                assert read == [min(length, count - 1)] * len(found) and found[0].start == 0


def test_bits_by_hand() -> None:
    model = causal_model()
    ids = torch.tensor([1, 2, 1, 3, 1, 2, 1, 4, 1, 2, 1])
    total = 0.0
    # What is foretold, and the characters from which: pieces of 4 that count 2, the first of which counts all.
    given = {1: (0, 1), 2: (0, 2), 3: (0, 3), 4: (0, 4), 5: (2, 5), 6: (2, 6)}
    given |= {7: (4, 7), 8: (4, 8), 9: (6, 9), 10: (6, 10)}
    for place, (start, stop) in given.items():
        probability = model(ids[None, start:stop]).logits[0, -1].softmax(0)[ids[place]]
        total -= math.log2(probability.item())
    assert bits_per_character(model, ids, length=4, step=2) == pytest.approx(total / 10, abs=1e-5)


def test_a_model_that_knows_nothing_takes_the_logarithm_of_its_vocabulary() -> None:
    model = LongformerForCausalLM(causal_config()).eval()
    for parameter in model.longformer.embeddings.word_embeddings.parameters():
        parameter.data.zero_()
    assert bits_per_character(model, torch.arange(1, 11), length=5) == pytest.approx(math.log2(11), abs=1e-6)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    characters = Characters("abcdefgh\nm")
    causal_model().float().save_pretrained(folder)
    characters.save_pretrained(folder)
    (folder / "text.txt").write_text(TEXT)
    return folder


def test_commands(saved: Path) -> None:
    status, said = printed("evaluate-lm", str(saved), str(saved / "text.txt"), "--length", "4", "--json")
    found = json.loads(said)
    ids = Characters.from_pretrained(saved).ids(TEXT)
    model = TextGenerator.from_pretrained(saved).model
    assert status == 0 and (found["characters"], found["pieces"], found["step"]) == (10, 4, 2)
    assert found["bits_per_character"] == pytest.approx(bits_per_character(model, ids, length=4, step=2))
    assert found["interval"][0] <= found["bits_per_character"] <= found["interval"][1]
    assert "95% interval over pieces" in printed("evaluate-lm", str(saved), str(saved / "text.txt"), "--length", "4")[1]
    assert "no interval" in printed("evaluate-lm", str(saved), str(saved / "text.txt"))[1]

    asked = ("generate", str(saved), "abba", "--max-characters", "9", "--seed", "5", "--top-p", "0.9")
    status, text = printed(*asked)
    assert status == 0 and text.startswith("abba") and len(text) == 4 + 9 + 1 and printed(*asked)[1] == text
    generator = TextGenerator.from_pretrained(saved)
    assert generator.generate("abba", max_characters=9, seed=5, top_p=0.9) + "\n" == text
    assert generator.generate(max_characters=3, seed=1) == generator.generate("\n", max_characters=3, seed=1)[1:]


def test_text_stops_behind_a_stop(saved: Path) -> None:
    generator = TextGenerator.from_pretrained(saved)
    free = generator.generate("abba", max_characters=30, temperature=0)[4:]
    stop = free[5:7]
    assert (
        generator.generate("abba", max_characters=30, temperature=0, stop=["zz", stop])[4:]
        == (free[: free.index(stop) + 2])
    )


def test_characters_that_are_not_there_are_said(saved: Path, tmp_path: Path) -> None:
    generator = TextGenerator.from_pretrained(saved)
    with pytest.raises(DataError, match="the prompt has the character 'x' at 2, which is not among the 10"):
        generator.stream("abx")
    (tmp_path / "other.txt").write_text("abz")
    assert printed("evaluate-lm", str(saved), str(tmp_path / "other.txt"))[0] == 2
    with pytest.raises(DataError, match="the one character 'a'"):
        Characters.of(["aaa"])
    with pytest.raises(DataError, match="no character"):
        Characters.of([""])
    with pytest.raises(LongformerError, match="max_characters is -1"):
        generator.stream("a", max_characters=-1)
    with pytest.raises(LongformerError, match="stop is an empty text"):
        generator.stream("a", stop=[""])
    with pytest.raises(LongformerError, match="step is 9 and length 4"):
        bits_per_character(generator.model, torch.arange(1, 9), length=4, step=9)
    with pytest.raises(DataError, match="at least two"):
        bits_per_character(generator.model, torch.tensor([1]))
    with pytest.raises(CheckpointError, match=r"has no characters\.json"):
        TextGenerator.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="11 token ids and the vocabulary 3"):
        TextGenerator(generator.model, Characters("ab"))
    for content, message in (('{"characters": 3}', "must hold a text"), ('{"characters": "aab"}', "stands twice")):
        (tmp_path / "characters.json").write_text(content)
        with pytest.raises(CheckpointError, match=message):
            Characters.from_pretrained(tmp_path)


def test_a_prompt_beyond_the_positions_is_said(tmp_path: Path) -> None:
    model = causal_model(position_embedding_type="absolute", max_position_embeddings=9)
    generator = TextGenerator(model, Characters("abcdefgh\nm"))
    with pytest.raises(LongformerError, match="positions for 8: give a shorter prompt"):
        generator.stream("abba", max_characters=5)
    assert len(generator.generate("abba", max_characters=4)) == 8
