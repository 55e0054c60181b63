"""Checkpoints of every head between ours and transformers', and of one head loaded into another, by the same rules."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from head_cases import CASES, question_batch
from reference import TINY, build, encode, largest_difference
from safetensors.torch import load_file
from tolerances import FLOAT32

import longformer
from longformer import CheckpointError, LongformerForSequenceClassification, LongformerModel
from longformer.checkpoints.names import TIED
from longformer.convert import convert
from longformer.models.heads import HEADS

LABELLED = TINY.replace(id2label={0: "no", 1: "perhaps", 2: "yes"})  # three, which question answering does not have
KINDS = (LongformerModel, *HEADS)


def config_of(kind: type) -> Any:
    return TINY if getattr(kind, "fixed_labels", None) else LABELLED


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[type, Path]:
    """By class, a checkpoint that transformers wrote."""
    folders = {}
    for kind in KINDS:
        folders[kind] = tmp_path_factory.mktemp(kind.__name__)
        build(config_of(kind), kind=kind).reference.save_pretrained(folders[kind])
    return folders


@pytest.mark.parametrize("name", CASES)
def test_files_go_either_way(name: str, tmp_path: Path) -> None:
    """With the labels' names and the kind of problem."""
    case = CASES[name]
    pair = build(TINY.replace(**case.changes), kind=case.kind)
    inputs = question_batch(TINY, case.kind)
    pair.reference.save_pretrained(tmp_path / "theirs")
    ours, info = case.kind.from_pretrained(tmp_path / "theirs", new_head=False, output_loading_info=True)
    assert ours.config == pair.ours.config and not any(info.values())
    assert largest_difference(encode(ours, inputs), encode(pair.reference, inputs)) <= FLOAT32
    ours.save_pretrained(tmp_path / "ours")
    kind = getattr(transformers, case.kind.__name__)
    back, info = kind.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values())
    assert largest_difference(encode(back, inputs), encode(pair.reference, inputs)) <= FLOAT32
    theirs = pair.reference.config
    assert (back.config.id2label, back.config.problem_type) == (theirs.id2label, theirs.problem_type)
    assert back.config.architectures == [case.kind.__name__]


@pytest.mark.parametrize("name", CASES)
def test_convert_keeps_the_head(name: str, tmp_path: Path) -> None:
    """From a file with the names of 2020, and with what a config says of labels."""
    case = CASES[name]
    pair = build(TINY.replace(**case.changes), kind=case.kind)
    pair.reference.save_pretrained(tmp_path / "old")
    (tmp_path / "old" / "model.safetensors").unlink()
    state = {key.replace("longformer.", "roberta."): weight for key, weight in pair.reference.state_dict().items()}
    torch.save(state, tmp_path / "old" / "pytorch_model.bin")
    assert set(convert(tmp_path / "old", tmp_path / "new").dropped) <= set(TIED)
    assert load_file(tmp_path / "new" / "model.safetensors").keys() == pair.ours.state_dict().keys()
    inputs = question_batch(TINY, case.kind)
    for load in (case.kind, getattr(transformers, case.kind.__name__)):
        model = load.from_pretrained(tmp_path / "new")
        assert largest_difference(encode(model, inputs), encode(pair.reference, inputs)) <= FLOAT32
        assert model.config.problem_type == pair.reference.config.problem_type


def names_in(entries: Iterable[Any]) -> set[str]:
    """Names in an entry of the loading info, without second names of tied weights, all as a head has them."""
    names = {entry[0] if isinstance(entry, tuple) else entry for entry in entries} - set(TIED)
    of_heads = ("longformer.", "classifier.", "qa_outputs.", "lm_head.")
    return {name if name.startswith(of_heads) else f"longformer.{name}" for name in names}


@pytest.mark.parametrize(
    "source, target", [(a, b) for a, b in product(KINDS, KINDS) if a is not b], ids=lambda kind: kind.__name__[10:]
)
def test_a_head_from_another_s_checkpoint(
    saved: dict[type, Path], source: type, target: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The same weights are kept, missing, of another shape, or not used; and what was drawn is said."""
    arguments = {"ignore_mismatched_sizes": True, "output_loading_info": True}
    with caplog.at_level(logging.WARNING, logger="longformer"):
        ours, mine = target.from_pretrained(saved[source], **arguments)
    theirs, info = getattr(transformers, target.__name__).from_pretrained(saved[source], **arguments)
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert names_in(mine[key]) == names_in(info[key]), key
    drawn = {*mine["missing_keys"], *(name for name, *_ in mine["mismatched_keys"])}
    assert drawn <= ours.state_dict().keys()
    kept = ours.state_dict().keys() - drawn
    expected = theirs.state_dict()
    assert all(torch.equal(ours.state_dict()[name], expected[name]) for name in kept)
    assert any(name.endswith("word_embeddings.weight") for name in kept)
    said = " ".join(record.getMessage() for record in caplog.records)
    assert all(name in said for name in drawn) and ("drawn at random" in said) == bool(drawn)


@pytest.mark.parametrize("kind", HEADS)
def test_a_new_head_in_place_of_a_trained_one(saved: dict[type, Path], kind: Any) -> None:
    """With another number of labels, where the head has some; the encoder stays."""
    changes = {} if kind.fixed_labels else {"num_labels": 5}
    trained, fresh = kind.from_pretrained(saved[kind]), kind.from_pretrained(saved[kind], new_head=True, **changes)
    for name, weight in fresh.state_dict().items():
        old = trained.state_dict()[name]
        assert (weight.shape == old.shape and torch.equal(weight, old)) == (name not in fresh.head_names()), name
    assert fresh.num_labels == (kind.fixed_labels or 5)


def test_a_head_of_another_shape_is_an_error(saved: dict[type, Path]) -> None:
    """Without ``ignore_mismatched_sizes``, as there."""
    with pytest.raises(CheckpointError, match=r"classifier\.out_proj\.bias is \[3\], not \[2\]"):
        LongformerForSequenceClassification.from_pretrained(saved[LongformerForSequenceClassification], num_labels=2)
    with pytest.raises(CheckpointError, match=r"missing classifier\.dense\.weight"):
        LongformerForSequenceClassification.from_pretrained(
            saved[longformer.LongformerForTokenClassification], new_head=False
        )
