"""What ``--help`` shows besides the options: a line for each command, two examples, and options in groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import click


class Help(NamedTuple):
    """line: of a command in the list of its group. examples: shown at the end of its help."""

    line: str
    examples: tuple[str, ...]


CONSTITUTION = "longformer/data/constitution.txt"
AGE = '"How old must a person be to become President?"'
HELP = {
    "answer": Help(
        "Answer a question from a document.",
        (
            f"longformer answer {AGE} {CONSTITUTION}",
            'longformer answer "Who fell?" --text "Dan fell. Ann did not." --top-k 3 --json',
        ),
    ),
    "bench": Help("Measure speed, memory and precision.", ()),
    "bench attention": Help(
        "Attention alone: time.",
        (
            "longformer bench attention --length 4096 --globals 0,64",
            "longformer bench attention --impls auto,blocked --rounds 5 --json attention.json --plot attention.png",
        ),
    ),
    "bench gpu": Help(
        "Check and measure attention on a GPU.", ("longformer bench gpu", "longformer bench gpu --json gpu.json")
    ),
    "bench gpu-model": Help(
        "A whole model on a GPU: forward and training step.",
        ("longformer bench gpu-model", "longformer bench gpu-model --batches 1 --rounds 3 --json gpu-model.json"),
    ),
    "bench memory": Help(
        "Peak memory of attention and of a model.",
        ("longformer bench memory --length 4096", "longformer bench memory --rounds 1 --json memory.json"),
    ),
    "bench model": Help(
        "A whole model, forward or a training step: time.",
        (
            "longformer bench model --lengths 4096,512,170 --variants float32,bfloat16",
            "longformer bench model --training --rounds 1",
        ),
    ),
    "bench needle": Help(
        "Where in a document an answer is found.",
        ("longformer bench needle --plot needle.png", "longformer bench needle --json needle.json"),
    ),
    "bench onnx": Help(
        "An exported model in ONNX Runtime: size, time, memory.",
        ("longformer bench onnx --threads 2", "longformer bench onnx --lengths 512 --rounds 3 --json onnx.json"),
    ),
    "bench patterns": Help(
        "The paper's comparison of window patterns.",
        ("longformer bench patterns FOLDER", "longformer bench patterns FOLDER --text book.txt --steps 700"),
    ),
    "bench precision": Help(
        "How many answers each precision changes.",
        (
            "longformer bench precision xquad-en.json",
            "longformer bench precision xquad-en.json --limit 50 --json precision.json",
        ),
    ),
    "bench qa": Help(
        "Questions answered in a second.",
        (
            "longformer bench qa xquad-en.json --limit 48",
            "longformer bench qa xquad-en.json --limit 48 --rival-batches 1,4 --json qa.json",
        ),
    ),
    "bench scaling": Help(
        "Time and memory against length.",
        (
            "longformer bench scaling --lengths 1024,4096,16384",
            "longformer bench scaling --rounds 3 --plot scaling.png",
        ),
    ),
    "bench transformers": Help(
        "Our attention inside transformers' models: time.",
        ("longformer bench transformers --rounds 5", "longformer bench transformers --lengths 512 --json inside.json"),
    ),
    "classify": Help(
        "Label a text.",
        ("longformer classify CLASSIFIER letter.txt", "longformer classify CLASSIFIER - --json < letter.txt"),
    ),
    "convert": Help(
        "Write a checkpoint anew, or make a short one long.",
        (
            "longformer convert allenai/longformer-base-4096 converted",
            "longformer convert --to-long roberta-base long --max-tokens 4096 --attention-window 512",
        ),
    ),
    "evaluate": Help(
        "Exact match and F1 on a file of questions.",
        (
            "longformer evaluate dev.json --predictions predictions.json",
            "longformer evaluate dev.json --predictions after.json --against before.json",
        ),
    ),
    "evaluate-lm": Help(
        "Bits per character of a language model.",
        ("longformer evaluate-lm LM held-out.txt", "longformer evaluate-lm LM held-out.txt --length 512 --step 64"),
    ),
    "evaluate-mlm": Help(
        "Bits per masked token of a masked language model.",
        (
            "longformer evaluate-mlm MLM held-out.txt",
            "longformer evaluate-mlm MLM held-out.txt --max-length 512 --json",
        ),
    ),
    "explain": Help(
        "Write a page that shows why an answer was chosen.",
        (
            f"longformer explain {AGE} {CONSTITUTION} -o page.html",
            'longformer explain "Who fell?" --text "Dan fell. Ann did not." --png answer.png',
        ),
    ),
    "export": Help(
        "Write a model as an ONNX file.",
        (
            "longformer export my/checkpoint exported/model.onnx",
            "longformer export my/checkpoint exported/model.onnx --dtype float16",
        ),
    ),
    "generate": Help(
        "Continue a text with a language model.",
        (
            'longformer generate LM "The court "',
            'longformer generate LM "The court " --temperature 0.7 --top-k 10 --seed 1',
        ),
    ),
    "parity": Help("Compare two implementations, value by value.", ()),
    "parity compare": Help(
        "Say where two implementations differ, and why.",
        (
            "longformer parity compare ours transformers document.txt --model my/checkpoint",
            "longformer parity compare original.safetensors port.safetensors --model my/checkpoint --html report.html",
        ),
    ),
    "parity record": Help(
        "Write every value that a model computes to a file.",
        (
            "longformer parity record my/checkpoint document.txt -o ours.safetensors",
            "longformer parity record my/checkpoint document.txt -o theirs.safetensors --reference transformers",
        ),
    ),
    "parity steps": Help(
        "Compare two trainings, step by step.",
        (
            "longformer parity steps train.py:make_training port.py:make_training",
            "longformer parity steps train.py:make_training 'rank*.safetensors' --json report.json",
        ),
    ),
    "pattern": Help(
        "What an attention pattern costs, and how it looks.",
        (
            'longformer pattern "window=256,causal" --length 4096 --draw out.png',
            'longformer pattern "window=128/full" --layers 12 --no-measure',
        ),
    ),
    "predict": Help(
        "Answer a file of questions.",
        (
            "longformer predict dev.json -o predictions.json",
            "longformer predict dev.json -o predictions.json --model MODEL --skip-bad",
        ),
    ),
    "train": Help("Train a model further.", ()),
    "train classification": Help(
        "On labelled texts.",
        (
            "longformer train classification longformer/pretrained CLASSIFIER texts.csv --hold-out 0.2",
            "longformer train classification SRC CLASSIFIER texts.csv --evaluate-on held-out.csv --resume",
        ),
    ),
    "train lm": Help(
        "A character language model, in phases.",
        (
            "longformer train lm LM book.txt --hold-out 0.1",
            'longformer train lm LM book.txt --pattern "window=32/window=64" --phases 2 --max-steps 500',
        ),
    ),
    "train mlm": Help(
        "By masked language modelling on texts.",
        (
            "longformer train mlm long OUT books/one.txt books/two.txt --evaluate-on held-out.txt",
            "longformer train mlm long OUT texts.jsonl --precision bfloat16 --gradient-checkpointing",
        ),
    ),
    "train qa": Help(
        "On questions with their answers.",
        (
            "longformer train qa longformer/pretrained OUT train.json --evaluate-on dev.json",
            "longformer train qa longformer/pretrained OUT train.json --evaluate-on dev.json --resume",
        ),
    ),
    "tune-threshold": Help(
        "Find from which score on to answer nothing.",
        (
            "longformer tune-threshold squad-v2.json --model MODEL",
            "longformer tune-threshold squad-v2.json --predictions p.json --null-scores n.json",
        ),
    ),
}


def add_help(group: click.Group, path: str = "") -> None:
    """Give the commands of ``group``, and of the groups in it, their lines and examples."""
    for name, command in group.commands.items():
        full = f"{path} {name}".strip()
        found = HELP.get(full)
        if found is None:  # a test finds it
            continue
        command.short_help = found.line
        if found.examples:
            command.epilog = "\b\nExamples:\n" + "\n".join(f"  {example}" for example in found.examples)
        if isinstance(command, click.Group):
            add_help(command, full)


class GroupedCommand(click.Command):
    """A command whose help shows its options under headings.

    Args:
        groups: a heading to the names of the options' parameters. The others stand first, under "Options".
    """

    def __init__(self, *arguments: Any, groups: Mapping[str, Sequence[str]], **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.groups = groups

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        grouped = {name for names in self.groups.values() for name in names}
        sections = {"Options": [p for p in self.get_params(context) if p.name not in grouped]}
        for heading, names in self.groups.items():
            sections[heading] = [p for p in self.get_params(context) if p.name in names]
        for heading, parameters in sections.items():
            records = [record for p in parameters if (record := p.get_help_record(context)) is not None]
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)
