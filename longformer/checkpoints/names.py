"""The names of weights: today's, those of every year since 2020, and which may be absent or stand twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from longformer.checkpoints.hub import PathOrName
from longformer.checkpoints.weights import some
from longformer.errors import CheckpointError

# Names in a checkpoint. Today's are the models' own, so that saving renames nothing: the base model's weights start
# with "longformer." under a head, with nothing in LongformerModel itself. Other spellings since 2020 become today's:
RENAMED_STARTS = {
    "embeddings.": "longformer.embeddings.",  # a base model, saved alone
    "encoder.": "longformer.encoder.",
    "pooler.": "longformer.pooler.",
    "roberta.": "longformer.",  # the original repository (2020), and RoBERTa
    "bert.": "longformer.",
}
RENAMED_ENDS = {
    "LayerNorm.gamma": "LayerNorm.weight",  # as TensorFlow called them
    "LayerNorm.beta": "LayerNorm.bias",
}
# A checkpoint may hold these parts beside the encoder, and a model may do without. Any other name is an error.
PARTS = {
    "pooler": "longformer.pooler.",
    "qa_outputs": "qa_outputs.",  # question answering
    "classifier": "classifier.",  # classification, multiple choice
    "lm_head": "lm_head.",  # masked language modelling
    "cls": "cls.",  # the same, and next sentences, in BERT
}
POSITION_IDS = "longformer.embeddings.position_ids"  # in checkpoints of 2020; positions are counted from the input
# A weight that is another one's second name, and that other one, which alone is written.
TIED = {
    "lm_head.decoder.weight": "longformer.embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
}


class Fitted(NamedTuple):
    """``chosen``: a model's name to the checkpoint's name for it. ``dropped``: checkpoint's names that go unused."""

    chosen: dict[str, str]
    dropped: list[str]


def todays_name(name: str) -> str:
    """Today's name, with its prefix, of a weight that any checkpoint since 2020 holds as ``name``."""
    for old, new in RENAMED_STARTS.items():
        if name.startswith(old):
            name = new + name.removeprefix(old)
            break
    for old, new in RENAMED_ENDS.items():
        if name.endswith(old):
            name = name.removesuffix(old) + new
    return name


def by_todays_name(found: Iterable[str]) -> dict[str, str]:
    """Today's names to those found. Raises CheckpointError where two are one today."""
    sources: dict[str, str] = {}
    for name in found:
        today = todays_name(name)
        if today in sources:
            raise CheckpointError(f"{sources[today]} and {name} are two weights for one place, {today}")
        sources[today] = name
    return sources


def fit_names(found: Iterable[str], wanted: Iterable[str]) -> Fitted:
    """Give every wanted name one found name, and account for each found name.

    Args:
        found: names in the checkpoint.
        wanted: names in the model's state dict.

    Raises:
        CheckpointError: names that are missing, that nothing wants and nothing may drop, or that stand twice.
    """
    sources = by_todays_name(found)
    wanted = list(wanted)
    chosen = {name: sources.pop(todays_name(name)) for name in wanted if todays_name(name) in sources}
    missing = [name for name in wanted if name not in chosen]
    droppable = (POSITION_IDS, *PARTS.values())
    unexpected = [source for today, source in sources.items() if not today.startswith(droppable)]
    problems = []
    if missing:
        problems.append(f"missing {some(missing)}{_missing_remedy(missing)}")
    if unexpected:
        problems.append(f"unexpected {some(unexpected)}")
    if problems:
        raise CheckpointError(f"weights do not fit the model: {'; '.join(problems)}")
    return Fitted(chosen, list(sources.values()))


def _missing_remedy(missing: list[str]) -> str:
    today = [todays_name(name) for name in missing]
    if all(name.startswith("longformer.pooler.") for name in today):
        return " (the checkpoint has no pooler: load with add_pooling_layer=False)"
    if not any(name.startswith("longformer.") for name in today):
        return " (the checkpoint has no such head: to train one, use `longformer train`, or load with new_head=True)"
    return ""


def check_tied(source: PathOrName, tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError where second names, by today's names, hold other weights than their first ones."""
    for copy, original in TIED.items():
        if copy in tensors and original in tensors and not torch.equal(tensors[copy], tensors[original]):
            raise CheckpointError(f"{source}: {copy} is not {original}; this model has one weight in both places")
