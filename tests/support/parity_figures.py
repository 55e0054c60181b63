"""The figures of ``docs/parity.md``, measured and printed as its tables.

``python tests/support/parity_figures.py NAME ...`` prints those that are named, or all.

``mistakes``: what the tool says of each planted slip. ``sizes``: from which size on a mistake is found. ``depth``: the
error after each layer, ours and transformers', for the full base architecture and the shipped checkpoint. ``cost``:
time and memory of the commands on the base architecture; it needs a machine that does nothing else.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import longformer
from longformer import LongformerConfig

PACKAGE = Path(longformer.__file__).parent
DOCUMENT, PRETRAINED = PACKAGE / "data" / "constitution.txt", PACKAGE / "pretrained"
QUESTION = 20  # tokens of it, in the random input


def prepare(folder: Path, *, seq_len: int) -> tuple[str, str]:
    """The base architecture and a random input for it, as files that the command takes."""
    config = LongformerConfig()
    config.save(folder / "base.json")
    ids = torch.randint(3, config.vocab_size, (seq_len,), generator=torch.Generator().manual_seed(0))
    ids[0] = config.bos_token_id
    ids[[QUESTION + 1, QUESTION + 2, -1]] = config.sep_token_id
    (folder / "ids.json").write_text(json.dumps({"input_ids": [ids.tolist()]}))
    return str(folder / "base.json"), str(folder / "ids.json")


def command(*arguments: str) -> tuple[float, float]:
    """Run ``longformer parity ...`` in a process of its own; seconds, and the most memory it held, in GiB."""
    begun = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-c", MAIN, "parity", *arguments], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"longformer parity {' '.join(arguments)} failed")
    unit = 1 if sys.platform == "darwin" else 1024
    return time.perf_counter() - begun, used.ru_maxrss * unit / 2**30


MAIN = "from longformer.cli import main; main()"


def mistakes(folder: Path) -> None:
    """The table of planted mistakes."""
    from parity_mistakes import main

    main()


def sizes(folder: Path) -> None:
    """From how many times the noise on a mistake in a part of a value is called different, with trained weights."""
    from parity_calibration import run, shipped

    from longformer.parity import Truth
    from longformer.parity.measure import measure

    pair, inputs = shipped(DOCUMENT, "Who tries impeachments?", 160)
    truth, ours = Truth(pair.ours, inputs), run(pair.ours, inputs)
    noise = truth.noise(torch.float32)
    generator = torch.Generator().manual_seed(0)
    print("\n| value | everywhere | one head | one channel | one token | one number |\n|---|---|---|---|---|---|")
    for name in ("layer.2.query", "layer.2.local_output", "layer.2.feed_forward", "layer.2.output", "logits"):
        value, true, unit = ours[name].double(), truth.trace[name], float(noise[name].mean().sqrt())

        def found(
            index: tuple[Any, ...], name: str = name, value: Any = value, true: Any = true, unit: Any = unit
        ) -> str:
            least = []
            for _ in range(8):
                place = tuple(
                    int(torch.randint(n, (), generator=generator)) if i is None else i
                    for i, n in zip(index, value.shape, strict=True)
                )
                times = 1.0
                while True:
                    spoilt = value.clone()
                    signs = torch.randn(value[place].shape, generator=generator, dtype=torch.float64).sign()
                    spoilt[place] += signs * times * unit
                    if measure(spoilt, true, noise[name], torch.float32).far:
                        break
                    times *= 1.1
                least.append(times)
            return f"{min(least):.0f} to {max(least):.0f}"

        rest = slice(None)
        by_head = value.dim() == 4
        heads = found((rest, None, rest, rest)) if by_head else "-"
        channel = (rest, None, rest, None) if by_head else (rest, rest, None)
        row = (None, None, None, rest) if by_head else (None, None, rest)
        cells = [found((rest,) * value.dim()), heads, found(channel), found(row), found((None,) * value.dim())]
        print(f"| `{name}` | {' | '.join(cells)} |")


def depth(folder: Path) -> None:
    """The largest error in units in the last place after each layer."""
    model, ids = prepare(folder, seq_len=512)
    _depth(folder, "The base architecture, random weights, 512 random tokens", ids, "--model", model)
    arguments = ["--model", str(PRETRAINED), "--max-tokens", "512"]
    _depth(folder, "The shipped checkpoint, 512 tokens of the constitution", str(DOCUMENT), *arguments)


def _depth(folder: Path, title: str, *arguments: str) -> None:
    report = str(folder / "report.json")
    command("compare", "ours", "transformers", *arguments, "--json", report)
    found = json.loads(Path(report).read_text())
    print(f"\n{title}: *{found['verdict']}*.\n")
    print("| after | ours, ulp | transformers, ulp | ours, rms | transformers, rms | ours / noise | theirs / noise |")
    print("|---|---|---|---|---|---|---|")
    for value in found["values"]:
        name: str = value["name"]
        if name.endswith(".output") or not name.startswith("layer."):
            label = name.removesuffix(".output").replace("layer.", "layer ")
            print(f"| {label} | {_pair(value, 'ulp', '.1f')} | {_pair(value, 'rms', '.2g')} | {_ratios(value)} |")


def _pair(value: dict[str, Any], key: str, form: str) -> str:
    return f"{value['a'][key]:{form}} | {value['b'][key]:{form}}"


def _ratios(value: dict[str, Any]) -> str:
    return _pair(value, "ratio", ".2f")


def cost(folder: Path) -> None:
    """Time of a compare at 512 tokens, memory of recording 4,096."""
    model, ids = prepare(folder, seq_len=512)
    print("\n| command, base architecture | seconds | peak memory, GiB |\n|---|---|---|")
    for text in (
        "compare ours transformers IDS --model MODEL",
        "compare ours ours:banded IDS --model MODEL",
        "compare ours transformers IDS --model MODEL --gradients",
    ):
        _row(f"{text}, 512 tokens", command(*_filled(text, model, ids)))
    model, ids = prepare(folder, seq_len=LongformerConfig().max_tokens)
    trace = folder / "trace.safetensors"
    for text in (f"record MODEL IDS -o {trace}", f"record MODEL IDS -o {trace} --probabilities"):
        used = command(*_filled(text, model, ids))
        size = trace.stat().st_size / 2**30
        _row(f"{text.replace(str(trace), 'trace.safetensors')}, 4,096 tokens, a file of {size:.2f} GiB", used)


def _filled(text: str, model: str, ids: str) -> list[str]:
    return [{"MODEL": model, "IDS": ids}.get(word, word) for word in text.split()]


def _row(text: str, used: tuple[float, float]) -> None:
    print(f"| `{text.split(', ')[0]}`, {', '.join(text.split(', ')[1:])} | {used[0]:.1f} | {used[1]:.2f} |", flush=True)


FIGURES: dict[str, Callable[[Path], None]] = {"mistakes": mistakes, "sizes": sizes, "depth": depth, "cost": cost}


def main(names: list[str]) -> None:
    """Print the figures named, or all."""
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        raise SystemExit(f"no figures are called {unknown[0]!r}; there are {', '.join(FIGURES)}")
    import transformers

    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads"
    print(f"Python {platform.python_version()}, {versions}, {platform.machine()}")
    for name in names or FIGURES:
        with tempfile.TemporaryDirectory() as folder:
            FIGURES[name](Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
