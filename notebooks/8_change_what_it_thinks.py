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
# # 8 Change what it thinks
#
# A model has answered. What did the answer hang on? Looking inside does not say so: much of what is there is not used.
# To find out, change something and see whether the answer changes.
#
# You learn three ways to do that, and how to test the third:
#
# 1. **ablate**: take a part out (attention heads, one by one);
# 2. **patch**: put a value from another run in, and follow a word through the layers;
# 3. **attribute**: give each token its share in the score; and then take the tokens out, to see whether it is true.
#
# It takes half an hour to read. The cells run in under a minute.

# %%
import matplotlib.pyplot as plt
import torch

from longformer import QuestionAnswerer, edit
from longformer.editing import ablate_heads, patch_values
from longformer.explain import explain

answerer = QuestionAnswerer.from_pretrained()
model, tokenizer = answerer.model, answerer.tokenizer
layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads

document = "Ann Lee was born in Oslo and studied in Rome. Her brother Tom, who is a painter, lives in Paris."
born, studied = "Where was she born?", "Where did she study?"
for question in (born, studied):
    print(question, "→", answerer.answer(question, document)[0].text)

# %% [markdown]
# The two questions have equally many tokens, so their runs can be laid over each other. One number says how the model
# decides: how much higher *Oslo* scores as the answer's start than *Rome*. It is positive for the one question and
# negative for the other.

# %%
runs = [dict(tokenizer(question, document, return_tensors="pt")) for question in (born, studied)]
tokens = tokenizer.convert_ids_to_tokens(runs[0]["input_ids"][0].tolist())
oslo, rome = tokens.index("oslo"), tokens.index("rome")


def decision(output) -> torch.Tensor:
    return output.start_logits[0, oslo] - output.start_logits[0, rome]


with torch.no_grad():
    for_born, for_studied = (float(decision(model(**run))) for run in runs)
print(f"{for_born:+.2f} and {for_studied:+.2f}")
assert for_born > 0 > for_studied

# %% [markdown]
# ## 1 Ablate
#
# `edit(model)` changes values while the model runs, by the names of a trace. `ablate_heads` uses it to set each head's
# output to 0, one head after another, and writes down what that does to the decision.

# %%
ablated = ablate_heads(model, runs[0], decision, progress=False)
print(ablated)
figure, axes = plt.subplots(figsize=(8, 3.5), layout="constrained")
ablated.draw(axes)
plt.show()

# %% [markdown]
# A few heads matter, in the middle layers, and some work against the answer. No single one decides. What if several are
# taken out at once: those that matter most, and as many drawn by chance? `mask_heads` takes a mask of all heads.


# %%
def without(chosen: torch.Tensor) -> float:
    """The decision without these heads, numbered through all layers."""
    mask = torch.ones(layers * heads)
    mask[chosen] = 0
    with torch.no_grad(), edit(model) as e:
        e.mask_heads(mask.view(layers, heads))
        return float(decision(model(**runs[0])))


by_effect = ablated.table.flatten().argsort()
draw = torch.Generator().manual_seed(0)
for count in (1, 2, 4, 8):
    by_chance = [without(torch.randperm(layers * heads, generator=draw)[:count]) for _ in range(10)]
    print(f"{count} heads: {without(by_effect[:count]):+.2f}; by chance {sum(by_chance) / 10:+.2f}")
assert without(by_effect[:8]) < min(by_chance)

# %% [markdown]
# ## 2 Patch
#
# Ablation says that a part matters, not what it carries. Activation patching does. Take the run about *study*, and put
# the value that one token has after one layer *in the other run* in its place. Does the decision swing over to *Oslo*?
# With the run that goes wrong as the one that is changed, this is called denoising.

# %%
names = ["embeddings", *(f"layer.{n}.output" for n in range(layers))]
patched = patch_values(model, *runs, decision, names, tokens=range(len(tokens)), progress=False)
figure, axes = plt.subplots(figsize=(11, 3.6), layout="constrained")
patched.draw(axes)
axes.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=8)
plt.show()
for name in names:
    place = int(patched.share[names.index(name)].argmax())
    print(f"{name:15}  token {place:2}, {tokens[place]:8} {float(patched.share[names.index(name), place]):4.0%}")

# %% [markdown]
# Read it from top to bottom. In the first layers all of the difference is in one word of the *question*. Then it is
# found at the words of the *document* that are like it. In the last layers it is at the two places that compete to be
# the answer. The question's tokens are global, so one layer is enough to reach any token, however far away.
#
# The other direction, noising, asks which values the right decision needs:

# %%
noised = patch_values(model, *runs, decision, names, direction="noising", tokens=range(len(tokens)), progress=False)
agree = torch.corrcoef(torch.stack([patched.share.flatten(), noised.share.flatten()]))[0, 1]
print(f"the two tables correlate with {float(agree):.2f}")
assert agree > 0.8

# %% [markdown]
# Where a model had two ways to its answer, denoising would find both, and noising neither.
#
# ## 3 Attribute, and test it
#
# Both need a second run to compare with. Attribution does not: it divides the score of one answer among the tokens.
# `explain` has three methods:
#
# * **integrated gradients**: the gradient, averaged on the way from a row of padding to the real row. The shares sum to
#   what the score differs by;
# * **attention × gradient**: attention, weighted by what it does to the score;
# * **rollout**: attention alone.

# %%
found = explain(answerer, born, document, steps=32)
for name, both in found.attributions.items():
    counts = both.sum(0)
    best = counts.argsort(descending=True)[:6].tolist()
    print(f"{name:21}", ", ".join(f"{found.passage.texts[i]} {counts[i]:.2f}" for i in best))

# %% [markdown]
# They do not agree. Which is right? Take the tokens out in the order in which a method names them (padding takes their
# place), and see how soon the score falls; then begin with none and put them in. A method that does no better than
# chance has told a story.

# %%
figure, panels = plt.subplots(1, 2, figsize=(11, 3.5), sharey=True, layout="constrained")
for name, curve in found.curves.of.items():
    style = {"color": "grey", "linestyle": "--"} if name == "random" else {}
    panels[0].plot(curve.deletion, marker=".", label=f"{name}: margin {curve.margin:.1f}", **style)
    panels[1].plot(curve.insertion, marker=".", **style)
for axes, title in zip(panels, ("taken out", "put in"), strict=True):
    axes.set_xticks(range(len(found.curves.counts)), found.curves.counts)
    axes.set(title=title, xlabel="tokens")
panels[0].set_ylabel("score of the answer")
panels[0].legend(fontsize=8)
plt.show()
assert found.curves.best in ("integrated-gradients", "attention-gradient")

# %% [markdown]
# Rollout puts the most on a token that says nothing, and looks at no score; it does better than chance all the same,
# since the answer attends to its neighbours. `longformer explain` writes all of this into a page, for a document of
# 4,096 tokens too.
#
# ## Exercises
#
# Each has a solution below it, and an assertion that checks it. Put your own in its place.
#
# **1.** By completeness the shares of integrated gradients sum to what all tokens together make. How far off are they?

# %%
whole, nothing = found.curves.of["random"].deletion[0], found.curves.of["random"].deletion[-1]
error = float(found.attributions["integrated-gradients"].sum()) - (whole - nothing)
print(f"{error:+.2f} of {whole - nothing:.2f}")
assert abs(error) < 0.1 * (whole - nothing)

# %% [markdown]
# **2.** Make the model answer *Rome* to the question where she was born, without touching question or document: by one
# value, put in at one token.

# %%
from longformer import trace

with torch.no_grad():
    with trace(model, only=["layer.0.output"]) as other:
        model(**runs[1])
    with edit(model) as e:
        e.set("layer.0.output", other["layer.0.output"], tokens=4)  # the question's last word
        assert decision(model(**runs[0])) < 0
    assert decision(model(**runs[0])) > 0  # and nothing is left behind

# %% [markdown]
# **3.** Which layers' attention does the decision need? Take all heads of a layer out at once.

# %%
effects = [without(torch.arange(n * heads, (n + 1) * heads)) - for_born for n in range(layers)]
print([f"{effect:+.2f}" for effect in effects])
assert min(effects) < -1
