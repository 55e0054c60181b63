"""How often clean pairs are called different: runs that compute the same formulas in many ways, judged by ``compare``.

``python tests/support/parity_calibration.py`` runs all of them, prints a table and writes
``tests/support/parity_calibration.json``; with names of worlds, it runs only these and writes nothing. It takes some
twenty minutes of one core, and uses all.

A *world* is a model and an input. A *way* is how the model runs there: another kernel, precision, order of summation,
another implementation. Each way is compared with our ordinary run, and the judge is the truth of the world.
"""

from __future__ import annotations

import copy
import json
import math
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from reference import TINY, Pair, build, global_mask, padded_batch, question_row, with_weights
from summation import ORDERS, Summation
from torch import Tensor, nn

import longformer
from longformer import (
    LongformerConfig,
    LongformerForMaskedLM,
    LongformerForQuestionAnswering,
    LongformerForSequenceClassification,
    LongformerForTokenClassification,
)
from longformer.parity import Trace, Truth, compare, read_trace, trace
from longformer.parity.measure import LIMITS
from longformer.parity.runs import Contender
from longformer.parity.samples import Settings, read_sample

Inputs = dict[str, Tensor]
Ways = Iterator[tuple[str, Callable[[], Trace]]]
PACKAGE = Path(longformer.__file__).parent
PRETRAINED = PACKAGE / "pretrained"
RESULT = Path(__file__).with_suffix(".json")
KERNELS = ("reference", "banded", "blocked", "fused", "chunked")
LOW = (torch.bfloat16, torch.float16)
EVERY = ("kernels", "dtypes", "autocast", "transformers", "their dtypes", "threads", "rows", "orders")


@dataclass
class World:
    """A model, ours and theirs over one set of weights, an input, and the kinds of ways in which it is run there."""

    pair: Pair
    inputs: Inputs
    kinds: tuple[str, ...] = EVERY
    gradients: bool = False


@dataclass
class Tally:
    """What was seen of one way: pairs, values in them and how many of these have other bits, false alarms, and the
    largest multiple of a limit. Values of the same bits cannot be called different, so they say nothing of the rate.
    """

    pairs: int = 0
    values: int = 0
    unequal: int = 0
    different: list[str] = field(default_factory=list)
    suspicious: list[str] = field(default_factory=list)
    largest: float = 0.0
    ratios: dict[str, float] = field(default_factory=dict)


def run(model: nn.Module, inputs: Inputs, *, gradients: bool = False, around: Any = None) -> Trace:
    """The trace of ``model``, run inside the context ``around``."""
    with torch.set_grad_enabled(gradients), trace(model, gradients=gradients) as recorded, around or nullcontext():
        output = model(**inputs)
        if gradients:
            recorded.backward(output.loss)
    return recorded


def ways(world: World) -> Ways:
    """The ways of running a world's model, by name."""
    ours, theirs = world.pair

    def again(model: nn.Module, around: Any = None) -> Callable[[], Trace]:
        return lambda: run(model, world.inputs, gradients=world.gradients, around=around)

    def kernel(impl: str) -> nn.Module:
        return with_weights(ours.config, ours.state_dict(), kind=type(ours), impl=impl)

    for kind in world.kinds:
        match kind:
            case "kernels":
                for impl in KERNELS:
                    if not (world.gradients and impl == "fused"):
                        yield f"kernel {impl}", again(kernel(impl))
            case "flex":
                yield "kernel flex", again(kernel("flex"))
            case "dtypes":
                for dtype in (*LOW, torch.float64):
                    yield str(dtype).removeprefix("torch."), again(copy.deepcopy(ours).to(dtype))
            case "autocast":
                for name, model in (("ours", ours), ("transformers", theirs)):
                    yield f"autocast {name}", again(model, torch.autocast("cpu", torch.bfloat16))
            case "transformers":
                yield "transformers", again(theirs)
            case "their dtypes":
                # Their gradients in float64 are NaN where a row is padded: the mask's least number is -inf in float32.
                for dtype in LOW if world.gradients else (*LOW, torch.float64):
                    name = f"transformers {str(dtype).removeprefix('torch.')}"
                    yield name, again(copy.deepcopy(theirs).to(dtype))
            case "threads":
                yield "two threads", lambda: with_threads(2, again(ours))
            case "rows" if len(world.inputs["input_ids"]) > 1 and not world.gradients:
                yield "single rows", lambda: by_rows(ours, world.inputs)
            case "orders":
                for order, add in ORDERS.items():
                    yield f"sums {order}", again(kernel("chunked"), Summation(add))
            case "one order":
                yield "sums one after another", again(kernel("chunked"), Summation(ORDERS["one after another"]))
            case "compiled":
                yield "compiled", lambda: run(compiled(ours), world.inputs, gradients=world.gradients)
            case "process":
                yield "another process", lambda: in_process(ours, world.inputs)


def with_threads(count: int, make: Callable[[], Trace]) -> Trace:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return make()
    finally:
        torch.set_num_threads(before)


def by_rows(model: nn.Module, inputs: Inputs) -> Trace:
    """Each row of a batch alone. Values of global rows have another width alone, and are left out."""
    rows = [
        run(model, {name: value[i : i + 1] for name, value in inputs.items()}) for i in range(len(inputs["input_ids"]))
    ]
    whole = rows[0]
    whole.inputs = {name: torch.cat([row.inputs[name] for row in rows]) for name in whole.inputs}
    whole.tensors = {
        name: torch.cat([row[name] for row in rows]) for name in list(whole) if not name.endswith("global_rows")
    }
    return whole


def compiled(model: nn.Module) -> nn.Module:
    """A copy whose feed-forward parts and normalisations are compiled; modules are called as before."""
    model = copy.deepcopy(model)
    for part in model.modules():
        if isinstance(part, (nn.LayerNorm, nn.Linear)) or type(part).__name__ == "LongformerIntermediate":
            part.forward = torch.compile(part.forward, dynamic=True)
    return model


def in_process(model: Any, inputs: Inputs) -> Trace:
    """A trace file that another process wrote."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(f"{folder}/model")
        ids = {name: value.tolist() for name, value in inputs.items()}
        Path(folder, "ids.json").write_text(json.dumps(ids))
        arguments = ["record", f"{folder}/model", f"{folder}/ids.json", "-o", f"{folder}/trace.safetensors"]
        main = "from longformer.cli import main; main()"
        subprocess.run([sys.executable, "-c", main, "parity", *arguments], check=True, capture_output=True)
        found, result = read_trace(f"{folder}/trace.safetensors"), Trace()
        result.tensors, result.inputs, result.metadata = dict(found), found.inputs, found.metadata
    return result


def ragged(config: LongformerConfig = TINY, lengths: tuple[int, ...] = (40, 23, 57), *, left: bool = False) -> Inputs:
    return padded_batch(config, [question_row(config, 3 + i, length) for i, length in enumerate(lengths)], left=left)


def answered(inputs: Inputs) -> Inputs:
    """With an answer in each row, of its third and fourth token."""
    start = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).argmax(dim=1) + 2
    return {**inputs, "start_positions": start, "end_positions": start + 1}


def scaled(pair: Pair, factor: float) -> Pair:
    """All matrices times ``factor``; both models see it, since they hold the same memory."""
    with torch.no_grad():
        for name, weight in pair.ours.named_parameters():
            if weight.dim() > 1 and "embeddings" not in name:
                weight.mul_(factor)
    return pair


def with_outliers(pair: Pair) -> Pair:
    """Two channels of every LayerNorm's result are a hundred times as large as the others, as in trained models."""
    with torch.no_grad():
        for name, weight in pair.ours.named_parameters():
            if name.endswith("LayerNorm.weight"):
                weight[[5, 17]] *= 100
    return pair


def shipped(text: Path, question: str, tokens: int) -> tuple[Pair, Inputs]:
    """The shipped checkpoint on a real text."""
    folder = str(PRETRAINED)
    settings = Settings(question=question, max_tokens=tokens)
    sample = read_sample(str(text), folder, LongformerForQuestionAnswering, settings)
    ours, theirs = (Contender(name).load(folder) for name in ("ours", "transformers"))
    return Pair(ours, theirs), sample.inputs


def tiny(
    seed: int = 0,
    *,
    change: Callable[[Pair], Pair] = lambda pair: pair,
    kind: type[Any] = LongformerForQuestionAnswering,
    **settings: Any,
) -> Pair:
    torch.manual_seed(seed)
    return change(build(TINY.replace(**{"attention_window": 8, **settings}), kind=kind, seed=seed))


def _labelled(seed: int, kind: type[Any], labels: Callable[[Tensor], Tensor]) -> World:
    """A world of another head, with its gradients. Padding has labels too: its equal rows add up in gradients."""
    inputs = ragged()
    return World(tiny(seed, kind=kind), {**inputs, "labels": labels(inputs["input_ids"])}, gradients=True)


def _worlds() -> dict[str, Callable[[], World]]:
    row = lambda: question_row(TINY, 5, 33)[None]  # noqa: E731 - a new one each time
    few = ("kernels", "dtypes", "autocast", "transformers", "their dtypes", "one order")
    whole = ("kernels", "transformers", "threads", "orders")  # in float32, whose range such gradients need
    found: dict[str, Callable[[], World]] = {
        f"random {seed}": lambda seed=seed: World(tiny(seed), ragged()) for seed in (0, 1, 2, 3, 50, 51, 52, 53)
    }
    found |= {
        "left padding": lambda: World(tiny(4), ragged(left=True)),
        "short": lambda: World(tiny(5), {"input_ids": question_row(TINY, 1, 5)[None]}),
        "one token": lambda: World(
            tiny(6), {"input_ids": row()[:, :1], "global_attention_mask": torch.zeros(1, 1).long()}
        ),
        "no global": lambda: World(tiny(7), {"input_ids": (x := row()), "global_attention_mask": global_mask(x, [])}),
        "all global": lambda: World(tiny(8), {"input_ids": row(), "global_attention_mask": torch.ones(1, 33).long()}),
        "weights x 0.001": lambda: World(tiny(9, change=lambda pair: scaled(pair, 0.001)), ragged()),
        "weights x 3": lambda: World(tiny(10, change=lambda pair: scaled(pair, 3.0)), ragged()),
        "outliers": lambda: World(tiny(11, change=with_outliers), ragged()),
        "outliers, weights x 0.1": lambda: World(
            tiny(12, change=lambda pair: scaled(with_outliers(pair), 0.1)), ragged()
        ),
        "1 layer": lambda: World(tiny(13, num_hidden_layers=1), ragged()),
        "12 layers": lambda: World(tiny(14, num_hidden_layers=12, initializer_range=0.1), ragged(), few),
        "24 layers": lambda: World(tiny(15, num_hidden_layers=24, initializer_range=0.1), ragged(), few),
        "wide": lambda: World(
            tiny(16, hidden_size=256, num_attention_heads=4, intermediate_size=1024, initializer_range=0.05),
            ragged(),
            few,
        ),
        "compiled, flex, process": lambda: World(tiny(17), ragged(), ("compiled", "flex", "process")),
    }
    for seed in (0, 1, 2, 10, 11, 12, 13, 14):
        found[f"gradients {seed}"] = lambda seed=seed: World(tiny(20 + seed), answered(ragged()), gradients=True)
    found |= {
        "gradients, left padding": lambda: World(tiny(24), answered(ragged(left=True)), gradients=True),
        "gradients, outliers": lambda: World(tiny(25, change=with_outliers), answered(ragged()), whole, gradients=True),
        "gradients, outliers, 1 layer": lambda: World(
            tiny(35, change=with_outliers, num_hidden_layers=1), answered(ragged()), whole, gradients=True
        ),
        "gradients, 1 layer": lambda: World(tiny(36, num_hidden_layers=1), answered(ragged()), gradients=True),
        "gradients, 6 layers": lambda: World(
            tiny(37, num_hidden_layers=6, initializer_range=0.1), answered(ragged()), few, gradients=True
        ),
        "gradients, window 16": lambda: World(tiny(38, attention_window=16), answered(ragged()), gradients=True),
        "gradients, weights x 0.001": lambda: World(
            tiny(39, change=lambda pair: scaled(pair, 0.001)), answered(ragged()), whole, gradients=True
        ),
        "gradients, weights x 3": lambda: World(
            tiny(40, change=lambda pair: scaled(pair, 3.0)), answered(ragged()), whole, gradients=True
        ),
        "gradients, short": lambda: World(
            tiny(41), answered({"input_ids": question_row(TINY, 1, 6)[None]}), gradients=True
        ),
        "gradients, 120 tokens": lambda: World(
            tiny(42), answered({"input_ids": question_row(TINY, 7, 120)[None]}), few, gradients=True
        ),
        "gradients, 16 equal rows": lambda: World(
            tiny(60), answered({"input_ids": question_row(TINY, 5, 40).repeat(16, 1)}), whole, gradients=True
        ),
        "gradients, words": lambda: _labelled(43, LongformerForMaskedLM, lambda ids: ids),
        "gradients, classes of tokens": lambda: _labelled(44, LongformerForTokenClassification, lambda ids: ids % 2),
        "gradients, classes": lambda: _labelled(45, LongformerForSequenceClassification, lambda ids: ids[:, 3] % 2),
        "120 tokens": lambda: World(tiny(54), {"input_ids": question_row(TINY, 7, 120)[None]}),
        "outliers, 6 layers": lambda: World(
            tiny(55, change=with_outliers, num_hidden_layers=6, initializer_range=0.1), ragged(), few
        ),
        "window 16": lambda: World(tiny(56, attention_window=16), ragged()),
        "window 4": lambda: World(tiny(57, attention_window=4), ragged()),
    }
    texts = {
        "constitution, 100 tokens": (PACKAGE / "data" / "constitution.txt", "Who tries impeachments?", 100),
        "constitution, 512 tokens": (PACKAGE / "data" / "constitution.txt", "Who may vote?", 512),
        "source code, 900 tokens": (PACKAGE / "config.py", "Who wrote this and why?", 900),
        "manual, 640 tokens": (PACKAGE / "pretrained" / "README.md", "What is this about?", 640),
        "source code, 300 tokens": (PACKAGE / "errors.py", "Who wrote this and why?", 300),
        "vocabulary, 200 tokens": (PACKAGE / "pretrained" / "vocab.txt", "Which word is first?", 200),
        "constitution, 150 tokens": (PACKAGE / "data" / "constitution.txt", "How long is a term of office?", 150),
        "notes, 250 tokens": (PACKAGE / "data" / "README.md", "Where is the text from?", 250),
        "source code, 400 tokens": (PACKAGE / "tokenizer.py", "What is a token?", 400),
        "source code, 200 tokens": (PACKAGE / "files.py", "Which files are written?", 200),
        "constitution, 1300 tokens": (PACKAGE / "data" / "constitution.txt", "Who is the president?", 1300),
    }
    for name, arguments in texts.items():
        tokens = arguments[-1]
        kinds = few if tokens <= 150 else ("kernels", "transformers") if tokens < 1000 else ("transformers",)
        found[name] = lambda arguments=arguments, kinds=kinds: World(*shipped(*arguments), kinds)
    return found


WORLDS = _worlds()


def study(name: str) -> dict[str, Tally]:
    """What is seen in the world of this name, by way."""
    torch.set_num_threads(1)
    tallies: dict[str, Tally] = {}
    begun, world = time.process_time(), WORLDS[name]()
    truth = Truth(world.pair.ours, world.inputs, loss=(lambda output: output.loss) if world.gradients else None)
    expected = run(world.pair.ours, world.inputs, gradients=world.gradients)
    largest = 0.0
    for way, make in ways(world):
        tally = tallies.setdefault(f"gradients: {way}" if world.gradients else way, Tally())
        largest = max(largest, _add(tally, compare(expected, make(), truth=truth), f"{name}, {way}"))
    seconds = time.process_time() - begun
    print(f"{name:<28} {largest:5.2f} of a limit, {seconds:5.1f} s", file=sys.stderr, flush=True)
    return tallies


def _merge(into: dict[str, Tally], tallies: dict[str, Tally]) -> None:
    for way, tally in tallies.items():
        total = into.setdefault(way, Tally())
        total.pairs += tally.pairs
        total.values += tally.values
        total.unequal += tally.unequal
        total.different += tally.different
        total.suspicious += tally.suspicious
        total.largest = max(total.largest, tally.largest)
        for part, ratio in tally.ratios.items():
            total.ratios[part] = max(total.ratios.get(part, 0.0), ratio)


def _add(tally: Tally, found: Any, label: str) -> float:
    tally.pairs += 1
    errors = [(value, value.b) for value in found.values if value.verdict != "identical" and value.b is not None]
    tally.values += len(found.values)
    tally.unequal += sum(value.verdict != "identical" for value in found.values)
    for value, error in errors:
        tally.largest = max(tally.largest, error.excess)
        for part, ratio in error.ratios.items():
            tally.ratios[part] = max(tally.ratios.get(part, 0.0), ratio)
        if value.verdict in ("different", "suspicious", "non-finite"):
            alarms = tally.suspicious if value.verdict == "suspicious" else tally.different
            how = f"{error.ratios[error.worst]:.3g} times in one {error.worst}" if error.ratios else "not finite"
            alarms.append(f"{label}: {value.name}, {how}")
            print(alarms[-1], file=sys.stderr)
    return max((error.excess for _, error in errors), default=0.0)


def main(names: list[str]) -> None:
    unknown = [name for name in names if name not in WORLDS]
    if unknown:
        raise SystemExit(f"no world is called {unknown[0]!r}; there are {', '.join(WORLDS)}")
    tallies: dict[str, Tally] = {}
    workers = int(os.environ.get("WORKERS", os.cpu_count() or 1))
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for found in pool.map(study, names or list(WORLDS)):
            _merge(tallies, found)
    show(tallies)
    if not names:
        RESULT.write_text(json.dumps(summary(tallies), indent=1) + "\n")


def show(tallies: dict[str, Tally]) -> None:
    """Print a table of the ways."""
    print("| our float32 and | pairs | values | of other bits | different | suspicious | closest to a limit |")
    print("|---|---|---|---|---|---|---|")
    for way, tally in tallies.items():
        counts = f"{tally.values:,} | {tally.unequal:,} | {len(tally.different)} | {len(tally.suspicious)}"
        print(f"| {way} | {tally.pairs} | {counts} | {tally.largest:.2f} |")


def summary(tallies: dict[str, Tally]) -> dict[str, Any]:
    """What is seen over all ways, and by way."""
    pairs, values, unequal = (sum(getattr(t, key) for t in tallies.values()) for key in ("pairs", "values", "unequal"))
    alarms, doubts = (
        [each for tally in tallies.values() for each in getattr(tally, key)] for key in ("different", "suspicious")
    )
    return {
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "machine": platform.machine(),
        "limits": LIMITS,
        "pairs": pairs,
        "values": values,
        "unequal": unequal,
        "different": alarms,
        "suspicious": doubts,
        # Of no alarm among n the rate is below 3/n, with 95% confidence.
        "rate": len(alarms) / unequal,
        "rate_below": (3 if not alarms else len(alarms) + 2 * math.sqrt(len(alarms)) + 2) / unequal,
        "ways": {
            way: {
                "pairs": tally.pairs,
                "values": tally.values,
                "unequal": tally.unequal,
                "different": len(tally.different),
                "suspicious": len(tally.suspicious),
                "largest_of_limit": round(tally.largest, 3),
                "largest_ratios": {part: round(ratio, 3) for part, ratio in tally.ratios.items()},
            }
            for way, tally in tallies.items()
        },
    }


if __name__ == "__main__":
    main(sys.argv[1:])
