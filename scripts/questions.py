"""Questions made by a language model, to train on beside people's: ``passages``, ``tune``, ``write``, ``keep``.

Needs transformers, gguf, accelerate and mwparserfromhell beside the package.
"""

from __future__ import annotations

import bz2
import json
import random
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
from squad_data import Entry, read, write

LINE = re.compile(r"A: (.+?) Q: (.+\?)")
MARKUP = (
    re.compile(r"<!--.*?-->", re.DOTALL),
    re.compile(r"<ref\b[^>]*/>"),
    re.compile(r"<ref\b[^>]*>.*?</ref>", re.DOTALL),
    re.compile(r"<(math|gallery|table|code|syntaxhighlight)[^>]*>.*?</\1>", re.DOTALL),
    re.compile(r"\{\|.*?\|\}", re.DOTALL),
    re.compile(r"\[\[(File|Image|Category):(?:\[\[[^\]]*\]\]|[^\]\[])*\]\]"),
)
END = re.compile(
    r"^==\s*(?:See also|References|Notes|Bibliography|External links|Further reading)\s*==\s*$", re.MULTILINE
)
EMPTY = re.compile(r" ?\([;, ]*\)")  # what a template leaves behind


@click.group()
def main() -> None:
    """Make questions with a language model, to train on beside people's."""


@main.command()
@click.argument("dump")
@click.argument("output")
@click.option("--least", default=70, help="Fewest words of a passage.")
@click.option("--most", default=330, help="Most words of a passage.")
@click.option("--without", "titles", multiple=True, help="Articles to leave out, titled as in SQuAD.")
def passages(dump: str, output: str, least: int, most: int, titles: tuple[str, ...]) -> None:
    """The prose of the Wikipedia DUMP (.xml.bz2) as a SQuAD-format file of passages without questions."""
    articles = []
    for title, text in _articles(dump):
        if title.replace(" ", "_") in titles:
            continue
        paragraphs = [EMPTY.sub("", re.sub(r"\s+", " ", line)).strip() for line in text.split("\n")]
        contexts, words = [], ""
        for paragraph in paragraphs:
            if len(paragraph.split()) < 20 or paragraph[-1] not in '.!?")' or paragraph[0] in "*!{" or "|" in paragraph:
                continue
            sentences = re.split(r"(?<=[.!?]) ", paragraph)
            half = len(sentences) // 2 if len(paragraph.split()) > 260 else len(sentences)
            for part in (sentences[:half], sentences[half:]):
                words = " ".join([words, *part]).strip()
                if len(words.split()) >= least:
                    if len(words.split()) <= most:
                        contexts.append({"context": words, "qas": []})
                    words = ""
        articles.append({"title": title, "paragraphs": contexts})
    write(output, articles)


def _articles(dump: str) -> Iterator[tuple[str, str]]:
    """Titles and plain texts of a dump's articles, but redirects, lists and disambiguations."""
    import mwparserfromhell

    for _, element in ElementTree.iterparse(bz2.open(dump)):
        if not element.tag.endswith("}page"):
            continue
        space = element.tag.split("}")[0] + "}"
        title = element.findtext(f"{space}title") or ""
        text = element.findtext(f"{space}revision/{space}text") or ""
        article = (element.findtext(f"{space}ns") or "0") == "0" and element.find(f"{space}redirect") is None
        element.clear()
        if not article or "disambiguation" in title or title.startswith("List of "):
            continue
        for pattern in MARKUP:
            text = pattern.sub("", text)
        yield title, mwparserfromhell.parse(END.split(text)[0]).strip_code()


@main.command()
@click.argument("gguf")
@click.argument("output")
@click.argument("files", nargs=-1, required=True)
@click.option("--epochs", default=2)
@click.option("--learning-rate", default=1.5e-4)
@click.option("--frozen", default=15, help="Lower layers that stay as they are.")
@click.option("--seed", default=0)
def tune(
    gguf: str, output: str, files: tuple[str, ...], epochs: int, learning_rate: float, frozen: int, seed: int
) -> None:
    """Train the language model in GGUF (Llama's architecture) to write answers and questions after a passage.

    It learns from the questions of FILES: after a paragraph up to six lines "A: answer Q: question", in random order.
    """
    tokenizer, model = _language_model(gguf)
    if frozen >= len(model.model.layers):
        raise click.UsageError(
            f"--frozen {frozen} leaves none of {len(model.model.layers)} layers to train; give fewer"
        )
    model.requires_grad_(False)
    for weight in model.parameters():  # and not the rotary frequencies, which are a buffer
        weight.data = weight.data.bfloat16()
    for part in (*model.model.layers[frozen:], model.model.norm):
        part.float().requires_grad_(True)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    draw = random.Random(seed)
    rows = [row for name in files for row in _rows(name, tokenizer, draw)]
    steps = [step for _ in range(epochs) for step in _steps(rows, draw)]
    optimiser = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    with click.progressbar(steps, label="tune", show_pos=True) as bar:
        for i, step in enumerate(bar):
            rate = learning_rate * min(1.0, (i + 1) / 10) * max(0.05, 1 - i / len(steps))
            for group in optimiser.param_groups:
                group["lr"] = rate
            count = sum(len(line) for batch in step for _, line in batch)
            for batch in step:
                (_loss(model, batch) / count).backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
            optimiser.zero_grad()
    model.bfloat16().save_pretrained(output)
    tokenizer.save_pretrained(output)


def _language_model(gguf: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(Path(gguf).parent), "gguf_file": Path(gguf).name}
    loaded = AutoModelForCausalLM.from_pretrained(**where)
    # What comes from a GGUF file does not let itself be stored again: the same weights in a model that does.
    settings = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    model = type(loaded)(type(loaded.config)(**settings))
    model.load_state_dict(loaded.state_dict())
    return AutoTokenizer.from_pretrained(**where), model


def _rows(name: str, tokenizer: Any, draw: random.Random) -> Iterator[tuple[list[int], list[int]]]:
    """Tokens of a paragraph, and of the lines that are to follow it."""
    for article in read(name):
        for row in article["paragraphs"]:
            pairs = [
                (draw.choice(question["answers"])["text"], question["question"].strip())
                for question in row["qas"]
                if question["answers"]
            ]
            draw.shuffle(pairs)
            context = tokenizer(row["context"].strip() + "\n")["input_ids"]
            lines = "".join(f"A: {answer} Q: {question}\n" for answer, question in pairs[:6])
            lines = tokenizer(lines, add_special_tokens=False)["input_ids"]
            if pairs and len(context) <= 500:
                yield context, [*lines, tokenizer.eos_token_id]


def _steps(
    rows: list[tuple[list[int], list[int]]], draw: random.Random, tokens: int = 3072
) -> list[list[list[tuple[list[int], list[int]]]]]:
    """Steps of two batches, each of rows of like length and up to ``tokens`` tokens."""
    batches: list[list[tuple[list[int], list[int]]]] = []
    longest = 0
    for row in sorted(rows, key=lambda row: len(row[0]) + len(row[1]) + 20 * draw.random()):
        longest = max(longest, sum(map(len, row)))
        if not batches or (len(batches[-1]) + 1) * longest > tokens:
            batches.append([])
            longest = sum(map(len, row))
        batches[-1].append(row)
    draw.shuffle(batches)
    return [batches[i : i + 2] for i in range(0, len(batches), 2)]


def _loss(model: Any, batch: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    """Cross entropy of the lines, summed over their tokens."""
    length = max(sum(map(len, row)) for row in batch)
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    labels = torch.full((len(batch), length), -1)
    for i, (context, lines) in enumerate(batch):
        end = len(context) + len(lines)
        ids[i, :end] = torch.tensor(context + lines)
        labels[i, len(context) - 1 : end - 1] = torch.tensor(lines)
    asked = labels >= 0
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[asked]
        return torch.nn.functional.cross_entropy(model.lm_head(hidden).float(), labels[asked], reduction="sum")


@main.command(name="write")
@click.argument("model")
@click.argument("output")
@click.argument("files", nargs=-1, required=True)
@click.option("--questions", default=5, help="Lines to write for a passage; some are of no use.")
@click.option("--words", default=330, help="Passages of more words are cut into pieces at the ends of sentences.")
@click.option("--batch-size", default=48)
@click.option("--seed", default=0)
def write_questions(
    model: str, output: str, files: tuple[str, ...], questions: int, words: int, batch_size: int, seed: int
) -> None:
    """Let the MODEL of ``tune`` write questions on the passages of FILES.

    A line is kept where its answer stands in the passage.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
    contexts = [
        (article["title"], piece)
        for name in files
        for article in read(name)
        for row in article["paragraphs"]
        for piece in _pieces(row["context"], words)
    ]
    random.Random(seed).shuffle(contexts)
    group = 6 * batch_size
    batches = [
        part[i : i + batch_size]
        for first in range(0, len(contexts), group)
        for part in [sorted(contexts[first : first + group], key=lambda pair: len(pair[1]))]
        for i in range(0, len(part), batch_size)
    ]
    torch.manual_seed(seed)
    made: dict[str, list[Entry]] = {}
    kept, count = 0, 0
    with click.progressbar(batches, label="write", show_pos=True) as bar:
        for batch in bar:
            given = tokenizer([context.strip() + "\n" for _, context in batch], return_tensors="pt", padding=True)
            with torch.inference_mode():
                drawn = network.generate(
                    **given, do_sample=True, temperature=0.9, top_k=40, top_p=0.92, max_new_tokens=27 * questions
                )
            texts = tokenizer.batch_decode(drawn[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
            for (title, context), text in zip(batch, texts, strict=True):
                pairs = [
                    match.groups() for line in text.split("\n")[:questions] if (match := LINE.fullmatch(line.strip()))
                ]
                count += len(pairs)
                rows = _questions(context, pairs, f"made-{kept}")
                kept += len(rows)
                if rows:
                    made.setdefault(title, []).append({"context": context, "qas": rows})
    click.echo(f"{kept} of {count} answers stand in their passage", err=True)
    write(output, [{"title": title, "paragraphs": rows} for title, rows in made.items()])


def _pieces(context: str, words: int) -> Iterator[str]:
    """A context, or the pieces of one that is too long; none of up to 20 words, and no sentence that is too long."""
    pieces = [""]
    for sentence in re.split(r"(?<=[.!?])\s+", context):
        if len(pieces[-1].split()) + len(sentence.split()) > words:
            pieces.append("")
        pieces[-1] = f"{pieces[-1]} {sentence}".strip()
    yield from (piece for piece in pieces if 20 < len(piece.split()) <= words)


def _questions(context: str, pairs: list[tuple[str, str]], name: str) -> list[Entry]:
    rows: list[Entry] = []
    for answer, question in dict.fromkeys(pairs):
        usable = len(answer.split()) <= 20 and " Q: " not in question
        if usable and (places := _places(answer, context)):
            where = {"text": answer, "answer_start": places[0]}
            rows.append({"id": f"{name}-{len(rows)}", "question": question, "answers": [where]})
    return rows


def _places(answer: str, context: str) -> list[int]:
    """Where an answer stands in a context, as whole words."""
    return [match.start() for match in re.finditer(rf"(?<!\w){re.escape(answer)}(?!\w)", context)]


@main.command()
@click.argument("output")
@click.argument("files", nargs=-1, required=True)
@click.option("--predictions", multiple=True, required=True, help="A reader's answers, {id: text}.")
def keep(output: str, files: tuple[str, ...], predictions: tuple[str, ...]) -> None:
    """Keep those questions of FILES that a reader answers out of a sentence in which the written answer stands too."""
    answers: dict[str, str] = {}
    for name in predictions:
        answers.update(json.loads(Path(name).read_text(encoding="utf-8")))
    articles = [article for name in files for article in read(name)]
    asked = [question["id"] for article in articles for row in article["paragraphs"] for question in row["qas"]]
    if unread := [name for name in asked if name not in answers]:
        raise click.UsageError(f"{len(unread)} of {len(asked)} questions are not in --predictions, such as {unread[0]}")
    for article in articles:
        for row in article["paragraphs"]:
            row["qas"] = [question for question in row["qas"] if _agreed(row["context"], question, answers)]
        article["paragraphs"] = [row for row in article["paragraphs"] if row["qas"]]
    write(output, articles)


def _agreed(context: str, question: Entry, answers: dict[str, str]) -> bool:
    """Whether reader and writer agree on a sentence; the answer is then the one in that sentence."""
    answer, read_out = question["answers"][0], answers[question["id"]]
    ends = [*(match.end() for match in re.finditer(r"(?<=[.!?])\s+", context)), len(context)]
    for place in _places(answer["text"], context):
        first = max([0, *(end for end in ends if end <= place)])
        last = min(end for end in ends if end >= place + len(answer["text"]))
        if read_out and _places(read_out, context[first:last]):
            answer["answer_start"] = place
            return True
    return False


if __name__ == "__main__":
    main()
