"""The slips that ports make with the weights of linear layers, wherever one stands, and with what goes into them.

Every function replays one slip: it yields what the mistake is called, and what the value would be with it.
Letters: B batch, S sequence, C hidden size, H heads, D head dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from longformer.parity.scene import Candidate, Scene, Slip, slips_into
from longformer.parity.sites import GLOBAL_PROJECTIONS, PROJECTIONS, SUBLAYERS, Linear, layer_norm, linears

SLIPS: list[Slip] = []
slip = slips_into(SLIPS)

LINEAR = (*PROJECTIONS, "global_rows", *SUBLAYERS, "intermediate", "pooler_output", "logits")
ENOUGH = 1.2  # how many times more distinct tokens than unknowns a fit must have
FEW = 4  # rows that are named one by one


@slip("bias left out", *LINEAR)
def no_bias(scene: Scene) -> Iterator[Candidate]:
    for site in linears(scene):
        name = site.bias or f"{_short(site.path)}.bias"
        yield f"the bias {name} is left out", site.value(F.linear(site.x, site.parameters(scene)[0]))


@slip("weight transposed", *LINEAR)
def transposed(scene: Scene) -> Iterator[Candidate]:
    for site in linears(scene):
        weight, bias = site.parameters(scene)
        if weight.shape[0] == weight.shape[1]:
            yield f"the weight {_short(site.path)}.weight is transposed", site.value(F.linear(site.x, weight.T, bias))


@slip("another layer's weights", *LINEAR)
def another_layer(scene: Scene) -> Iterator[Candidate]:
    here = scene.path("")
    for site in linears(scene):
        if site.path.startswith(here):
            for layer in scene.other_layers:
                name = site.path.removeprefix(here)
                yield (
                    f"{name} has the weights of layer {layer}",
                    site.value(scene.linear(site.x, scene.path(name, layer))),
                )


@slip("int8 weights", *LINEAR)
def int8(scene: Scene) -> Iterator[Candidate]:
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "with one scale for the matrix": lambda w: _quantised(w, w.abs().amax()),
        "with a scale for each row": lambda w: _quantised(w, w.abs().amax(1, keepdim=True)),
        "with a scale for each column": lambda w: _quantised(w, w.abs().amax(0, keepdim=True)),
        "with one scale and a zero point": _affine,
    }
    for site in linears(scene):
        weight, bias = site.parameters(scene)
        for how, quantise in forms.items():
            given = F.linear(site.x, quantise(weight.float()).double(), bias)
            yield f"the weight {_short(site.path)}.weight is quantised to int8, {how}", site.value(given)


def _quantised(weight: Tensor, most: Tensor) -> Tensor:
    scale = most.clamp(min=1e-30) / 127
    return (weight / scale).round().clamp(-127, 127) * scale


def _affine(weight: Tensor) -> Tensor:
    low, high = weight.min().clamp(max=0), weight.max().clamp(min=0)
    scale = (high - low).clamp(min=1e-30) / 255
    zero = (-low / scale).round()
    return ((weight / scale).round() + zero).clamp(0, 255).sub(zero) * scale


@slip("half-precision weights", *LINEAR)
def half_weights(scene: Scene) -> Iterator[Candidate]:
    for site in linears(scene):
        weight, bias = site.parameters(scene)
        for dtype, name in ((torch.bfloat16, "bfloat16"), (torch.float16, "float16")):
            text = f"the weights of {_short(site.path)} are rounded to {name}"
            for b in (bias, bias.to(dtype).double()):
                yield text, site.value(F.linear(site.x, weight.to(dtype).double(), b))


@slip("TensorFloat-32 products", *LINEAR)
def tf32(scene: Scene) -> Iterator[Candidate]:
    for site in linears(scene):
        weight, bias = site.parameters(scene)
        for add in (0x1000, 0):  # rounded to the nearest, or cut
            given = F.linear(_cut(site.x, add), _cut(weight, add), bias)
            yield f"{_short(site.path)} multiplies in TensorFloat-32, which is not float32", site.value(given)


def _cut(x: Tensor, add: int) -> Tensor:
    """Numbers of 10 bits behind the leading one."""
    bits = x.float().view(torch.int32)
    return ((bits + add) & ~0x1FFF).view(torch.float32).double()


@slip("another projection's weights", *PROJECTIONS)
def another_projection(scene: Scene) -> Iterator[Candidate]:
    for other in (*PROJECTIONS, *GLOBAL_PROJECTIONS):
        if other != scene.part:
            text = f"{scene.part} is computed by the weights of {other}"
            if {scene.part, other} == {"query", "key"}:
                text = "query and key are swapped"
            x = scene.layer_input()
            yield text, scene.heads(scene.linear(x, scene.path(f"attention.self.{other}")))


@slip("already scaled", *PROJECTIONS, recorded="after the scale (a trace has it before)")
def already_scaled(scene: Scene) -> Iterator[Candidate]:
    for site in linears(scene):
        scaled = site.right(scene) * scene.config.head_dim**-0.5
        yield f"{scene.part} is already multiplied by the scale 1/sqrt(D)", scaled


@slip("channels split otherwise", *PROJECTIONS)
def split_otherwise(scene: Scene) -> Iterator[Candidate]:
    heads = scene.config.num_attention_heads
    for site in linears(scene):
        given = F.linear(site.x, *site.parameters(scene))  # (B, S, C)
        batch, seq_len, _ = given.shape
        text = f"{scene.part}'s channels are split into heads in the wrong order"
        yield text, given.unflatten(-1, (-1, heads)).permute(0, 3, 1, 2)
        yield f"{scene.part} is cut into heads across tokens", given.reshape(batch, heads, seq_len, -1)


@slip("another input", *PROJECTIONS, "intermediate")
def another_input(scene: Scene) -> Iterator[Candidate]:
    others: dict[str, Tensor] = {}
    if scene.part == "intermediate":
        norm, state, right = "output.LayerNorm", scene.value("attention_output"), "attention_output"
        others["the layer's input"] = scene.layer_input()
    else:
        norm, state, right = "attention.output.LayerNorm", scene.layer_input(), "the layer's input"
        names = ["embeddings", *(f"layer.{n}.{part}" for n in range(scene.layer) for part in SUBLAYERS)]
        others |= {name: scene.at(name) for name in names[:-1] if name in scene.run}
    text = f"{right} after {norm} (LayerNorm stands before the sublayer instead of after it)"
    others[text] = layer_norm(scene, state, scene.path(norm))
    for site in linears(scene):
        for name, x in others.items():
            yield f"{scene.part} is computed from {name}", site.value(F.linear(x, *site.parameters(scene)))


@slip("input that was not recorded", "query", "key", "value", "intermediate", rank=2)
def unrecorded_input(scene: Scene) -> Iterator[Candidate]:
    """One input that explains all that is computed from it: more equations than it has unknowns."""
    parts = ("intermediate",) if scene.part == "intermediate" else PROJECTIONS
    sites = [(part, site) for part in parts for site in linears(scene.of(part))]
    weights, biases = zip(*(site.parameters(scene) for _, site in sites), strict=True)
    stacked, width = torch.cat(weights), scene.config.hidden_size
    if len(stacked) < ENOUGH * width:
        return
    given = torch.cat([site.given - bias for (_, site), bias in zip(sites, biases, strict=True)], dim=-1)
    x = torch.linalg.lstsq(stacked, given.flatten(0, 1).T).solution.T.view(*given.shape[:2], width)
    own = dict(sites)[scene.part]
    right = "attention_output" if scene.part == "intermediate" else "the state that was recorded before it"
    text = f"{', '.join(parts)} fit the right weights with another input than {right}"
    yield text, own.value(F.linear(x, *own.parameters(scene)))


@slip("some rows of a weight", *LINEAR, rank=3)
def some_rows(scene: Scene) -> Iterator[Candidate]:
    for site in linears(scene):
        fitted = _fit(scene, site)
        if fitted is None:
            continue
        given, changed = fitted
        rows = changed.nonzero().flatten().tolist()
        if 0 < len(rows) < len(changed):
            which = f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows))}"
            which = which if len(rows) <= FEW else f"{len(rows)} of {len(changed)} rows"
            kept = torch.where(changed, given, F.linear(site.x, *site.parameters(scene)))
            text = f"{_short(site.path)} has other numbers in {which} of its weight or bias, and in no other row"
            yield text, site.value(kept)


@slip("stale weights", *LINEAR, rank=4)
def stale(scene: Scene) -> Iterator[Candidate]:
    for site in linears(scene):
        fitted = _fit(scene, site)
        if fitted is None or not bool(fitted[1].all()):
            continue
        text = f"{_short(site.path)} computes a linear layer, but not with these weights"
        text += ": they are stale, or of another checkpoint"
        if site.path == "lm_head.decoder":
            text = "lm_head.decoder's weights are not the word embeddings: they are not tied"
        elif scene.part not in (*PROJECTIONS, "intermediate"):  # of which it is known that no other input fits
            text += ", or a linear step stands before it"
        yield text, site.value(fitted[0])


def _fit(scene: Scene, site: Linear) -> tuple[Tensor, Tensor] | None:
    """What the linear layer gives that fits the run's best, and which of its outputs are not those of the right one.

    None where too few tokens are there to tell: with as many weights as equations, any value would fit.
    """
    if site.given is None:
        return None
    given, (rows, real) = site.given.flatten(0, -2), _rows(scene, site)
    if len(torch.unique(rows[real], dim=0)) < ENOUGH * rows.shape[1]:
        return None
    weights = torch.linalg.lstsq(rows[real], given[real]).solution
    off = (given - F.linear(site.x, *site.parameters(scene)).flatten(0, -2))[real]
    terms = (rows[real].square() @ weights.square()).sqrt()  # as large as what is rounded on the way to a sum
    eps = torch.finfo(scene.dtype).eps
    changed = off.square().mean(0).sqrt() > 8 * eps * terms.square().mean(0).sqrt()
    return (rows @ weights).view(site.given.shape), changed


def _rows(scene: Scene, site: Linear) -> tuple[Tensor, Tensor]:
    """What the linear layer was given, a row a token, with 1 for the bias; and which rows are no padding."""
    rows, keep = site.x.flatten(0, -2), scene.inputs["attention_mask"].flatten() != 0
    real = keep if len(keep) == len(rows) else torch.ones(len(rows), dtype=torch.bool)
    return torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1), real


def too_few_tokens(scene: Scene) -> str | None:
    """A note where the input has too few tokens to tell whether a linear layer has other weights."""
    for site in linears(scene) if scene.part in LINEAR else ():
        rows, real = _rows(scene, site)
        needed, found = math.ceil(ENOUGH * rows.shape[1]), len(torch.unique(rows[real], dim=0))
        if site.given is not None and found < needed:
            what = f"whether {_short(site.path)} has other weights shows from {needed:,} distinct tokens on"
            return f"{what}, and these are {found:,}; compare a longer input, or record the weights' digests"
    return None


def _short(path: str) -> str:
    """A path without the layer before it."""
    return path.split(".", 3)[-1] if path.startswith("encoder.layer.") else path
