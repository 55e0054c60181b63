"""Each file format that a command reads, mangled: the command works, or says in one line what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mangling
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mangling import check, mangled_bytes, mangled_json, run, write
from safetensors.torch import load_file
from tiny_checkpoint import byte_level_tokenizer, save_tiny_checkpoint, tiny_model, wordpiece_tokenizer
from training_runs import squad_file

from longformer import LongformerForMaskedLM, LongformerForSequenceClassification, LongformerTokenizer

pytestmark = pytest.mark.slow

QUESTION, TEXT = "Who met Bob?", "Ann met Bob in Rome, on Monday. Dan fell down."
ids = [[0, 20, 21, 2, 2, 30, 31, 32, 33, 34, 35, 2], [0, 22, 2, 2, 40, 41, 2]]


def bounded(examples: int) -> Any:
    """Seeded (the profile in conftest.py derandomises), and bounded; shrinking would take longer than it tells."""
    return settings(max_examples=examples, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a few kilobytes, one with a masked-LM head, and a valid file of every format."""
    folder = tmp_path_factory.mktemp("world")
    save_tiny_checkpoint(folder / "model")
    tokenizer = byte_level_tokenizer(folder / "mlm")
    LongformerForMaskedLM(tiny_model(tokenizer).config).save_pretrained(folder / "mlm")
    squad_file(folder / "questions.json")
    classes = byte_level_tokenizer(folder / "classes")
    LongformerForSequenceClassification(tiny_model(classes).config).save_pretrained(folder / "classes")
    (folder / "text.txt").write_text(TEXT)
    (folder / "ids.json").write_text(json.dumps({"input_ids": ids, "attention_mask": [[1] * 12, [1] * 7]}))
    predict = ["predict", f"{folder}/questions.json", "-o", f"{folder}/p.json", "--null-scores", f"{folder}/null.json"]
    assert run(*predict, "--model", f"{folder}/model").status == 0
    trace = [f"{folder}/text.txt", "-o", f"{folder}/trace.safetensors"]
    assert run("parity", "record", f"{folder}/model", *trace).status == 0
    return folder


@pytest.fixture
def copy(world: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint, whose files may be changed."""
    shutil.copytree(world / "model", tmp_path / "model")
    return tmp_path / "model"


def answer(model: Path) -> mangling.Done:
    return run("answer", QUESTION, "--text", TEXT, "--model", str(model))


def test_the_valid_files(world: Path) -> None:
    """What is mangled below works as it is."""
    for done in (
        answer(world / "model"),
        run("evaluate", f"{world}/questions.json", "--predictions", f"{world}/p.json"),
        run("classify", f"{world}/classes", f"{world}/text.txt"),
        run("evaluate-mlm", f"{world}/mlm", f"{world}/text.txt"),
        run("parity", "record", f"{world}/model", f"{world}/ids.json", "-o", f"{world}/ids.safetensors"),
        run("parity", "compare", f"{world}/trace.safetensors", "ours", "--model", f"{world}/model"),
    ):
        assert done.status == 0, done.err


@given(data=st.data())
@bounded(60)
def test_config(copy: Path, data: st.DataObject) -> None:
    valid = (copy / "config.json").read_bytes()
    try:
        write(copy / "config.json", data.draw(mangled_json(json.loads(valid))))
        check(answer(copy))
    finally:
        (copy / "config.json").write_bytes(valid)


@given(data=st.data())
@bounded(25)
def test_config_that_weights_are_drawn_for(world: Path, tmp_path: Path, data: st.DataObject) -> None:
    valid = json.loads((world / "model" / "config.json").read_bytes())
    config = write(tmp_path / "config.json", data.draw(mangled_json(valid)))
    check(run("parity", "record", config, f"{world}/ids.json", "-o", str(tmp_path / "t.safetensors")))
    check(run("convert", str(tmp_path), str(tmp_path / "long"), "--to-long", "--max-tokens", "9"))


def roberta(folder: Path) -> list[str]:
    byte_level_tokenizer(folder)
    vocabulary = json.loads((folder / "vocab.json").read_text())
    vocabulary["An"] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nA n\n")
    config = {"model_max_length": 64, "mask_token": {"content": "<mask>", "lstrip": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<pad>", "cls_token": {"content": "<s>"}}))
    (folder / "added_tokens.json").write_text(json.dumps({"<new>": len(vocabulary)}))
    return ["vocab.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt"]


def bert(folder: Path) -> list[str]:
    wordpiece_tokenizer(folder)
    return ["tokenizer.json"]


def old_bert(folder: Path) -> list[str]:
    words = wordpiece_tokenizer(folder).get_vocab()
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(sorted(words, key=lambda word: words[word])) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, "strip_accents": None}))
    return ["tokenizer_config.json", "vocab.txt"]


def whole(folder: Path) -> list[str]:
    byte_level_tokenizer(folder).save_pretrained(folder)
    return ["tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("make", [roberta, bert, old_bert, whole], ids=lambda make: make.__name__)
@given(data=st.data())
@bounded(60)
def test_tokenizers(make: Callable[[Path], list[str]], tmp_path: Path, data: st.DataObject) -> None:
    """The tokenizer's files lie in a folder of their own, which --tokenizer names."""
    folder, model = tmp_path / "tokenizer", tmp_path / "model"
    names = make(folder)
    if not model.exists():
        tiny_model(LongformerTokenizer.from_pretrained(folder)).save_pretrained(model)
    name = data.draw(st.sampled_from(names))
    valid = (folder / name).read_bytes()
    write(folder / name, data.draw(mangled_json(json.loads(valid)) if name.endswith(".json") else mangled_bytes(valid)))
    check(run("answer", QUESTION, "--text", TEXT, "--model", str(model), "--tokenizer", str(folder)))
    shutil.rmtree(folder)


@given(data=st.data())
@bounded(60)
def test_safetensors(copy: Path, data: st.DataObject) -> None:
    path = copy / "model.safetensors"
    valid = path.read_bytes()
    size = int.from_bytes(valid[:8], "little")
    header = mangled_json(json.loads(valid[8 : 8 + size])).map(lambda new: len(new).to_bytes(8, "little") + new)
    try:
        # A new file: the old one may still be mapped.
        path.unlink()
        write(path, data.draw(st.one_of(header.map(lambda new: new + valid[8 + size :]), mangled_bytes(valid))))
        check(answer(copy))
        check(run("convert", str(copy), str(copy / "converted")))
    finally:
        path.unlink()
        path.write_bytes(valid)


@given(data=st.data())
@bounded(60)
def test_pickles(copy: Path, data: st.DataObject) -> None:
    tensors = load_file(copy / "model.safetensors") if (copy / "model.safetensors").exists() else None
    if tensors is not None:
        torch.save(tensors, copy / "valid.bin")
        (copy / "model.safetensors").unlink()
    write(copy / "pytorch_model.bin", data.draw(mangled_bytes((copy / "valid.bin").read_bytes())))
    check(answer(copy))


@given(data=st.data())
@bounded(30)
def test_indices_of_shards(copy: Path, data: st.DataObject) -> None:
    if (copy / "model.safetensors").exists():
        (copy / "model.safetensors").rename(copy / "one.safetensors")
    weights = dict.fromkeys(load_file(copy / "one.safetensors"), "one.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": weights}
    write(copy / "model.safetensors.index.json", data.draw(mangled_json(index)))
    check(answer(copy))


@given(data=st.data())
@bounded(60)
def test_questions(world: Path, tmp_path: Path, data: st.DataObject) -> None:
    valid = json.loads((world / "questions.json").read_bytes())
    file = write(tmp_path / "q.json", data.draw(mangled_json(valid, short=True)))
    check(run("predict", file, "-o", str(tmp_path / "p.json"), "--model", f"{world}/model"))
    check(run("evaluate", file, "--predictions", f"{world}/p.json"))


@given(data=st.data())
@bounded(60)
def test_predictions(world: Path, tmp_path: Path, data: st.DataObject) -> None:
    valid = json.loads((world / "p.json").read_bytes())
    file = write(tmp_path / "p.json", data.draw(mangled_json(valid)))
    check(run("evaluate", f"{world}/questions.json", "--predictions", file, "--json"))
    check(run("evaluate", f"{world}/questions.json", "--predictions", f"{world}/p.json", "--against", file))


@given(data=st.data())
@bounded(60)
def test_null_scores(world: Path, tmp_path: Path, data: st.DataObject) -> None:
    """As ``predict --null-scores`` writes them."""
    valid = json.loads((world / "null.json").read_bytes())
    file = write(tmp_path / "null.json", data.draw(mangled_json(valid)))
    common = [f"{world}/questions.json", "--predictions", f"{world}/p.json"]
    check(run("evaluate", *common, "--na-probs", file, "--json"))
    check(run("tune-threshold", *common, "--null-scores", file))


@given(data=st.data())
@bounded(60)
def test_questions_as_a_table_of_columns(world: Path, tmp_path: Path, data: st.DataObject) -> None:
    answers = [{"text": ["Bob"], "answer_start": [8]}, {"text": [], "answer_start": []}]
    valid = {"id": ["a", "b"], "question": ["Who?", "Where?"], "context": [TEXT, TEXT], "answers": answers}
    file = write(tmp_path / "q.json", data.draw(mangled_json(valid, short=True)))
    check(run("predict", file, "-o", str(tmp_path / "p.json"), "--model", f"{world}/model"))
    check(run("evaluate", file, "--predictions", f"{world}/p.json"))


DIGITS = [b"1" + b"0" * 400, b"9" * 5000, b"1e999", b"-1e-999", b"nan", b"0x1", b"1_000", "٣".encode(), b"1|2", b"''"]


@given(data=st.data())
@bounded(60)
def test_labelled_texts(world: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Nothing is trained: the folder of the run is a file."""
    kind = data.draw(st.sampled_from(["csv", "jsonl"]))
    if kind == "csv":
        valid = b'text,label\n"Ann met, Bob.",1\nDan fell.,2\n'
        odd = st.sampled_from(DIGITS).map(lambda digits: valid.replace(b",1", b"," + digits))
        content = data.draw(st.one_of(odd, mangled_bytes(valid)))
    else:
        lines = [{"text": "Ann met Bob.", "label": 1}, {"text": "Dan fell.", "label": 2}]
        content = b"\n".join([data.draw(mangled_json(lines[0])), json.dumps(lines[1]).encode()])
    file = write(tmp_path / f"texts.{kind}", content)
    check(run("classify", f"{world}/classes", file))
    done = run("train", "classification", f"{world}/classes", f"{world}/text.txt", file, "--new-head")
    check(done)
    assert done.status == 2


@given(data=st.data())
@bounded(60)
def test_texts(world: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = data.draw(
        st.one_of([mangled_bytes(TEXT.encode(encoding), short=True) for encoding in ("utf-8", "utf-16")])
    )
    file = write(tmp_path / "text.txt", content)
    check(run("answer", QUESTION, file, "--model", f"{world}/model"))
    check(run("answer", QUESTION, "-", "--model", f"{world}/model", stdin=content))
    check(run("evaluate-mlm", f"{world}/mlm", file))


@given(data=st.data())
@bounded(40)
def test_json_lines(world: Path, tmp_path: Path, data: st.DataObject) -> None:
    valid = b'{"text": "Ann met Bob."}\n{"text": "Dan fell.", "id": 3}\n'
    check(run("evaluate-mlm", f"{world}/mlm", write(tmp_path / "texts.jsonl", data.draw(mangled_bytes(valid)))))


@given(data=st.data())
@bounded(60)
def test_inputs_of_parity(world: Path, tmp_path: Path, data: st.DataObject) -> None:
    valid = {
        "input_ids": ids,
        "attention_mask": [[1] * 12, [1] * 7],
        "start_positions": [6, 4],
        "end_positions": [7, 5],
    }
    file = write(tmp_path / "ids.json", data.draw(mangled_json(valid)))
    more = data.draw(st.sampled_from([[], ["--gradients"], ["--max-tokens", "3"]]))
    check(run("parity", "record", f"{world}/model", file, "-o", str(tmp_path / "t.safetensors"), *more))


@given(data=st.data())
@bounded(40)
def test_traces(world: Path, tmp_path: Path, data: st.DataObject) -> None:
    valid = (world / "trace.safetensors").read_bytes()
    size = int.from_bytes(valid[:8], "little")
    header = mangled_json(json.loads(valid[8 : 8 + size])).map(lambda new: len(new).to_bytes(8, "little") + new)
    content = data.draw(st.one_of(header.map(lambda new: new + valid[8 + size :]), mangled_bytes(valid)))
    file = write(tmp_path / "trace.safetensors", content)
    check(run("parity", "compare", file, "ours", "--model", f"{world}/model"), works=(0, 1))


@given(data=st.data())
@bounded(60)
def test_options_of_a_training(tmp_path: Path, data: st.DataObject) -> None:
    """The checkpoint is not there: so nothing is trained, and every file must end in an error."""
    valid = f'source = "{tmp_path}/absent"\noutput = "{tmp_path}/run"\nfiles = ["q.json"]\n'
    name = data.draw(st.sampled_from(["epochs", "learning_rate", "freeze", "seed", "warmup", "plot", "tokenizer"]))
    numbers = ["9" * 5000, "1" + "0" * 400, "9223372036854775808", "-1", "nan", "inf"]
    odd = [*numbers, "true", '"x"', "[[1]]", "1979-05-27", '"\\u0000"']
    line = st.sampled_from(odd).map(lambda value: f"{valid}{name} = {value}\n".encode())
    deep = st.just(f"{valid}x = {'[' * mangling.DEEP}".encode())
    file = write(tmp_path / "options.toml", data.draw(st.one_of(line, deep, mangled_bytes(valid.encode()))))
    done = run("train", "qa", "--config", file)
    check(done)
    assert done.status == 2
