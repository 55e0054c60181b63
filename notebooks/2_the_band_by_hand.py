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
# # 2 The band by hand
#
# Queries and keys become the diagonals of a matrix, a softmax, and values again. Here this is done four times: in three
# nested loops, by one matrix product and a shift, by blocks as the kernel `banded` does it, and by tiles that keep no
# scores at all as `blocked` does it. Each version is checked against the one before, and its cost is counted.
#
# You learn to write sliding-window attention four times, each time with less memory, and to check one version by
# another. It takes about forty minutes to read; the cells run in seconds.
#
# The files to read beside this notebook are `kernels/banded.py` and `kernels/blocked.py`; what they are called here
# they are called there. Letters: $S$ tokens, $D$ numbers in a row, window $(l, r)$, $W = l + 1 + r$.

# %%
import matplotlib.pyplot as plt
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from longformer.kernels import (
    attention_pairs,
    banded_product,
    banded_scores,
    sliding_window_attention,
    sliding_window_probabilities,
)
from longformer.plotting import dense_probabilities, draw_probabilities

generator = torch.Generator().manual_seed(0)
S, D, window = 12, 4, (3, 2)
left, right = window
W = left + 1 + right
query, key, value = (torch.randn(S, D, dtype=torch.float64, generator=generator) for _ in range(3))

# %% [markdown]
# ## Three loops
#
# The scores within the band, by diagonals: column $c$ of row $i$ belongs to key $i + c - l$.
#
# $$ A_{ic} = \sum_d q_{id} \, k_{i+c-l,\,d} \qquad 0 \le i < S, \quad 0 \le c < W $$
#
# Keys outside the sequence do not exist. Their places hold 0 for now; the softmax will leave them out.

# %%
by_loops = torch.zeros(S, W, dtype=torch.float64)
for i in range(S):
    for c in range(W):
        j = i + c - left
        if 0 <= j < S:
            for d in range(D):
                by_loops[i, c] += query[i, d] * key[j, d]

print(f"{S * W * D} multiplications at most, {by_loops.numel()} numbers; all pairs would be {S * S * D} and {S * S}")

# %% [markdown]
# No arithmetic is wasted, and yet nobody would run it: processors are fast at large matrix products, and this is a row
# of short ones. In Python it is slower still, but in C it would be slow too.
#
# ## One product and a shift
#
# Put $l$ rows of zeros before the keys and $r$ behind them. The product of all queries with all these $S + W - 1$ keys
# has row $i$'s band in columns $i, \dots, i + W - 1$: one column further right in each row.

# %%
padded = F.pad(key, (0, 0, left, right))  # (S + W - 1, D)
dense = query @ padded.T  # (S, S + W - 1)
print(dense.shape, "and row 5 has its band in columns 5 to", 5 + W - 1)
assert torch.allclose(dense[5, 5 : 5 + W], by_loops[5])

# %% [markdown]
# To gather these diagonals one could index them element by element. It is cheaper to say that the rows have another
# length. In memory the matrix is one long line of numbers, and row $i$ begins at $i \, (S + W - 1)$. Read the same line
# with rows that are longer by one, and row $i$ begins at
#
# $$ i \, (S + W) = i \, (S + W - 1) + i , $$
#
# which is column $i$ of what row $i$ was: the band stands in the first $W$ columns. Nothing was moved.

# %%
flat = F.pad(dense.flatten(), (0, S))  # S more numbers, so that rows of S + W come out even
skewed = flat.reshape(S, S + W)
by_shift = skewed[:, :W]
assert torch.allclose(by_shift, by_loops, rtol=0, atol=1e-12)

# The same with numbers that can be followed: a place of the band shows its column c, all others are empty.
column = torch.arange(S + W - 1) - torch.arange(S)[:, None]
marked = torch.where((column >= 0) & (column < W), column, float("nan"))
shifted = F.pad(marked.flatten(), (0, S), value=float("nan")).reshape(S, S + W)
figure, panels = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained", width_ratios=[17, 18, 6])
titles = ("the product", "the same numbers, rows longer by one", "cut")
for axes, picture, title in zip(panels, (marked, shifted, shifted[:, :W]), titles, strict=True):
    axes.imshow(picture.numpy(), cmap="viridis")
    axes.set_title(title, fontsize=10)
    for i, j in picture.isfinite().nonzero().tolist():
        axes.text(j, i, int(picture[i, j]), ha="center", va="center", color="white", fontsize=7)

# %% [markdown]
# ## Blocks
#
# One product is fast, but it computes all pairs: $S \, (S + W - 1) \, D$ multiplications, and as many numbers to keep.
# So cut the queries into blocks of $T$ rows. A block touches only $T + W - 1$ keys, and the trick works within it. That
# is `banded_scores`, in the spirit of the paper's own way in plain PyTorch, which cuts queries *and* keys into
# overlapping blocks as long as the window, both sides counted, and masks what it does not need.

# %%
T = 4
blocks = []
for first in range(0, S, T):
    product = query[first : first + T] @ padded[first : first + T + W - 1].T  # (T, T + W - 1)
    blocks.append(F.pad(product.flatten(), (0, T)).reshape(T, T + W)[:, :W])
by_blocks = torch.cat(blocks)
assert torch.allclose(by_blocks, by_shift, rtol=0, atol=1e-12)

from_kernel = banded_scores(query[None, None], key[None, None], window)  # (B, H, S, W)
assert torch.allclose(from_kernel[0, 0], by_blocks, rtol=0, atol=1e-12)

# %% [markdown]
# A block multiplies $T \, (T + W - 1)$ pairs to have $T \, W$ of use: $(T + W - 1) / W$ times as many as are needed.
# Small blocks waste less, large ones are better matrix products. The kernel takes 128 rows.

# %%
rows = [2**n for n in range(0, 12)]
figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
for width in (65, 513):
    axes.plot(rows, [(T + width - 1) / width for T in rows], "o-", label=f"W = {width}")
axes.axvline(128, color="#bbbbbb", linewidth=1)
axes.set(xscale="log", yscale="log", xlabel="T, rows of a block", ylabel="products over those needed")
axes.legend()

# %% [markdown]
# ## Softmax and back
#
# Scores are scaled by $1 / \sqrt D$. A key outside the sequence gets $-\infty$, whose exponential is 0; a score of 0
# would be a key that is there.

# %%
place = torch.arange(S)[:, None] + torch.arange(W) - left  # (S, W): the key of every place
inside = (place >= 0) & (place < S)
probabilities = (by_blocks / D**0.5).masked_fill(~inside, -torch.inf).softmax(dim=-1)

found = sliding_window_probabilities(query[None, None], key[None, None], window)
assert torch.allclose(found.band[0, 0], probabilities, rtol=0, atol=1e-12)
figure, panels = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
draw_probabilities(panels[0], found, window, title="by diagonals: S × W numbers")
draw_probabilities(panels[1], found, window, dense=True, title="the same, pair by pair: S × S")

# %% [markdown]
# The way back, $o_i = \sum_c p_{ic} \, v_{i+c-l}$, is the same trick backwards. Put $S$ zeros behind every row of the
# band, read the line with rows shorter by one, and each row has its probabilities above its own values.

# %%
widened = F.pad(probabilities, (0, S)).flatten()[:-S].reshape(S, S + W - 1)
out = widened @ F.pad(value, (0, 0, left, right))

assert torch.allclose(banded_product(probabilities[None, None], value[None, None], window)[0, 0], out, atol=1e-12)
reference = sliding_window_attention(query[None, None], key[None, None], value[None, None], window, impl="reference")
assert torch.allclose(reference[0, 0], out, rtol=0, atol=1e-12)
print("largest difference from the dense reference:", f"{(reference[0, 0] - out).abs().max():.1e}")

# %% [markdown]
# A dilated window needs nothing new. With a dilation of $d$ token $i$ meets only tokens $j$ with $j \equiv i \pmod d$:
# every class of tokens equal modulo $d$ is a sequence of its own with an ordinary window.

# %%
dilated = banded_scores(query[None, None], key[None, None], window, dilation=3)[0, 0]
for first in range(3):
    alone = banded_scores(query[None, None, first::3], key[None, None, first::3], window)[0, 0]
    assert torch.allclose(dilated[first::3], alone, rtol=0, atol=1e-12)

# %% [markdown]
# ## Tiles that keep nothing
#
# $S \cdot W$ scores are few beside $S^2$, but still many: 12 heads, 4,096 tokens and a band of 513 make 101 MB in
# float32, which are written to memory, read for the softmax, written, and read again. The kernel `blocked` never has
# them all. It takes a block's product as it is, masks the two triangles outside the band, and goes on to the values at
# once, while the scores are still in the processor's cache.

# %%
tiles = []
for first in range(0, S, T):
    columns = torch.arange(first - left, first + T + right)  # the T + W - 1 keys of the tile
    columns = columns[(columns >= 0) & (columns < S)]
    scores = query[first : first + T] @ key[columns].T / D**0.5
    steps = columns - torch.arange(first, first + T)[:, None]
    scores.masked_fill_((steps < -left) | (steps > right), -torch.inf)
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    tiles.append(weights @ value[columns] / weights.sum(dim=-1, keepdim=True))
by_tiles = torch.cat(tiles)
assert torch.allclose(by_tiles, out, rtol=0, atol=1e-12)

blocked = sliding_window_attention(query[None, None], key[None, None], value[None, None], window, impl="blocked")
assert torch.allclose(blocked[0, 0], by_tiles, rtol=0, atol=1e-12)

# %% [markdown]
# What if a row's columns lie in two tiles, as where global tokens stand far from the window? A softmax needs the sum
# over all columns. It can be had in parts, if each tile gives its largest score $m$, its sum $\ell = \sum_j e^{s_j -
# m}$, and its weighted values $O = \sum_j e^{s_j - m} v_j$. Two tiles of the same rows become one:
#
# $$ m = \max(m_1, m_2), \qquad \ell = e^{m_1 - m} \ell_1 + e^{m_2 - m} \ell_2, \qquad
#    O = e^{m_1 - m} O_1 + e^{m_2 - m} O_2 , $$
#
# and in the end $O / \ell$ is the result. Subtracting the maximum first is what keeps the exponentials from
# overflowing.

# %%
scores = query @ key.T / D**0.5  # all pairs, as one softmax and in two parts
parts = []
for columns in (slice(0, 5), slice(5, S)):
    m = scores[:, columns].amax(dim=-1, keepdim=True)
    weights = (scores[:, columns] - m).exp()
    parts.append((m, weights.sum(dim=-1, keepdim=True), weights @ value[columns]))
(m1, l1, O1), (m2, l2, O2) = parts
m = torch.maximum(m1, m2)
total = (m1 - m).exp() * l1 + (m2 - m).exp() * l2
merged = ((m1 - m).exp() * O1 + (m2 - m).exp() * O2) / total
assert torch.allclose(merged, scores.softmax(dim=-1) @ value, rtol=0, atol=1e-12)

# %% [markdown]
# ## What each costs
#
# Count what the kernels really do: the multiplications in matrix products, and the largest tensor that exists at any
# moment. A dispatch mode sees every operation of torch's.


# %%
class Meter(TorchDispatchMode):
    """Counts multiplications in matrix products, and the numbers in the largest tensor that is made."""

    multiplications = largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        factors = {"aten::mm": args[:2], "aten::bmm": args[:2], "aten::baddbmm_": args[1:3]}
        if function._schema.name in factors:
            a, b = factors[function._schema.name]
            self.multiplications += a.numel() * b.shape[-1]
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.untyped_storage().nbytes() // result.element_size())
        return result


def cost(impl: str, seq_len: int) -> tuple[int, int]:
    """Multiplications, and numbers in the largest tensor, of one head of 32 with windows of (64, 64)."""
    inputs = [torch.randn(1, 1, seq_len, 32, generator=generator) for _ in range(3)]
    with Meter() as meter:
        sliding_window_attention(*inputs, (64, 64), impl=impl)
    return meter.multiplications, meter.largest


lengths = (512, 1024, 2048)
costs = {impl: [cost(impl, seq_len) for seq_len in lengths] for impl in ("reference", "banded", "blocked")}
for impl, each in costs.items():
    for seq_len, (multiplications, largest) in zip(lengths, each, strict=True):
        print(f"{impl:>10} {seq_len:>5} tokens {multiplications:>12,} multiplications, {largest:>10,} numbers at once")

figure, panels = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for axes, which, label in zip(panels, (0, 1), ("multiplications", "numbers in the largest tensor"), strict=True):
    for impl, each in costs.items():
        axes.plot(lengths, [numbers[which] for numbers in each], "o-", label=impl)
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel=label)
    axes.set_xticks(lengths, lengths)
    axes.minorticks_off()
panels[0].legend()

# %% [markdown]
# Twice the length is four times the work for the reference and twice for the others. `banded` holds the products of all
# its blocks, padded for the shift, $S \, (T + W)$ numbers; of `blocked` the largest tensor is one of $S \cdot D$, as
# large as its inputs, and the scores are one tile.

# %%
assert costs["reference"][1][0] == 4 * costs["reference"][0][0]
for impl in ("banded", "blocked"):
    assert costs[impl][2][0] < 2.2 * costs[impl][1][0]
assert costs["blocked"][2][1] < costs["banded"][2][1] < costs["reference"][2][1]

# %% [markdown]
# Times are another matter: they depend on the processor, its libraries and the number of threads. `longformer bench
# attention` measures them, after a check that all contenders agree; [notebook 1](1_why_windows.ipynb) has the picture.
#
# ## Exercises
#
# Each has a solution below it, and an assertion that checks it. Put your own in its place.
#
# **1.** In which place of the band stands the pair of query $i$ and key $j$, for a dilation of $d$? And which pairs
# stand nowhere?


# %%
def place_in_band(i: int, j: int, window: tuple[int, int], dilation: int) -> int | None:
    step, rest = divmod(j - i, dilation)
    return step + window[0] if rest == 0 and -window[0] <= step <= window[1] else None


for dilation in (1, 2, 3):
    band = banded_scores(query[None, None], key[None, None], window, dilation)[0, 0]
    pairs = attention_pairs(S, window, dilation=(dilation,))[0, 0]
    for i in range(S):
        for j in range(S):
            c = place_in_band(i, j, window, dilation)
            assert (c is not None) == bool(pairs[i, j])
            assert c is None or torch.isclose(band[i, c], query[i] @ key[j])

# %% [markdown]
# **2.** Turn the probabilities by diagonals into the $S \times S$ matrix of the right-hand picture without a loop.

# %%
pair_by_pair = F.pad(probabilities, (0, S)).flatten()[:-S].reshape(S, S + W - 1)[:, left : left + S]
assert torch.allclose(pair_by_pair, dense_probabilities(found, window)[0, 0], rtol=0, atol=1e-12)

# %% [markdown]
# **3.** From a tile's $m$ and $\ell$ one number a row is kept for the backward pass, $L = m + \log \ell$. Merge two
# tiles that give only $L$ and the finished result $o = O / \ell$ each.

# %%
L1, L2, o1, o2 = m1 + l1.log(), m2 + l2.log(), O1 / l1, O2 / l2
L = torch.logaddexp(L1, L2)
again = (L1 - L).exp() * o1 + (L2 - L).exp() * o2
assert torch.allclose(again, merged, rtol=0, atol=1e-12)
assert torch.allclose(L, scores.logsumexp(dim=-1, keepdim=True), rtol=0, atol=1e-12)

# %% [markdown]
# **4.** For which $T$ does a block compute exactly twice the products that it needs, if $W = 513$?

# %%
T = 514
assert (T + 513 - 1) / 513 == 2
