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
# # 6 Long documents
#
# The Constitution of the United States is longer than the positions that this model has, and ten times longer than what
# most encoders read at once. There are two ways to ask it a question: cut it into short windows that overlap, or read
# as much as the model can in one pass. This notebook does both, looks at the answers, and measures time and memory
# against length.
#
# You learn to choose between windows and one long pass, and what each costs. It takes about half an hour to read; the
# cells run in a minute or two.
#
# Times and memory below were measured on two cores of a server, and are there to illustrate; run the cells for yours.

# %%
import io
import json
from contextlib import redirect_stderr
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import longformer
from longformer import LongformerError, QuestionAnswerer
from longformer.answering.windows import lay_windows
from longformer.bench.peak import above
from longformer.bench.report import Report
from longformer.bench.timing import Contender, Measurement, Record, interleave
from longformer.kernels import attention_pairs
from longformer.plotting import draw_cost

answerer = QuestionAnswerer.from_pretrained()
config = answerer.model.config
constitution = (Path(longformer.__file__).parent / "data" / "constitution.txt").read_text(encoding="utf-8")
encoding = answerer.tokenizer(constitution, return_offsets_mapping=True)
tokens = len(encoding["input_ids"]) - 2  # without the two special tokens around it
print(f"the Constitution has {tokens} tokens, the model positions for {config.max_tokens}")

# %% [markdown]
# ## Windows over a document
#
# What the model reads is `<s> question </s></s> part of the document </s>`. If $q$ tokens go to the question and the
# special tokens, a window of $L$ tokens has room for $c = L - q$ of the document. One window starts every $s$ tokens,
# the *stride*, until the $n$ tokens of the document are covered:
#
# $$\text{windows} = 1 + \left\lceil \frac{n - c}{s} \right\rceil \quad (n > c), \qquad s < c$$
#
# They overlap, because an answer on a border would be in no window whole. And where two windows hold the same words,
# these are judged twice, with different context; `QuestionAnswerer` takes each span from the window where the nearer
# edge is farther away, so that every span is scored exactly once. All scores then make one list.

# %%
question = "How old must a person be to become President?"
taken = len(answerer.tokenizer(question)["input_ids"]) + 2  # with one more separator in the middle and one at the end
capacity = 512 - taken
stride = capacity - capacity // 4  # the default: a quarter is shared
windows = lay_windows(tokens, capacity, stride)
assert len(windows) == 1 + -(-(tokens - capacity) // stride)


def scored_in(first: int, last: int) -> list[int]:
    """Windows in which the span from token ``first`` to ``last`` is scored."""
    return [n for n, window in enumerate(windows) if window.low < first + last <= window.high]


for first in range(tokens):
    for last in (first, min(first + 29, tokens - 1)):  # answers have up to 30 tokens
        (n,) = scored_in(first, last)  # exactly one, and it holds the span
        assert windows[n].first <= first and last < windows[n].stop

figure, axes = plt.subplots(figsize=(9, 3), layout="constrained")
for n, window in enumerate(windows):
    axes.broken_barh([(window.first, window.stop - window.first)], (n - 0.4, 0.8), color="#7aa6c2")
    low, high = max(window.low / 2, 0), min(window.high / 2, tokens)
    axes.broken_barh([(low, high - low)], (n - 0.4, 0.8), color="#d9822b")
axes.set(xlabel="token of the document", ylabel="window")
axes.set_title("what each window reads, and in orange what is scored there", fontsize=10)
axes.set_yticks(range(0, len(windows), 3))
axes.invert_yaxis()
plt.show()

# %% [markdown]
# ## One long pass
#
# The preamble and the first two articles fit into one pass of 4,096 tokens. So here is a document that can be read both
# ways. First a check that the two are one method: where a document fits into a short window, nothing is different.

# %%
document = constitution[: constitution.index("\nArticle III\n")]
brief = constitution[:1500]
assert len(answerer.tokenizer(document)["input_ids"]) + taken <= config.max_tokens
assert answerer.answer(question, brief, max_length=512) == answerer.answer(question, brief)

# %% [markdown]
# Now both, over a few questions whose answers are known. The number is a probability among all spans of the document:
# how sure the model is, given that an answer is there.

# %%
known = json.loads(Path("questions.json").read_text(encoding="utf-8"))
known = [entry for entry in known if entry["start"] < len(document)][2::6]
pairs = [(entry["question"], document) for entry in known]
in_windows = answerer.answer_batch(pairs, max_length=512)
in_one_pass = answerer.answer_batch(pairs)
for entry, (short,), (long,) in zip(known, in_windows, in_one_pass, strict=True):
    print(f"{entry['question']}  [{entry['answer']}]")
    for name, answer in (("windows of 512", short), ("one pass", long)):
        found = answer.start < entry["start"] + len(entry["answer"]) and entry["start"] < answer.end
        print(f"    {name:15} {answer.probability:.2f}  {answer.text!r}{', where it stands' if found else ''}")

# %% [markdown]
# Where the two disagree, look at what each could see. In a short window a token sees, over all layers, no farther than
# the window's ends. In one pass a layer reaches 256 tokens to each side, and so the stack that many times its layers;
# beside that, every token hears in each layer from the question's tokens, which are global and, from the second layer
# on, have seen the whole document.

# %%
reach = sum(config.window(layer)[1] for layer in range(config.num_hidden_layers))
print(f"one pass reaches {reach} tokens to each side by its windows; a window of 512 holds {capacity} of the document")

# %% [markdown]
# More context is not always better. A distant passage that resembles the question competes with the right one in either
# way, since all spans share one softmax; but what a span's own score is made of differs, and a model is best at what it
# was trained on. [The model card](../longformer/pretrained/README.md) says what that was.
#
# ## Why time is linear
#
# Count multiplications and additions in one layer, with hidden size $C$, a feed-forward of $4C$, and $P$ pairs of query
# and key:
#
# $$\underbrace{24\,S\,C^2}_{\text{linear layers}} + \underbrace{4\,P\,C}_{\text{attention}}, \qquad
#   P_{\text{full}} = S^2, \qquad P_{\text{band}} \le S\,(2w + 1)$$
#
# with $w$ tokens on each side; $G$ global tokens add less than $2\,G\,S$ pairs, and projections of their own, which are
# left out here. In the band everything is proportional to $S$. Here is the count for the shipped model, what the
# windows lack at the document's ends taken off.

# %%
width = config.window(0)[0]


def band(length: int) -> int:
    """Pairs of a window of ``width`` on each side."""
    side = min(width, length - 1)
    return length * (2 * side + 1) - side * (side + 1)


assert config.intermediate_size == 4 * config.hidden_size
assert all(band(length) == int(attention_pairs(length, (width, width)).sum()) for length in (1, 100, 257, 1000))


def gflop(length: int, pairs: int) -> float:
    """Of one layer."""
    return (24 * length * config.hidden_size**2 + 4 * pairs * config.hidden_size) / 1e9


for length in (512, 1024, 2048, 4096, 65536):
    narrow, full = gflop(length, band(length)), gflop(length, length**2)
    print(
        f"{length:6} tokens: band {narrow:6.1f} GFLOP, full attention {full:7.1f}, {full / narrow:4.1f} times as much"
    )

# %% [markdown]
# ## Measured
#
# Three ways to answer over the beginning of the Constitution:
#
# - *one pass* of the model as it is;
# - *windows of 512*, as above;
# - *full attention*: the same weights in one pass, with a window as wide as any document. `config=` gives a checkpoint
#   another pattern.
#
# Each is timed three times, in turns, so that whatever else the machine does hits all alike, and the median counts.
# Memory is the peak of one run above what was in use before it (on systems other than Linux it can only be an upper
# bound). In the table "x ours" is a multiple of the first line's median.

# %%
everything = config.replace(attention_window=2 * config.max_tokens)
full_answerer = QuestionAnswerer.from_pretrained(config=everything)
ways = {
    "one pass": (answerer, {}),
    "windows of 512": (answerer, {"max_length": 512}),
    "full attention": (full_answerer, {}),
}
lengths = (500, 1000, 2000, 4000)


def turn(way: str, length: int) -> Contender:
    """Answering over the first ``length`` tokens."""
    who, settings = ways[way]
    text = constitution[: encoding["offset_mapping"][length + 1][0]]

    def run() -> tuple[()]:
        who.answer(question, text, **settings)
        return ()

    return Contender(f"{way}, {length}", run)


turns = {(way, length): turn(way, length) for length in lengths for way in ways}
for way in ways:
    turns[way, lengths[0]].run()  # the first run of anything is slower
memory = {key: above(contender) for key, contender in turns.items()}

# %%
with redirect_stderr(io.StringIO()):  # which tells how far it is
    seconds = interleave(list(turns.values()), rounds=3)

# %%
records = []
for length in lengths:
    settings = {"seq_len": length}
    times = [Measurement(way, seconds[f"{way}, {length}"]) for way in ways]
    peaks = [Measurement(way, [memory[way, length]]) for way in ways]
    records += [Record(f"time, {length} tokens", settings, times)]
    records += [Record(f"memory, {length} tokens", settings, peaks, unit="B")]
report = Report("long documents", {}, {}, records, {})
print(f"float32, threads: {torch.get_num_threads()}")
print(report.table())
all_scores = 4 * config.num_attention_heads * lengths[-1] ** 2  # bytes of a layer's, in float32
assert memory["full attention", lengths[-1]] < all_scores

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
draw_cost(left, report.to_dict(), "time")
draw_cost(right, report.to_dict(), "memory")
plt.show()

# %% [markdown]
# On such scales a straight line of slope 1 is proportional growth, and full attention bends upwards from it. Two things
# are worth a second look.
#
# Short windows are more arithmetic than one pass over the same text: overlaps are computed twice, and the question once
# per window. In return their memory stops growing at one batch of windows, 4,096 tokens, however long the document is,
# and no document is too long for them.
#
# Full attention's memory does not grow with the square of the length here. The kernel goes through the keys tile by
# tile, and of the scores there is never more than a tile. That saves memory; the arithmetic it cannot save. This is
# what the window is for.

# %% [markdown]
# ## Exercises
#
# **1.** A book has 150,000 tokens. How many windows of 512 does a question of `taken` tokens need over it, at the
# default stride, and how many of 4,096?

# %%
book = 150_000
counts = {}
for length in (512, 4096):
    room = length - taken
    step = room - room // 4
    counts[length] = 1 + -(-(book - room) // step)

for length, count in counts.items():
    room = length - taken
    assert count == len(lay_windows(book, room, room - room // 4))
print(counts)

# %% [markdown]
# **2.** From which length on does full attention cost more arithmetic than all of a layer's linear layers? Solve it
# from the count above, for any $C$.

# %%
crossing = 6 * config.hidden_size  # 4 S² C = 24 S C²

linear, attention = 24 * crossing * config.hidden_size**2, 4 * crossing**2 * config.hidden_size
assert linear == attention
print(f"S = 6 C = {crossing} tokens; for the base model, with C = 768, {6 * 768}")

# %% [markdown]
# **3.** Windows must share at least 29 tokens for answers of up to 30. What does the package do with a stride that is
# one token too long, and what with the longest that is allowed?

# %%
longest = capacity - 30 + 1
try:
    answerer.answer(question, document, max_length=512, stride=longest + 1)
except LongformerError as error:
    print(error)
else:
    raise AssertionError("an answer on a border would be missed")
(answer,) = answerer.answer(question, document, max_length=512, stride=longest)
assert document[answer.start : answer.end] == answer.text
covered = lay_windows(tokens, capacity, longest)
assert all(any(w.first <= i and i + 29 < w.stop for w in covered) for i in range(tokens - 29))
