"""Two models of any architecture: matched, judged against the first in float64, and refused in a sentence."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.led.modeling_led import LEDEncoder

from longformer.cli import main
from longformer.errors import DataError
from longformer.parity import report
from longformer.parity.any_model import Call, record_model
from longformer.parity.models import compare_models
from longformer.parity.pairing import pair

transformers.logging.set_verbosity_error()


def drawn(model: nn.Module) -> nn.Module:
    """With weights of one seed, none of which is 0 or 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(std=0.2, generator=generator)
            if "norm.weight" in name.lower() or name.startswith("bn.weight"):
                weight.add_(1)
    return model.eval()


SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def bert(attention: str = "eager") -> nn.Module:
    config = transformers.BertConfig(**SIZES, max_position_embeddings=64, attn_implementation=attention)
    return drawn(transformers.BertModel(config))


def roberta(attention: str = "eager") -> nn.Module:
    config = transformers.RobertaConfig(**SIZES, max_position_embeddings=64, attn_implementation=attention)
    return drawn(transformers.RobertaModel(config, add_pooling_layer=False))


def led() -> nn.Module:
    config = transformers.LEDConfig(
        vocab_size=50,
        d_model=16,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=24,
        attention_window=4,
        max_encoder_position_embeddings=64,
    )
    return drawn(LEDEncoder(config))


def words(padding: int = 4) -> Call:
    ids = torch.randint(4, 50, (2, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 12 - padding :] = 0
    return Call((), {"input_ids": ids, "attention_mask": mask})


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.bn, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.second, self.head = nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.second(self.relu(self.bn(self.first(x)))))
        return self.head(x.mean((2, 3)))


class Port(nn.Module):
    """The same, with other names and activations that are no modules."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.body, self.classifier = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.body(F.relu(self.norm(self.stem(x)))).mean((2, 3)))


def nets() -> tuple[nn.Module, nn.Module]:
    net, port = drawn(Net()), Port().eval()
    weights = list(net.state_dict().values())
    port.load_state_dict(dict(zip(port.state_dict(), weights, strict=True)))
    return net, port


def images() -> Call:
    return Call((torch.randn(4, 3, 7, 7, generator=torch.Generator().manual_seed(2)),))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (lambda: bert(), lambda: bert("sdpa")),
        (lambda: roberta(), lambda: roberta("sdpa")),
        (lambda: led(), lambda: led()),
        (lambda: bert(), lambda: bert("sdpa").bfloat16()),
        (lambda: led().double(), lambda: led()),
    ],
    ids=["bert", "roberta", "led", "bfloat16", "float64"],
)
@pytest.mark.slow
def test_a_model_in_other_settings_is_rounding(a: Callable[[], nn.Module], b: Callable[[], nn.Module]) -> None:
    first, second = a(), b()
    gradients = next(second.parameters()).dtype == torch.float32
    # With padding, LED's own gradients are NaN in float32.
    found = compare_models(first, second, words(0 if isinstance(first, LEDEncoder) else 4), gradients=gradients)
    assert found.verdict in ("rounding", "identical")
    assert found.modules == []
    assert len(found.values) > 20


PLANTED: dict[str, tuple[Callable[[], nn.Module], str, Callable[[Any], None]]] = {
    "a bias": (bert, "encoder.layer.1.attention.self.key", lambda m: m.bias.data[3].add_(1e-4)),
    "eps": (bert, "encoder.layer.0.output.LayerNorm", lambda m: setattr(m, "eps", 1e-5)),
    "a row": (roberta, "encoder.layer.1.intermediate.dense", lambda m: m.weight.data[2].mul_(1.0003)),
    "one number": (roberta, "embeddings.word_embeddings", lambda m: m.weight.data[20, 3].add_(1e-5)),
    "an activation": (
        roberta,
        "encoder.layer.0.intermediate.intermediate_act_fn",
        lambda m: setattr(m, "forward", lambda x: F.gelu(x, approximate="tanh")),
    ),
    "a projection": (led, "layers.0.self_attn.output", lambda m: m.weight.data.copy_(m.weight.data.T.clone())),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_mistakes_are_found_in_their_modules(name: str) -> None:
    make, path, plant = PLANTED[name]
    port = make()
    plant(port.get_submodule(path))
    call = words()
    if name == "one number":
        call.keywords["input_ids"][0, 5] = 20
    found = compare_models(make(), port, call, names=("original", "port"))
    assert found.verdict == "different" and found.departed == ("port",)
    assert found.first is not None and found.first.name == path
    assert [module.step.name for module in found.modules] == [path]


def test_two_mistakes_are_both_found() -> None:
    port = bert("sdpa")
    with torch.no_grad():
        port.get_submodule("encoder.layer.0.output.dense").weight.mul_(1.01)
        port.get_submodule("encoder.layer.1.attention.self.query").bias[5] += 1e-5
    found = compare_models(bert(), port, words(), gradients=True)
    forward = [m.step.name for m in found.modules if not m.step.name.startswith("gradient.")]
    assert forward == ["encoder.layer.0.output.dense", "encoder.layer.1.attention.self.query"]


def test_modules_are_paired_by_what_they_give() -> None:
    net, port = nets()
    found = compare_models(net, port, images(), gradients=True)
    assert found.verdict in ("identical", "rounding") and found.modules == []
    pairs = pair(dict(record_model(net, images())), dict(record_model(port, images())))
    assert {name: other for name, other in pairs.items() if "relu" not in name} == {
        "first": "stem",
        "bn": "norm",
        "second": "body.0",
        "head": "classifier",
        "output": "output",
    }
    assert pairs["relu@2"] in ("body", "body.1")  # the second call of the one module
    assert any("first with stem" in note for note in found.notes)

    with torch.no_grad():
        port.get_submodule("body.0").weight[2] *= 1.001
    found = compare_models(net, port, images(), gradients=True)
    assert (found.verdict, found.departed) == ("different", ("B",))
    assert [m.step.operation for m in found.modules] == [("second",), ("second",)]  # forward and backward
    assert "axis 1 index 2" in found.modules[0].sentence


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x[:, 2].mul_(1.1), "times at one index of axis 1, where"),
        (lambda x: x[..., 4].mul_(1.1), "times at one index of axis 1 and one of axis 3, where"),
        (lambda x: x[1, 2, 3].mul_(1.1), "times in one row along axis 3, where"),
        (lambda x: x[1, 2, 3, 4].add_(1e-4), "times in one number, where"),
    ],
    ids=["axis 1", "axes 1 and 3", "row", "number"],
)
def test_axes_of_an_unknown_model_have_numbers_and_no_names(change: Callable[[Tensor], Any], words: str) -> None:
    net, port = nets()[0], copy.deepcopy(nets()[0])

    def hook(module: nn.Module, given: Any, result: Tensor) -> Tensor:
        result = result.clone()
        change(result)
        return result

    port.get_submodule("first").register_forward_hook(hook)
    found = compare_models(net, port, images())
    lines = report.verdict(found)
    assert words in lines[0], lines
    assert lines[1].startswith("  at index [")
    assert not any(word in line for line in lines for word in ("head ", "token", "channel", "batch"))


@pytest.mark.parametrize("rows", [1, 64, 4096])
def test_an_input_of_equal_rows_is_no_alarm(rows: int) -> None:
    """Equal rows have equal errors, which add up in the gradients of weights."""
    first, second = (drawn(nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 3))) for _ in range(2))
    call = Call((torch.full((rows, 6), 0.3),))
    found = compare_models(first, second.double(), call, gradients=True)
    assert found.verdict == "rounding" and found.modules == [], report.verdict(found)
    with torch.no_grad():
        second[0].bias[3] += 1e-4
    assert compare_models(first, second, call, gradients=True).verdict == "different"


def test_modules_are_paired_by_a_table() -> None:
    net, port = nets()
    table = {"first": "stem", "bn": "norm", "second": "body.0", "head": "classifier"}
    found = compare_models(net, port, images(), table=table)
    assert found.verdict == "identical" and [value.name for value in found.values] == [*table, "output"]
    with pytest.raises(DataError, match="'third' is no value of A"):
        compare_models(net, port, images(), table={"third": "stem"})
    with pytest.raises(DataError, match="'stam' is no value of B; did you mean 'stem'"):
        compare_models(net, port, images(), table={"first": "stam"})
    values = {f"layers.{n}.linear": torch.zeros(2) for n in range(3)}
    others = {f"h.{n}.proj": torch.zeros(2) for n in range(3)}
    assert pair(values, others, {"layers.{n}.linear": "h.{n}.proj"}) == dict(zip(values, others, strict=True))


def test_recording_leaves_the_model_as_it_was() -> None:
    net, _ = nets()
    before = copy.deepcopy(net.state_dict())
    record_model(net, images(), gradients=True)
    compare_models(net, net, images())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


@pytest.mark.slow
def test_a_compiled_model_is_compared_by_its_results() -> None:
    net, _ = nets()
    compiled = torch.compile(copy.deepcopy(net), backend="eager")
    found = compare_models(net, compiled, images())
    assert found.verdict == "identical" and [value.name for value in found.values] == ["output"]
    assert any("B is compiled: its results are compared" in note for note in found.notes)
    with torch.no_grad():
        compiled.get_submodule("_orig_mod.head").bias[1] += 1e-3
    assert compare_models(net, compiled, images()).verdict == "different"


class Gives(nn.Module):
    def __init__(self, give: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.linear, self.give = drawn(nn.Linear(4, 4)), give

    def forward(self, x: Tensor) -> Any:
        return self.give(self.linear(x))


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (
            lambda x: x,
            lambda x: (x, x),
            "the outputs differ in structure: A gives output (2, 4), and B output (2, 4), ",
        ),
        (lambda x: {"y": x}, lambda x: {"z": x}, "A gives output:y (2, 4), and B output:z (2, 4)"),
        (lambda x: x, lambda x: x[:1], "A gives output (2, 4), and B output (1, 4)"),
        (lambda x: x, lambda x: x.argmax(-1), "A gives output (2, 4), and B output (2,) of int64"),
    ],
    ids=["tuple", "names", "shape", "integers"],
)
def test_outputs_that_cannot_be_compared(a: Callable[[Tensor], Any], b: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(DataError) as error:
        compare_models(Gives(a), Gives(b), Call((torch.ones(2, 4),)))
    assert message in str(error.value)


def test_integers_that_a_model_gives_are_compared_too() -> None:
    first, same, other = (
        Gives(give) for give in (lambda x: x.argmax(-1), lambda x: x.argmax(-1), lambda x: x.argmin(-1))
    )
    call = Call((torch.randn(5, 4, generator=torch.Generator().manual_seed(0)),))
    assert compare_models(first, same, call).verdict == "identical"
    found = compare_models(first, other, call)
    assert found.verdict == "different" and found.first is not None and found.first.name == "output"
    assert report.verdict(found)[0].find("A and B have other integers in output") > 0
    assert report.as_json(found)["values"][-1]["largest"] is None
    found = compare_models(first, other.double(), call)
    assert (found.verdict, found.departed) == ("suspicious", ("B",))


@pytest.mark.parametrize("noisy", [F.dropout, lambda x: x + torch.randn_like(x)])
def test_a_model_that_draws_random_numbers_is_refused(noisy: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(DataError, match="Gives draws random numbers as it runs"):
        compare_models(Gives(noisy), Gives(noisy), Call((torch.ones(2, 4),)))


class Counting(nn.Module):
    """What it gives grows with each call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = drawn(nn.Linear(4, 4))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x) * self.calls


def test_a_model_that_changes_itself_is_run_as_it_was() -> None:
    first, second = Counting(), Counting()
    call = Call((torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),))
    assert compare_models(first, second.double(), call, gradients=True).verdict == "rounding"
    assert float(first.calls) == float(second.calls) == 0
    second.calls += 1e-3
    assert compare_models(first, second, call).verdict == "different"


def test_complex_numbers_are_compared_by_their_parts() -> None:
    for inside in (lambda x: torch.fft.ifft(torch.fft.fft(x) * 1.5).real, torch.fft.fft):
        first, second = Gives(inside), Gives(inside)
        call = Call((torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),))
        found = compare_models(first, second.double(), call, gradients=True)
        assert found.verdict == "rounding" and found.modules == [], report.verdict(found)
        with torch.no_grad():
            second.linear.bias[2] += 1e-4
        assert compare_models(first, second, call).verdict == "different"


def test_a_loss_without_gradients_is_refused() -> None:
    with pytest.raises(DataError, match="the loss of Gives depends on nothing that has a gradient"):
        record_model(Gives(lambda x: x.detach()), Call((torch.ones(2, 4),)), gradients=True)


def test_bad_calls() -> None:
    model = Gives(lambda x: x)
    with pytest.raises(DataError, match="argument0 is on meta and the model on cpu"):
        compare_models(model, model, Call((torch.ones(2, 4, device="meta"),)))
    with pytest.raises(DataError, match="Gives cannot be called with this input: RuntimeError: mat1 and mat2"):
        compare_models(model, model, Call((torch.ones(2, 5),)))
    noisy = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1))
    with pytest.raises(DataError, match=r"1 drops out at random, since the model is in training mode; return model.ev"):
        compare_models(noisy, noisy, Call((torch.ones(2, 4),)))


def test_where_infinity_is_born() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[1].weight.mul_(1e6)
    found = compare_models(model, copy.deepcopy(model).half(), Call((torch.ones(2, 4),)))
    assert found.verdict == "non-finite"
    note = next(note for note in found.notes if "is born" in note)
    assert "in B, NaN or infinity is born in 1, by 1, from 0 (at most" in note and "float16 ends at 6.55e+04" in note


CODE = """
import torch
from torch import nn

def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3)).eval()

def make_port():
    model = make_model()
    model[2].bias.data[1] += 1e-4
    return model

def make_input():
    return torch.linspace(-1, 1, 30).view(5, 6)

def fails():
    return 1 / 0

def number():
    return 7
"""


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    Path("models.py").write_text(CODE)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["parity", "compare", *arguments])
        said = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return end.value.code, said.out, said.err

    return run


def test_the_command(command: Any) -> None:
    status, out, _ = command("models.py:make_model", "models.py:make_model:bfloat16", "models.py:make_input")
    assert status == 0 and out.startswith("rounding: ")
    status, out, _ = command(
        "models.py:make_model", "models.py:make_port", "models.py:make_input", "--gradients", "--json", "out.json"
    )
    assert status == 1 and "models.py:make_port: 2, by 2: " in out
    assert json.loads(Path("out.json").read_text())["modules"][0]["value"] == "2"
    Path("x.json").write_text(json.dumps({"input": [[0.5] * 6]}))
    save_file({"argument0": torch.ones(2, 6)}, "x.safetensors")
    for source in ("x.json", "x.safetensors"):
        assert command("models.py:make_model", "models.py:make_model", source)[0] == 0
    # The trace of a port that ran elsewhere.
    trace = record_model(nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3)), Call((torch.ones(2, 6),)))
    trace.save("port.safetensors")
    assert command("models.py:make_model", "port.safetensors", "x.safetensors")[0] == 1
    Path("names.toml").write_text('"0" = "0"\n"2" = "2"\n')
    arguments = ("models.py:make_model", "models.py:make_model", "x.json", "--table", "names.toml")
    assert command(*arguments)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("models.py:made", "models.py:make_model", "models.py:make_input"), "'made' is no function in models.py; did"),
        (("none.py:make_model", "models.py:make_model", "models.py:make_input"), "there is no file none.py"),
        (("models.py:number", "models.py:make_model", "models.py:make_input"), "it must return a torch.nn.Module"),
        (("models.py:fails", "models.py:make_model", "models.py:make_input"), "models.py:fails failed: ZeroDivision"),
        (("models.py:make_model", "ours", "models.py:make_input"), "ours is neither FILE.py:FUNCTION nor a trace file"),
        (("ours", "models.py:make_model", "models.py:make_input"), "ours is no model: the first of the two gives the"),
        (("models.py:make_model", "models.py:make_model"), "INPUT is missing"),
        (("models.py:make_model", "models.py:make_model", "x.txt"), "x.txt is no input of a model"),
        (("models.py:make_model", "models.py:make_model", "models.py:number"), "must be a tensor, a tuple, or argume"),
        (("models.py:make_model", "models.py:make_model", "x.json", "--max-tokens", "3"), "--max-tokens is for Longf"),
        (("models.py:make_model:int8", "models.py:make_model", "x.json"), "'int8' is no precision"),
        (("ours", "ours:banded", "x.json", "--table", "names.json"), "--table names the modules of two models"),
    ],
)
def test_the_command_refuses_in_a_sentence(command: Any, arguments: tuple[str, ...], message: str) -> None:
    Path("x.json").write_text(json.dumps({"input": [[0.5] * 6]}))
    status, _, err = command(*arguments)
    assert status == 2 and message in err, err
