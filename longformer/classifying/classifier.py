"""TextClassifier: texts in, labels out.

Letters: B batch, S sequence, L labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longformer.answering.answerer import BATCH_TOKENS, group_by_length
from longformer.answering.mode import evaluating
from longformer.answering.settings import check_count
from longformer.checkpoints.folder import architectures_of
from longformer.checkpoints.names import todays_name
from longformer.checkpoints.weights import find_weights, read_tensors
from longformer.classifying.labels import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Labels
from longformer.config import LongformerConfig
from longformer.distributed import check_device
from longformer.errors import CheckpointError, DataError, LongformerError
from longformer.hub import find_config
from longformer.models.heads import LongformerForSequenceClassification, head_of
from longformer.tokenizer import LongformerTokenizer, load_tokenizer

TEXTS_AT_ONCE = 256  # as many are tokenised together, which keeps the memory of their tokens' details small


@dataclass(frozen=True)
class Classification:
    """What a model says about a text.

    Args:
        labels: the most probable label; if a text may have several labels, all with a probability above one half, the
            most probable first; for regression none.
        scores: by label its probability; for regression the predicted number. If a text has one label, the
            probabilities sum to 1.
        is_cut: whether the text was longer than what the model read, so that its end did not count.
    """

    labels: tuple[str, ...]
    scores: dict[str, float]
    is_cut: bool


class TextClassifier:
    """Classifies texts. The first token, ``<s>``, is global.

    Args:
        model: computes as in ``eval()`` mode whatever mode it is in, and stays in its mode.
        tokenizer: the one of the model's checkpoint.

    Raises:
        LongformerError: a tokenizer that is not the model's, by its special tokens, or by tokens without a row there.
    """

    def __init__(self, model: LongformerForSequenceClassification, tokenizer: LongformerTokenizer) -> None:
        tokenizer.check_model(model.config)
        self.model = model
        self.tokenizer = tokenizer
        self.labels = Labels.of_config(model.config)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        tokenizer: str | Path | None = None,
        revision: str | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        impl: str = "auto",
        local_files_only: bool = False,
        config: LongformerConfig | None = None,
        attention: Any = None,
    ) -> TextClassifier:
        """Load model and tokenizer of a checkpoint, such as ``longformer train classification`` writes.

        Args:
            name_or_path: a folder, or a name on the hub.
            tokenizer: folder or name on the hub of another tokenizer; None is the checkpoint's own.
            revision, dtype, device, impl, local_files_only, config: as for
                :meth:`LongformerForSequenceClassification.from_pretrained`.
            attention: who attends to whom, as for :class:`longformer.LongformerModel`.

        Raises:
            CheckpointError: not found, not readable, or without a head for the classification of texts.
            ConfigError: a config of another architecture.
            LongformerError: a device that this machine does not have, or ``attention`` does not fit the model.
        """
        check_device(device)
        where: dict[str, Any] = {"revision": revision, "local_files_only": local_files_only}
        _check_head(name_or_path, where)
        read = load_tokenizer(tokenizer, name_or_path, **where)
        model = LongformerForSequenceClassification.from_pretrained(
            name_or_path,
            dtype=dtype,
            device=device,
            impl=impl,
            config=config,
            attention=attention,
            new_head=False,
            **where,
        )
        return cls(model, read)

    def classify(
        self,
        texts: Sequence[str],
        *,
        max_length: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        progress: Callable[[int], object] | None = None,
        names: Sequence[str] | None = None,
    ) -> list[Classification]:
        """Classify texts, in batches of like length. Text like ``</s>`` is ordinary text.

        Args:
            texts: any number. What exceeds ``max_length`` is cut off at the end, see :attr:`Classification.is_cut`.
            max_length: tokens that are read of a text, special tokens included; None is as many as the model has
                positions for.
            batch_tokens: most tokens of a batch, padding counted; a longer text goes alone.
            progress: called with the number of texts that were finished since its last call.
            names: what messages call the texts; None is ``texts[0]`` and so on.

        Returns:
            What the model says about each text, in their order.

        Raises:
            DataError: a text that is no string, or has no tokens; the message says which.
            LongformerError: an argument out of range, or a model whose scores are not finite.
        """
        if isinstance(texts, (str, bytes)):
            raise DataError(f"texts is one {type(texts).__name__}; give a list of texts")
        most = self.model.config.max_tokens
        limit = most if max_length is None else max_length
        check_count("max_length", limit)
        if limit > most:
            raise LongformerError(f"max_length is {limit}; the model has positions for {most} tokens")
        check_count("batch_tokens", batch_tokens)
        if names is None:
            names = [f"texts[{i}]" for i in range(len(texts))]
        rows, cut = encode(texts, self.tokenizer, limit, names)
        logits = self.logits(rows, batch_tokens=batch_tokens, progress=progress)
        return [self._classification(*row) for row in zip(logits, cut, strict=True)]

    def logits(
        self,
        rows: Sequence[np.ndarray],
        *,
        batch_tokens: int = BATCH_TOKENS,
        progress: Callable[[int], object] | None = None,
    ) -> Tensor:
        """The head's outputs for rows of token ids, as :func:`encode` makes them: (rows, L) float64 on the CPU.

        Raises:
            LongformerError: they are not finite.
        """
        device = next(self.model.parameters()).device
        logits = torch.empty(len(rows), self.model.config.num_labels, dtype=torch.float64)
        for batch in group_by_length([len(row) for row in rows], batch_tokens):
            ids, mask = pad([rows[i] for i in batch], self.tokenizer.pad_token_id)
            with torch.inference_mode(), evaluating(self.model) as model:
                found = model(ids.to(device), mask.to(device)).logits
            if not bool(found.isfinite().all()):
                raise LongformerError(
                    "the model's scores are not finite; if it runs in float16, take bfloat16 or float32, "
                    "else its weights are damaged"
                )
            logits[batch] = found.cpu().double()
            if progress is not None:
                progress(len(batch))
        return logits

    def _classification(self, logits: Tensor, is_cut: bool) -> Classification:
        kind, names = self.labels.problem_type, self.labels.names
        scores = dict(zip(names, probabilities(logits, kind).tolist(), strict=True))
        best_first = sorted(names, key=lambda name: -scores[name])
        if kind == REGRESSION:
            return Classification((), scores, is_cut)
        if kind == SINGLE_LABEL:
            return Classification((best_first[0],), scores, is_cut)
        chosen = {name for name, is_chosen in zip(names, predictions(logits, kind).tolist(), strict=True) if is_chosen}
        return Classification(tuple(name for name in best_first if name in chosen), scores, is_cut)


def probabilities(logits: Tensor, problem_type: str) -> Tensor:
    """The labels' probabilities, (..., L); for regression the numbers as they are."""
    if problem_type == REGRESSION:
        return logits
    return logits.sigmoid() if problem_type == MULTI_LABEL else logits.softmax(dim=-1)


def predictions(logits: Tensor, problem_type: str) -> Tensor:
    """The labels that the model chooses, (..., L) bool: with a probability above one half, or the most probable one."""
    if problem_type == MULTI_LABEL:
        return logits > 0
    return torch.nn.functional.one_hot(logits.argmax(dim=-1), logits.shape[-1]).bool()


def encode(
    texts: Sequence[str], tokenizer: LongformerTokenizer, max_length: int, names: Sequence[str]
) -> tuple[list[np.ndarray], list[bool]]:
    """Rows ``<s> text </s>`` of at most ``max_length`` token ids, (S,) int32 each, and which texts were cut for that.

    Args:
        texts: any number.
        tokenizer: the model's.
        max_length: special tokens included; at least 3.
        names: what messages call the texts.

    Raises:
        DataError: a text that is no string, or has no tokens.
        LongformerError: ``max_length`` leaves no room.
    """
    if max_length < 3:
        raise LongformerError(f"max_length is {max_length}; a text and its two special tokens need at least 3")
    rows: list[np.ndarray] = []
    cut: list[bool] = []
    for text, name in zip(texts, names, strict=True):
        if not isinstance(text, str):
            raise DataError(f"{name} is of type {type(text).__name__}, not str")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{name} has U+{ord(text[error.start]):04X} at character {error.start}, half of a character; "
                "decode its source as UTF-8"
            ) from None
    for i in range(0, len(texts), TEXTS_AT_ONCE):
        encoding = tokenizer(list(texts[i : i + TEXTS_AT_ONCE]), track_offsets=False, split_special_tokens=True)
        for ids in encoding["input_ids"]:
            if len(ids) == 2:
                raise DataError(f"{names[len(rows)]} has no tokens; give text in characters that the model knows")
            cut.append(len(ids) > max_length)
            rows.append(np.array([*ids[: max_length - 1], ids[-1]] if cut[-1] else ids, dtype=np.int32))
    return rows, cut


def pad(rows: Sequence[np.ndarray], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask, (B, S) int64 each, of rows of token ids, padded on the right."""
    ids = torch.full((len(rows), max(map(len, rows))), pad_token_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.from_numpy(row)
        mask[i, : len(row)] = 1
    return ids, mask


def _check_head(name_or_path: str | Path, where: dict[str, Any]) -> None:
    """Raise CheckpointError, which says what the checkpoint is for, if it is not for the classification of texts."""
    names = {todays_name(name) for name in read_tensors(find_weights(name_or_path, **where))}
    if any(name in names for name in LongformerForSequenceClassification.weights):
        return
    head = head_of(names, architectures_of(find_config(name_or_path, **where)))
    what = "an encoder without a head" if head is None else f"a {head.__name__}"
    raise CheckpointError(
        f"{name_or_path} is {what}, not a {LongformerForSequenceClassification.__name__}; "
        "train one with `longformer train classification`"
    )
