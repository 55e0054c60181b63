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
# # 3 Global tokens
#
# A window sees its neighbours, and layers of windows see further, but slowly. A question and its answer may stand 3,000
# tokens apart. So a few tokens are made *global*: they see everything, and everything sees them (§3.1, "Global
# Attention"). This notebook takes the rule apart, one softmax, overwritten rows, projections of their own, and then
# measures what the checkpoint that comes with the package can do without each of them.
#
# You learn what a global token is, to the last factor, and which part of it question answering cannot do without. It
# takes about half an hour to read; the cells run in under a minute.

# %%
import copy
import json
from importlib.resources import files
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import PowerNorm

from longformer import QuestionAnswerer
from longformer.answering.scores import exact_match, f1
from longformer.kernels import global_attention, sliding_window_attention, sliding_window_probabilities
from longformer.parity import trace
from longformer.plotting import attention_kinds, dense_probabilities, draw_pattern, draw_receptive_field

generator = torch.Generator().manual_seed(0)

# %% [markdown]
# ## The rule
#
# With $\mathcal G$ the set of global tokens, a row that is not global attends to
#
# $$ A(i) = \{ i - l, \dots, i + r \} \cup \mathcal G , $$
#
# and a row that is global attends to every token. In the picture the global columns and rows are orange. They cost $2
# S$ pairs each, so that a few dozen change nothing about the linear cost. And every token is now two steps from every
# other one, whatever the length: one layer carries it to a global token, the next one from there to anywhere.

# %%
figure, panels = plt.subplots(1, 2, figsize=(11, 3.2), layout="constrained", width_ratios=[1, 2.2])
draw_pattern(panels[0], 24, (2, 2), global_tokens=(0, 1, 13), title="window (2, 2), tokens 0, 1 and 13 global")
panels[0].set(xlabel="key", ylabel="query")
draw_receptive_field(
    panels[1], 60, [(2, 2)] * 3, 40, global_tokens=(0,), title="what token 40 depends on, token 0 global"
)

# %% [markdown]
# ## One softmax
#
# The window and the global columns share one softmax. $A(i)$ is a set: a global column that lies inside the window is
# in it once. (A port that counts it twice is off by a little, everywhere; `longformer parity` knows that slip by name.)
#
# By hand, and dense:

# %%
S, D, window = 20, 8, (2, 2)
query, key, value = (torch.randn(1, 1, S, D, dtype=torch.float64, generator=generator) for _ in range(3))
is_global = torch.zeros(1, S, dtype=torch.bool)
is_global[0, [0, 11]] = True

place = torch.arange(S)
seen = ((place - place[:, None]).abs() <= 2) | is_global[0]  # the union: (S, S), row i sees column j
scores = (query @ key.transpose(-2, -1) / D**0.5).masked_fill(~seen, -torch.inf)
by_hand = scores.softmax(dim=-1) @ value

for impl in ("reference", "banded", "blocked"):
    kernel = sliding_window_attention(query, key, value, window, global_mask=is_global, impl=impl)
    assert torch.allclose(kernel, by_hand, rtol=0, atol=1e-12)

# %% [markdown]
# The kernels never make this matrix. `banded` puts the scores of the global columns *beside* the diagonals, leaves out
# those that lie in the band already, and takes the softmax over both. What it returns shows that: `band` and `columns`
# of a row together sum to 1, and where a global column is inside the band, its place among the columns is 0.

# %%
probabilities = sliding_window_probabilities(query, key, window, global_mask=is_global)
band, columns, index = probabilities
print("band", tuple(band.shape), "columns", tuple(columns.shape), "of tokens", index[0].tolist())
assert torch.allclose(band.sum(-1) + columns.sum(-1), torch.ones(1, 1, S, dtype=torch.float64))
print("row 10: column of token 11 has", float(columns[0, 0, 10, 1]), "and the band", round(float(band[0, 0, 10, 3]), 3))
print("row 15: column of token 11 has", round(float(columns[0, 0, 15, 1]), 3))
assert torch.allclose(dense_probabilities(probabilities, window), scores.softmax(dim=-1), rtol=0, atol=1e-12)

# %% [markdown]
# ## The overwritten rows, and projections of their own
#
# What a token asks of its neighbours, and what a question asks of a document, are different things. The paper gives
# global attention projections of its own: $Q_s, K_s, V_s$ for the window, $Q_g, K_g, V_g$ for the rows of global tokens
# ("Linear Projections for Global Attention"). In a model they are `query`, `key`, `value` and `query_global`,
# `key_global`, `value_global`. In detail:
#
# 1. every row is computed with the window's projections, global columns included: a row that looks *at* a global
#    token uses $Q_s K_s$;
# 2. then the rows *of* global tokens are overwritten by $\operatorname{softmax}(Q_g K_g^\top / \sqrt D) \, V_g$ over
#    all tokens.
#
# Here is the first layer of the shipped checkpoint, by hand, in float64, on a real question. `trace` records what the
# model computes.

# %%
answerer = QuestionAnswerer.from_pretrained()
document = files("longformer").joinpath("data/constitution.txt").read_text(encoding="utf-8")
question = "How old must a person be to become President?"
answer_at = document.index("thirty five Years")
excerpt = document[answer_at - 2000 : answer_at + 500]
encoding = answerer.tokenizer(question, excerpt, return_tensors="pt")
input_ids = encoding["input_ids"]
tokens = answerer.tokenizer.convert_ids_to_tokens(input_ids[0].tolist())

exact_model = copy.deepcopy(answerer.model).double()
question_mask = exact_model.automatic_global_mask(input_ids)  # (1, S) bool: strictly before the first separator
recorded = ["embeddings", "layer.*.query", "layer.*.key", "layer.*.*_output", "layer.*.global_*", "layer.*.column_*"]
with torch.no_grad(), trace(exact_model, only=recorded, probabilities=True, digests=False) as t:
    exact_model(input_ids)
globals_ = question_mask[0].nonzero().flatten()
print(f"{len(tokens)} tokens; global: {' '.join(tokens[: len(globals_)])}")

# %%
attention = exact_model.longformer.encoder.layer[0].attention.self
hidden = t["embeddings"]  # (1, S, C)


def by_heads(x: torch.Tensor) -> torch.Tensor:
    """(1, S, C) to (1, H, S, D)."""
    return x.unflatten(-1, (attention.num_heads, attention.head_dim)).transpose(1, 2)


with torch.no_grad():
    q, k, v = (by_heads(layer(hidden)) for layer in (attention.query, attention.key, attention.value))
    out = sliding_window_attention(q, k, v, pattern=attention.pattern, global_mask=question_mask)
    projections = (attention.query_global, attention.key_global, attention.value_global)
    q_global, k_global, v_global = (by_heads(layer(hidden)) for layer in projections)
    rows = global_attention(q_global[:, :, globals_], k_global, v_global)  # (1, H, G, D)
    out[:, :, globals_] = rows

assert torch.allclose(rows, t["layer.0.global_rows"], rtol=0, atol=1e-10)
others = ~question_mask[0]
assert torch.allclose(out[:, :, others], t["layer.0.local_output"][:, :, others], rtol=0, atol=1e-10)
print("attention of the first layer, by hand and by the model: equal")

# %% [markdown]
# The whole of a layer's attention as one picture: the band, the question's columns at the left, its rows at the top. It
# is the mean over the heads; the square root makes small probabilities visible.

# %%
layer = 3
q, k = t[f"layer.{layer}.query"], t[f"layer.{layer}.key"]
local = sliding_window_probabilities(q, k, pattern=attention.pattern, global_mask=question_mask)
picture = dense_probabilities(local, attention.pattern)[0].mean(dim=0)
picture[globals_] = t[f"layer.{layer}.global_probabilities"][0].mean(dim=0)
assert torch.allclose(picture.sum(dim=-1), torch.ones(len(picture), dtype=torch.float64))
figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
axes.imshow(
    picture, cmap="Blues", norm=PowerNorm(0.5, vmax=float(picture.quantile(0.999))), interpolation="antialiased"
)
axes.set(xlabel="key", ylabel="query", title=f"layer {layer}, counted from 0")

# %% [markdown]
# ## Why the question
#
# In question answering the model makes global every token before the first separator: `<s>` (here `[CLS]`) and the
# question. The two directions do different things. By its *rows* the question gathers what it needs from the whole
# document. By its *columns* every token of the document, however far away, can compare itself with the question; and
# what a token's start and end scores say is just that comparison.
#
# How much of its attention does a token of the document really spend on the question? The picture has it for each
# layer: the mean over all tokens of the document, and the right answer's first token.

# %%
answer_token = next(i for i, token in enumerate(tokens) if tokens[i : i + 3] == ["thirty", "five", "years"])
layers = range(exact_model.config.num_hidden_layers)
share = [t[f"layer.{n}.column_probabilities"].sum(dim=-1).mean(dim=1)[0] for n in layers]  # (S,) each
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.plot([n + 1 for n in layers], [float(s[others].mean()) for s in share], "o-", label="mean over the document")
axes.plot(
    [n + 1 for n in layers], [float(s[answer_token]) for s in share], "o-", label="the right answer's first token"
)
axes.axhline(len(globals_) / (513 + len(globals_)), color="#bbbbbb", linewidth=1, label="if all it sees were equal")
axes.set(xlabel="layer", ylabel="attention on the question", ylim=(0, None))
axes.legend(fontsize=8)

# %% [markdown]
# ## What breaks without them
#
# Now take them away, and ask the questions of `questions.json`, whose answers are known. Four models:
#
# - **question**: as trained;
# - **local projections**: the question is global, but its rows use $Q_s, K_s, V_s$;
# - **first token**: only `[CLS]` is global, as in classification;
# - **none**: windows alone.
#
# And two documents for each question: an excerpt of the Constitution that fits into one window with the question, so
# that every token sees the question anyway, and one that is several windows long, with the answer near its end. A hook
# on the model replaces the mask; nothing else changes.

# %%
questions = json.loads(Path("questions.json").read_text(encoding="utf-8"))
asked = [entry for entry in questions if entry["start"] > 5000]


def excerpt_of(entry: dict, characters: int) -> str:
    """Text of about so many characters, from the beginning of a line, with the answer near its end."""
    stop = entry["start"] + len(entry["answer"]) + 150
    first = max(0, stop - characters)
    return document[document.index("\n", first) + 1 : stop]


def measure(model: torch.nn.Module, mask_of, characters: int) -> tuple[float, float]:
    """Exact match and F1 in percent over the questions asked, with the global tokens that ``mask_of`` gives."""

    def use_mask(module, arguments, keywords):
        return arguments, {**keywords, "global_attention_mask": mask_of(arguments[0])}

    handle = model.register_forward_pre_hook(use_mask, with_kwargs=True)
    pairs = [(entry["question"], excerpt_of(entry, characters)) for entry in asked]
    answers = [found[0].text for found in QuestionAnswerer(model, answerer.tokenizer).answer_batch(pairs)]
    handle.remove()
    expected = [[entry["answer"]] for entry in asked]
    scores = [[rule(*pair) for pair in zip(answers, expected, strict=True)] for rule in (exact_match, f1)]
    return tuple(100 * sum(each) / len(each) for each in scores)


# %%
model = answerer.model
without_projections = copy.deepcopy(model)
for encoder_layer in without_projections.longformer.encoder.layer:
    attention = encoder_layer.attention.self
    for name in ("query", "key", "value"):
        getattr(attention, f"{name}_global").load_state_dict(getattr(attention, name).state_dict())


def first_token(input_ids: torch.Tensor) -> torch.Tensor:
    mask = torch.zeros_like(input_ids)
    mask[:, 0] = 1
    return mask


variants = {
    "question": (model, model.automatic_global_mask),
    "local projections": (without_projections, model.automatic_global_mask),
    "first token": (model, first_token),
    "none": (model, torch.zeros_like),
}
sizes = {"one window": 900, "several windows": 4500}
results = {(name, size): measure(*variants[name], sizes[size]) for name in variants for size in sizes}
for size, characters in sizes.items():
    lengths = [len(answerer.tokenizer(e["question"], excerpt_of(e, characters))["input_ids"]) for e in asked]
    print(f"{size}: {len(asked)} questions, {min(lengths)} to {max(lengths)} tokens")
    for name in variants:
        print("  {:<18} exact match {:5.1f}   F1 {:5.1f}".format(name, *results[name, size]))

# %%
figure, axes = plt.subplots(figsize=(6.5, 3), layout="constrained")
for i, size in enumerate(sizes):
    places = [n + 0.4 * i for n in range(len(variants))]
    axes.bar(places, [results[name, size][1] for name in variants], width=0.38, label=size)
axes.set_xticks([n + 0.2 for n in range(len(variants))], variants)
axes.set(ylabel="F1", ylim=(0, 100))
axes.legend(title="document")

# %% [markdown]
# How to read it. The checkpoint was trained with its question global, so that every other row is also a model used in a
# way that it did not learn. Within one window *local projections* and *none* are one and the same computation: every
# row sees every token by the same projections, global or not. What they lose there, if anything, is the question's own
# projections. What *none* loses in addition over several windows is the way from the question to the answer: with
# windows alone its words reach an answer 800 tokens away only in the fourth layer, passed on by tokens that have other
# things to do.
#
# The questions are few, so that a difference of one of them is no finding. The paper retrained its model for each
# variant, which is the clean way: on WikiHop 73.8 became 72.2 without separate projections and 65.5 without global
# attention (Table 10).
#
# ## Exercises
#
# Each has a solution below it, and an assertion that checks it. Put your own in its place.
#
# **1.** How many pairs do $G$ global tokens add, if none of the windows reaches over an edge or onto a global token?
# Count all that lie in a global row or column but not in a window.


# %%
def pairs_added(seq_len: int, band_width: int, count: int) -> int:
    # Columns and rows of S pairs each, the G x G corner counted once, less what the global rows' windows had, and
    # less what of the columns lies in windows: as much again, without the G that stand on the diagonal.
    return 2 * seq_len * count - count**2 - (2 * count * band_width - count)


for tokens_chosen in ((10,), (10, 20), (8, 20, 31)):
    with_them = attention_kinds(40, (2, 2), global_tokens=tokens_chosen)[0] != 0
    without = attention_kinds(40, (2, 2))[0] != 0
    assert int(with_them.sum() - without.sum()) == pairs_added(40, 5, len(tokens_chosen))

# %% [markdown]
# **2.** Which tokens does the model make global by itself? Write the mask, and check it by what the model computes.

# %%
separator = answerer.tokenizer.sep_token_id
mask = ((input_ids == separator).cumsum(dim=1) == 0).long()  # strictly before the first separator
with torch.no_grad():
    by_itself = exact_model(input_ids)
    by_mask = exact_model(input_ids, global_attention_mask=mask)
assert torch.equal(by_itself.start_logits, by_mask.start_logits)
assert torch.equal(mask.bool(), question_mask)

# %% [markdown]
# **3.** A port counts a global column inside the window twice. By how much does that raise the column's score, as the
# softmax sees it?

# %%
inside = ((place - place[:, None]).abs() <= 2) & is_global[0]
raised = scores + inside * torch.log(torch.tensor(2.0, dtype=torch.float64))
twice = torch.cat([scores, scores.masked_fill(~inside, -torch.inf)], dim=-1).softmax(dim=-1)
assert torch.allclose(twice[..., :S] + twice[..., S:], raised.softmax(dim=-1), rtol=0, atol=1e-12)
