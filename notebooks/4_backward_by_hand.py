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
# # 4 Backward by hand
#
# Training needs the gradients of attention by its queries, keys and values. Autograd gets them by keeping every
# intermediate value of the forward pass, the probabilities above all; the kernel `blocked` keeps the inputs and one
# number a row, and computes the rest again. Here its backward pass is derived, written out, and checked three times:
# against autograd, against the kernel, and against finite differences.
#
# You learn to derive attention's gradient, and what of the forward pass it needs. It takes about forty minutes to
# read, with paper and pencil; the cells run in seconds.
#
# The head of `kernels/blocked.py` has the same formulas. The paper leaves the derivation out (§3.2 speaks of the kernel
# alone). To keep a softmax's statistics in place of its probabilities is FlashAttention's idea ([Dao et al.
# 2022](https://arxiv.org/abs/2205.14135)); that their log-sum-exp is enough, FlashAttention-2's ([Dao
# 2023](https://arxiv.org/abs/2307.08691)).

# %%
import matplotlib.pyplot as plt
import torch

from longformer.kernels import attention_pairs, sliding_window_attention

generator = torch.Generator().manual_seed(0)


def draw_numbers(*shape: int) -> torch.Tensor:
    """Normal numbers in float64, the same ones in every run."""
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


# %% [markdown]
# ## One row of a softmax
#
# Let $p = \operatorname{softmax}(s)$ be a row of probabilities, and $g_j = \partial \mathcal L / \partial p_j$ what
# comes back for it. Since $p_j = e^{s_j} / \sum_k e^{s_k}$,
#
# $$ \frac{\partial p_j}{\partial s_k} = p_j (\delta_{jk} - p_k) , \qquad
#    \text{the matrix } \operatorname{diag}(p) - p \, p^\top , $$
#
# and with it
#
# $$ \frac{\partial \mathcal L}{\partial s_k} = \sum_j g_j \, p_j (\delta_{jk} - p_k)
#    = p_k \Big( g_k - \underbrace{\sum_j p_j g_j}_{\delta} \Big) . $$
#
# One number $\delta$ a row is all that one column needs to know of the others.

# %%
s = draw_numbers(6).requires_grad_()
p = s.softmax(dim=-1)
g = draw_numbers(6)
(by_autograd,) = torch.autograd.grad(p, s, g)
delta = (p * g).sum()
by_hand = p * (g - delta)
assert torch.allclose(by_hand, by_autograd, rtol=0, atol=1e-14)
print(f"the gradient of a row sums to {abs(float(by_hand.detach().sum())):.0e}: adding to all scores changes nothing")

# %% [markdown]
# ## Attention
#
# With scale $a = 1/\sqrt D$ the forward pass is
#
# $$ S = a \, Q K^\top \text{ (}-\infty\text{ where a row does not see a column)}, \qquad
#    P = \operatorname{softmax}(S), \qquad O = P V . $$
#
# Let $dX$ be the gradient of the loss by $X$, and $dO$ given. Two products and the row above lead back:
#
# $$ dV = P^\top dO, \qquad dP = dO \, V^\top, \qquad dS = P \circ (dP - \delta),
#    \qquad dQ = a \, dS \, K, \qquad dK = a \, dS^\top Q , $$
#
# where $\delta_i = \sum_j P_{ij} \, dP_{ij}$. A pair that is not seen has $P_{ij} = 0$, so that $dS_{ij} = 0$: the
# backward pass has the band and the global columns of the forward pass, and costs as little.

# %%
S, D, window = 40, 8, (4, 3)
scale = D**-0.5
query, key, value, grad_out = (draw_numbers(S, D) for _ in range(4))
is_global = torch.zeros(1, S, dtype=torch.bool)
is_global[0, [0, 25]] = True
seen = attention_pairs(S, window, global_mask=is_global)[0, 0]  # (S, S)

scores = (scale * query @ key.T).masked_fill(~seen, -torch.inf)
P = scores.softmax(dim=-1)
out = P @ value

grad_value = P.T @ grad_out
grad_probs = grad_out @ value.T
delta = (P * grad_probs).sum(dim=-1, keepdim=True)
grad_scores = P * (grad_probs - delta)
grad_query = scale * grad_scores @ key
grad_key = scale * grad_scores.T @ query


def gradients_of(impl: str, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    """Gradients of the kernel by query, key and value: (S, D) each."""
    inputs = [x[None, None].to(dtype).requires_grad_() for x in (query, key, value)]
    result = sliding_window_attention(*inputs, window, global_mask=is_global, impl=impl)
    grads = torch.autograd.grad(result, inputs, grad_out[None, None].to(dtype))
    return tuple(grad[0, 0] for grad in grads)


def compare(found: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> None:
    for name, mine, other in zip(("query", "key", "value"), found, expected, strict=True):
        print(f"  d {name:<6} largest {mine.abs().max():6.3f}, largest difference {(mine - other).abs().max():.0e}")
        assert torch.allclose(mine, other, rtol=0, atol=1e-12)


dense = (grad_query, grad_key, grad_value)
for impl in ("reference", "blocked"):
    print("by hand, against", "autograd through the reference" if impl == "reference" else "the kernel")
    compare(dense, gradients_of(impl))

# %%
figure, panels = plt.subplots(1, 4, figsize=(12, 3.3), layout="constrained")
pictures = {"P": P, "dP": grad_probs, "dS": grad_scores}
for axes, (name, picture) in zip(panels, pictures.items(), strict=False):
    most = float(picture.abs().max())
    image = axes.imshow(picture, cmap="RdBu_r", vmin=-most, vmax=most)
    axes.set(title=name, xlabel="key")
    figure.colorbar(image, ax=axes, shrink=0.7)
panels[0].set_ylabel("query")
panels[3].plot(grad_key.norm(dim=-1), range(S), label="dK")
panels[3].plot(grad_value.norm(dim=-1), range(S), label="dV")
panels[3].invert_yaxis()
panels[3].set(title="length of dK and dV", ylabel="token")
panels[3].legend()

# %% [markdown]
# $dP$ is full, but where $P$ is white $dS$ is white: nobody needs $dP$ there. The global columns 0 and 25 gather
# gradient from all rows, which the right-hand picture shows as peaks of $dK$. In a long document that is a sum of
# thousands of terms, and the reason why the kernel adds it up in float32 also where the model runs in bfloat16.
#
# ## What must be kept
#
# Autograd keeps $P$: $S^2$ numbers for the dense form, $S \cdot W$ for the banded one. But $P$ can be had again from
# the inputs, if the softmax's denominator is known. With
#
# $$ L_i = \log \sum_j e^{S_{ij}} = m_i + \log \ell_i , \qquad P_{ij} = e^{S_{ij} - L_i} , $$
#
# one number a row is enough: a product for a tile of scores, an exponential, and there is its part of $P$, in whatever
# order the tiles come. No maximum has to be found again, and no row has to be complete.

# %%
L = torch.logsumexp(scores, dim=-1, keepdim=True)  # (S, 1): what the forward pass leaves behind
assert torch.allclose((scores - L).exp(), P, rtol=0, atol=1e-14)

kept = []


def note(x: torch.Tensor) -> torch.Tensor:
    kept.append(x.numel())
    return x


long = [torch.randn(1, 4, 1024, 16, generator=generator).requires_grad_() for _ in range(3)]
held = {}
for impl in ("reference", "banded", "blocked"):
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        sliding_window_attention(*long, (64, 64), impl=impl)
    held[impl] = sum(kept)
    print(f"{impl:>10} keeps {held[impl]:>10,} numbers for the backward pass; an input has {long[0].numel():,}")
assert held["blocked"] == 3 * long[0].numel() + 4 * 1024  # the inputs, and one number for each row of each head
assert held["blocked"] < held["banded"] < held["reference"]

# %% [markdown]
# ## $\delta$ before the row is complete
#
# $dS$ needs $\delta_i$, a sum over all columns of row $i$, and a tile has only some of them. There is a shorter way to
# it:
#
# $$ \delta_i = \sum_j P_{ij} \, dP_{ij} = \sum_j P_{ij} \, (dO_i \cdot v_j)
#    = dO_i \cdot \sum_j P_{ij} v_j = dO_i \cdot O_i . $$
#
# So $\delta$ is the row sums of $dO \circ O$, known before any tile is visited. That is what kernels on a GPU do, and
# ours written in Triton. `blocked` has all tiles of a few rows at hand anyway, and sums $P \circ dP$ itself. In exact
# arithmetic it is the same; rounded, it is not, since in $dP - \delta$ both should carry the same errors, so that they
# cancel. What is printed below measures it in float32. The difference is small, and costs the kernel nothing.

# %%
assert torch.allclose((grad_out * out).sum(dim=-1, keepdim=True), delta, rtol=0, atol=1e-13)

query32, key32, value32, grad32 = (x.float() for x in (query, key, value, grad_out))
errors: dict[str, list[float]] = {"sums of P ∘ dP": [], "sums of dO ∘ O": []}
sizes = (1, 10, 100)
for size in sizes:  # values far from 0 have a large common part, which a softmax's gradient must cancel
    shifted = value + size
    exact_probs = grad_out @ shifted.T
    exact = P * (exact_probs - (P * exact_probs).sum(dim=-1, keepdim=True))
    P32 = (scale * query32 @ key32.T).masked_fill(~seen, -torch.inf).softmax(dim=-1)
    probs32, out32 = grad32 @ shifted.float().T, P32 @ shifted.float()
    ways = ((P32 * probs32).sum(dim=-1, keepdim=True), (grad32 * out32).sum(dim=-1, keepdim=True))
    for each, delta32 in zip(errors.values(), ways, strict=True):
        each.append(float((P32 * (probs32 - delta32) - exact).square().mean().sqrt()))
for name, each in errors.items():
    shown = "   ".join(f"{error:.1e}" for error in each)
    print(f"error of dS in float32, δ as {name}, values around {', '.join(map(str, sizes))}: {shown}")

# %% [markdown]
# ## The kernel's backward pass
#
# Now tile by tile, as `blocked` does it. A block of $T$ rows meets the columns of its band, and the global columns
# outside the band as a tile of their own. It rebuilds its part of $P$ from $L$, finishes its own $dQ$, and *adds* to
# $dK$ and $dV$, since a key is seen by the rows of several blocks. The blocks come in one fixed order: equal inputs
# give equal bits.

# %%
T, left, right = 8, *window
d_query, d_key, d_value = (torch.zeros(S, D, dtype=torch.float64) for _ in range(3))
largest = 0
for first in range(0, S, T):
    rows = torch.arange(first, min(first + T, S))
    in_reach = torch.arange(max(first - left, 0), min(first + T + right, S))
    steps = in_reach - rows[:, None]
    band = (in_reach, (steps >= -left) & (steps <= right))
    columns = is_global[0].nonzero().flatten()
    steps = columns - rows[:, None]
    beside = (columns, (steps < -left) | (steps > right))  # a global column inside the band counts once

    tiles = []
    for columns, mask in (band, beside):
        tile_scores = (scale * query[rows] @ key[columns].T).masked_fill(~mask, -torch.inf)
        tile_probs = (tile_scores - L[rows]).exp()
        tiles.append((columns, tile_probs, grad_out[rows] @ value[columns].T))
        largest = max(largest, tile_probs.numel())
    row_delta = sum(
        (tile_probs * tile_grad_probs).sum(dim=-1, keepdim=True) for _, tile_probs, tile_grad_probs in tiles
    )
    for columns, tile_probs, tile_grad_probs in tiles:
        tile_grad_scores = tile_probs * (tile_grad_probs - row_delta)
        d_query[rows] += scale * tile_grad_scores @ key[columns]
        d_key.index_add_(0, columns, scale * tile_grad_scores.T @ query[rows])
        d_value.index_add_(0, columns, tile_probs.T @ grad_out[rows])

print(f"largest tile: {largest} of {S * S} pairs")
compare((d_query, d_key, d_value), gradients_of("blocked"))

# %% [markdown]
# What the kernel does beyond that: exponentials are powers of two of scores times $\log_2 e$; the two triangles outside
# a band are masked by a minimum with $\pm \infty$; it keeps $m$ and computes $\ell$ again, so that a row of $P$ sums to
# 1 to the last digit whatever $m$ was rounded to; and in bfloat16 and float16 everything between two products is
# float32.
#
# ## A third opinion
#
# By hand and by autograd could share a mistake: a wrong formula on paper, and the same forward pass. Finite differences
# know nothing of either: move one number of the input by $\pm \varepsilon$, and see how the loss moves.
#
# $$ \frac{\partial \mathcal L}{\partial x} \approx
#    \frac{\mathcal L(x + \varepsilon) - \mathcal L(x - \varepsilon)}{2 \varepsilon} $$


# %%
def loss(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> float:
    inputs = [x[None, None] for x in (q, k, v)]
    result = sliding_window_attention(*inputs, window, global_mask=is_global, impl="blocked")
    return float((result[0, 0] * grad_out).sum())


steps = [10.0**-n for n in range(1, 13)]
place = (25, 3)  # the key of a global token
direction = torch.zeros_like(key)
direction[place] = 1
slopes = [(loss(query, key + e * direction, value) - loss(query, key - e * direction, value)) / (2 * e) for e in steps]
off = [abs(slope - float(grad_key[place])) for slope in slopes]
assert min(off) < 1e-7
figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
axes.plot(steps, off, "o-")
axes.set(xscale="log", yscale="log", xlabel="ε", ylabel="difference from the gradient by hand")

# %% [markdown]
# The picture has the two sides that it always has: from the right the error falls with $\varepsilon^2$, as the
# formula's own does, until rounding, divided by an ever smaller $\varepsilon$, takes over. `torch.autograd.gradcheck`
# does the same for every input.

# %%
small = [draw_numbers(1, 2, 9, 3).requires_grad_() for _ in range(3)]
small_global = torch.arange(9)[None] == 4


def small_attention(*inputs: torch.Tensor) -> torch.Tensor:
    return sliding_window_attention(*inputs, (2, 1), dilation=(1, 2), global_mask=small_global, impl="blocked")


assert torch.autograd.gradcheck(small_attention, small)

# %% [markdown]
# ## Exercises
#
# Each has a solution below it, and an assertion that checks it. Put your own in its place.
#
# **1.** The log-sum-exp $L$ is a function of the scores. What is its gradient?

# %%
row = draw_numbers(6).requires_grad_()
(gradient,) = torch.autograd.grad(row.logsumexp(dim=-1), row)
solution = row.softmax(dim=-1)
assert torch.allclose(solution, gradient, rtol=0, atol=1e-14)

# %% [markdown]
# **2.** Let the scale $a$ be learnt. What is $\partial \mathcal L / \partial a$, from what the backward pass has at
# hand anyway?

# %%
learnt = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
dense_out = (learnt * query @ key.T).masked_fill(~seen, -torch.inf).softmax(dim=-1) @ value
(gradient,) = torch.autograd.grad(dense_out, learnt, grad_out)
solution = (grad_query * query).sum() / scale  # the sum of dS ∘ Q Kᵀ, which is that of dQ ∘ Q over a
assert torch.isclose(solution, gradient)

# %% [markdown]
# **3.** With dropout $O = (M \circ P) V$, where $M$ is 0 or $1 / (1 - \text{dropout})$. What becomes of $dV$, $dP$ and
# $\delta$? Is $\delta$ still the row sums of $dO \circ O$?

# %%
M = (torch.rand(S, S, dtype=torch.float64, generator=generator) > 0.1) / 0.9
leaves = [x.clone().requires_grad_() for x in (query, key, value)]
probs = (scale * leaves[0] @ leaves[1].T).masked_fill(~seen, -torch.inf).softmax(dim=-1)
dropped_out = (M * probs) @ leaves[2]
expected = torch.autograd.grad(dropped_out, leaves, grad_out)

new_grad_value = (M * P).T @ grad_out
new_grad_probs = M * (grad_out @ value.T)
new_delta = (P * new_grad_probs).sum(dim=-1, keepdim=True)
new_grad_scores = P * (new_grad_probs - new_delta)
compare((scale * new_grad_scores @ key, scale * new_grad_scores.T @ query, new_grad_value), expected)
assert torch.allclose(new_delta, (grad_out * dropped_out).sum(dim=-1, keepdim=True), rtol=0, atol=1e-12)  # it is

# %% [markdown]
# **4.** A row that is all padding sees nothing: $L = -\infty$, and $S - L$ is $-\infty + \infty$. What does the kernel
# give for it, and what for its gradient?

# %%
key_mask = torch.arange(S)[None] < 30
inputs = [x[None, None].clone().requires_grad_() for x in (query, key, value)]
result = sliding_window_attention(*inputs, window, key_mask=key_mask, impl="blocked")
padded_grads = torch.autograd.grad(result, inputs, grad_out[None, None])
assert not result[0, 0, 30:].any()
assert all(not grad[0, 0, 30:].any() and grad.isfinite().all() for grad in padded_grads)  # 0, and never NaN
