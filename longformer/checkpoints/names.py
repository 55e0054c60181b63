"""The names of weights: today's, those of every year since 2020, and which may be absent or stand twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from longformer.errors import CheckpointError, listed
from longformer.hub import PathOrName

# Today's names are the models' own, so that saving renames nothing: under a head the base model's weights start with
# "longformer.", and with nothing in LongformerModel itself. How names were spelt since 2020, and how they are spelt
# today; "*" is the rest of the name:
RENAMED = {
    "embeddings.*": "longformer.embeddings.*",  # a base model that was saved alone
    "encoder.*": "longformer.encoder.*",
    "pooler.*": "longformer.pooler.*",
    "roberta.*": "longformer.*",  # the original repository (2020), and RoBERTa
    "bert.*": "longformer.*",
    "*LayerNorm.gamma": "*LayerNorm.weight",  # TensorFlow
    "*LayerNorm.beta": "*LayerNorm.bias",
}
# How BERT spells its head for masked language modelling, and how Longformer does.
BERT_LM_HEAD = {
    "cls.predictions.transform.dense.*": "lm_head.dense.*",
    "cls.predictions.transform.LayerNorm.*": "lm_head.layer_norm.*",
    "cls.predictions.decoder.*": "lm_head.decoder.*",
    "cls.predictions.bias": "lm_head.bias",
}
# A checkpoint may hold these parts beside the encoder, and a model may do without. Any other name is an error.
PARTS = {
    "pooler": "longformer.pooler.",
    "qa_outputs": "qa_outputs.",  # question answering
    "classifier": "classifier.",  # classification, multiple choice
    "lm_head": "lm_head.",  # masked language modelling
    "cls": "cls.",  # BERT's masked language modelling and next-sentence prediction
}
POSITION_IDS = "longformer.embeddings.position_ids"  # in checkpoints of 2020; positions are counted from the input
# A second name of a weight, and its first name, under which alone it is written.
TIED = {
    "lm_head.decoder.weight": "longformer.embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
}


class Fitted(NamedTuple):
    """chosen: the checkpoint's name of a weight, by the model's name of it. dropped: names of weights left unused."""

    chosen: dict[str, str]
    dropped: list[str]


def todays_name(name: str) -> str:
    """Today's name, with its prefix, of a weight that any checkpoint since 2020 holds as ``name``."""
    return renamed(name, RENAMED)


def renamed(name: str, table: Mapping[str, str]) -> str:
    """``name`` as the rows of ``table`` that fit it spell it, each applied in turn."""
    for old, new in table.items():
        start, _, end = old.partition("*")
        if name.startswith(start) and name.endswith(end):
            name = new.replace("*", name[len(start) : len(name) - len(end)])
    return name


def by_todays_name(found: Iterable[str]) -> dict[str, str]:
    """Today's names, each with the name found for it. Raises CheckpointError where two names have become one."""
    sources: dict[str, str] = {}
    for name in found:
        today = todays_name(name)
        if today in sources:
            raise CheckpointError(f"{sources[today]} and {name} are two weights for one place, {today}")
        sources[today] = name
    return sources


def fit_names(found: Iterable[str], wanted: Iterable[str]) -> Fitted:
    """Find each wanted weight in the checkpoint, and account for every name that the checkpoint has.

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
        problems.append(f"missing {listed(missing)}{_missing_remedy(missing)}")
    if unexpected:
        problems.append(f"unexpected {listed(unexpected)}")
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
    """Raise CheckpointError where a second name holds another weight than the first one. Names are today's."""
    for copy, original in TIED.items():
        if copy in tensors and original in tensors and not torch.equal(tensors[copy], tensors[original]):
            raise CheckpointError(f"{source}: {copy} is not {original}; this model has one weight in both places")
