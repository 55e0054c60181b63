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
# # 5 Parity: is it the same model?
#
# Somebody writes a model a second time: in another framework, with faster kernels, in fewer bits. It loads the released
# weights and gives numbers that look right. Is it the same model?
#
# Here we compare our Longformer with transformers', on the checkpoint that ships with the package; then we put a
# mistake into a copy of ours, one that leaves its numbers looking right, and find it.
# [docs/parity.md](../docs/parity.md) describes the tools.
#
# You learn to tell rounding from a mistake, and to find where a mistake is. It takes about half an hour to read; the
# cells run in a minute or two.

# %%
import copy
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from click import unstyle

import longformer
from longformer import LongformerForQuestionAnswering, LongformerTokenizer
from longformer.answering.answerer import PRETRAINED
from longformer.kernels import AttentionPattern
from longformer.parity import Truth, assert_within_rounding, compare, read_trace, trace
from longformer.parity.report import table
from longformer.plotting import draw_depth

warnings.filterwarnings("ignore", message="IProgress not found")  # for progress bars, which are turned off
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
constitution = (Path(longformer.__file__).parent / "data" / "constitution.txt").read_text(encoding="utf-8")

# %% [markdown]
# ## Why two right answers differ
#
# A float32 has 24 significant bits. Every operation gives the nearest number that it has,
#
# $$\mathrm{fl}(a + b) = (a + b)(1 + \delta), \qquad |\delta| \le \varepsilon / 2, \qquad \varepsilon = 2^{-23},$$
#
# so that the order of a sum shows in its last digits. Three numbers are enough:

# %%
a, b, c = torch.tensor(1.0), torch.tensor(5e-8), torch.tensor(5e-8)
left, right = (a + b) + c, a + (b + c)
print(f"(a + b) + c = {left.item():.9f}    a + (b + c) = {right.item():.9f}")
assert left != right

# %% [markdown]
# A kernel that goes through the keys in tiles sums in another order than one that has the whole row. Both are right,
# and neither is *the* result. So `allclose` needs a tolerance, and whoever chooses it guesses.
#
# The natural unit is the *unit in the last place*, the distance from a number to the next one:
#
# $$\mathrm{ulp}(x) = 2^{\lfloor \log_2 |x| \rfloor} \, \varepsilon$$

# %%
x = torch.tensor([0.001, 1.0, 3.0, 1000.0])
ulp = 2 ** x.log2().floor() * torch.finfo(x.dtype).eps
assert torch.equal(ulp, torch.nextafter(x, torch.tensor(torch.inf)) - x)
for number, unit in zip(x.tolist(), ulp.tolist(), strict=True):
    print(f"{number:8g}  {unit:.3g}")

# %% [markdown]
# One operation is off by at most half a unit. But every number that a layer gives comes from sums of hundreds of
# products, and the next layer starts from there. How many units may the last one be off? The rest of this notebook is
# an answer.
#
# ## Record everything
#
# The input is a question and the first part of the Constitution: longer than the window, which reaches 256 tokens to
# each side, so that the window matters. `trace` records every intermediate value of one run.

# %%
tokenizer = LongformerTokenizer.from_pretrained(PRETRAINED)
model = LongformerForQuestionAnswering.from_pretrained(PRETRAINED)
question = "How old must a Senator be?"
inputs = dict(tokenizer(question, constitution[:1400], return_tensors="pt"))
print(f"{inputs['input_ids'].shape[1]} tokens, windows {model.config.attention_window}")
assert inputs["input_ids"].shape[1] > model.config.window(0)[0] + 1

with torch.no_grad(), trace(model) as ours:
    model(**inputs)
for name in list(ours)[:11]:
    print(f"{name:26} {tuple(ours[name].shape)}")
print(f"... {len(ours)} values")

# %% [markdown]
# Now the same of transformers' model over the same weights. Inside it pads the text to a multiple of the window and
# keeps queries in another layout; a trace has neither, so that values of one name can be compared.

# %%
reference = transformers.LongformerForQuestionAnswering.from_pretrained(PRETRAINED, dtype=torch.float32).eval()
with torch.no_grad(), trace(reference) as theirs:
    reference(**inputs)
assert list(theirs) == list(ours)

difference = {name: float((ours[name] - theirs[name]).abs().max()) for name in ours}
for name in ("embeddings", "layer.0.output", f"layer.{model.config.num_hidden_layers - 1}.output", "logits"):
    print(f"{name:16} {difference[name]:.2g}")

# %% [markdown]
# ## A truth, and what rounding must cost
#
# Those differences tell nothing by themselves: neither run is the measure of the other. Two more things are needed.
#
# **The truth** $y^*$: our model once more over the same weights, in float64, its attention as one dense masked softmax.
# float64 has 29 more bits, so that its own rounding does not matter here. An *error* is a distance from it.
#
# **The noise**: the float64 run again, four times, where every weight and every module's result $x$ is moved by about
# what float32 would round away:
#
# $$\tilde x = x\,(1 + \varepsilon u), \quad u \sim \mathcal{U}[-1, 1], \qquad
#   \mathrm{noise}(y) = \sqrt{\mathrm{mean}\,(\tilde y - y^*)^2}$$
#
# It knows the depth, the weights and the input, and nothing of either implementation. A value is called *rounding*
# while both runs' errors stay below 5 times its noise (16 in the worst row: one token's channels in one head).

# %%
truth = Truth(model, inputs)
result = compare(ours, theirs, truth=truth, names=("longformer", "transformers"))
print(unstyle(table(result)))
assert result.verdict == "rounding"

# %% [markdown]
# The last two columns are both runs' errors in multiples of the noise. Here is how they grow. Grey is what is allowed,
# from the noise up to five times the noise; the lines of the two implementations stay together there, since both lose
# what this precision must lose.

# %%
figure, axes = plt.subplots(figsize=(10, 4), layout="constrained")
draw_depth(axes, result)
plt.show()

# %% [markdown]
# How many units in the last place is that? Here is the largest error of each run, in each layer's result: far more than
# the half unit of a single operation, in a model without any mistake. This is why no tolerance could have been guessed.

# %%
for value in result.values:
    if value.name.endswith(".output") or value.name in ("embeddings", "logits"):
        print(f"{value.name:16} longformer {value.a.ulp:6.1f} ulp    transformers {value.b.ulp:6.1f} ulp")

# %% [markdown]
# ## Plant a mistake
#
# A common slip: in one layer of a port, number 2 (they count from 0), the window is one token too narrow on each side.
# A token loses at most two of its 513 columns, and only if there are any so far away.

# %%
port = copy.deepcopy(model)
attention = port.longformer.encoder.layer[2].attention.self
left, right = attention.pattern.window
attention.pattern = AttentionPattern((left - 1, right - 1))
with torch.no_grad(), trace(port) as spoilt:
    port(**inputs)
print(f"largest difference of a logit: {float((spoilt['logits'] - ours['logits']).abs().max()):.2g}")
print(f"largest logit:                 {float(ours['logits'].abs().max()):.2g}")
for name, run in (("longformer", ours), ("port", spoilt)):
    start, end = run["logits"][0].argmax(dim=0).tolist()
    print(f"{name:10} best start at token {start}, best end at {end}")

# %% [markdown]
# Whether the answer changes is a matter of luck, and no proof of anything. The trace, however, knows:

# %%
found = compare(theirs, spoilt, truth=truth, names=("transformers", "port"))
print(unstyle(table(found)))
assert found.verdict == "different" and found.departed == ("port",)
assert found.first.name == "layer.2.local_output"
assert "one token too few on each side" in found.hints[0]

# %% [markdown]
# It says which run is off (a third party, float64, was asked), where that begins, and why. The hint is no guess: what
# went into the first wrong value was still right, so the value is computed again from the port's own queries and keys,
# once for every slip in a list, and a slip is named only if it gives the port's very numbers.

# %%
figure, axes = plt.subplots(figsize=(10, 4), layout="constrained")
draw_depth(axes, found)
plt.show()

# %% [markdown]
# Up to the mistake the port's line keeps to the other one. Then it jumps, and later layers inherit the error. One value
# falls back at once, the rows of the layer's global tokens: these have no window.
#
# ## Fewer bits are not a mistake
#
# bfloat16 has 8 significant bits, so $\varepsilon = 2^{-7}$, and its noise is about $2^{16}$ times that of float32. The
# same question has the same kind of answer there:

# %%
half = copy.deepcopy(model).to(torch.bfloat16)
with torch.no_grad(), trace(half) as low:
    half(**inputs)
in_half = compare(ours, low, truth=truth, names=("float32", "bfloat16"))
assert in_half.verdict == "rounding"
off = {"bfloat16": low["logits"].float(), "one token too few": spoilt["logits"]}
for name, logits in off.items():
    print(f"{name:18} largest difference of a logit {float((logits - ours['logits']).abs().max()):.2g}")

# %% [markdown]
# Compare the two numbers. The first is right in every layer, the second wrong in one, and the size of a difference in
# the result does not tell which is which: a tolerance that lets bfloat16 pass would let many mistakes pass as well. It
# also follows that a port that can run in float32 should be compared in float32, where less hides.
#
# ## For ports in other languages
#
# A trace is a file of [documented names and shapes](../docs/trace-format.md), which a port in any language can write.
# The command does then what was done above:
#
# ```sh
# longformer parity compare original.safetensors port.safetensors --model MODEL --html report.html
# ```

# %%
with tempfile.TemporaryDirectory() as folder:
    ours.save(Path(folder) / "ours.safetensors")
    again = compare(ours, read_trace(Path(folder) / "ours.safetensors"))
assert again.verdict == "identical"
print(f"{again.verdict}: {len(again.values)} values, bit by bit")

# %% [markdown]
# ## Exercises
#
# **1.** How far is 1024 from the next float32? And from the next bfloat16? Answer by the formula, then look.

# %%
distance_float32 = 2.0**10 * 2.0**-23
distance_bfloat16 = 2.0**10 * 2.0**-7

for dtype, distance in ((torch.float32, distance_float32), (torch.bfloat16, distance_bfloat16)):
    number = torch.tensor(1024.0, dtype=dtype)
    assert number + distance == torch.nextafter(number, torch.tensor(torch.inf, dtype=dtype))
    print(f"{dtype!s:15} {distance:g}")

# %% [markdown]
# **2.** Another classic: a port projects its global tokens by the local matrices, having overlooked `query_global` and
# its two sisters. Plant it in layer 3 of a copy. At which value will it begin, and what should the hint say?

# %%
port = copy.deepcopy(model)
attention = port.longformer.encoder.layer[3].attention.self
for name in ("query", "key", "value"):
    getattr(attention, f"{name}_global").load_state_dict(getattr(attention, name).state_dict())
with torch.no_grad(), trace(port) as spoilt:
    port(**inputs)
found = compare(theirs, spoilt, truth=truth, names=("transformers", "port"))

# The rows of the global tokens are wrong first; local rows of that layer have other projections, and are still right.
assert found.first.name == "layer.3.global_rows"
assert found.hints[0].startswith("the local projections are used for global rows")
print(found.first.name, "-", found.hints[0])

# %% [markdown]
# **3.** With the window of every layer one token too narrow on each side, give the model only the first 600 characters.
# Does the comparison still find it?

# %%
short = dict(tokenizer(question, constitution[:600], return_tensors="pt"))
port = copy.deepcopy(model)
for layer in port.longformer.encoder.layer:
    left, right = layer.attention.self.pattern.window
    layer.attention.self.pattern = AttentionPattern((left - 1, right - 1))
runs = []
for each in (model, port):
    with torch.no_grad(), trace(each) as run:
        each(**short)
    runs.append(run)
found = compare(*runs, truth=Truth(model, short))

# No two of these tokens are 256 apart: every window holds the whole text with and without its last place. What an input
# does not ask for, no comparison can find. Choose inputs with long texts, padding, and more than one global token.
assert short["input_ids"].shape[1] <= model.config.window(0)[0]
assert found.verdict in ("identical", "rounding")
print(f"{short['input_ids'].shape[1]} tokens: {found.verdict}")

# %% [markdown]
# **4.** For a single function no model is needed: `assert_within_rounding(result, function, *arguments)` judges a
# result by the same method. Write a softmax that passes, and one whose sum is taken in bfloat16; does that one pass?


# %%
def softmax(scores: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    powers = (scores - scores.max(dim=-1, keepdim=True).values).exp()
    return powers / powers.to(dtype).sum(dim=-1, keepdim=True).to(scores.dtype)


torch.manual_seed(0)
scores = torch.randn(8, 513)
assert_within_rounding(softmax(scores, torch.float32), torch.softmax, scores, -1)
try:
    assert_within_rounding(softmax(scores, torch.bfloat16), torch.softmax, scores, -1)
except AssertionError as error:
    print(error)
else:
    raise AssertionError("the sum in bfloat16 should have been noticed")
