"""The task of masked language modelling. Documents are packed into rows; 15 % of their tokens are to be predicted."""

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

# Of the tokens to predict, this share is replaced by the mask, and this share by a random token. The rest stays.
MASK_SHARE, RANDOM_SHARE = 0.8, 0.1
EVALUATION_EPOCH = 2**20  # evaluations draw masks with this epoch, so they always mask the same tokens


def read_documents(path: str | Path) -> list[str]:
    """The documents of a file. A text file is one document; in a ``.jsonl`` file each line's ``"text"`` is one.

    Raises:
        DataError: the file does not exist, is not UTF-8 or is empty, or a line holds no text. The message names the
            file and the line.
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
    """Join the documents, each ended by ``</s>``, and cut them into rows ``<s> ... </s>``: (N, max_length) int64.

    An incomplete last row is dropped, unless it is the only one.

    Raises:
        DataError: the documents have no tokens.
    """
    stream: list[int] = []
    for document in documents:
        ids = tokenizer(document, track_offsets=False, split_special_tokens=True)["input_ids"]
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
    """Chooses which tokens of a row are to be predicted, and what the model sees in their place.

    Args:
        tokenizer: the model's, with a mask token.
        probability: share of the tokens to predict. Special tokens do not count.
        seed: of the draws.

    Raises:
        LongformerError: the tokenizer has no mask token.
    """

    def __init__(self, tokenizer: LongformerTokenizer, *, probability: float, seed: int) -> None:
        if tokenizer.mask_token_id is None:
            raise LongformerError("the tokenizer has no mask token; masked language modelling needs one")
        self.probability, self.seed = probability, seed
        self.mask, self.vocabulary = tokenizer.mask_token_id, len(tokenizer)
        self.special = torch.tensor([tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id])
        self.pad = tokenizer.pad_token_id

    def __call__(self, rows: Sequence[Tensor], numbers: Sequence[tuple[int, int]]) -> tuple[dict[str, Tensor], int]:
        """input_ids, attention_mask and labels, (B, S) each, and the number of tokens to predict.

        Each row's draw depends on the seed and on its pair of ``numbers`` (epoch, row) alone.
        """
        ids = torch.stack(list(rows))
        labels = torch.full_like(ids, IGNORED)
        for i, number in enumerate(numbers):
            draw = generator(self.seed, *number)
            chance = torch.rand(ids.shape[1], generator=draw)
            chosen = (chance < self.probability) & ~torch.isin(ids[i], self.special)
            labels[i, chosen] = ids[i, chosen]
            fate = torch.rand(ids.shape[1], generator=draw)
            ids[i, chosen & (fate < MASK_SHARE)] = self.mask
            anything = torch.randint(self.vocabulary, ids.shape[1:], generator=draw)
            random = chosen & (fate >= MASK_SHARE) & (fate < MASK_SHARE + RANDOM_SHARE)
            # A padding token in the text would count as padding and move positions. So special tokens are not drawn.
            random &= ~torch.isin(anything, self.special)
            ids[i, random] = anything[random]
        arguments = {"input_ids": ids, "attention_mask": (torch.stack(list(rows)) != self.pad).long()}
        return {**arguments, "labels": labels}, int((labels != IGNORED).sum())


class HeldOut:
    """Rows to measure on. Their masks are always the same.

    Args:
        rows: (N, S) int64, as :func:`pack_documents` makes them.
        masking: draws the masks.
        name: what an error message calls the texts.

    Raises:
        DataError: no token is to be predicted, so there is nothing to measure.
    """

    def __init__(self, rows: Tensor, masking: Masking, *, name: str = "the held-out text") -> None:
        self.rows, self.masking = rows, masking
        if not any(self._masked(row)[1] for row in range(len(rows))):
            tokens = int((~torch.isin(rows, masking.special)).sum())
            raise DataError(
                f"none of the {tokens} tokens of {name} is drawn to be predicted, so nothing can be measured; "
                f"give more text, or another seed, or raise mask_probability, which is {masking.probability}"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def _masked(self, row: int) -> tuple[dict[str, Tensor], int]:
        return self.masking([self.rows[row]], [(EVALUATION_EPOCH, row)])

    def bits_by_row(self, model: Pretrained, rows: Iterable[int]) -> Iterator[tuple[float, int]]:
        """For each of these rows: the bits that predicting its masked tokens takes, and the number of these tokens.

        Raises:
            LongformerError: the model's scores are not finite.
        """
        device = next(model.parameters()).device
        for row in rows:
            inputs, count = self._masked(row)
            with torch.inference_mode():
                loss: Tensor = model(**{name: x.to(device) for name, x in inputs.items()}, only_targets=True).loss
            if not bool(loss.isfinite()):
                raise LongformerError("the model's scores are not finite; its weights are damaged")
            yield loss.item() * count / math.log(2), count


class MaskedLMTask:
    """Rows to train on, and rows to measure on.

    Args:
        train: documents to train on.
        held_out: documents to measure on; may be none.
        tokenizer: the model's, with a mask token.
        options: the choices.

    Raises:
        DataError, LongformerError: there is nothing to train or to measure on, a row is longer than a part may be, or
            the tokenizer has no mask token.
    """

    score = "bits_per_token"
    higher_is_better = False

    def __init__(
        self, train: Sequence[str], held_out: Sequence[str], tokenizer: LongformerTokenizer, options: MLMOptions
    ) -> None:
        self.masking = Masking(tokenizer, probability=options.mask_probability, seed=options.seed)
        if options.max_length > options.batch_tokens:
            raise LongformerError(
                f"batch_tokens is {options.batch_tokens} and max_length {options.max_length}; a row cannot be split: "
                f"raise batch_tokens to at least {options.max_length}"
            )
        self.rows = pack_documents(train, tokenizer, options.max_length)
        self.held_out: HeldOut | None = None
        if held_out:
            name = ", ".join(options.evaluate_on) or "the held-out text"
            self.held_out = HeldOut(pack_documents(held_out, tokenizer, options.max_length), self.masking, name=name)
        self.lengths: list[int] = (self.rows != self.masking.pad).sum(dim=1).tolist()
        digest = hashlib.sha256(self.rows.numpy().tobytes())
        if self.held_out is not None:
            digest.update(self.held_out.rows.numpy().tobytes())
        self.fingerprint = digest.hexdigest()

    def collate(self, rows: Sequence[int], epoch: int) -> tuple[dict[str, Tensor], int]:
        """input_ids, attention_mask and labels, (B, S) each, and the number of tokens to predict."""
        return self.masking([self.rows[row] for row in rows], [(epoch, row) for row in rows])

    def loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """Mean cross-entropy of the tokens to be predicted."""
        loss: Tensor = model(**inputs, only_targets=True).loss
        return loss

    def evaluate(self, model: Pretrained, group: Processes) -> dict[str, float]:
        """Bits per predicted token on the held-out documents. Each process computes a share of their rows."""
        assert self.held_out is not None
        bits, tokens = 0.0, 0
        with fail_together(group):
            for row_bits, row_tokens in self.bits_by_row(model, group.share(range(len(self.held_out)))):
                bits += row_bits
                tokens += row_tokens
        all_bits, all_tokens = group.sum([bits, tokens])
        return {"bits_per_token": all_bits / all_tokens}

    def bits_by_row(self, model: Pretrained, rows: Iterable[int]) -> Iterator[tuple[float, int]]:
        """:meth:`HeldOut.bits_by_row` of the held-out documents."""
        assert self.held_out is not None
        return self.held_out.bits_by_row(model, rows)
