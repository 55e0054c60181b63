# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 7 Experiments
#
# What if the lower layers had narrow windows? If every other layer saw everything? If nothing were global? Here is a
# template for such questions: a table of patterns, one loop, one table of results, one picture. You learn to say a
# pattern in a line, and how far a few questions can tell two patterns apart. It takes a quarter of an hour to read; the
# cells run in about a minute. Copy it, and change the cell that begins with `ROUNDS`.
#
# It puts each pattern under the *same weights*, those of the shipped checkpoint. So it measures what a trained model
# tolerates, and not how well a model would do that was trained with the pattern; the end says how to train one.

# %%
from longformer import QuestionAnswerer

ROUNDS = 2  # of answering everything, for the times
MOST_QUESTIONS = 24

base = QuestionAnswerer.from_pretrained()
config = base.model.config
layers, heads = config.num_hidden_layers, config.num_attention_heads
PATTERNS = {
    "as trained": None,
    "windows from 32 to 512": ["window=32" if n < layers // 2 else "window=512" for n in range(layers)],
    "local and full in turn": "window=64/full",
    "two heads dilated by 4": "window=512,dilation=" + ":".join(["1"] * (heads - 2) + ["4"] * 2),
    "first token global": "global=none,global=0",
    "nothing global": "global=none",
}
answerers = {
    name: QuestionAnswerer.from_pretrained(config=config.replace(attention_pattern=pattern))
    for name, pattern in PATTERNS.items()
}

# %% [markdown]
# `window=64` lets a token see 32 on each side, and `/` stands between layers, which are repeated in turn. The model
# makes the question's tokens global, unless a pattern says `global=none`. The page
# [Choose who attends to whom](../docs/how-to/patterns.md) has all that can be said, any mask and any score too.
#
# ## What they look like
#
# The last head of the first and of the last layer, over 300 tokens of which the first 12 are `<s>` and a question. Blue
# is the window, orange what is global. (A single global token is a line too thin to be seen here.)

# %%
import matplotlib.pyplot as plt

from longformer.plotting import draw_pattern

figure, panels = plt.subplots(2, len(answerers), figsize=(20, 6.3), layout="constrained")
for column, (name, answerer) in zip(panels.T, answerers.items(), strict=True):
    for axes, layer in zip(column, (0, layers - 1), strict=True):
        pattern = answerer.model.config.pattern(layer)
        question = () if pattern.global_tokens else range(12)
        draw_pattern(axes, 300, pattern, global_tokens=question, head=heads - 1)
    column[0].set_title(name, fontsize=9)
panels[0, 0].set_ylabel("first layer")
panels[1, 0].set_ylabel("last layer")
plt.show()

# %% [markdown]
# ## Questions
#
# What ships with the repository is the Constitution and two dozen questions with their answers. Each is asked over a
# passage: whole paragraphs of together up to 2,000 characters, most of which are more tokens than a window of 512 shows
# to one of them, 256 on each side.
#
# That is enough to try the loop, and far too little to conclude anything, as the intervals will say. With real data at
# hand, set `LONGFORMER_DATA` before starting Jupyter: to a file in SQuAD's format, v1.1, or to a folder that holds one
# called `*dev*.json`, such as SQuAD's own `dev-v1.1.json` (of several the first in the alphabet).


# %%
import json
import os
from pathlib import Path

import longformer
from longformer.answering.squad import Answer, Example, read_squad


def passages(text: str, most: int) -> list[tuple[int, str]]:
    """Whole paragraphs, as many as have up to ``most`` characters together: where each passage starts, and its text."""
    found, start, stop = [], 0, 0
    for paragraph in text.split("\n\n"):
        end = stop + len(paragraph)
        if end - start > most and stop > start:
            found.append((start, text[start:stop]))
            start = stop
        stop = end + len("\n\n")
    return [*found, (start, text[start:])]


def constitution() -> list[Example]:
    """The questions that ship with the repository."""
    text = (Path(longformer.__file__).parent / "data" / "constitution.txt").read_text(encoding="utf-8")
    parts = passages(text, 2000)
    examples = []
    for n, entry in enumerate(json.loads(Path("questions.json").read_text(encoding="utf-8"))):
        start, passage = max(part for part in parts if part[0] <= entry["start"])
        answer = Answer(entry["answer"], entry["start"] - start)
        assert passage[answer.start :].startswith(answer.text)
        examples.append(Example(str(n), "the Constitution", entry["question"], passage, [answer]))
    return examples


def squad_file(name: str) -> Path:
    """The file in SQuAD's format that ``LONGFORMER_DATA`` names, or that its folder holds."""
    path = Path(name)
    found = sorted(path.glob("*dev*.json")) if path.is_dir() else [path]
    if not found or not found[0].is_file():
        raise FileNotFoundError(f"LONGFORMER_DATA is {name!r}, neither a file nor a folder with a *dev*.json")
    return found[0]


data = os.environ.get("LONGFORMER_DATA")
examples = read_squad(squad_file(data)) if data else constitution()
examples = [example for example in examples if example.answers]  # what has no answer is another question
examples = examples[:: -(-len(examples) // MOST_QUESTIONS)]  # spread over the file, and so over its articles
lengths = sorted(len(base.tokenizer(example.question, example.context)["input_ids"]) for example in examples)
print(f"from {squad_file(data).name}" if data else "of the Constitution")
print(f"{len(examples)} questions, {lengths[0]} to {lengths[-1]} tokens each, median {lengths[len(lengths) // 2]}")

# %% [markdown]
# ## The loop
#
# Every pattern answers everything once in each round, in turns, so that their times can be compared; the answers are
# those of the last round. Scores are the official ones, exact match and F1.

# %%
import io
from contextlib import redirect_stderr

from longformer.answering.evaluation import summary
from longformer.answering.scores import bootstrap_interval, score
from longformer.bench.report import format_table
from longformer.bench.timing import Contender, interleave

predictions = {}


def ask(name: str) -> Contender:
    """Answer all questions under a pattern."""
    pairs = [(example.question, example.context) for example in examples]

    def run() -> tuple[()]:
        found = answerers[name].answer_batch(pairs)
        predictions[name] = {example.id: best.text for example, (best, *_) in zip(examples, found, strict=True)}
        return ()

    return Contender(name, run)


base.answer(examples[0].question, examples[0].context)  # the first run of anything is slower
with redirect_stderr(io.StringIO()):  # which tells how far it is
    seconds = interleave([ask(name) for name in answerers], ROUNDS)
results = {name: summary(score(examples, predictions[name])) for name in answerers}

# %% [markdown]
# ## Results
#
# An interval for each pattern's score says how much of it is the choice of questions. But all patterns were asked the
# *same* questions, so that the interval to look at is another one: that of the **difference** from the first row,
# question by question,
#
# $$\Delta = \frac{1}{N} \sum_{i=1}^{N} \left( F_i^{\text{pattern}} - F_i^{\text{as trained}} \right),$$
#
# where what makes a question hard for both cancels. Only where this interval leaves out 0 has the pattern changed
# something that another draw of questions would most likely show too; and who tries many patterns finds one such
# interval by luck. Times are those of the faster round, of the machine that this ran on (here two cores of a server),
# and illustrate.

# %%
first = score(examples, predictions["as trained"])
clusters = first.articles if len(set(first.articles)) > 1 else None
differences = {}
rows = [("", "exact match", "F1", "95 % interval", "F1 - as trained", "95 % interval", "questions a second")]
for name, found in results.items():
    off = score(examples, predictions[name]).f1 - first.f1
    low, high = bootstrap_interval(off, clusters=clusters)
    differences[name] = (float(off.mean()), low, high)
    rate = len(examples) / min(seconds[name])
    interval = "{:.1f} to {:.1f}".format(*found["f1_interval"])
    figures = (f"{found['exact_match']:.1f}", f"{found['f1']:.1f}", interval)
    rows.append((name, *figures, f"{off.mean():+.1f}", f"{low:+.1f} to {high:+.1f}", f"{rate:.1f}"))
print(format_table(rows))
assert differences["as trained"] == (0.0, 0.0, 0.0)

# %%
figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
for place, (mean, low, high) in enumerate(differences.values()):
    axes.plot([low, high], [place, place], color="#1b6ca8", linewidth=2)
    axes.plot(mean, place, "o", color="#1b6ca8")
axes.axvline(0, color="#888888", linewidth=1)
axes.set_yticks(range(len(differences)), differences)
axes.invert_yaxis()
axes.set(xlabel="F1 less that of the first row, with its 95 % interval")
plt.show()

# %% [markdown]
# ## To train with a pattern
#
# Weights that were trained with another pattern are no fair judge of this one. A checkpoint keeps the pattern in its
# `config.json`, so that a saved model is fine-tuned with it:
#
# ```python
# answerers["local and full in turn"].model.save_pretrained("mixed")
# answerers["local and full in turn"].tokenizer.save_pretrained("mixed")
# ```
#
# ```sh
# longformer train qa mixed OUT train-v1.1.json --evaluate-on dev-v1.1.json
# ```
#
# transformers' model would load such a checkpoint, ignore the pattern, and compute without it.

# %% [markdown]
# ## Exercises
#
# **1.** What attention costs follows from the pairs of query and key that a pattern has. Count them for one layer over
# 600 tokens, all heads, without global tokens: in windows of 64, of 512, and of 64 in which two heads are dilated by 4.
# Is dilation free?


# %%
def pairs(tokens: int, pattern: str) -> int:
    """Of one layer, over all heads."""
    return config.replace(attention_pattern=pattern).pattern(0).cost(tokens, heads=heads).pairs


narrow, wide = pairs(600, "window=64"), pairs(600, "window=512")
dilated = pairs(600, PATTERNS["two heads dilated by 4"].replace("512", "64"))

# A row has 2 · 32 + 1 columns, less those beyond the ends of the text: 1 + 2 + ... + 32 at each end.
assert narrow == heads * (600 * 65 - 32 * 33)
# A dilated head has as many columns a row, and loses more of them at the ends, since it reaches farther.
assert dilated < narrow < wide
print(f"windows of 64: {narrow:,}; with two heads dilated: {dilated:,}; windows of 512: {wide:,}")

# %% [markdown]
# **2.** Two windows that both reach from any token of a text to any other are the same pattern, and so is no window.
# Show it on answers.

# %%
question, text = examples[0].question, examples[0].context
window = 2 * len(base.tokenizer(question, text)["input_ids"])
answers = []
for pattern in (f"window={window}", f"window={2 * window}", "full"):
    answerer = QuestionAnswerer.from_pretrained(config=config.replace(attention_pattern=pattern))
    answers.append(answerer.answer(question, text)[0])
assert len({(answer.text, answer.start) for answer in answers}) == 1
assert max(answer.probability for answer in answers) - min(answer.probability for answer in answers) < 1e-5

# %% [markdown]
# **3.** Make the question global, and every 64th token besides, as landmarks. Check on the layers' patterns over 200
# tokens that it is so; then add it to `PATTERNS`.

# %%
landmarks = config.replace(attention_pattern="global-every=64")
mask = landmarks.pattern(0).global_tokens.mask(base.tokenizer(question, text, return_tensors="pt")["input_ids"])
assert mask[0].nonzero().flatten().tolist() == list(range(0, mask.shape[1], 64))
(answer,) = QuestionAnswerer.from_pretrained(config=landmarks).answer(question, text)
assert text[answer.start : answer.end] == answer.text
