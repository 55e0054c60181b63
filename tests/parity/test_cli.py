"""``longformer parity`` as a user has it: files in, verdict, exit status and reports out."""

from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import TINY
from safetensors.torch import load_file, save_file

from longformer import LongformerForMaskedLM, LongformerModel
from longformer.cli import main
from longformer.kernels import dispatch
from longformer.parity import read_trace
from longformer.parity.contest import expected_shapes
from longformer.parity.runs import draw

IDS = [[0, 20, 21, 2, 2, 30, 31, 32, 33, 34, 35, 2], [0, 22, 2, 2, 40, 41, 2]]


class Done:
    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``command("compare", ...)`` in a folder with a checkpoint ``model`` and an input ``ids.json``."""
    monkeypatch.chdir(tmp_path)
    draw(TINY, seed=0).save_pretrained("model")
    Path("ids.json").write_text(json.dumps({"input_ids": IDS}))

    def run(*arguments: str) -> Done:
        with pytest.raises(SystemExit) as end:
            main(["parity", *arguments])
        said = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return Done(end.value.code, said.out, said.err)

    return run


def spoil(source: str, target: str, name: str, by: float) -> None:
    """A trace file as some port might write it: one value off, by way of the library's own writer."""
    tensors, metadata = load_file(source), read_trace(source).metadata
    tensors[name] = tensors[name] + by
    save_file(tensors, target, metadata=metadata)


def test_ours_against_transformers(command: Any) -> None:
    done = command("compare", "ours", "transformers", "ids.json", "--model", "model")
    assert done.status == 0
    assert done.out.startswith("rounding: ours and transformers differ by no more than rounding in 29 values")
    assert "layer.2.output" in done.out


@pytest.mark.slow
def test_record_then_compare(command: Any) -> None:
    assert command("record", "model", "ids.json", "-o", "a.safetensors", "--reference", "transformers").status == 0
    trace = read_trace("a.safetensors")
    assert trace.metadata["model"] == "model"
    assert "transformers" in json.loads(trace.metadata["versions"])
    assert trace.inputs["attention_mask"].sum(dim=1).tolist() == [12, 7]
    assert trace.inputs["global_attention_mask"].sum(dim=1).tolist() == [3, 2]
    # The file names its model and holds its inputs: nothing more need be said.
    assert command("compare", "a.safetensors", "ours").status == 0
    assert command("compare", "ours:bfloat16", "a.safetensors").out.startswith("rounding")
    assert command("compare", "ours:float64:reference", "a.safetensors").out.startswith("rounding")
    assert command("compare", "a.safetensors", "a.safetensors").out.startswith("identical")


def test_a_port_that_is_wrong(command: Any) -> None:
    command("record", "model", "ids.json", "-o", "a.safetensors")
    spoil("a.safetensors", "b.safetensors", "layer.1.attention_output", 1e-3)
    done = command("compare", "a.safetensors", "b.safetensors", "--json", "out.json")
    assert done.status == 1
    first = done.out.splitlines()[0]
    assert first.startswith("different: b.safetensors departs from the truth in layer.1.attention_output (")
    assert re.search(r"at batch \d, token \d", done.out)
    found = json.loads(Path("out.json").read_text())
    assert (found["verdict"], found["first"]) == ("different", "layer.1.attention_output")
    assert found["departed"] == ["b.safetensors"]
    verdicts = {value["name"]: value["verdict"] for value in found["values"]}
    assert verdicts.pop("layer.1.attention_output") == "different"
    assert set(verdicts.values()) == {"identical"}


def test_json_stands_alone_on_standard_output(command: Any) -> None:
    done = command("compare", "ours", "ours:banded", "ids.json", "--model", "model", "--json", "-")
    found = json.loads(done.out)
    assert found["verdict"] == "rounding"
    assert found["values"][0]["name"] == "embeddings"
    assert found["values"][0]["positions"] == []
    assert "running the truth" in done.err


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"attention_dilation": 2}, "an attention_dilation"),
        ({"attention_window": 2}, "an attention_window below 4"),
        ({"attention_pattern": "full"}, "an attention_pattern"),
    ],
    ids=["dilation", "window", "pattern"],
)
def test_what_transformers_does_not_compute(command: Any, change: dict[str, Any], what: str) -> None:
    draw(TINY.replace(**change), seed=0).save_pretrained("ours-alone")
    done = command("compare", "ours", "transformers", "ids.json", "--model", "ours-alone")
    assert done.status == 2 and f"ours-alone has {what}, which transformers' Longformer" in done.err
    assert command("compare", "ours", "ours:reference", "ids.json", "--model", "ours-alone").status == 0


def test_not_finite(command: Any) -> None:
    command("record", "model", "ids.json", "-o", "a.safetensors")
    spoil("a.safetensors", "b.safetensors", "layer.2.key", float("nan"))
    done = command("compare", "a.safetensors", "b.safetensors", "--json", "-")
    assert done.status == 1
    assert json.loads(done.out)["summary"] == "NaN or infinity appears first in layer.2.key, in b.safetensors"


def test_probabilities(command: Any) -> None:
    command("record", "model", "ids.json", "-o", "a.safetensors", "--probabilities")
    done = command("compare", "transformers", "a.safetensors", "--json", "-")
    assert done.status == 0
    names = [value["name"] for value in json.loads(done.out)["values"]]
    assert "layer.0.band_probabilities" in names


@pytest.mark.slow
def test_drawn_weights_are_the_seed_s(command: Any) -> None:
    TINY.save("tiny.json")
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        command("record", "tiny.json", "ids.json", "-o", f"{name}.safetensors", "--seed", seed, "--only", "logits")
    a, b, c = (read_trace(f"{name}.safetensors")["logits"] for name in "abc")
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert command("compare", "ours", "transformers", "ids.json", "--model", "tiny.json").status == 0
    # A trace that names its model has the seed too, which another one overrules.
    assert command("compare", "a.safetensors", "ours").status == 0
    assert command("compare", "ours", "ours:bfloat16", "c.safetensors", "--json", "c.json").status == 0
    assert json.loads(Path("c.json").read_text())["about"]["ours"]["seed"] == "2"
    assert command("compare", "c.safetensors", "ours", "--model", "tiny.json").status == 0
    done = command("compare", "a.safetensors", "ours", "--seed", "2")
    assert (done.status, "a.safetensors was computed with other weights" in done.out) == (1, True)
    tensors = load_file("a.safetensors")
    save_file(tensors, "d.safetensors", metadata={**read_trace("a.safetensors").metadata, "seed": "one"})
    assert "has seed 'one', which is no whole number" in command("compare", "d.safetensors", "ours").err


@pytest.mark.slow
def test_gradients(command: Any) -> None:
    command("record", "model", "ids.json", "-o", "a.safetensors", "--gradients", "--reference", "transformers")
    trace = read_trace("a.safetensors")
    # The first token that is not global, and the last, of each row.
    assert trace.inputs["start_positions"].tolist() == [3, 2]
    assert trace.inputs["end_positions"].tolist() == [11, 6]
    assert "gradient.parameter.longformer.embeddings.word_embeddings.weight" in trace
    done = command("compare", "a.safetensors", "ours")
    assert done.status == 0
    assert "in 131 values" in done.out and "gradient.layer.0.output" in done.out
    assert command("compare", "a.safetensors", "ours:bfloat16").out.startswith("rounding")

    answers = {"start_positions": [5, 4], "end_positions": [6, 4]}
    Path("answers.json").write_text(json.dumps({"input_ids": IDS, **answers}))
    command("record", "model", "answers.json", "-o", "b.safetensors", "--gradients")
    assert read_trace("b.safetensors").inputs["start_positions"].tolist() == [5, 4]
    assert command("compare", "ours", "transformers", "answers.json", "--model", "model", "--gradients").status == 0
    done = command("compare", "a.safetensors", "b.safetensors")
    assert (done.status, "end_positions[0] is 11 in a.safetensors and 6" in done.err) == (2, True)
    # Without gradients the answers say nothing.
    command("record", "model", "answers.json", "-o", "c.safetensors")
    assert "start_positions" not in read_trace("c.safetensors").inputs
    done = command("compare", "b.safetensors", "c.safetensors")
    assert done.status == 0 and "c.safetensors lacks 102 values" in done.out

    spoil("a.safetensors", "d.safetensors", "gradient.layer.1.value", 1e-5)
    done = command("compare", "a.safetensors", "d.safetensors", "--html", "page.html")
    assert done.status == 1
    assert "d.safetensors departs from the truth in gradient.layer.1.value" in done.out
    assert "Error of gradients" in Path("page.html").read_text()


def test_a_base_model_has_no_loss(command: Any) -> None:
    LongformerModel(TINY).save_pretrained("base")
    done = command("record", "base", "ids.json", "-o", "t.safetensors", "--gradients")
    assert (done.status, "base is a base model, which has no loss" in done.err) == (2, True)
    assert command("compare", "ours", "transformers", "ids.json", "--model", "base").status == 0


def masked_lm(folder: str, pooler: bool = False) -> None:
    model = LongformerForMaskedLM(TINY)
    torch.nn.init.normal_(model.lm_head.bias)
    model.save_pretrained(folder)
    if pooler:
        file = Path(folder, "model.safetensors")
        extra = {f"longformer.pooler.dense.{name}": torch.zeros(32) for name in ("weight", "bias")}
        save_file({**load_file(file), **extra}, file)


@pytest.mark.slow
def test_masked_language_modelling(command: Any) -> None:
    masked_lm("words")
    done = command("compare", "ours", "transformers", "ids.json", "--model", "words", "--json", "-")
    found = json.loads(done.out)
    assert (done.status, found["verdict"], found["notes"]) == (0, "rounding", [])
    last = found["values"][-1]
    assert (last["name"], last["shape"], last["verdict"]) == ("logits", [2, 12, 60], "rounding")
    command("record", "words", "ids.json", "-o", "a.safetensors", "--reference", "transformers")
    spoil("a.safetensors", "b.safetensors", "logits", 1e-3)
    done = command("compare", "a.safetensors", "b.safetensors")
    assert (done.status, "b.safetensors departs from the truth in logits" in done.out) == (1, True)


def test_parts_that_are_not_compared_are_named(command: Any) -> None:
    masked_lm("words", pooler=True)
    done = command("compare", "ours", "transformers", "ids.json", "--model", "words")
    assert done.status == 0
    assert "note: the checkpoint has parts that were not run and not compared: pooler" in done.out


@pytest.mark.slow
def test_the_input_may_name_the_model(command: Any) -> None:
    command("record", "model", "ids.json", "-o", "a.safetensors")
    assert command("compare", "ours", "ours:bfloat16", "a.safetensors").status == 0


def rewrite(target: str, tensors: dict[str, torch.Tensor] | None = None, **metadata: str | None) -> None:
    """``a.safetensors`` again with some tensors and metadata exchanged; an empty tensor or None leaves it out."""
    found = {**load_file("a.safetensors"), **(tensors or {})}
    known = {**read_trace("a.safetensors").metadata, **metadata}
    save_file(
        {name: tensor for name, tensor in found.items() if tensor.numel()},
        target,
        metadata={key: value for key, value in known.items() if value is not None},
    )


def test_traces_that_cannot_be_compared(command: Any) -> None:
    command("record", "model", "ids.json", "-o", "a.safetensors")
    ids = read_trace("a.safetensors").inputs["input_ids"]
    config = json.loads(read_trace("a.safetensors").metadata["config"])
    none = torch.empty(0)
    for tensors, metadata, message in (
        ({}, {"config": "{"}, "has 'config', which is not valid JSON"),
        ({}, {"weights": "[1]"}, "has 'weights' [1], which must be a JSON object"),
        ({}, {"version": "2"}, "is of version '2' of the trace format, and this reads version 1"),
        ({}, {"format": None}, "is no trace"),
        ({}, {"config": json.dumps({**config, "hidden_act": "relu"})}, "b.safetensors and the model are of different"),
        ({"input.input_ids": none}, {}, "lacks input.input_ids"),
        ({"input.input_ids": ids.float()}, {}, "input.input_ids is float32 of shape (2, 12); it must be int64"),
        ({"input.input_ids": ids[0]}, {}, "is int64 of shape (2, 12); it must be int64, (B, S)"),
        ({"input.labels": ids}, {}, "has input.labels; the inputs of LongformerForQuestionAnswering are"),
        ({"input.global_attention_mask": none}, {}, "was recorded without global_attention_mask"),
        ({}, {"order": "[1]"}, "has 'order', which must be a JSON list of names"),
        ({"layer.0.key": ids}, {}, "layer.0.key is int64 in b.safetensors; values are floating point"),
        (
            {"layer.2.output": torch.zeros(2, 16, 32)},
            {},
            "layer.2.output has shape (2, 16, 32) in b.safetensors; by the model's config and input it is (2, 12, 32)",
        ),
        ({"gradient.parameter.qa_outputs.bias": torch.zeros(3)}, {}, "in b.safetensors; by the model's config and"),
    ):
        rewrite("b.safetensors", tensors, **metadata)
        done = command("compare", "b.safetensors", "ours")
        assert done.status == 2, message
        assert message in done.err.replace("of shape (12,)", "of shape (2, 12)"), done.err
        assert "running" not in done.err  # nothing was computed in vain
    # Of a value that our model has not, the two must agree; and what one alone has may be anything.
    rewrite("a.safetensors", {"mine": torch.zeros(2)})
    rewrite("b.safetensors", {"mine": torch.zeros(3)})
    done = command("compare", "a.safetensors", "b.safetensors")
    assert (done.status, "running" in done.err) == (2, False)
    assert "mine has shape (2,) in a.safetensors and (3,) in b.safetensors" in done.err
    rewrite("b.safetensors", {"mine": torch.empty(0), "other": ids})
    assert command("compare", "a.safetensors", "b.safetensors").status == 0
    rewrite("b.safetensors", {"input.input_ids": ids + 1})
    done = command("compare", "a.safetensors", "b.safetensors")
    assert "input_ids[0, 0] is 1 in b.safetensors and 0 in a.safetensors" in done.err
    Path("b.safetensors").write_bytes(Path("a.safetensors").read_bytes()[:-9])
    assert "cut short, corrupt" in command("compare", "b.safetensors", "ours").err
    rewrite("b.safetensors", model=None)
    assert "--model is missing" in command("compare", "b.safetensors", "ours").err


class Page(html.parser.HTMLParser):
    """What a browser would make of the page: elements, and anything fetched from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.data = ""
        self._in: dict[str, str | None] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in = {"tag": tag, **dict(attrs)}
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self._in.get("id") == "data":
            self.data += data
        elif self._in.get("tag") not in ("script", "style"):
            self.text += data

    def handle_endtag(self, tag: str) -> None:
        self._in = {}


@pytest.mark.slow
def test_the_page(command: Any, pretrained_dir: Path) -> None:
    evil = "<b>bold</b> </script><script>alert(1)</script> & @@DATA@@"
    Path("evil.txt").write_text(f"The Senate tries impeachments. {evil}")
    done = command(
        "compare",
        *("ours", "transformers", "evil.txt", "--question", "Who?"),
        *("--model", str(pretrained_dir), "--html", "page.html"),
    )
    assert done.status == 0
    text = Path("page.html").read_text()
    page = Page()
    page.feed(text)
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 2 and "b" not in tags and tags.count("svg") == 1
    fetched = [
        value for _, attributes in page.elements for name, value in attributes.items() if name in ("src", "href")
    ]
    assert fetched == [] and "http" not in text and "url(" not in text
    data = json.loads(page.data)
    assert "".join(data["tokens"][0]).count("script") == 3
    heat = data["heat"][data["values"].index("layer.0.query")]
    assert len(heat) == 2  # runs
    assert len(heat[0][0]) == 12 and len(heat[0][0][0]) == len(data["tokens"][0])  # heads, tokens
    circles = [attributes for tag, attributes in page.elements if tag == "circle"]
    assert len(circles) == 2 * len(data["values"])
    assert "differ by no more than rounding" in page.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "ours", "theirs", "ids.json", "--model", "model"], "'theirs' is neither a trace file"),
        (["compare", "ours", "trasformers:bf16", "ids.json", "--model", "model"], "did you mean 'transformers:bf16'?"),
        (
            ["compare", "ours", "ours:fast", "ids.json", "--model", "model"],
            "'ours:fast': 'fast' is no kernel; did you mean 'auto'? There are auto, reference",
        ),
        (["compare", "ours", "transformers:banded", "ids.json", "--model", "model"], "transformers has one kernel"),
        (["compare", "ours", "transformers", "--model", "model"], "INPUT is missing"),
        (
            ["compare", "ours", "ours:float64:triton", "ids.json", "--model", "model"],
            "kernel 'triton' cannot be used: ",
        ),
        (["compare", "ours", "ours:", "ids.json", "--model", "model"], "'ours:' is neither a trace file"),
        (["compare", "ours", "transformers", "ids.json"], "--model is missing"),
        (
            ["compare", "-", "ours", "ids.json", "--model", "model"],
            "- is standard input; a trace can only be read from",
        ),
        (["compare", "ours", "transformers", "ids.json", "--model", "absent"], "there is no folder 'absent'"),
        (["compare", "ours", "absent.safetensors", "--model", "model"], "no trace file at absent.safetensors"),
        (["compare", "ours", "transformers", "ids.json", "--model", "model", "--html", "x/y.html"], "no folder 'x'"),
        (["compare", "ours", "transformers", "ids.json", "--model", "model", "--html", "y.txt"], "must end in .html"),
        (["record", "model", "ids.json", "-o", "trace.bin"], "must end in .safetensors"),
        (["record", "model", "absent.json", "-o", "t.safetensors"], "no file at 'absent.json'"),
        (["record", "model", "bad.json", "-o", "t.safetensors"], "bad.json is not valid JSON"),
        (["record", "model", "list.json", "-o", "t.safetensors"], "list.json must hold an object like"),
        (["record", "model", "mask.json", "-o", "t.safetensors"], "attention_mask has rows of [2], input_ids of [3]"),
        (["record", "model", "text.json", "-o", "t.safetensors"], "input_ids must be a list of lists of whole numbers"),
        (
            ["record", "model", "more.json", "-o", "t.safetensors"],
            "more.json: 'labels' is no input of the model; there are",
        ),
        (["record", "model", "one.json", "-o", "t.safetensors"], "did you mean 'input_ids'?"),
        (["record", "model", "empty.json", "-o", "t.safetensors"], "empty row"),
        (["record", "model", "ids.json", "-o", "t.safetensors", "--dtype", "int4"], "dtype 'int4' is none of float64"),
        (["record", "model", "ids.json", "-o", "t.safetensors", "--only", "x.*"], "only='x.*' matches no value"),
        (["record", "model", "huge.json", "-o", "t.safetensors"], "input_ids must be a list of lists of whole numbers"),
        (["record", "model", "start.json", "-o", "t.safetensors", "--gradients"], "lacks end_positions; give both"),
        (["record", "model", "half.json", "-o", "t.safetensors", "--gradients"], "must be a list of whole numbers"),
        (["record", "model", "many.json", "-o", "t.safetensors", "--gradients"], "start_positions has shape (2,)"),
        (["record", "model", "out.json", "-o", "t.safetensors", "--gradients"], "end_positions has 3 for row 0"),
        (["record", "model", "large.json", "-o", "t.safetensors"], "input_ids holds 99; the model has rows 0 to 59"),
    ],
)
def test_bad_input(command: Any, arguments: list[str], message: str) -> None:
    for name, content in {
        "bad": "{",
        "list": "[1]",
        "mask": '{"input_ids": [[1, 2, 3]], "attention_mask": [[1, 1]]}',
        "text": '{"input_ids": ["a"]}',
        "more": '{"input_ids": [[3]], "labels": [[3]]}',
        "one": '{"input_id": [[3]]}',
        "empty": '{"input_ids": [[3], []]}',
        "huge": '{"input_ids": [[3, 99999999999999999999]]}',
        "start": '{"input_ids": [[3, 4, 5]], "start_positions": [1]}',
        "half": '{"input_ids": [[3, 4, 5]], "start_positions": [1.5], "end_positions": [1]}',
        "many": '{"input_ids": [[3, 4, 5]], "start_positions": [1, 1], "end_positions": [1, 1]}',
        "out": '{"input_ids": [[3, 4, 5]], "start_positions": [1], "end_positions": [3]}',
        "large": '{"input_ids": [[3, 99]]}',
    }.items():
        Path(f"{name}.json").write_text(content)
    done = command(*arguments)
    assert done.status == 2
    assert message in done.err
    assert "Traceback" not in done.err
    assert not list(Path().glob("*.safetensors")) and not list(Path().glob(".*"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["compare", "ours", "ours:triton", "ids.json", "--model", "model"],
        ["record", "model", "ids.json", "-o", "t.safetensors", "--impl", "triton"],
    ],
)
def test_triton_where_it_does_not_serve(command: Any, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    # As on a machine without a GPU; the tests themselves run with Triton's interpreter.
    monkeypatch.setattr(dispatch, "triton_refusal", lambda query: "its kernels want a tensor on a GPU")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    done = command(*arguments)
    assert done.status == 2
    assert "kernel 'triton' cannot be used: its kernels want a tensor on a GPU; \"auto\" takes the next" in done.err
    assert "TRITON_INTERPRET=1" in done.err and "trace(model, path=...)" in done.err
    assert not list(Path().glob("*.safetensors"))


@pytest.mark.slow
def test_triton_is_rounding(command: Any) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    refusal = dispatch.triton_refusal(torch.empty(1, 1, 1, 8))
    if refusal is not None:
        pytest.skip(f"the command runs on the CPU, and there {refusal}")
    done = command("compare", "ours:blocked", "ours:triton", "ids.json", "--model", "model", "--json", "-")
    found = json.loads(done.out)
    assert (done.status, found["verdict"]) == (0, "rounding")
    # Another kernel did run: the same bits would mean that it did not.
    assert "rounding" in {value["verdict"] for value in found["values"] if value["name"] == "layer.0.local_output"}


@pytest.mark.parametrize("kind", ["model", "base", "words"])
def test_shapes_are_known_beforehand(command: Any, kind: str) -> None:
    if kind == "base":
        LongformerModel(TINY).save_pretrained("base")
    elif kind == "words":
        masked_lm("words")
    gradients = ["--gradients"] if kind == "model" else []
    command("record", kind, "ids.json", "-o", "a.safetensors", "--probabilities", *gradients)
    trace = read_trace("a.safetensors")
    shapes = expected_shapes(kind, TINY, trace.inputs)
    assert {name: shapes[name] for name in trace} == {name: tuple(value.shape) for name, value in trace.items()}
    unseen = {name for name in shapes if name not in trace and not name.startswith("gradient.")}
    assert unseen == set()
