"""Changes inside transformers' model by name are those inside ours, and those by hooks of one's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_heads import batch, build_class
from torch import Tensor

from longformer import LongformerError, LongformerForQuestionAnswering, LongformerModel, edit, trace
from longformer.editing import Edit, ablate_heads, patch_values

pytest.importorskip("transformers")

CHANGES = {
    "zero a head": lambda e: (e.zero("layer.0.local_output", head=1), e.zero("layer.0.global_rows", head=1)),
    "scale global rows": lambda e: e.scale("layer.1.global_rows", 3.0, head=[0, 2]),
    "keys at tokens": lambda e: e.add("layer.1.key", torch.ones(8), head=3, tokens=slice(0, 5)),
    "mean of a state": lambda e: e.mean("layer.0.output", batch=0),
    "the last tokens": lambda e: (
        e.zero("layer.0.output", tokens=-1),
        e.add("layer.1.key", torch.ones(8), tokens=[-3]),
    ),
    "a function of all tokens": lambda e: e.apply("layer.0.output", lambda rows: rows.flip(1)),
    "the embeddings of a token": lambda e: e.zero("embeddings", tokens=4),
}


@pytest.mark.parametrize("change", CHANGES)
def test_equal_to_ours(change: str) -> None:
    ours = build_class(LongformerModel)
    theirs: Any = ours.to_transformers()
    ids, mask, global_mask = (x[:, :37] for x in batch())  # to which transformers adds three tokens of padding

    def changed(model: Any) -> Tensor:
        with torch.no_grad(), edit(model) as e:
            CHANGES[change](e)
            hidden: Tensor = model(ids, attention_mask=mask, global_attention_mask=global_mask)[0]
        return hidden

    assert Edit(theirs).names == Edit(ours).names
    torch.testing.assert_close(
        changed(theirs)[mask.bool()], changed(ours)[mask.bool()], rtol=0, atol=2e-6
    )  # its softmax is float32's


def test_embeddings_in_place_of_ids() -> None:
    ours = build_class(LongformerForQuestionAnswering)
    ids, mask, global_mask = (x[:, :37] for x in batch())
    words = ours.get_input_embeddings()(ids).detach()
    found = []
    for model in (ours, ours.to_transformers()):
        for given in ({"input_ids": ids}, {"inputs_embeds": words}):
            with torch.no_grad(), edit(model) as e:
                e.mean("layer.0.output", tokens=-2, batch=0)
                e.scale("layer.1.global_rows", 2.0)
                positions = {"position_ids": torch.arange(2, 39).expand(4, -1)}
                logits = model(**given, **positions, attention_mask=mask, global_attention_mask=global_mask)[0]
            found.append(logits[mask.bool()])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=2e-6)


def test_no_token_beyond_the_text() -> None:
    """The padding that transformers adds inside is no token, and the value of a shorter run does not fit."""
    theirs: Any = build_class(LongformerModel).to_transformers()
    ids = batch()[0][:, :45]
    with torch.no_grad(), trace(theirs) as shorter:
        theirs(ids[:, :30])
    for change, message in (
        (lambda e: e.zero("layer.0.output", tokens=46), "tokens is 46, but layer.0.output has 45"),
        (lambda e: e.set("layer.0.output", shorter["layer.0.output"]), r"\(4, 30, 32\), which does not broadcast"),
    ):
        with torch.no_grad(), edit(theirs) as e, pytest.raises(LongformerError, match=message):
            change(e)
            theirs(ids)


def test_what_comes_in_pieces_is_refused() -> None:
    theirs: Any = build_class(LongformerModel).to_transformers()
    for layer in theirs.encoder.layer:
        layer.chunk_size_feed_forward = 8
    with torch.no_grad(), edit(theirs) as e, pytest.raises(LongformerError, match=r"pieces.* chunk_size_feed_forward"):
        e.zero("layer.0.intermediate", tokens=3)
        theirs(batch()[0])


def test_equal_to_hooks_by_hand() -> None:
    model: Any = build_class(LongformerModel).to_transformers()
    ids, mask, global_mask = batch()
    inputs = {"input_ids": ids, "attention_mask": mask, "global_attention_mask": global_mask}

    def hook(module: Any, given: Any, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        first = output[0].clone()
        first[..., 16:24] = 0
        return first, *output[1:]

    with torch.no_grad():
        handle = model.encoder.layer[1].attention.self.register_forward_hook(hook)
        expected = model(**inputs)[0]
        handle.remove()
        with edit(model) as e:
            e.zero("layer.1.local_output", head=2)
            e.zero("layer.1.global_rows", head=2)
            torch.testing.assert_close(model(**inputs)[0], expected, rtol=0, atol=1e-12)


def test_ablation_equals_hooks_by_hand() -> None:
    """Each entry of the table is what a hook of one's own on their model makes of the metric; and ours is the same."""
    ours = build_class(LongformerForQuestionAnswering)
    theirs: Any = ours.to_transformers()
    ids, mask, global_mask = batch()
    inputs = {"input_ids": ids, "attention_mask": mask, "global_attention_mask": global_mask}

    def metric(output: Any) -> Tensor:
        return output.start_logits[0, 5] - output.end_logits[2, 7]

    expected = torch.zeros(2, 4, dtype=torch.float64)
    with torch.no_grad():
        before = metric(theirs(**inputs))
        for layer in range(2):
            for head in range(4):

                def hook(module: Any, given: Any, output: tuple[Tensor, ...], head: int = head) -> tuple[Tensor, ...]:
                    first = output[0].clone()
                    first[..., 8 * head : 8 * head + 8] = 0
                    return first, *output[1:]

                attention = theirs.longformer.encoder.layer[layer].attention.self
                handle = attention.register_forward_hook(hook)
                expected[layer, head] = metric(theirs(**inputs)) - before
                handle.remove()
    found = ablate_heads(theirs, inputs, metric, progress=False)
    torch.testing.assert_close(found.table, expected, rtol=0, atol=1e-12)
    of_ours = ablate_heads(ours, inputs, metric, progress=False)
    torch.testing.assert_close(of_ours.table, expected, rtol=0, atol=2e-5)  # its softmax is float32's


@pytest.mark.parametrize("part", ["local_output", "global_rows"])
def test_patching_attention_at_two_tokens_equals_hooks_by_hand(part: str) -> None:
    """Examples with unequally many global tokens, the first token among them."""
    ours = build_class(LongformerForQuestionAnswering)
    theirs: Any = ours.to_transformers()
    ids, mask, global_mask = batch()
    given = {"attention_mask": mask, "global_attention_mask": global_mask}
    clean, corrupted = {"input_ids": ids, **given}, {"input_ids": ids.where(mask == 0, 3 + (ids * 7) % 50), **given}
    chosen = (global_mask * mask).bool() == (part == "global_rows")
    chosen[:, [i for i in range(48) if i not in (0, 5)]] = False
    attention = theirs.longformer.encoder.layer[0].attention.self

    def metric(output: Any) -> Tensor:
        return output.start_logits[0, 2] + output.end_logits[2, 25] - output.start_logits[3, 3]

    kept: list[Tensor] = []

    def hook(module: Any, given: Any, output: Any) -> Any:
        kept.append(output[0])
        return (torch.where(chosen[..., None], kept[0], output[0]), *output[1:])

    with torch.no_grad():
        before = metric(theirs(**corrupted))
        handle = attention.register_forward_hook(hook)
        theirs(**clean)
        expected = metric(theirs(**corrupted)) - before
        handle.remove()
    assert abs(expected) > 1e-3
    for model, atol in ((theirs, 1e-12), (ours, 2e-5)):
        found = patch_values(model, clean, corrupted, metric, f"layer.0.{part}", tokens=[[0, 5]], progress=False)
        torch.testing.assert_close(found.table[0, 0], expected, rtol=0, atol=atol)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_patching_equals_hooks_by_hand(direction: Any) -> None:
    ours = build_class(LongformerForQuestionAnswering)
    theirs: Any = ours.to_transformers()
    ids, mask, global_mask = batch()
    other = ids.where(mask == 0, 3 + (ids * 7) % 50)
    given = {"attention_mask": mask, "global_attention_mask": global_mask}
    clean, corrupted = {"input_ids": ids, **given}, {"input_ids": other, **given}
    into, source = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
    layer, tokens = theirs.longformer.encoder.layer[0], (2, 5, 30)

    def metric(output: Any) -> Tensor:
        return output.start_logits[0, 5]

    def patched(token: int) -> Tensor:
        """The source's state of one token in every row, put in by a hook."""

        def hook(module: Any, given: Any, output: Any) -> Any:
            first = (output[0] if isinstance(output, tuple) else output).clone()
            first[:, token] = kept[0][:, token]
            return (first, *output[1:]) if isinstance(output, tuple) else first

        handle = layer.register_forward_hook(hook)
        result = metric(theirs(**into))
        handle.remove()
        return result

    kept: list[Tensor] = []
    with torch.no_grad():
        handle = layer.register_forward_hook(
            lambda module, given, output: kept.append((output[0] if isinstance(output, tuple) else output).clone())
        )
        theirs(**source)
        handle.remove()
        expected = torch.stack([patched(token) for token in tokens]) - metric(theirs(**into))
    for model, atol in ((theirs, 1e-12), (ours, 2e-5)):
        arguments = (clean, corrupted, metric, ["layer.0.output"])
        found = patch_values(model, *arguments, direction=direction, tokens=tokens, progress=False)
        torch.testing.assert_close(found.table[0], expected, rtol=0, atol=atol)
    assert expected.abs().min() > 0
