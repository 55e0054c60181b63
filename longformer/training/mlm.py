"""Masked language modelling as a task: documents packed into rows, of which 15 % of the tokens are to be predicted."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longformer.distributed import Processes, fail_together
from longformer.errors import DataError, LongformerError
from longformer.files import parse_json, read_text
from longformer.models.heads import IGNORED
from longformer.models.pretrained import Pretrained
from longformer.tokenizer import LongformerTokenizer
from longformer.training.batches import generator
from longformer.training.options import MLMOptions

MASKED, RANDOM = 0.8, 0.1  # of the tokens to predict: shown as the mask, as any token; the others stay as they are
FIXED = 2**20  # stands for the epoch where an evaluation masks: always the same tokens


def read_documents(path: str | Path) -> list[str]:
    """The documents of a file: the whole of a text file, or each line's ``"text"`` of a ``.jsonl`` file.

    Raises:
        DataError: no such file, not UTF-8, empty, or a line that holds no text; names file and line.
    """
    text = read_text(path).replace("\r\n", "\n").replace("\r", "\n")
    documents = list(_lines(path, text)) if str(path).endswith(".jsonl") else [text]
    documents = [document for document in documents if document.strip()]
    if not documents:
        raise DataError(f"{path} is empty")
    return documents


def _lines(path: str | Path, text: str) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        value = parse_json(line, f"{path}, line {number},")
        if not isinstance(value.get("text"), str):
            raise DataError(f'{path}, line {number}: must be an object with a string "text"')
        yield value["text"]


def pack_documents(documents: Iterable[str], tokenizer: LongformerTokenizer, max_length: int) -> Tensor:
    """Documents one after another, each ended by ``</s>``, cut into rows ``<s> ... </s>``: (N, max_length) int64.

    What is left at the end is dropped, unless it is all there is.

    Raises:
        DataError: documents of no tokens at all.
    """
    stream: list[int] = []
    for document in documents:
        ids = tokenizer(document, return_offsets=False, split_special_tokens=True)["input_ids"]
        stream += ids[1:]
    content = max_length - 2
    if len(stream) < 2:
        raise DataError("the files hold no tokens")
    rows = [stream[i : i + content] for i in range(0, len(stream), content)]
    if len(rows) > 1 and len(rows[-1]) < content:
        rows.pop()
    cls, sep, pad = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
    return torch.tensor([[cls, *row, sep] + [pad] * (content - len(row)) for row in rows])


class Masking:
    """Which tokens of a row are to be predicted, and what is shown in their place.

    Args:
        tokenizer: the model's, with a mask token.
        probability: share of the tokens to predict, beside special ones.
        seed: of the draws.

    Raises:
        LongformerError: no mask token.
    """

    def __init__(self, tokenizer: LongformerTokenizer, *, probability: float, seed: int) -> None:
        if tokenizer.mask_token_id is None:
            raise LongformerError("the tokenizer has no mask token, without which nothing can be predicted")
        self.probability, self.seed = probability, seed
        self.mask, self.vocabulary = tokenizer.mask_token_id, tokenizer.vocab_size
        self.special = torch.tensor([tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id])
        self.pad = tokenizer.pad_token_id

    def __call__(self, rows: Sequence[Tensor], numbers: Sequence[tuple[int, int]]) -> tuple[dict[str, Tensor], int]:
        """input_ids, attention_mask and labels, (B, S) each; and how many tokens are to be predicted.

        Tokens are drawn anew for each pair of ``numbers`` (epoch, row), and by nothing else.
        """
        ids = torch.stack(list(rows))
        labels = torch.full_like(ids, IGNORED)
        for i, number in enumerate(numbers):
            draw = generator(self.seed, *number)
            chance = torch.rand(ids.shape[1], generator=draw)
            chosen = (chance < self.probability) & ~torch.isin(ids[i], self.special)
            labels[i, chosen] = ids[i, chosen]
            kind = torch.rand(ids.shape[1], generator=draw)
            ids[i, chosen & (kind < MASKED)] = self.mask
            anything = torch.randint(self.vocabulary, ids.shape[1:], generator=draw)
            random = chosen & (kind >= MASKED) & (kind < MASKED + RANDOM)
            # A padding or separating token in the text would move positions, or count as padding.
            random &= ~torch.isin(anything, self.special)
            ids[i, random] = anything[random]
        arguments = {"input_ids": ids, "attention_mask": (torch.stack(list(rows)) != self.pad).long()}
        return {**arguments, "labels": labels}, int((labels != IGNORED).sum())


class HeldOut:
    """Rows to measure on, with always the same masks.

    Args:
        rows: (N, S) int64, as :func:`pack_documents` makes them.
        masking: decides the masks.
        name: of the texts, for a message.

    Raises:
        DataError: not a single token is to be predicted, so that there is nothing to measure.
    """

    def __init__(self, rows: Tensor, masking: Masking, *, name: str = "the text held out") -> None:
        self.rows, self.masking = rows, masking
        if not any(self._masked(row)[1] for row in range(len(rows))):
            tokens = int((~torch.isin(rows, masking.special)).sum())
            raise DataError(
                f"none of the {tokens} tokens of {name} is drawn to be predicted, so that nothing can be measured; "
                f"give more text, or another seed, or raise mask_probability, which is {masking.probability}"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def _masked(self, row: int) -> tuple[dict[str, Tensor], int]:
        return self.masking([self.rows[row]], [(FIXED, row)])

    def bits_by_row(self, model: Pretrained, rows: Iterable[int]) -> Iterator[tuple[float, int]]:
        """For each of some rows the bits that its predicted tokens take, and how many they are.

        Raises:
            LongformerError: the model's scores are not finite.
        """
        device = next(model.parameters()).device
        for row in rows:
            inputs, count = self._masked(row)
            with torch.inference_mode():
                loss: Tensor = model(**{name: x.to(device) for name, x in inputs.items()})[0]
            if not bool(loss.isfinite()):
                raise LongformerError("the model's scores are not finite; its weights are damaged")
            yield loss.item() * count / math.log(2), count


class MaskedLMTask:
    """Rows to train on, and rows to measure on.

    Args:
        train: documents to train on.
        held: documents to measure on; may be none.
        tokenizer: the model's, with a mask token.
        options: the choices.

    Raises:
        DataError, LongformerError: nothing to train or to measure on; rows that do not fit; no mask token.
    """

    score = "bits_per_token"
    higher_is_better = False
    has_unused = True  # no token is global, so the global projections are not used

    def __init__(
        self, train: Sequence[str], held: Sequence[str], tokenizer: LongformerTokenizer, options: MLMOptions
    ) -> None:
        self.masking = Masking(tokenizer, probability=options.mask_probability, seed=options.seed)
        if options.max_length > options.batch_tokens:
            raise LongformerError(
                f"batch_tokens is {options.batch_tokens} and max_length {options.max_length}, which cannot be cut; "
                f"give batch_tokens of at least {options.max_length}"
            )
        self.rows = pack_documents(train, tokenizer, options.max_length)
        self.held: HeldOut | None = None
        if held:
            name = ", ".join(options.evaluate_on) or "the text held out"
            self.held = HeldOut(pack_documents(held, tokenizer, options.max_length), self.masking, name=name)
        self.lengths: list[int] = (self.rows != self.masking.pad).sum(dim=1).tolist()
        digest = hashlib.sha256(self.rows.numpy().tobytes())
        if self.held is not None:
            digest.update(self.held.rows.numpy().tobytes())
        self.fingerprint = digest.hexdigest()

    def collate(self, rows: Sequence[int], epoch: int) -> tuple[dict[str, Tensor], int]:
        """input_ids, attention_mask and labels, (B, S) each; and how many tokens are to be predicted."""
        return self.masking([self.rows[row] for row in rows], [(epoch, row) for row in rows])

    def loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """Mean cross-entropy of the tokens to be predicted."""
        loss: Tensor = model(**inputs)[0]
        return loss

    def evaluate(self, model: Pretrained, group: Processes) -> dict[str, float]:
        """Bits per predicted token on the documents held out, whose rows the processes share."""
        assert self.held is not None
        bits, tokens = 0.0, 0
        with fail_together(group):
            for row_bits, row_tokens in self.bits_by_row(model, group.share(range(len(self.held)))):
                bits += row_bits
                tokens += row_tokens
        all_bits, all_tokens = group.sum([bits, tokens])
        return {"bits_per_token": all_bits / all_tokens}

    def bits_by_row(self, model: Pretrained, rows: Iterable[int]) -> Iterator[tuple[float, int]]:
        """:meth:`HeldOut.bits_by_row` of the documents held out."""
        assert self.held is not None
        return self.held.bits_by_row(model, rows)
