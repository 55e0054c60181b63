"""Every code block of the documentation runs, and every link leads somewhere.

A page's blocks run in their order in one folder, where all that they name exists (``documentation_world``). What cannot
run stands in ``NOT_RUN`` with the reason.
"""

from __future__ import annotations

import glob
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import documentation_world as world
import huggingface_hub
import pytest
import torch
from documentation_blocks import (
    CODE,
    DOCUMENTS,
    NO_CODE,
    ROOT,
    Command,
    anchors,
    blocks,
    commands,
    form,
    links,
    sessions,
)
from torch.distributed.run import get_args_parser
from torch.nn.attention.flex_attention import flex_attention

import longformer.parity
from longformer.bench import formats, machine, memory, rivals, scaling
from longformer.cli import main

# Page and first line of a block to the reason why it is not run.
NOT_RUN = {
    (
        "docs/gpu.md",
        "longformer bench gpu                        # where the package is installed",
    ): "measures a GPU, and says so where there is none; tests/bench/test_gpu.py",
    ("docs/gpu.md", "scripts/gpu.sh results"): "takes 13 minutes on a GPU; tests/bench/test_gpu.py",
    ("docs/gpu.md", "longformer bench gpu-model --batches 1,16"): "measures a GPU; tests/bench/test_commands.py",
    (
        "scripts/README.md",
        "first=$(git log -1 --diff-filter=A --format=%h -- longformer/pretrained/model.safetensors)",
    ): "trains for hours, or wants a GPU; tests/test_scripts.py",
    (
        "longformer/pretrained/README.md",
        "DATA=... FIRST=first DEVICE=cuda scripts/checkpoint.sh WORK further",
    ): "trains for hours, or wants a GPU; tests/test_scripts.py",
}
# Pages whose Python goes on from block to block, and what they take as given.
STORIES = ("docs/parity.md", "docs/how-to/compare-models.md", "docs/tutorials/read-the-kernels.md")


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documentation") / "world"
    world.build(folder)
    return folder


@pytest.fixture
def folder(everything: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the world to be in, with the hub's cache in it, where a benchmark takes no time."""
    here = tmp_path / "world"
    shutil.copytree(everything, here, symlinks=True)
    monkeypatch.chdir(here)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(everything / "hub"))
    monkeypatch.setattr(machine, "PRODUCT_SIZE", 16)
    monkeypatch.setattr(rivals, "_compiled_flex", lambda: flex_attention)
    for module in (memory, scaling):
        if hasattr(module, "in_subprocess"):
            monkeypatch.setattr(module, "in_subprocess", lambda task: len(task["name"]) * 10**6)
    threads = torch.get_num_threads()
    yield here
    torch.set_num_threads(threads)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run ``longformer`` in this process and give what it prints; any exit status but ``expected`` is a failure."""

    def run(words: list[str], expected: int = 0) -> str:
        capsys.readouterr()  # what a block of Python printed before
        with pytest.raises(SystemExit) as stopped:
            main(words)
        said = capsys.readouterr()
        assert (stopped.value.code or 0) == expected, f"longformer {' '.join(words)}\n{said.out}\n{said.err}"
        return said.out

    return run


# ---- blocks


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_runs(document: str, folder: Path, run: Callable[..., str], subtests: Any) -> None:
    found = [block for block in blocks(document) if block.language in CODE]
    text = "".join(block.text for block in found)
    if "port.safetensors" in text or "ids.json" in text:
        world.add_port(run, wrong=any(block.language == "console" for block in found))
    if document == "docs/how-to/export.md":
        world.make_shallow("my/checkpoint")
    given = GIVEN[document]() if document in GIVEN else {}
    done = 0
    for block in found:
        if (document, block.text.splitlines()[0]) in NOT_RUN:
            done += 1
            continue
        with subtests.test(msg=f"{document}:{block.line}"):
            if block.language == "python":
                names = given if document in STORIES else dict(given)
                exec(compile("\n" * (block.line - 1) + block.text, str(ROOT / document), "exec"), names)
            elif block.language == "sh":
                for command in commands(block.text):
                    execute(command, run)
            else:
                for command, shown in sessions(block.text):
                    said = form(run(world.limited(command.words[1:]), expected=1)).splitlines()
                    rest = iter(said)  # a page may leave out lines, but not the first
                    assert form(shown).splitlines()[0] == said[0]
                    assert [line for line in form(shown).splitlines() if line not in rest] == [], said
            done += 1
    assert done == len(found), "a block failed"


def execute(command: Command, run: Callable[..., str]) -> None:
    """Run one command of a page, or check what can be checked of one that builds an environment or runs the tests."""
    match command.words:
        case ["longformer", ">", script] if "_LONGFORMER_COMPLETE" in command.environment:
            # What the script holds: tests/test_help.py.
            assert command.environment["_LONGFORMER_COMPLETE"] in ("bash_source", "zsh_source", "fish_source"), script
        case ["longformer", *words]:
            assert not command.environment
            make_room(words)
            run(world.limited(expand(words)))
        case ["torchrun", *words]:
            # What torchrun itself is told is read by its own parser; tests/test_training_processes.py has several.
            asked = get_args_parser().parse_args(words)
            assert asked.no_python and asked.training_script == "longformer"
            make_room(asked.training_script_args)
            run([word for word in world.limited(expand(asked.training_script_args)) if word not in PARALLEL])
        case ["make", target]:
            assert subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True).returncode == 0
        case ["python3", "-m", "venv", ".venv"] | ["source", ".venv/bin/activate"]:
            assert importlib.util.find_spec("venv") is not None
        case ["pip" | ".venv/bin/pip", "install", *words] | [".venv/bin/python", "-m", "pip", "install", *words]:
            check_installable(words)
        case [".venv/bin/python", "-m", "pytest", "-n", "2", tests]:
            for name in command.environment:
                assert f'"{name}"' in (ROOT / tests).read_text(encoding="utf-8"), f"{tests} does not read {name}"
        case ["python" | ".venv/bin/python", script, *files] if script.endswith(".py"):
            assert [name for name in (script, *files) if not (ROOT / name).is_file()] == []
        case _:
            pytest.fail(f"nothing is known of {' '.join(command.words)!r}: have it run, or list it in NOT_RUN")


PARALLEL = ("--parallel", "fsdp")  # of several processes only


def check_installable(words: list[str]) -> None:
    """That the constraints and extras of a ``pip install`` exist; that they resolve is seen when CI installs them."""
    assert words[0] == "-c" and (ROOT / words[1]).is_file()
    extras = [name for word in words for found in re.findall(r"^\.\[(.+)\]$", word) for name in found.split(",")]
    known = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.optional-dependencies]")[2]
    assert [name for name in extras if not re.search(rf"^{name} = \[", known, flags=re.MULTILINE)] == []


def make_room(words: list[str]) -> None:
    """A new run's folder is one that no run is in: ``OUT`` of one block is not ``OUT`` of another."""
    if words[0] == "train" and "OUT" in words and "--resume" not in words:
        shutil.rmtree("OUT", ignore_errors=True)


def expand(words: list[str]) -> list[str]:
    """Patterns as the files that they match, as a shell would have it."""
    return [found for word in words for found in (sorted(glob.glob(word)) if "*" in word else [word])]


def given_parity() -> dict[str, Any]:
    """What docs/parity.md calls ``model``, ``ours``, ``port`` and so on."""
    config = longformer.LongformerConfig(
        vocab_size=60,
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=40,
        attention_window=8,
        initializer_range=0.3,
    )
    model = longformer.LongformerForQuestionAnswering(config).eval()
    other = longformer.LongformerForQuestionAnswering(config, impl="banded").eval()
    other.load_state_dict(model.state_dict())
    ids = torch.tensor([[0, *range(5, 10), 2, 2, *range(10, 30), 2]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad(), longformer.parity.trace(other) as b:
        other(**inputs)

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(24, 24)})

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.attn["q_proj"](x).tanh()

    class Port(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.h = torch.nn.ModuleList(Block() for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.h:
                x = block(x.to(block.attn["q_proj"].weight.dtype))
            return x

    port, original, exact = Port(), Port(), Port().double()
    original.load_state_dict(port.state_dict())
    exact.load_state_dict(port.state_dict())
    x = torch.randn(1, 5, 24)
    truth = x.double().softmax(-1)
    return {
        "torch": torch,
        "model": model,
        "ours": model,
        "inputs": inputs,
        "b": b,
        "port": port,
        "original": original,
        "original_in_float64": exact,
        "x": x,
        "my_softmax": lambda x: x.exp() / x.exp().sum(-1, keepdim=True),
        "actual": x.softmax(-1),
        "expected": x.softmax(-1),
        "truth_in_float64": truth,
    }


def given_trace_format() -> dict[str, Any]:
    """The arrays that the port of docs/trace-format.md writes."""
    ids = torch.arange(12).view(2, 6).numpy()
    return {"ids": ids, "mask": ids * 0 + 1, "global_mask": ids * 0, "query": torch.randn(2, 2, 6, 4).numpy()}


# The first page, and those that are not mended yet.
OPENED_OTHERWISE = (
    "docs/index.md",
    "docs/parity.md",
)
GIVEN = {"docs/parity.md": given_parity, "docs/trace-format.md": given_trace_format}


def test_every_block_is_of_a_known_kind() -> None:
    unknown = [
        f"{document}:{block.line} ({block.language or 'no language'})"
        for document in DOCUMENTS
        for block in blocks(document)
        if block.language not in (*CODE, *NO_CODE)
    ]
    assert unknown == []
    assert {document for document in DOCUMENTS if blocks(document)} >= {
        "README.md",
        "docs/parity.md",
        "kernels/README.md",
    }


def test_what_is_not_run_still_exists() -> None:
    found = {(document, block.text.splitlines()[0]) for document in DOCUMENTS for block in blocks(document)}
    assert set(NOT_RUN) - found == set()


# ---- links


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_somewhere(document: str) -> None:
    for target in links(document):
        parts = urlsplit(target)
        if parts.scheme:
            assert parts.scheme == "https" and "." in parts.netloc and " " not in target, target
            continue
        path = (ROOT / document).parent / parts.path if parts.path else ROOT / document
        assert path.exists(), f"{target}: there is no {path}"
        if parts.fragment:
            assert parts.fragment in anchors(path.resolve().relative_to(ROOT).as_posix()), target


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name.startswith("docs/")])
def test_every_page_opens_with_what_one_will_be_able_to_do(document: str) -> None:
    if document in OPENED_OTHERWISE:
        return
    opening = " ".join((ROOT / document).read_text(encoding="utf-8").split("\n\n")[1].split())
    assert re.match(r"(After|On|From) this (page|tutorial|evening)|This page (lets|shows|tells|helps) you", opening), (
        opening
    )


# ---- the site


def from_site(name: str) -> ModuleType:
    """A module of what builds the site, which is no part of the package."""
    spec = importlib.util.spec_from_file_location(f"site_{name}", ROOT / "docs" / "build" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_api_pages_have_every_public_name() -> None:
    api = from_site("api_pages")
    pages = api.pages()
    packages = re.findall(r'^ {4}"(longformer[\w.]*)",$', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert "longformer.kernels" in packages
    declaring = {name for name in packages if hasattr(importlib.import_module(name), "__all__")}
    assert set(api.public_names()) >= declaring | {"longformer.plotting"}
    for name in api.public_names():
        module = importlib.import_module(name)
        public = getattr(module, "__all__", None) or [
            key
            for key, value in vars(module).items()
            if getattr(value, "__module__", None) == name and not key.startswith("_") and callable(value)
        ]
        page = pages[api.page_name(name)]
        assert [key for key in public if f"\n::: {name}.{key}\n" not in page] == []


def test_the_tables_are_the_files() -> None:
    tables = from_site("bench_tables")
    table = tables.TABLES["attention"]()
    for case in tables.read("attention")["cases"]:
        row = next(line for line in table.splitlines() if line.startswith(f"| {case['name']} |"))
        for result in case["results"]:
            assert formats.seconds(result["median"]) in row
    for document in DOCUMENTS:
        assert "<!-- bench:" not in tables.fill((ROOT / document).read_text(encoding="utf-8"))


def test_the_readme_has_the_figures_of_the_files() -> None:
    tables, text = from_site("bench_tables"), (ROOT / "README.md").read_text(encoding="utf-8")
    assert tables.FIGURES.search(text)
    assert tables.with_figures(text) == text, "run: python docs/build/bench_tables.py"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 180


def test_what_the_comparison_says_of_the_figures_holds() -> None:
    """docs/comparison.md puts some of the tables into words, which new figures must not leave behind."""
    tables = from_site("bench_tables")
    ratios = {
        name: [(case["name"], r["name"], r["ratio"]) for case in tables.read(name)["cases"] for r in case["results"]]
        for name in ("attention", "memory", "model", "qa", "scaling", "training")
    }
    theirs = [ratio for found in ratios.values() for _, who, ratio in found if who.startswith("transformers")]
    assert min(theirs) > 1  # faster than transformers in every run that was measured, in less memory
    for case, who, ratio in ratios["attention"]:
        if "FlexAttention" in who:
            assert "backward" not in case
            assert ratio > 1.2 if "bfloat16" in case else 0.9 < ratio < 1.1
    for case in tables.read("amx/attention")["cases"]:
        if "bfloat16" in case["name"]:
            assert all(r["ratio"] < 1 for r in case["results"] if "FlexAttention" in r["name"])
    dense = {case: ratio for case, who, ratio in ratios["scaling"] if who == "dense SDPA"}
    assert dense["attention forward, 256 tokens"] < 1 < dense["attention forward, 1024 tokens"]
    flex = [ratio for case, who, ratio in ratios["scaling"] if case.startswith("memory") and "FlexAttention" in who]
    assert flex and max(flex) < 1
