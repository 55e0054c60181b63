"""The slips that ports make in local attention: windows, global columns, scales, masks and the softmax.

Every function replays one slip: it yields what the mistake is called, and what the value would be with it.
Letters: B batch, S sequence, C hidden size, H heads, D head dimension.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from longformer.kernels import Tokens
from longformer.kernels.pattern import EVERYTHING, global_index
from longformer.kernels.softmax import masked_softmax
from longformer.parity.attention_replay import LocalAttention, attend_globally, band_of
from longformer.parity.probabilities import global_rows
from longformer.parity.scene import Candidate, Scene, Slip, slips_into

SLIPS: list[Slip] = []
slip = slips_into(SLIPS)

LOCAL = "local_output"
GLOBAL = "global_rows"
LARGE_NEGATIVE = (-10000.0, -1000.0)  # what stands in place of minus infinity
PRECISIONS = ((torch.float16, "float16"), (torch.bfloat16, "bfloat16"))


def _window(scene: Scene) -> tuple[int, int]:
    window = band_of(scene).window
    assert window is not None
    return window


def _windows(scene: Scene, windows: dict[str, tuple[int, int]]) -> Iterator[Candidate]:
    local, right = LocalAttention(scene), _window(scene)
    for name, window in windows.items():
        if min(window) >= 0 and window != right:
            pairs = replace(local.pattern, window=window).pairs(local.seq_len, local.tokens)
            yield f"the window is off: {name}; it should be {right}", local.attend(pairs)


@slip("window off by one", LOCAL)
def window_off_by_one(scene: Scene) -> Iterator[Candidate]:
    left, right = _window(scene)
    windows = {
        "one token too few on each side": (left - 1, right - 1),
        "one token too many on each side": (left + 1, right + 1),
        "one token too few on the left": (left - 1, right),
        "one token too few on the right": (left, right - 1),
        "one token too many on the left": (left + 1, right),
        "one token too many on the right": (left, right + 1),
    }
    yield from _windows(scene, windows)


@slip("window moved", LOCAL)
def window_moved(scene: Scene) -> Iterator[Candidate]:
    left, right = _window(scene)
    windows = {"moved left by one": (left + 1, right - 1), "moved right by one": (left - 1, right + 1)}
    yield from _windows(scene, windows)


@slip("window twice or half as wide", LOCAL)
def window_one_sided(scene: Scene) -> Iterator[Candidate]:
    left, right = _window(scene)
    confused = "(one-sided and two-sided windows confused)"
    windows = {
        f"twice as wide {confused}": (2 * left, 2 * right),
        f"half as wide {confused}": (left // 2, right // 2),
    }
    yield from _windows(scene, windows)


@slip("causal window", LOCAL)
def window_causal(scene: Scene) -> Iterator[Candidate]:
    yield from _windows(scene, {"without its right side (causal)": (_window(scene)[0], 0)})


@slip("another layer's window", LOCAL)
def window_of_another_layer(scene: Scene) -> Iterator[Candidate]:
    config = scene.config
    windows = {f"that of layer {n}": config.window(n) for n in scene.other_layers}
    yield from _windows(scene, windows)


@slip("no window", LOCAL)
def no_window(scene: Scene) -> Iterator[Candidate]:
    local = LocalAttention(scene)
    text = "every token attends to every token: there is no window"
    yield text, local.attend(EVERYTHING.pairs(local.seq_len, local.tokens))
    yield f"{text}, and padding is not masked", local.attend(EVERYTHING.pairs(local.seq_len))


@slip("dilation forgotten", LOCAL)
def no_dilation(scene: Scene) -> Iterator[Candidate]:
    local = LocalAttention(scene)
    gaps = local.pattern.gaps(local.query.shape[1])
    if set(gaps) != {1}:
        pairs = replace(local.pattern, dilation=1).pairs(local.seq_len, local.tokens)
        yield f"the window is not dilated; by head it should be {gaps}", local.attend(pairs)


@slip("window shifted at the ends", LOCAL)
def shifted_at_ends(scene: Scene) -> Iterator[Candidate]:
    local, (left, right) = LocalAttention(scene), _window(scene)
    row, width = torch.arange(local.seq_len), left + 1 + right
    if width > local.seq_len:
        return
    first = (row - left).clamp(0, local.seq_len - width)[:, None]
    band = (row >= first) & (row < first + width)
    text = "at the ends the window is shifted inwards, as in neighbourhood attention; Longformer's is cut there"
    yield text, local.attend(local.within(band))


@slip("separate blocks", LOCAL)
def separate_blocks(scene: Scene) -> Iterator[Candidate]:
    local, (left, right) = LocalAttention(scene), _window(scene)
    row = torch.arange(local.seq_len)
    for size in sorted({left, left + right, left + 1 + right} - {0}):
        band = row[:, None] // size == row // size
        text = f"the sequence is cut into blocks of {size}, and no token sees beyond its own"
        yield text, local.attend(local.within(band))


@slip("global columns counted twice", LOCAL)
def columns_twice(scene: Scene) -> Iterator[Candidate]:
    local = LocalAttention(scene)
    if local.tokens.is_global is not None:
        twice = _band(local) & local.tokens.is_global[:, None, None, :]
        scores = local.scores() + math.log(2) * twice
        yield "a global column inside the band is counted twice", local.attend(local.pairs, scores)


@slip("global columns missing", LOCAL)
def columns_missing(scene: Scene) -> Iterator[Candidate]:
    local = LocalAttention(scene)
    if local.tokens.is_global is not None:
        band = _band(local)
        yield "global columns outside the band are missing", local.attend(band)
        inside = band & ~local.tokens.is_global[:, None, None, :]
        yield "global columns are missing, inside the band too", local.attend(inside)


@slip("global columns by global projections", LOCAL)
def columns_globally(scene: Scene) -> Iterator[Candidate]:
    local = LocalAttention(scene)
    if local.tokens.is_global is None:
        return
    x, columns = scene.layer_input(), local.tokens.is_global[:, None, :, None]
    key, value = (
        scene.heads(scene.linear(x, scene.path(f"attention.self.{name}_global"))) for name in ("key", "value")
    )
    text = "tokens see global columns through key_global and value_global instead of key and value"
    scores = local.scores(key=torch.where(columns, key, local.key))
    probabilities = masked_softmax(scores, local.pairs)
    yield text, local.output(probabilities, torch.where(columns, value, local.value))


@slip("global tokens taken to be the first", LOCAL, GLOBAL)
def global_first(scene: Scene) -> Iterator[Candidate]:
    local = LocalAttention(scene)
    is_global = local.tokens.is_global
    if is_global is None:
        return
    first = torch.arange(local.seq_len) < is_global.sum(1, keepdim=True)
    rows = (
        masked_softmax(local.scores(), local.pattern.pairs(local.seq_len, Tokens(local.tokens.keep, first)))
        @ local.value
    )
    found = global_index(first, counted=True)
    assert found is not None
    place = torch.where(found < 0, local.seq_len, found)  # rows that are filled up go to a place that is cut off
    place = place[:, None, :, None].expand(-1, rows.shape[1], -1, rows.shape[3])
    longer = torch.cat([rows, rows[:, :, :1]], dim=2)
    rows = longer.scatter(2, place, attend_globally(scene, index=found))[:, :, :-1]
    text = "the first tokens are taken to be the global ones, as many as there are"
    yield text, _own_rows(scene, local, rows)


@slip("scale before bias", LOCAL)
def scale_before_bias(scene: Scene) -> Iterator[Candidate]:
    local = LocalAttention(scene)
    bias = scene.weight(scene.path("attention.self.query.bias")).view(local.query.shape[1], 1, -1)
    scores = local.scores(query=local.query - bias + bias / local.scale)
    text = "the scale is applied before the query's bias is added (it belongs behind)"
    yield text, local.attend(local.pairs, scores)


def scales(scene: Scene) -> dict[str, dict[str, float]]:
    """Wrong scales, by slip and text."""
    right, hidden = scene.config.head_dim**-0.5, scene.config.hidden_size**-0.5
    rounded = {
        f"the scale 1/sqrt(D) is rounded to {name}": float(torch.tensor(right, dtype=dtype))
        for dtype, name in PRECISIONS
    }
    return {
        "left out": {"the scale 1/sqrt(D) is left out": 1.0},
        "twice": {"the scale 1/sqrt(D) is applied twice (it is 1/D)": right**2},
        "hidden size": {"the scale is 1/sqrt(C) instead of 1/sqrt(D)": hidden},
        "rounded": rounded,
    }


def _scaled(scene: Scene, kind: str) -> Iterator[Candidate]:
    for text, scale in scales(scene)[kind].items():
        if scene.part == GLOBAL:
            yield f"in global rows {text}", attend_globally(scene, scale=scale)
        else:
            local = LocalAttention(scene)
            yield text, local.attend(local.pairs, local.scores(scale=scale))


@slip("scale left out", LOCAL, GLOBAL)
def scale_left_out(scene: Scene) -> Iterator[Candidate]:
    yield from _scaled(scene, "left out")


@slip("scale applied twice", LOCAL, GLOBAL)
def scale_twice(scene: Scene) -> Iterator[Candidate]:
    yield from _scaled(scene, "twice")


@slip("scale by the hidden size", LOCAL, GLOBAL)
def scale_by_hidden_size(scene: Scene) -> Iterator[Candidate]:
    yield from _scaled(scene, "hidden size")


@slip("scale in half precision", LOCAL, GLOBAL)
def scale_rounded(scene: Scene) -> Iterator[Candidate]:
    yield from _scaled(scene, "rounded")


@slip("padded columns attended", LOCAL)
def padded_columns(scene: Scene) -> Iterator[Candidate]:
    local = LocalAttention(scene)
    if local.tokens.keep is not None:
        unmasked = _unmasked(local)
        yield "padded columns are not masked", local.attend(unmasked)
        text = "padded columns are not masked, and padded rows are not zeroed"
        yield text, local.attend(unmasked, keep_padding=True)


@slip("padded rows kept", LOCAL)
def padded_rows(scene: Scene) -> Iterator[Candidate]:
    local = LocalAttention(scene)
    if local.tokens.keep is not None:
        columns = local.tokens.keep[:, None, None, :]
        yield "padded rows are not zeroed", local.attend(_unmasked(local) & columns, keep_padding=True)
        # Where a mask is a large number, rows that see padding alone do not become empty.
        scores = local.scores() + LARGE_NEGATIVE[0] * ~columns
        yield "padded rows are not zeroed", local.attend(_unmasked(local), scores, keep_padding=True)


@slip("mask of -10000", LOCAL)
def mask_of_number(scene: Scene) -> Iterator[Candidate]:
    yield from _finite_masks(scene, "masked scores have {mask:g} added instead of being left out", 1.0)


@slip("mask before the scale", LOCAL)
def mask_before_scale(scene: Scene) -> Iterator[Candidate]:
    text = "a mask of {mask:g} is added before the scale instead of behind it"
    yield from _finite_masks(scene, text, scene.config.head_dim**-0.5)


def _finite_masks(scene: Scene, text: str, factor: float) -> Iterator[Candidate]:
    local = LocalAttention(scene)
    scores, everything = local.scores(), torch.ones_like(local.pairs)
    for mask in LARGE_NEGATIVE:
        for seen in (everything, _unmasked(local)):
            yield text.format(mask=mask), local.attend(seen, scores + mask * factor * ~local.pairs)


@slip("masked scores are 0", LOCAL)
def masked_to_zero(scene: Scene) -> Iterator[Candidate]:
    local = LocalAttention(scene)
    scores = local.scores().masked_fill(~local.pairs, 0)
    text = "masked scores are 0 instead of minus infinity"
    for seen in (torch.ones_like(local.pairs), _unmasked(local)):
        yield text, local.attend(seen, scores)


@slip("softmax over the wrong axis", LOCAL)
def wrong_axis(scene: Scene) -> Iterator[Candidate]:
    local = LocalAttention(scene)
    pairs = local.pairs.expand(-1, local.query.shape[1], -1, -1)
    text = "the softmax runs over the rows that see a column instead of the columns that a row sees"
    yield text, local.output(masked_softmax(local.scores().mT, pairs.mT).mT)


@slip("one more in the softmax", LOCAL)
def softmax_of_one_more(scene: Scene) -> Iterator[Candidate]:
    local = LocalAttention(scene)
    scores = local.scores().masked_fill(~local.pairs, -math.inf)
    probabilities = torch.cat([scores, torch.zeros_like(scores[..., :1])], dim=-1).softmax(-1)[..., :-1]
    yield "the softmax's sum has one term too many, exp(0) (such as an empty column)", local.output(probabilities)


@slip("keys and values swapped", LOCAL)
def keys_and_values(scene: Scene) -> Iterator[Candidate]:
    local = LocalAttention(scene)
    probabilities = masked_softmax(local.scores(key=local.value), local.pairs)
    yield "keys and values are swapped", local.output(probabilities, local.key)


def _band(local: LocalAttention) -> Tensor:
    """The pairs of the window alone."""
    return local.pattern.pairs(local.seq_len, Tokens(local.tokens.keep))


def _unmasked(local: LocalAttention) -> Tensor:
    """The pairs if nothing were padding."""
    return local.pattern.pairs(local.seq_len, local.tokens._replace(keep=None))


def _own_rows(scene: Scene, local: LocalAttention, rows: Tensor) -> Tensor:
    """Of what attention gives for all tokens, (B, H, S, D), what the scene's value has: local or global rows."""
    if scene.part == GLOBAL:
        assert scene.tokens.global_index is not None
        return global_rows(rows, scene.tokens.global_index)
    tokens = local.tokens
    for hidden in (tokens.is_global, None if tokens.keep is None else ~tokens.keep):
        rows = rows if hidden is None else rows.masked_fill(hidden[:, None, :, None], 0)
    return rows


@slip("local projections for global rows", GLOBAL)
def local_projections(scene: Scene) -> Iterator[Candidate]:
    yield "the local projections are used for global rows", attend_globally(scene, ("query", "key", "value"))


@slip("one local projection for global rows", GLOBAL)
def one_local_projection(scene: Scene) -> Iterator[Candidate]:
    names = ("query_global", "key_global", "value_global")
    for name in names:
        local = name.removesuffix("_global")
        query, key, value = (local if other == name else other for other in names)
        yield f"global rows use {local} instead of {name}", attend_globally(scene, (query, key, value))


@slip("global query alone", GLOBAL)
def global_query_alone(scene: Scene) -> Iterator[Candidate]:
    text = "global rows use query_global alone, with the local keys and values"
    yield text, attend_globally(scene, ("query_global", "key", "value"))


@slip("global projections swapped", GLOBAL)
def swapped_projections(scene: Scene) -> Iterator[Candidate]:
    for query, key, value, text in (
        ("key_global", "query_global", "value_global", "query_global and key_global"),
        ("query_global", "value_global", "key_global", "key_global and value_global"),
    ):
        yield f"{text} are swapped", attend_globally(scene, (query, key, value))


@slip("global rows attend to padding", GLOBAL)
def global_padding(scene: Scene) -> Iterator[Candidate]:
    yield "global rows attend to padding", attend_globally(scene, mask_padding=False)


@slip("global rows kept local", GLOBAL)
def global_rows_local(scene: Scene) -> Iterator[Candidate]:
    local = LocalAttention(scene)
    rows = masked_softmax(local.scores(), local.pairs) @ local.value
    yield "global rows are left as the local attention has them", _own_rows(scene, local, rows)


@slip("global rows within the window", GLOBAL)
def global_rows_windowed(scene: Scene) -> Iterator[Candidate]:
    pattern = band_of(scene)
    band = pattern.pairs(scene.layer_input().shape[1])
    yield "global rows see their window alone", attend_globally(scene, pairs=band)
    band = pattern.pairs(scene.layer_input().shape[1], scene.tokens._replace(keep=None))
    yield "global rows see their window and the global tokens alone", attend_globally(scene, pairs=band)
