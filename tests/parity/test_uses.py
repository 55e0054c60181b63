"""What users of ``longformer parity`` meet: misspelt names, JSON by its schema, cut inputs, a table that fits."""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import torch
from reference import TINY
from safetensors.torch import load_file, save_file

from longformer import LongformerForQuestionAnswering
from longformer.cli import main
from longformer.errors import DataError
from longformer.parity import Trace, compare, progress, read_trace, replay
from longformer.parity.names import check_names, nearest
from longformer.parity.noise import precisions_of
from longformer.parity.report import as_json, table
from longformer.parity.rounding import RUNS
from longformer.parity.runs import Contender, draw, record
from longformer.parity.samples import Settings, cut_inputs, read_sample

DOCS = Path(__file__).parents[2] / "docs"
IDS = [[0, 20, 21, 2, 2, 30, 31, 32, 33, 34, 35, 2], [0, 22, 2, 2, 40, 41, 2]]
SMALL = TINY.replace(num_hidden_layers=1, attention_window=8)


class Done:
    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``command("compare", ...)`` in a folder with a checkpoint ``model``, ``ids.json`` and its trace ``a``."""
    monkeypatch.chdir(tmp_path)
    draw(SMALL, seed=0).save_pretrained("model")
    Path("ids.json").write_text(json.dumps({"input_ids": IDS}))

    def run(*arguments: str) -> Done:
        with pytest.raises(SystemExit) as end:
            main(["parity", *arguments])
        said = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return Done(end.value.code, said.out, said.err)

    assert run("record", "model", "ids.json", "-o", "a.safetensors").status == 0
    return run


def renamed(**names: str) -> None:
    """Writes ``b.safetensors``, the trace ``a`` with other names (with _ for the dots of the old ones)."""
    tensors = load_file("a.safetensors")
    for old, new in names.items():
        value = tensors.pop(old.replace("__", "."))
        if new:
            tensors[new] = value
    save_file(tensors, "b.safetensors", metadata=read_trace("a.safetensors").metadata)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("layer.0.qurey", "layer.0.query"),
        ("layer.0.q", "layer.0.query"),
        ("layer.0.keys", "layer.0.key"),
        ("layers.0.value", "layer.0.value"),
        ("Layer.0.value", "layer.0.value"),
        ("layer.0.attn_output", "layer.0.attention_output"),
        ("gradient.layer.0.qurey", "gradient.layer.0.query"),
        ("logit", "logits"),
        ("layer.1.query", None),  # of another layer
        ("layer.0.extra", None),
        ("gradient.layer.0.extra", None),
        ("mine", None),
    ],
)
def test_the_name_that_is_meant(name: str, meant: str | None) -> None:
    parts = ("query", "key", "value", "attention_output")
    known = ["embeddings", "logits", *(f"{start}layer.0.{part}" for start in ("", "gradient.") for part in parts)]
    assert nearest(name, known) == meant


def test_what_both_have_or_is_known_is_no_misspelling() -> None:
    check_names({"a": ["layer.0.keys"], "b": ["layer.0.keys", "layer.0.key"]})
    check_names({"a": ["layer.0.key"], "b": ["layer.0.query"]}, ["layer.0.key", "layer.0.query"])
    check_names({"a": ["layer.0.key", "layer.0.keys"], "b": ["layer.0.key"]})
    with pytest.raises(DataError, match=r"a has 'layer\.0\.keys' and lacks 'layer\.0\.key'"):
        check_names({"a": ["layer.0.keys"], "b": ["layer.0.key"]})


def test_a_misspelt_name_is_an_error(command: Any) -> None:
    renamed(layer__0__query="layer.0.qurey")
    for sides in (("a.safetensors", "b.safetensors"), ("b.safetensors", "ours")):
        done = command("compare", *sides)
        assert (done.status, done.out, "running" in done.err) == (2, "", False)
        assert "b.safetensors has 'layer.0.qurey' and lacks 'layer.0.query': if that is a misspelling" in done.err
    done = command("compare", "a.safetensors", "b.safetensors", "--partial")
    assert done.status == 0
    assert "b.safetensors lacks 1 value: layer.0.query" in done.out
    with pytest.raises(DataError, match="partial=True"):
        compare(read_trace("a.safetensors"), read_trace("b.safetensors"))
    assert compare(read_trace("a.safetensors"), read_trace("b.safetensors"), partial=True).verdict == "identical"


def test_what_is_missing_and_not_misspelt_needs_no_option(command: Any) -> None:
    renamed(layer__0__query="", layer__0__output="my.state")
    done = command("compare", "a.safetensors", "b.safetensors")
    assert done.status == 0
    assert "b.safetensors lacks 2 values: layer.0.query, layer.0.output" in done.out


@pytest.mark.parametrize("kind", ["rounding", "different", "non-finite", "identical", "partial"])
def test_json_follows_its_schema(command: Any, kind: str) -> None:
    schema = json.loads((DOCS / "comparison.schema.json").read_text())
    tensors = load_file("a.safetensors")
    match kind:
        case "different":
            tensors["layer.0.output"] += 1e-2
        case "non-finite":
            tensors["layer.0.key"][0, 0, 0] = float("inf")
        case "partial":
            del tensors["layer.0.key"]
            tensors["mine"] = torch.zeros(3)
    save_file(tensors, "b.safetensors", metadata=read_trace("a.safetensors").metadata)
    other = "ours:banded" if kind == "rounding" else "b.safetensors"
    done = command("compare", "a.safetensors", other, "--json", "-")
    found = json.loads(done.out)
    jsonschema.validate(found, schema)
    assert (found["format"], found["version"]) == ("longformer-comparison", 1)
    assert found["verdict"] == {"partial": "identical"}.get(kind, kind)
    with pytest.raises(jsonschema.ValidationError):  # the schema leaves nothing open
        jsonschema.validate({**found, "more": 1}, schema)


def test_every_entry_of_the_schema_is_documented() -> None:
    schema = json.loads((DOCS / "comparison.schema.json").read_text())
    page = (DOCS / "parity.md").read_text()
    names = {*schema["properties"], *(name for part in schema["$defs"].values() for name in part.get("properties", {}))}
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []


def test_a_cut_row_keeps_its_separator() -> None:
    inputs = {
        "input_ids": torch.tensor([IDS[0], IDS[1] + [1] * 5]),
        "attention_mask": torch.ones(2, 12, dtype=torch.long),
    }
    inputs["attention_mask"][1, 7:] = 0
    cut = cut_inputs(inputs, 2, 9)
    assert cut["input_ids"].tolist() == [[0, 20, 21, 2, 2, 30, 31, 32, 2], [0, 22, 2, 2, 40, 41, 2, 1, 1]]
    assert cut["attention_mask"].tolist() == [[1] * 9, [1] * 7 + [0] * 2]
    assert inputs["input_ids"][0].tolist() == IDS[0]
    assert cut_inputs(inputs, 2, 12)["input_ids"].tolist() == inputs["input_ids"].tolist()
    assert cut_inputs(inputs, 2, 7)["input_ids"][0].tolist() == [0, 20, 21, 2, 2, 30, 2]
    with pytest.raises(DataError, match="the question and its separators take 5; give at least 7"):
        cut_inputs(inputs, 2, 6)
    assert cut_inputs(inputs, None, 3)["input_ids"].tolist() == [[0, 20, 21], [0, 22, 2]]


def test_a_question_stays_global_when_the_context_is_cut(pretrained_dir: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The Senate tries impeachments. " * 40)
    settings = Settings(question="Who tries impeachments?", max_tokens=50)
    sample = read_sample(str(text), str(pretrained_dir), LongformerForQuestionAnswering, settings)
    ids, separator = sample.inputs["input_ids"][0], draw_separator(pretrained_dir)
    assert len(ids) == 50 and ids[-1] == separator and int((ids == separator).sum()) == 3
    assert int(sample.inputs["global_attention_mask"].sum()) == int((ids == separator).nonzero()[0])


def draw_separator(folder: Path) -> int:
    found = json.loads((folder / "config.json").read_text())["sep_token_id"]
    assert isinstance(found, int)
    return found


@pytest.mark.parametrize("side", ["fp64", "fp32", "bf16", "fp16"])
def test_short_names_of_dtypes(side: str) -> None:
    long = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[side]
    assert Contender.parse(f"ours:{side}:banded") == Contender.parse(f"ours:{long}:banded")
    assert Contender.parse(f"transformers:{side}").dtype == long
    with pytest.raises(DataError, match="did you mean 'ours:float64:banded'"):
        Contender.parse("ours:float8:banded")
    with pytest.raises(DataError, match="in short fp64, fp32, bf16, fp16"):
        Contender.parse("ours:int4:banded:blocked")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_bars_are_on_standard_error_of_a_terminal(
    command: Any, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    monkeypatch.setattr(progress, "DELAY", 0.0)
    monkeypatch.setattr(progress, "tqdm", partial(progress.tqdm, mininterval=0.0, miniters=1))
    done = command("record", "model", "ids.json", "-o", "a.safetensors")
    assert done.status == 0
    stream = Terminal() if is_terminal else io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    done = command("compare", "a.safetensors", "ours:banded", "--model", "model")
    assert done.status == 0 and "%|" not in done.out
    for words in ("rounding by chance", "value by value", "rounding of each module", "modules of a.safetensors"):
        assert (f"{words}: " in stream.getvalue()) == is_terminal
    values = len(read_trace("a.safetensors"))
    for runs in (RUNS, replay.RUNS):  # value by value, so that the first step does not take long
        for done in (1, runs * values - 1, runs * values):
            assert (f"| {done}/{runs * values} [" in stream.getvalue()) == is_terminal


def test_a_question_before_token_ids_is_refused(command: Any) -> None:
    for given in ("ids.json", "a.safetensors"):
        done = command("record", "model", given, "-o", "b.safetensors", "--question", "Who?")
        assert (done.status, done.err.count("\n")) == (2, 1)
        assert f"{given} has token ids, and a question cannot be put before them" in done.err
        assert not Path("b.safetensors").exists()


def test_the_table_fits_into_80_columns_and_cuts_no_name(command: Any) -> None:
    long = "a_port_with_a_name_that_says_much_of_what_it_is.safetensors"
    command("record", "model", "ids.json", "-o", "g.safetensors", "--gradients")
    tensors = load_file("g.safetensors")
    tensors["layer.0.output"] += 1e-2
    save_file(tensors, long, metadata=read_trace("g.safetensors").metadata)
    done = command("compare", "g.safetensors", long, "--all")
    assert done.status == 1
    lines = done.out.splitlines()
    rows = lines[next(i for i, line in enumerate(lines) if line.startswith("value")) - 1 :]
    assert len(rows) > 40 and max(map(len, rows)) <= 80
    assert rows[1].split()[-2:] == ["A", "B"]
    assert {"A: g.safetensors", f"B: {long}"} <= set(lines)  # the heads tell the two apart, however they are called
    assert "gradient.parameter.longformer.encoder.layer.0.attention.self.query.weight" in rows


def test_traces_of_another_model(command: Any) -> None:
    draw(SMALL.replace(hidden_size=16), seed=0).save_pretrained("narrow")
    done = command("compare", "a.safetensors", "ours", "--model", "narrow")
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert "a.safetensors and the model are of different configs: hidden_size is 32 and 16" in done.err
    tensors, metadata = load_file("a.safetensors"), read_trace("a.safetensors").metadata
    del metadata["config"]
    save_file(tensors, "b.safetensors", metadata=metadata)
    done = command("compare", "b.safetensors", "ours", "--model", "narrow")
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert (
        "embeddings has shape (2, 12, 32) in b.safetensors; by the model's config and input it is (2, 12, 16)"
        in done.err
    )


def test_a_page_says_that_no_slip_fits(command: Any) -> None:
    tensors = load_file("a.safetensors")
    tensors["layer.0.output"] += 1e-2 * torch.randn(2, 12, 32)
    save_file(tensors, "b.safetensors", metadata=read_trace("a.safetensors").metadata)
    done = command("compare", "a.safetensors", "b.safetensors", "--html", "page.html")
    assert done.status == 1
    assert "known slips explains layer.0.output</li>" in Path("page.html").read_text()
    assert "note: none of the" in done.out


def test_a_comparison_of_nothing_recorded_by_us() -> None:
    """Tables and JSON of traces without a truth."""
    trace = Trace()
    trace.tensors = {"mine": torch.ones(2, 3)}
    found = compare(trace, trace)
    assert as_json(found)["values"][0]["a"] is None
    assert click.unstyle(table(found)).splitlines()[-1].split() == ["mine", "identical", "0", "0", "0", "-", "-"]


def test_what_is_read_before_a_run_is_no_precision_of_it(pretrained_dir: Path, tmp_path: Path) -> None:
    """The weights are kept in float16, and the run is one in float32."""
    text = tmp_path / "text.txt"
    text.write_text("The Senate tries impeachments.")
    sample = read_sample(str(text), str(pretrained_dir), LongformerForQuestionAnswering, Settings())
    found = record(Contender.parse("ours"), str(pretrained_dir), sample, tmp_path / "a.safetensors", Settings())
    assert precisions_of(found) == torch.float32
