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
# # 1 Why windows
#
# A transformer compares every token with every other one. For a sentence that is nothing; for a contract or a paper it
# is too much. This notebook counts what full attention costs, replaces it by a window, and shows how layers of windows
# see a whole document all the same. Section and figure numbers are those of [Beltagy, Peters and Cohan
# 2020](https://arxiv.org/abs/2004.05150).
#
# You learn what a pattern costs, and how far a token sees through layers of windows, dilated ones too. It takes about
# twenty minutes to read; the cells run in seconds.
#
# Every pattern here is drawn from the mask of the reference kernel, to which all other kernels are held.

# %%
import matplotlib.pyplot as plt
import torch

from longformer import LongformerConfig, LongformerModel
from longformer.kernels import attention_pairs, banded_scores
from longformer.plotting import (
    attention_kinds,
    draw_cost,
    draw_pattern,
    draw_patterns,
    draw_receptive_field,
    receptive_field,
)

# %% [markdown]
# ## What full attention costs
#
# One head has for each of $S$ tokens a query $q_i$, a key $k_i$ and a value $v_i$, rows of $D$ numbers:
#
# $$ p_{ij} = \frac{\exp(q_i \cdot k_j / \sqrt D)}{\sum_{j'} \exp(q_i \cdot k_{j'} / \sqrt D)}, \qquad
#    o_i = \sum_j p_{ij} v_j . $$
#
# The sums run over all $S$ tokens, and there are $S$ rows: $S^2$ products $q_i \cdot k_j$ of $D$ multiplications each.
# Twice the length is four times the work, and four times the memory where the scores are kept. The table has the scores
# of the twelve heads of one layer, in float32.

# %%
heads, bytes_each = 12, 4
for seq_len in (512, 4096, 16384, 65536):
    print(f"{seq_len:>6} tokens: {seq_len**2:>13,} pairs a head, {heads * seq_len**2 * bytes_each / 1e9:>8.3f} GB")

# %% [markdown]
# ## The band
#
# Language is mostly local: what a word means is decided by its neighbours more often than by a word three pages away.
# So let token $i$ attend to the tokens $i - l, \dots, i + r$ that exist, and to no others (§3.1, "Sliding Window"). In
# the matrix of pairs that is a band of width $W = l + 1 + r$ along the diagonal.
#
# The released models have `attention_window=512`, counted over both sides: `(256, 256)` as the kernels write it.
# `attention_pairs` is the mask of that reference.

# %%
pairs = attention_pairs(24, (3, 3))[0, 0]  # (S, S) bool, True where row i sees column j
print("row 10 sees", pairs[10].nonzero().flatten().tolist())
print("row  1 sees", pairs[1].nonzero().flatten().tolist())

figure, panels = plt.subplots(1, 2, figsize=(7, 3.4), layout="constrained")
draw_pattern(panels[0], 24, (23, 23), title=f"full: {24 * 24} pairs")
draw_pattern(panels[1], 24, (3, 3), title=f"window (3, 3): {int(pairs.sum())} pairs")
panels[0].set_ylabel("query")
for axes in panels:
    axes.set_xlabel("key")

# %% [markdown]
# Each row has at most $W$ pairs, so that there are at most $S \cdot W$ of them: with $W$ fixed, twice the length is
# twice the work. The picture counts pairs against length. Below one window there is nothing to gain.

# %%
lengths = [128, 256, 512, 1024, 2048]
counts = [int(attention_pairs(seq_len, (256, 256)).sum()) for seq_len in lengths]
figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
axes.plot(lengths, [seq_len**2 for seq_len in lengths], "o-", label="full")
axes.plot(lengths, counts, "o-", label="window (256, 256)")
axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="pairs of one head")
axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
axes.minorticks_off()
axes.legend()
assert all(count <= min(seq_len**2, seq_len * 513) for count, seq_len in zip(counts, lengths, strict=True))

# %% [markdown]
# Counting pairs is not yet being fast: something must avoid computing the others. That is the subject of [notebook
# 2](2_the_band_by_hand.ipynb). The next picture shows that it can be done. It was measured by `longformer bench
# scaling` on the machine that the README names, and lies in the repository; run the command to have yours.

# %%
figure, panels = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for axes, quantity in zip(panels, ("time", "memory"), strict=True):
    draw_cost(axes, "../longformer/bench/results/scaling.json", quantity)
panels[0].set_title("time of a forward, 12 heads of 64, window (256, 256)", fontsize=9)
panels[1].set_title("peak memory above inputs and output", fontsize=9)

# %% [markdown]
# ## The receptive field
#
# A window of 256 would be useless if an answer needed something that stands 1,000 tokens earlier. But layers are
# stacked. In the first a token learns about its neighbours; in the second its neighbours already know of theirs. After
# $\ell$ layers of windows $(w, w)$ a token depends on the
#
# $$ 2 \ell w + 1 $$
#
# tokens around it. (The paper writes $\ell \times w$, with $w$ counted over both sides.) It is what makes convolutions
# see whole images. `receptive_field` follows the masks downwards from one token of the last layer.

# %%
figure, axes = plt.subplots(figsize=(7, 2.2), layout="constrained")
draw_receptive_field(axes, 41, [(3, 3)] * 4, 20, title="what token 20 depends on, windows of (3, 3)")
field = receptive_field(41, [(3, 3)] * 4, 20)
print("tokens by layer, from the embeddings up:", field.sum(dim=1).tolist())
assert field.sum(dim=1).tolist() == [2 * layers * 3 + 1 for layers in (4, 3, 2, 1, 0)]

# %% [markdown]
# That is what the masks allow. Does a model really depend on all of it? Differentiate one number of the last layer by
# the embeddings: where the gradient is exactly 0, nothing arrives.

# %%
config = LongformerConfig(
    vocab_size=100,
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=32,
    attention_window=(4, 8, 12),  # of both sides together, one a layer
    max_position_embeddings=66,
)
torch.manual_seed(0)
model = LongformerModel(config, add_pooling_layer=False).eval()
embedded = []
handle = model.embeddings.register_forward_hook(lambda module, inputs, output: embedded.append(output))
hidden = model(torch.randint(3, 100, (1, 60))).last_hidden_state
handle.remove()
(gradient,) = torch.autograd.grad(hidden[0, 30, 0], embedded[0])
depends = gradient.reshape(60, -1).abs().sum(dim=1) > 0
print("depends on tokens", depends.nonzero().flatten()[[0, -1]].tolist(), "of 60")
assert torch.equal(depends, receptive_field(60, config, 30)[0])

figure, axes = plt.subplots(figsize=(7, 2), layout="constrained")
draw_receptive_field(axes, 60, config, 30, title="windows that grow with depth: (2, 2), (4, 4), (6, 6)")

# %% [markdown]
# The paper's character model uses just this: small windows in the lowest layers, which have enough to do with spelling,
# and large ones at the top (§4.1). Its ablation found 1.21 bits per character with windows of 32 to 512 from bottom to
# top, 1.23 with one window everywhere, and 1.24 with the order reversed (Table 4).

# %%
windows = [(4, 0), (8, 0), (12, 0), (16, 0)]
figure = plt.figure(figsize=(12, 3.3), layout="constrained")
draw_patterns(figure, 48, windows, causal=True)

# %% [markdown]
# ## Dilation
#
# A window can also have gaps: row $i$ sees $i + c\,d$ for $-l \le c \le r$, where $d$ is the dilation (§3.1, "Dilated
# Sliding Window"). It costs what it cost before and reaches $d$ times as far: $\ell$ layers span $2 \ell w d + 1$
# tokens. The price is that it skips what lies between. So the paper lets heads differ: some stay dense, some look far.

# %%
figure = plt.figure(figsize=(7, 3.6), layout="constrained")
draw_patterns(figure, 32, (3, 3), dilation=(1, 1, 4))

# %%
figure, panels = plt.subplots(2, 1, figsize=(7, 3.6), layout="constrained")
draw_receptive_field(panels[0], 61, [(2, 2)] * 3, 30, dilation=4, title="three layers, all heads dilated by 4")
draw_receptive_field(panels[1], 61, [(2, 2)] * 3, 30, dilation=(1, 4), title="three layers, one head of two dilated")

# %% [markdown]
# With every head dilated the token depends on one token in four, however many layers there are. One dense head fills
# the gaps.

# %% [markdown]
# ## The paper's figure 2
#
# All four patterns side by side, drawn from our masks. The last one adds *global* tokens, which see everything and are
# seen by everyone; [notebook 3](3_global_tokens.ipynb) is about them.

# %%
figure, panels = plt.subplots(1, 4, figsize=(12, 3.3), layout="constrained")
draw_pattern(panels[0], 24, (23, 23), title="(a) full")
draw_pattern(panels[1], 24, (3, 3), title="(b) sliding window")
draw_pattern(panels[2], 24, (3, 3), dilation=2, title="(c) dilated sliding window")
draw_pattern(panels[3], 24, (3, 3), global_tokens=(0, 1, 2), title="(d) global + sliding window")
panels[0].set_ylabel("query")
for axes in panels:
    axes.set_xlabel("key")

# %% [markdown]
# ## Exercises
#
# Each has a solution below it, and an assertion that checks it. Put your own in its place.
#
# **1.** A band has a little less than $S \cdot W$ pairs, since the first rows lack tokens on their left and the last
# ones on their right. How many exactly, for $S > l, r$?


# %%
def band_pairs(seq_len: int, left: int, right: int) -> int:
    return seq_len * (left + 1 + right) - left * (left + 1) // 2 - right * (right + 1) // 2


for seq_len, left, right in ((24, 3, 3), (10, 9, 0), (100, 0, 7), (513, 256, 256)):
    assert band_pairs(seq_len, left, right) == int(attention_pairs(seq_len, (left, right)).sum())

# %% [markdown]
# **2.** The released base model has 12 layers of windows `(256, 256)` and reads 4,096 tokens. Without global tokens,
# can its first token depend on its last one? How many layers would that take?


# %%
def layers_to_cross(seq_len: int, side: int) -> int:
    return -(-(seq_len - 1) // side)  # rounded up


needed = layers_to_cross(4096, 256)
print(f"{needed} layers: {'12 are enough' if needed <= 12 else '12 are too few, and global tokens are the way out'}")
for seq_len, side in ((41, 3), (40, 13), (64, 63)):  # the same, followed through masks of a size that can be drawn
    layers = layers_to_cross(seq_len, side)
    assert receptive_field(seq_len, [(side, side)] * layers, 0)[0, -1]
    assert layers == 1 or not receptive_field(seq_len, [(side, side)] * (layers - 1), 0)[0, -1]

# %% [markdown]
# **3.** Which dilation lets two layers of windows `(2, 2)` reach 24 tokens to either side? And why is it that with it,
# in all heads, token 30 depends on only 9 tokens?

# %%
dilation = 6  # two layers, two steps each, reach 4 times the dilation
field = receptive_field(61, [(2, 2)] * 2, 30, dilation=dilation)[0]
assert field.nonzero().flatten()[[0, -1]].tolist() == [30 - 24, 30 + 24]
assert int(field.sum()) == 9  # the multiples of 6 from -24 to 24: no others can be reached by steps of 6

# %% [markdown]
# **4.** A language model must not look ahead. Which argument makes the window causal, and which window does a model
# with `attention_window=512` then have?

# %%
causal = attention_kinds(32, (4, 0), causal=True)[0]
assert not causal.triu(1).any()
assert torch.equal(causal, attention_kinds(32, (4, 0))[0])  # for 512: (256, 0)
assert banded_scores(torch.randn(1, 1, 32, 8), torch.randn(1, 1, 32, 8), (4, 0)).shape[-1] == 5
