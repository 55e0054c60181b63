"""The ablation trains what it says, and goes on where it was stopped; the needle is found within reach."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import command, printed

from longformer import LongformerError
from longformer.bench import ablation, needle
from longformer.bench.ablation import Ablation
from longformer.bench.needle import Needle

SMALL: dict[str, Any] = {"windows": (2, 4), "seeds": 2, "steps": 2, "batch_size": 2, "length": 16, "hidden_size": 12}
SMALL |= {"heads": 3, "hold_out": 0.1}
TEXT = "the cat sat on the mat.\n" * 20


def test_patterns_are_the_papers() -> None:
    assert Ablation(windows=(16, 32, 64, 128)).patterns() == {
        "growing": "window=16:0/window=32:0/window=64:0/window=128:0",
        "shrinking": "window=128:0/window=64:0/window=32:0/window=16:0",
        "fixed": "window=60:0",
        "dilated": "window=16:0/window=32:0/window=64:0,dilation=1:1:2:2/window=128:0,dilation=1:1:3:3",
    }
    with pytest.raises(LongformerError, match="windows are 4,4; give two or more that grow"):
        Ablation(windows=(4, 4))
    with pytest.raises(LongformerError, match="heads is 2"):
        Ablation(heads=2)


def test_every_run_is_trained_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, said = Ablation(**SMALL), []
    folder, train = tmp_path / "runs", ablation.train_lm

    def fails_at_the_third(*arguments: Any, **named: Any) -> Any:
        if len(said) == 3:
            raise KeyboardInterrupt
        return train(*arguments, **named)

    monkeypatch.setattr(ablation, "train_lm", fails_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        ablation.run(asked, folder, TEXT, say=said.append)
    monkeypatch.setattr(ablation, "train_lm", train)
    before = json.loads((folder / "results.json").read_text())["runs"]
    assert [(one["pattern"], one["seed"]) for one in before] == [("growing", 0), ("shrinking", 0)]
    found = ablation.run(asked, folder, TEXT, say=said.append)
    assert said[2:] == [
        "run 3 of 8: fixed, seed 0", "run 3 of 8: fixed, seed 0", "run 4 of 8: dilated, seed 0",
        "run 5 of 8: growing, seed 1", "run 6 of 8: shrinking, seed 1", "run 7 of 8: fixed, seed 1",
        "run 8 of 8: dilated, seed 1",
    ]  # fmt: skip
    assert found["runs"][:2] == before and json.loads((folder / "results.json").read_text()) == found
    assert len({one["bits_per_character"] for one in found["runs"]}) == 8
    assert sorted(path.name for path in folder.iterdir()) == ["results.json", "text.txt"]
    # A run of the ablation is the training that a user would start by hand.
    (bits,) = train(asked.options("dilated", 1, folder / "text.txt", tmp_path / "alone"))
    assert bits == found["runs"][-1]["bits_per_character"]
    with pytest.raises(LongformerError, match=r"results of other options: steps \(2, 3\) \(then, now\)"):
        ablation.run(Ablation(**{**SMALL, "steps": 3}), folder, TEXT)
    with pytest.raises(LongformerError, match="results of other text"):
        ablation.run(asked, folder, TEXT + "a")


def test_means_intervals_and_differences_by_hand() -> None:
    scores = {"growing": [1.0, 1.2, 1.1], "shrinking": [1.3, 1.4, 1.5], "fixed": [1.2], "dilated": [1.0, 1.1, 1.05]}
    runs = [
        {"pattern": name, "seed": seed, "bits_per_character": bits}
        for name, values in scores.items()
        for seed, bits in enumerate(values)
    ]
    lines = ablation.table({"runs": runs, "patterns": Ablation().patterns()}).splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[-4:]}
    # Mean 1.1, standard deviation 0.1, of three: 4.303 · 0.1 / √3 = 0.2484 to each side.
    assert rows["growing"] == ["3", "1.1000", "0.8516", "to", "1.3484", "1.21"]
    # Differences 0.3, 0.2, 0.4 from the growing windows of the same seed.
    assert rows["shrinking"] == ["3", "1.4000", "1.1516", "to", "1.6484", *"+0.3000 +0.0516 to +0.5484 1.24".split()]
    assert rows["fixed"] == ["1", "1.2000", "one", "seed", "+0.2000", "one", "seed", "1.23"]
    assert rows["dilated"][-1] == "1.20"
    low, high = ablation.interval([1.0, 2.0] * 20) or (0, 0)
    assert high - 1.5 == pytest.approx(1.96 * statistics.stdev([1.0, 2.0] * 20) / 40**0.5) == 1.5 - low


def test_the_standard_library_is_a_text() -> None:
    text = ablation.standard_library(30_000)
    assert len(text) == 30_000 and text.isascii() and "def " in text and text == ablation.standard_library(30_000)
    assert len(ablation.read_text_of(None, 100)) == 100


def test_patterns_command(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    small = ["--windows=2,4", "--seeds=1", "--steps=1", "--batch-size=2", "--length=16", "--hidden-size=12"]
    asked = ["bench", "patterns", str(tmp_path / "runs"), "--text", str(tmp_path / "text.txt"), *small, "--heads=3"]
    status, said = printed(*asked)
    assert status == 0 and [line.split()[0] for line in said.splitlines()[-4:]] == list(ablation.PAPER)
    assert printed(*asked)[1] == said
    assert command("bench", "patterns", str(tmp_path / "other"), "--windows=4,2") == 2


# ---- the needle

TINY: dict[str, Any] = {"tokens": 16, "window": 4, "steps": 200, "learning_rate": 5e-3}


def test_documents_hold_one_needle_that_says_their_class() -> None:
    task = Needle(**TINY)
    places = torch.tensor([1, 7, 15, 15])
    ids, classes = needle.documents(task, places, torch.Generator().manual_seed(1))
    is_needle = ids >= needle.FIRST + needle.WORDS
    assert is_needle.sum(1).tolist() == [1] * 4 and is_needle.int().argmax(1).tolist() == places.tolist()
    assert torch.equal(ids[is_needle] - needle.FIRST - needle.WORDS, classes) and not ids[:, 0].any()


@pytest.mark.parametrize("pattern", needle.PATTERNS)
def test_the_first_token_hears_of_what_its_pattern_reaches(pattern: str) -> None:
    """What a change of the needle changes in an untrained model needs no training to be known."""
    task = Needle(**TINY)
    model = needle.LongformerForSequenceClassification(task.config(pattern)).eval()
    ids, _ = needle.documents(task, torch.full((1,), 10), torch.Generator().manual_seed(1))
    heard = []
    for place in range(1, 16):
        changed = ids.clone()
        changed[0, place] += 1
        logits = [model(x, global_attention_mask=needle.global_mask(pattern, x)).logits for x in (ids, changed)]
        heard.append(place) if not torch.equal(*logits) else None
    assert heard == list(range(1, task.reach + 1 if pattern == "window" else 16)) and task.reach == 4


@pytest.mark.slow
def test_needle_command(tmp_path: Path) -> None:
    json_file, picture = tmp_path / "needle.json", tmp_path / "needle.png"
    small = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    status, said = printed("bench", "needle", *small, "--json", str(json_file), "--plot", str(picture))
    found = json.loads(json_file.read_text())
    assert status == 0 and picture.read_bytes().startswith(b"\x89PNG")
    assert found["places"] == list(range(1, 16)) and found["reach"] == 4
    for name, shares in found["found"].items():
        assert statistics.mean(shares[:4]) > 0.9, (name, shares)
        assert (statistics.mean(shares[4:]) > 0.9) == (name != "window"), (name, shares)
    assert statistics.mean(found["found"]["window"][4:]) == pytest.approx(found["chance"], abs=0.1)
    lines = said.splitlines()
    assert lines[2].startswith("1 to 4, within reach") and lines[3].startswith("beyond 4")


def test_a_needle_that_cannot_be_is_said() -> None:
    with pytest.raises(LongformerError, match="classes is 1; it must be at least 2"):
        Needle(classes=1)
    assert command("bench", "needle", "--hidden-size", "9") == 2
    assert command("bench", "needle", "--plot", "a.txt") == 2


def test_what_the_page_says_of_the_needle_holds() -> None:
    """docs/how-to/language-model.md puts the table into words."""
    found = json.loads((Path(needle.__file__).parent / "results" / "needle.json").read_text(encoding="utf-8"))
    assert found["options"] == asdict(Needle()) and found["reach"] == 16
    by_pattern, far = found["found"], [place > 16 for place in found["places"]]
    assert set(by_pattern["global"]) == set(by_pattern["full"]) == {1.0}
    assert {share for share, is_far in zip(by_pattern["window"], far, strict=True) if not is_far} == {1.0}
    beyond = [share for share, is_far in zip(by_pattern["window"], far, strict=True) if is_far]
    spread = (0.25 * 0.75 / (len(beyond) * found["options"]["documents"])) ** 0.5
    assert statistics.mean(beyond) == pytest.approx(found["chance"], abs=2 * spread)
    assert needle.rows(found)[-1][0] == "beyond 16"
