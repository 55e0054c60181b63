"""``longformer bench``: it measures only what agrees, says what is missing, and keeps all it needs to be judged by."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from tiny_checkpoint import byte_level_tokenizer
from torch.nn.attention.flex_attention import flex_attention

from longformer import LongformerConfig, LongformerError
from longformer import cli as command
from longformer.bench import (
    attention,
    clocks,
    formats,
    machine,
    memory,
    model,
    peak,
    precision,
    problem,
    qa,
    report,
    rivals,
    scaling,
    timing,
    training,
)
from longformer.bench.timing import Case, Contender, DisagreementError, Record, UnavailableError

TINY = LongformerConfig(
    vocab_size=300,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=130,
    attention_window=16,
    initializer_range=0.2,
)
PROBLEM = problem.Problem(batch=2, heads=2, seq_len=32, head_dim=8, window=4)
SMALL = ("--heads", "2", "--head-dim", "8", "--window", "4")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch):
    """A matrix product that takes no time, FlexAttention without its compiler, and the threads as they were."""
    monkeypatch.setattr(machine, "PRODUCT_SIZE", 16)
    monkeypatch.setattr(rivals, "_compiled_flex", lambda: flex_attention)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """Run ``longformer bench`` in this process: exit status, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            command.main(["bench", *map(str, arguments)])
        out, err = capsys.readouterr()
        return stopped.value.code, out, err

    return run


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    TINY.save(tmp_path / "config.json")
    return tmp_path / "config.json"


@pytest.fixture
def no_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """No processes: what would have been asked of them, each answered with 1 MB for every letter of its name."""
    asked: list[dict] = []

    def in_subprocess(task: dict) -> int:
        asked.append(task)
        return len(task["name"]) * 10**6

    monkeypatch.setattr(memory, "in_subprocess", in_subprocess)
    return asked


def case(**runs) -> Case:
    """A case of contenders that give these tensors, or raise."""

    def builder(name, result):
        def run():
            if isinstance(result, BaseException):
                raise result
            return [result]

        return lambda: Contender(name, run)

    return Case("a case", {}, torch.float32, {name: builder(name, result) for name, result in runs.items()})


# ---- agreement


@pytest.mark.parametrize("wrong", [torch.tensor([1.0, 2.001]), torch.tensor([1.0, float("nan")]), torch.ones(3)])
def test_disagreement_stops_before_anything_is_timed(wrong, monkeypatch):
    monkeypatch.setattr(timing, "interleave", lambda *_: pytest.fail("was timed"))
    with pytest.raises(DisagreementError, match="a case: the result of theirs"):
        timing.measure(case(ours=torch.tensor([1.0, 2.0]), theirs=wrong), rounds=1)


def test_agreement_is_measured_against_the_reference():
    asked = case(ours=torch.tensor([1.0, 2.0]), theirs=torch.tensor([1.0, 2.0001]))
    asked.reference = lambda: [torch.tensor([1.0, 2.0001])]
    record = timing.measure(asked, rounds=3)
    assert [len(m.values) for m in record.measurements] == [3, 3]
    assert record.measurements[0].difference == pytest.approx(5e-5, rel=0.01)
    assert record.measurements[1].difference == 0


def test_a_contender_may_be_known_to_round_more():
    asked = case(ours=torch.ones(1))
    rough = Contender("rough", lambda: [torch.full((1,), 1.1)], tolerance=0.2)
    asked.builders = {**asked.builders, "rough": lambda: rough}
    assert timing.measure(asked, rounds=1).measurements[1].name == "rough"


def test_a_rival_that_fails_is_missing_and_ours_is_an_error():
    failure = NotImplementedError("no such kernel\nat all")
    record = timing.measure(case(ours=torch.ones(1), theirs=failure), rounds=1)
    assert record.missing == {"theirs": "no such kernel"}
    with pytest.raises(NotImplementedError):
        timing.measure(case(ours=failure, theirs=torch.ones(1)), rounds=1)


def test_turns_rotate():
    order = []

    def contender(name):
        return Contender(name, lambda: order.append(name) or [], prepare=lambda: order.append(f"prepare {name}"))

    seconds = timing.interleave([contender("a"), contender("b")], rounds=2)
    assert order == ["prepare a", "a", "prepare b", "b", "prepare b", "b", "prepare a", "a"]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_a_clock_is_given_what_runs_and_its_name():
    def clock(run, name):
        return clocks.Time(len(run()) + (10.0 if name == "b" else 0.0))

    contenders = [Contender("a", lambda: [torch.ones(1)]), Contender("b", lambda: [torch.ones(1)] * 2)]
    assert timing.interleave(contenders, rounds=2, clock=clock) == {"a": [1.0, 1.0], "b": [12.0, 12.0]}


def test_rounds_that_warm_up_come_first_and_who_leaves_gets_no_turn():
    players = ["a", "b", "c"]
    found = []
    for number, order in timing.turns(players, rounds=2, warm_up=1):
        found.append((number, "".join(order)))
        if number == 0:
            players.remove("b")
    assert found == [(-1, "cab"), (0, "abc"), (1, "ca")]
    assert [number for number, _ in timing.turns(players, rounds=3, warm_up=1, deadline=0)] == [-1, 0]
    assert list(timing.turns([], rounds=3)) == []


# ---- attention


@pytest.mark.parametrize("seq_len, window, count", [(1, 0, 0), (7, 2, 0), (7, 9, 3), (40, 5, 0), (40, 5, 9), (6, 1, 6)])
def test_pairs_and_mask_are_those_of_the_pattern(seq_len, window, count):
    position = torch.arange(seq_len)
    seen = (position[:, None] - position).abs() <= window
    seen[:, :count] = True
    at = problem.Problem(seq_len=seq_len, window=window, global_tokens=count)
    assert torch.equal(at.mask(), seen)
    seen[:count] = True
    assert at.pairs() == int(seen.sum())
    assert at.forward_flop == 4 * 12 * 64 * at.pairs()
    assert at.backward_flop == 10 * 12 * 64 * at.pairs()


def test_a_large_mask_is_made_a_few_rows_at_a_time(monkeypatch):
    whole = problem.Problem(seq_len=20, window=3, global_tokens=2).mask()
    monkeypatch.setattr(problem, "MASK_ROWS", 7)
    assert torch.equal(problem.Problem(seq_len=20, window=3, global_tokens=2).mask(), whole)


def test_a_shortened_problem_has_no_more_global_tokens_than_tokens():
    long = PROBLEM.replace(seq_len=32, global_tokens=20)
    assert long.shortened(16) == long.replace(seq_len=16, global_tokens=16)
    assert long.shortened(64) == long


def test_our_attention_is_the_same_with_the_index_made_in_advance():
    at = PROBLEM.replace(global_tokens=3)
    inputs = problem.make_inputs(at)
    plain, indexed = (attention.our_attention(at, inputs, index_given=given).forward() for given in (False, True))
    torch.testing.assert_close(indexed, plain)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", [*attention.RIVALS, "longformer (reference)", "longformer (banded)"])
@pytest.mark.parametrize("count", [0, 5])
@pytest.mark.parametrize("backward", [False, True])
def test_rivals_compute_the_same(name, count, backward):
    shape = PROBLEM.replace(global_tokens=count)
    inputs = problem.make_inputs(shape, backward=backward)
    ours = attention.contender("longformer", shape, inputs, backward=backward).run()
    assert [x.shape for x in ours] == [inputs.local[1].shape, *([x.shape for x in inputs.leaves] if backward else [])]
    if "Flex" in name and backward:
        with pytest.raises(UnavailableError, match="no backward on a CPU"):
            attention.contender(name, shape, inputs, backward=backward)
        return
    theirs = attention.contender(name, shape, inputs, backward=backward)
    for _ in range(2):  # transformers scales queries in place: a second run must not find them scaled
        theirs.prepare()
        for found, expected in zip(theirs.run(), ours, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 5])
def test_compiled_flex_attention_computes_the_same(count, monkeypatch):
    monkeypatch.undo()
    shape = PROBLEM.replace(global_tokens=count)
    inputs = problem.make_inputs(shape)
    flex = attention.contender("FlexAttention, compiled", shape, inputs)
    try:
        (found,) = flex.run()
    except RuntimeError as error:
        pytest.skip(f"FlexAttention cannot be compiled here: {timing.one_line(error)}")
    torch.testing.assert_close(found, attention.contender("longformer", shape, inputs).run()[0], rtol=1e-4, atol=1e-5)


def test_transformers_takes_multiples_of_the_window_only():
    shape = PROBLEM.replace(seq_len=33)
    with pytest.raises(UnavailableError, match="and 33 is none"):
        attention.contender("transformers", shape, problem.make_inputs(shape))


@pytest.mark.parametrize(
    "change, says",
    [
        ({"seq_len": 0}, "seq_len is 0"),
        ({"heads": 0}, "heads is 0"),
        ({"window": -1}, "window is -1"),
        ({"global_tokens": 33}, "global_tokens is 33"),
        ({"seq_len": 10**11}, "GB are free; take fewer heads or tokens"),
    ],
)
def test_impossible_shapes(change, says, monkeypatch):
    monkeypatch.setattr(machine, "available_memory", lambda: 10**9)
    with pytest.raises(LongformerError, match=says):
        PROBLEM.replace(**change)


# ---- the commands


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_attention_command(run, tmp_path):
    json_file, picture = tmp_path / "a.json", tmp_path / "a.png"
    arguments = ("--length", 32, "--globals", "0,3", *SMALL, "--impls", "auto,banded")
    status, out, err = run(
        "attention", *arguments, "--rounds", 2, "--threads", 1, "--json", json_file, "--plot", picture
    )
    assert status == 0, err
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = json.loads(json_file.read_text())

    assert found["benchmark"] == "attention"
    assert found["machine"]["threads"] == 1
    assert found["machine"]["cpu"]
    assert found["machine"]["versions"]["torch"] == torch.__version__
    assert found["machine"]["versions"]["transformers"]
    assert found["machine"]["matrix_product_gflops"].keys() == {"float32", "bfloat16"}
    assert found["options"]["rounds"] == 2

    assert len(found["cases"]) == 2 * 2 * 2  # dtypes, numbers of global tokens, without and with backward
    first = found["cases"][0]
    assert first["settings"] == {
        "batch": 1, "heads": 2, "seq_len": 32, "head_dim": 8, "window": 4,
        "global_tokens": 0, "dtype": "float32", "backward": False, "threads": 1,
    }  # fmt: skip
    names = [result["name"] for result in first["results"]]
    assert names == ["longformer", "longformer (banded)", *attention.RIVALS]
    ours, _, theirs = first["results"][:3]
    assert len(ours["seconds"]) == 2 and ours["ratio"] == 1
    assert ours["median"] == pytest.approx(sum(ours["seconds"]) / 2)
    assert theirs["ratio"] == pytest.approx(theirs["median"] / ours["median"])
    share = first["useful_gflop"] / ours["median"] / first["matrix_product_gflops"]
    assert ours["share_of_matrix_product"] == pytest.approx(share)
    assert found["cases"][1]["missing"] == {"FlexAttention, compiled": "FlexAttention has no backward on a CPU"}

    head, table = out.split("\n\n")
    assert "GFLOP/s" in head and "transformers" in head
    assert "missing: FlexAttention has no backward on a CPU" in table
    assert table.endswith("\n") and "checking its result" in err


def test_disagreement_stops_the_command(run, tmp_path, monkeypatch):
    def wrong(shape, inputs):
        return rivals.Attention(lambda: inputs.local[2] * 1.01)

    monkeypatch.setattr(attention, "RIVALS", {"wrong": wrong})
    json_file = tmp_path / "a.json"
    status, out, err = run("attention", "--length", 16, "--globals", 0, *SMALL, "--json", json_file)
    assert status == 2 and not out and not json_file.exists()
    assert "error: attention forward, 16 tokens, 0 global, float32: the result of wrong differs" in err


def test_a_run_that_is_stopped_leaves_what_it_has_measured(run, tmp_path, monkeypatch):
    measured = []
    real = timing.measure

    def stops(case, rounds):
        if measured:
            raise LongformerError("stopped here")
        measured.append(case.name)
        return real(case, rounds)

    monkeypatch.setattr(attention, "RIVALS", {})
    monkeypatch.setattr(timing, "measure", stops)
    json_file = tmp_path / "a.json"
    status, out, err = run(
        "attention", "--length", 16, "--globals", "0,2", *SMALL, "--rounds", 1, "--threads", 1, "--json", json_file
    )
    assert status == 2 and not out and "error: stopped here" in err
    assert [case["name"] for case in json.loads(json_file.read_text())["cases"]] == measured
    assert measured[0] in err and "longformer" in err  # its table, as soon as it was there


def test_a_rival_that_is_not_installed_is_reported(run, no_transformers, config_file, monkeypatch):
    monkeypatch.setattr(attention, "RIVALS", {"transformers": rivals.transformers_attention})
    for arguments in (
        ("attention", "--length", 16, "--globals", 0, *SMALL),
        ("model", "--config", config_file, "--lengths", 20, "--globals", 3),
        ("model", "--config", config_file, "--lengths", 20, "--globals", 3, "--training"),
    ):
        status, out, err = run(*arguments, "--rounds", 1, "--threads", 1)
        assert status == 0, err
        assert "missing: transformers is not installed" in out


def test_model_command(run, config_file, tmp_path):
    json_file = tmp_path / "m.json"
    status, out, err = run(
        "model", "--config", config_file, "--lengths", "30,20", "--globals", 3, "--rounds", 1, "--threads", 1,
        "--variants", "float32,bfloat16,mixed,int8", "--json", json_file, "--plot", tmp_path / "m.png",
    )  # fmt: skip
    assert status == 0, err
    cases = json.loads(json_file.read_text())["cases"]
    assert [case["settings"]["shape"] for case in cases] == [[1, 30], [1, 30], [1, 20], [1, 20]]
    names = [[result["name"] for result in case["results"]] for case in cases[:2]]
    assert names[0] == ["longformer float32", "longformer int8", "transformers float32"]
    assert names[1] == ["longformer bfloat16", "longformer mixed", "transformers bfloat16"]
    assert all(result["difference"] > 0 for result in cases[1]["results"])
    assert (tmp_path / "m.png").is_file()
    assert "tokens/s" in out


def test_precision_command(run, tmp_path):
    """Over the package's own checkpoint: float32 changes nothing against itself, and lower precision takes less."""
    text = "Ann lives in Rome. Ben lives in Oslo. Zoe went to Lima by train."
    questions = [
        {"id": str(i), "question": question, "answers": [{"text": "Rome", "answer_start": text.index("Rome")}]}
        for i, question in enumerate(["Where does Ann live?", "Where does Ben live?", "How did Zoe go?"])
    ]
    data = {"version": "1.1", "data": [{"title": "", "paragraphs": [{"context": text, "qas": questions}]}]}
    (tmp_path / "data.json").write_text(json.dumps(data))
    json_file = tmp_path / "p.json"
    status, out, err = run("precision", tmp_path / "data.json", "--rounds", 1, "--threads", 1, "--json", json_file)
    assert status == 0, err
    (only,) = json.loads(json_file.read_text())["cases"]
    settings = only["settings"]
    assert settings["answers_changed"]["float32"] == 0 and set(settings["answers_changed"]) == set(precision.DEFAULT)
    sizes = settings["weights_bytes"]
    assert sizes["int8"] < sizes["mixed"] < sizes["float32"] and sizes["bfloat16"] * 2 == sizes["float32"]
    differences = {result["name"]: result["difference"] for result in only["results"]}
    assert differences["float32"] == 0 < differences["mixed"]
    assert "answers changed of 3" in out and "questions/s" in out


@pytest.mark.parametrize(
    ("precisions", "message"),
    [("float32,int4", "'int4' is no precision; there are float32"), ("int8", "it must be float32")],
)
def test_precisions_that_cannot_be_compared(run, tmp_path, precisions, message):
    status, _, err = run("precision", tmp_path / "absent.json", "--precisions", precisions, "--rounds", 1)
    assert status == 2
    assert message in err


def test_training_command(run, config_file, tmp_path):
    json_file = tmp_path / "t.json"
    status, out, err = run(
        "model", "--training", "--config", config_file, "--lengths", 40, "--globals", 3, "--rounds", 1,
        "--threads", 1, "--json", json_file,
    )  # fmt: skip
    assert status == 0, err
    (only,) = json.loads(json_file.read_text())["cases"]
    assert [result["name"] for result in only["results"]] == ["longformer", *training.RIVALS]
    assert only["settings"]["dropout"] == 0.1


def test_a_training_step_is_checked_without_dropout_and_run_with_it():
    pytest.importorskip("transformers")
    steps = training.Steps(TINY, 40, 3, dropout_p=0.5)
    for name in (training.OURS, *training.RIVALS):
        contender = training.contender(name, lambda name=name: steps.get(name))
        contender.prepare()
        first, second = contender.check(), contender.check()
        assert len(first) == 1 + len(training.COMPARED)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        losses = set()
        for _ in range(4):
            contender.prepare()
            losses.add(float(contender.run()[0]))
        assert len(losses) > 1, f"{name} trains without dropout"


def test_gradient_checkpointing_is_switched_with_each_turn():
    pytest.importorskip("transformers")
    steps = training.Steps(TINY, 40, 3, dropout_p=0.1)
    contenders = [training.contender(name, lambda name=name: steps.get(name)) for name in training.RIVALS]
    calls = []
    layer = next(iter(steps.get("transformers").model.longformer.encoder.layer))
    layer.attention.register_forward_pre_hook(lambda *_: calls.append(None))
    counts = []
    for contender in (*contenders, *contenders):
        calls.clear()
        timing.timed(contender)
        counts.append(len(calls))
    assert counts == [1, 2, 1, 2]


def test_weights_are_the_same_wherever_they_are_drawn():
    pytest.importorskip("transformers")
    ours = dict(model.our_model(TINY).named_parameters())
    theirs = dict(model.reference_model(TINY).named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def questions(tmp_path: Path) -> tuple[Path, Path]:
    """A SQuAD-format file of questions of several lengths, and a folder with a tokenizer."""
    byte_level_tokenizer(tmp_path / "tokenizer").save_pretrained(tmp_path / "tokenizer")
    paragraphs = [
        {"context": "It rained. " * count, "qas": [{"id": f"{count}", "question": "Did it rain?", "answers": []}]}
        for count in (6, 1, 3, 2, 5, 4)
    ]
    path = tmp_path / "questions.json"
    path.write_text(json.dumps({"data": [{"title": "Weather", "paragraphs": paragraphs}]}))
    return path, tmp_path / "tokenizer"


def test_qa_command(run, config_file, questions, tmp_path):
    path, tokenizer = questions
    json_file = tmp_path / "q.json"
    status, out, err = run(
        "qa", path, "--tokenizer", tokenizer, "--config", config_file, "--rounds", 1, "--threads", 1,
        "--limit", 5, "--rival-batches", "2,3", "--json", json_file, "--plot", tmp_path / "q.png",
    )  # fmt: skip
    assert status == 0, err
    cases = json.loads(json_file.read_text())["cases"]
    assert [case["settings"]["dtype"] for case in cases] == ["float32", "bfloat16"]
    assert cases[0]["items"] == [5, "questions"]
    ours, theirs = cases[0]["results"]
    assert ours["rate"] == pytest.approx(5 / ours["median"])
    assert theirs["name"] in ("transformers float32, batches of 2", "transformers float32, batches of 3")
    assert "questions/s in batches of 2" in err and "questions/s in batches of 3" in err
    assert "questions/s" in out


def test_rows_are_spaced_evenly_and_come_back_in_order(questions):
    path, tokenizer = questions
    rows = qa.read_rows(path, tokenizer, TINY)
    assert qa.read_rows(path, tokenizer, TINY, limit=3) == rows[::2]
    assert qa.read_rows(path, tokenizer, TINY, limit=99) == rows
    models = model.Models(TINY)
    (all_at_once,) = qa.ours(models, "float32", rows, batch_tokens=10**6).run()
    (one_by_one,) = qa.ours(models, "float32", rows, batch_tokens=1).run()
    assert all_at_once.shape == (2, sum(map(len, rows)))
    torch.testing.assert_close(all_at_once, one_by_one, rtol=1e-4, atol=1e-5)


def test_questions_that_do_not_fit_are_refused(run, config_file, questions):
    path, tokenizer = questions
    for change, says in (
        ({"max_position_embeddings": 40}, "data[0].paragraphs[0].qas[0] has"),
        ({"vocab_size": 90}, "vocab_size 90"),
    ):
        TINY.replace(**change).save(config_file)
        status, _, err = run("qa", path, "--tokenizer", tokenizer, "--config", config_file)
        assert status == 2 and says in err


def test_scaling_command(run, tmp_path, children):
    json_file, picture = tmp_path / "s.json", tmp_path / "s.png"
    status, out, err = run(
        "scaling",
        "--lengths",
        "32,16,20",
        *SMALL,
        "--rounds",
        1,
        "--threads",
        1,
        "--json",
        json_file,
        "--plot",
        picture,
    )
    assert status == 0, err
    found = json.loads(json_file.read_text())
    times, peaks = found["cases"][:3], found["cases"][3:]
    assert [case["settings"]["seq_len"] for case in times] == [16, 20, 32]
    assert "the whole window of 8 tokens, and 20 is none" in times[1]["missing"]["transformers"]
    assert "transformers" not in times[2]["missing"]
    assert [result["name"] for result in times[0]["results"]] == ["longformer", *attention.RIVALS]
    assert peaks[0]["results"][0]["bytes"] == [10**7]
    key = "longformer: time per token at 32 tokens over that at 16"
    first, last = (case["results"][0]["median"] / case["settings"]["seq_len"] for case in (times[0], times[2]))
    assert found["figures"][key] == pytest.approx(last / first)
    assert f"{key}: " in out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_what_grows_too_much_is_left_out():
    growth = scaling.Growth(most_seconds=10, most_bytes=1e9)
    growth.seconds = {"slow": (100, 4.0), scaling.DENSE: (100, 4.0)}
    growth.memory = {"large": (100, 6e8)}
    assert growth.too_much(["slow", "large", "new", scaling.DENSE], 100) == {}
    assert growth.too_much(["slow", "large", "new", scaling.DENSE], 200) == {
        "large": "would take 1.2 GB at 200 tokens, 1.0 GB allowed",
        scaling.DENSE: "would take 16 s a run at 200 tokens, 10 s allowed",
    }


def test_scaling_leaves_a_rival_out_and_says_so(children, monkeypatch):
    monkeypatch.setattr(scaling, "timed", lambda one: clocks.Time(8.0 if one.name == scaling.DENSE else 0.0))
    times, peaks = scaling.measure(PROBLEM, [16, 32, 64], ours=["longformer"], rounds=1, most_seconds=10)
    for records in (times, peaks):
        assert [scaling.DENSE in record.missing for record in records] == [False, True, True]
    assert not any(task["name"] == scaling.DENSE and task["problem"]["seq_len"] > 16 for task in children)


# ---- memory


def test_memory_command(run, children, config_file, tmp_path):
    json_file = tmp_path / "p.json"
    status, out, err = run(
        "memory", "--length", 32, "--globals", 3, *SMALL, "--config", config_file, "--rounds", 2, "--threads", 1,
        "--training", "--json", json_file, "--plot", tmp_path / "p.png",
    )  # fmt: skip
    assert status == 0, err
    cases = json.loads(json_file.read_text())["cases"]
    assert len(cases) == 5  # attention and model in two dtypes, a training step
    assert cases[0]["results"][0] == {
        "name": "longformer", "bytes": [10**7, 10**7], "median": 10**7, "ratio": 1, "rate": None,
        "share_of_matrix_product": None, "difference": None,
    }  # fmt: skip
    assert "10.0 MB" in out
    assert (tmp_path / "p.png").is_file()
    assert all(json.loads(json.dumps(task)) == task for task in children)
    assert {task["what"] for task in children} == peak.TASKS.keys() - {"exported forward"}  # see test_exported.py


def test_a_rival_without_memory_is_missing_and_ours_is_an_error(monkeypatch):
    def in_subprocess(task):
        if task["name"] == fails:
            raise UnavailableError("was killed")
        return 1

    monkeypatch.setattr(memory, "in_subprocess", in_subprocess)
    tasks = {name: {"name": name} for name in ("ours", "theirs")}
    fails = "theirs"
    record = memory.measure_peaks("peaks", {}, tasks, rounds=2)
    assert record.missing == {"theirs": "was killed"} and [m.name for m in record.measurements] == ["ours"]
    fails = "ours"
    with pytest.raises(LongformerError, match="peaks: ours could not be measured: was killed"):
        memory.measure_peaks("peaks", {}, tasks, rounds=2)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak can be reset on Linux alone")
@pytest.mark.slow
def test_a_child_counts_what_a_run_allocates():
    shape = {"heads": 2, "seq_len": 2048, "head_dim": 8, "window": 4}
    scores = 2 * 2048**2 * 4
    dense = peak.in_subprocess({"what": "attention forward", "name": "longformer (reference)", "problem": shape})
    blocked = peak.in_subprocess({"what": "attention forward", "name": "longformer", "problem": shape})
    assert scores < dense < 10 * scores
    assert blocked < scores / 4


@pytest.mark.skipif(sys.platform != "linux", reason="the peak can be reset on Linux alone")
def test_above_counts_neither_inputs_nor_results():
    kept = []

    def run():
        scratch = torch.ones(10**7)  # 40 MB
        return [scratch[: 5 * 10**6].clone()]  # 20 MB more

    contender = Contender("one", run, prepare=lambda: kept.append(torch.ones(10**7)))
    assert 35e6 < peak.above(contender) < 45e6


SHORT = {"config": TINY.to_dict(), "tokens": 30, "global_tokens": 3}


@pytest.mark.parametrize(
    "task",
    [
        {"what": "attention forward", "name": "longformer", "problem": {"heads": 1, "seq_len": 64, "window": 4}},
        {"what": "model forward", "name": "longformer", "variant": "int8", **SHORT},
        {"what": "model forward", "name": "transformers", "variant": "bfloat16", **SHORT},
        {"what": "training step", "name": "longformer", "dropout_p": 0.1, **SHORT},
        {"what": "training step", "name": "transformers", "dropout_p": 0.1, **SHORT},
        {"what": "training step", "name": "transformers, gradient checkpointing", "dropout_p": 0.1, **SHORT},
    ],
    ids=lambda task: f"{task['what']} {task['name']}",
)
def test_every_task_of_a_child(task, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["peak", json.dumps({**task, "threads": 1})])
    peak.main()
    assert int(capsys.readouterr().out) >= 0


def test_a_child_says_why_it_cannot_take_part(monkeypatch, capsys):
    shape = {"heads": 1, "seq_len": 30, "head_dim": 8, "window": 4}
    task = {"what": "attention forward", "name": "transformers", "problem": shape, "threads": 1}
    monkeypatch.setattr(sys, "argv", ["peak", json.dumps(task)])
    with pytest.raises(SystemExit) as stopped:
        peak.main()
    assert stopped.value.code == peak.MISSING
    assert "and 30 is none" in capsys.readouterr().out


@pytest.mark.parametrize(
    "code, out, err, error, says",
    [
        (peak.MISSING, "is not installed\n", "", UnavailableError, "is not installed"),
        (-9, "", "", UnavailableError, "killed by signal 9"),
        (1, "", "Traceback\nKeyError: 'x'\n", LongformerError, "measuring a of b failed: KeyError: 'x'"),
        (1, "", "", LongformerError, "it printed no error"),
    ],
)
def test_how_a_child_may_end(code, out, err, error, says, monkeypatch):
    ended = peak.subprocess.CompletedProcess([], code, out, err)
    monkeypatch.setattr(peak.subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(error, match=says):
        peak.in_subprocess({"what": "a", "name": "b"})


# ---- errors, before anything is measured


@pytest.fixture
def nothing_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "interleave", lambda *_: pytest.fail("something was timed"))


@pytest.mark.usefixtures("nothing_measured")
@pytest.mark.parametrize(
    "arguments, says",
    [
        (("attention", "--length", "0"), "0 is out of range"),
        (("attention", "--globals", "1,x"), "neither a number nor numbers with commas between them"),
        (("attention", "--globals", "-1"), "give at least 0"),
        (("attention", "--length", "4", "--globals", "5"), "global_tokens is 5; give 0 to seq_len = 4"),
        (("attention", "--dtype", "float8"), "'float8' is no dtype of the kernels; there are float64"),
        (("attention", "--impls", "fastest"), "'fastest' is no implementation; there are auto"),
        (("attention", "--rounds", "0"), "0 is out of range"),
        (("scaling", "--lengths", "0,16"), "0 is too small; give at least 1"),
        (("model", "--variants", "int4"), "'int4' is no variant; there are float32"),
        (("model", "--lengths", "4097"), "4097 tokens are more than the 4096"),
        (("model", "--lengths", "16", "--globals", "13"), "13 global tokens of 16 are impossible"),
        (("memory", "--length", "5000"), "5000 tokens are more than the 4096"),
        (("model", "--config", "nowhere/config.json"), "no file at 'nowhere/config.json'"),
        (("qa", "nowhere.json", "--tokenizer", "."), "nowhere.json"),
        (("attention", "--json", "nowhere/a.json"), "to write a.json into; make it first"),
        (("attention", "--plot", "."), ". is a folder; give a file to write to"),
        (("gpu", "--json", "nowhere/gpu.json"), "to write gpu.json into; make it first"),
    ],
)
def test_errors(run, arguments, says):
    status, out, err = run(*arguments)
    assert status == 2 and not out
    assert says in err and "Traceback" not in err


@pytest.mark.usefixtures("nothing_measured")
def test_a_plot_needs_matplotlib(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, err = run("attention", "--plot", "a.png")
    assert status == 2
    assert "error: --plot needs matplotlib: pip install matplotlib" in err


def test_a_report_without_a_ratio_is_still_json(tmp_path):
    record = Record("peaks", {}, [timing.Measurement("ours", [0]), timing.Measurement("theirs", [5])], unit="B")
    found = report.Report("memory", {}, machine.describe(), [record], {})
    assert [result["ratio"] for result in found.to_dict()["cases"][0]["results"]] == [None, None]
    assert "0.0 MB" in found.table()


@pytest.mark.parametrize(
    "shown, text",
    [
        (formats.seconds(0.0123456), "12.3 ms"),
        (formats.seconds(0.9876), "987.6 ms"),
        (formats.seconds(1234.567), "1,234.57 s"),
        (formats.milliseconds(0.12345), "0.123 ms"),
        (formats.megabytes(1234567890), "1,234.6 MB"),
        (formats.gigabytes(1234567890), "1.2 GB"),
        (formats.thousands(16384), "16,384"),
        (formats.ratio(1.005e3), "1,005.00"),
        (formats.share(0.456), "46%"),
        (formats.difference(1.23e-7), "1.2e-07"),
        (formats.rate(97419.6, "tokens"), "97,420 tokens/s"),
        (formats.rate(1.5349, "questions"), "1.53 questions/s"),
        (formats.speeds({"float32": 433.4, "bfloat16": 2602.8}), "float32 433, bfloat16 2,603"),
        (formats.versions({"torch": "2", "flash-attn": None, "numpy": "3"}), "torch 2, numpy 3"),
    ],
)
def test_how_numbers_are_written(shown, text):
    assert shown == text


def test_what_does_not_exist_is_written_as_nothing():
    assert [formats.ratio(None), formats.share(None), formats.difference(None), formats.rate(None, "runs")] == [""] * 4


def test_table_columns():
    rows = [("", "one", "two"), "a long heading that widens nothing", ("  x", "1", "22222"), ("  name", "", "3")]
    assert report.format_table(rows).splitlines() == [
        "        one    two",
        "a long heading that widens nothing",
        "  x       1  22222",
        "  name           3",
    ]


def test_a_model_on_a_device_that_is_a_cpu(run, config_file, tmp_path, monkeypatch):
    monkeypatch.setattr("longformer.bench.gpu_model.WARM_UP", 0)
    json_file = tmp_path / "g.json"
    status, out, err = run(
        "gpu-model", "--device", "cpu", "--dtype", "float32", "--config", config_file, "--batches", "1,2",
        "--length", 40, "--globals", 3, "--rounds", 1, "--threads", 1, "--json", json_file,
    )  # fmt: skip
    assert status == 0, err
    cases = json.loads(json_file.read_text())["cases"]
    assert [case["name"].partition(",")[0] + " " + str(case["settings"]["shape"]) for case in cases] == [
        "model forward [1, 40]", "training step [1, 40]", "model forward [2, 40]", "training step [2, 40]",
    ]  # fmt: skip
    assert [len(case["results"]) for case in cases] == [2, 3, 2, 3]
    assert all(r["difference"] < 1e-4 for case in cases for r in case["results"]) and "tokens/s" in out


def test_a_model_on_a_device_that_is_not_there(run, config_file):
    status, _, err = run("gpu-model", "--device", "cuda:9", "--config", config_file, "--length", 40, "--globals", 3)
    assert status == 2 and "device 'cuda:9' cannot be used here" in err
