"""An answerer of which every score is known: a token is a character, and a function gives the logits of each."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from longformer import LongformerTokenizer
from longformer.answering.answerer import QuestionAnswerer

CLS, PAD, SEP = 0, 1, 2
TWICE = "ü"  # a character that the fake tokenizer makes two tokens of


class FakeTokenizer:
    """A token a character, two for ``TWICE``; space is a token too."""

    cls_token_id, pad_token_id, sep_token_id = CLS, PAD, SEP

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(
        self,
        text: str,
        *,
        split_special_tokens: bool,
        track_offsets: bool = True,
        return_offsets_mapping: bool = False,
    ) -> dict[str, list]:
        assert split_special_tokens
        self.texts.append(text)
        tokens = [(ord(c) + 1000 * n, (i, i + 1)) for i, c in enumerate(text) for n in range(1 + (c == TWICE))]
        encoding = {"input_ids": [CLS, *(token for token, _ in tokens), SEP]}
        if return_offsets_mapping:
            encoding["offset_mapping"] = [(0, 0), *(span for _, span in tokens), (0, 0)]
        return encoding

    def check_model(self, config: Any) -> None:
        LongformerTokenizer.check_model(self, config)  # type: ignore[arg-type]

    def check_rows(self, rows: int) -> None:
        """Has no rows to check: the fake model reads every id."""


class FakeModel(nn.Module):
    """``start`` and ``end`` give the logit of a token from its id and its place in the row."""

    def __init__(self, start, end, *, max_tokens: int = 512) -> None:
        super().__init__()
        self.config = SimpleNamespace(max_tokens=max_tokens, sep_token_id=SEP, pad_token_id=PAD, vocab_size=0)
        self.weight = nn.Parameter(torch.zeros(1))
        self.start, self.end = start, end
        self.rows: list[list[list[int]]] = []  # of each call
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        assert torch.equal(attention_mask, (input_ids != PAD).long())
        assert input_ids.shape[1] <= self.config.max_tokens
        assert ((input_ids == SEP).sum(dim=1) == 3).all()
        self.rows.append(input_ids.tolist())
        self.modes.append((self.training, torch.is_grad_enabled()))
        start, end = (
            torch.tensor([[float(logit(t, i)) for i, t in enumerate(row)] for row in input_ids.tolist()])
            for logit in (self.start, self.end)
        )
        return start, end


class LetterByLetter(QuestionAnswerer):
    """Tokens are letters here, of which a document is mostly one word, so that answers are inside of it."""

    def search(self, pairs, **how):
        return super().search(pairs, **{"inside_words": True, **how})


def planted(starts: dict[str, float], ends: dict[str, float], **config: int) -> QuestionAnswerer:
    """An answerer whose logits are those of the characters given, else 0."""
    by_id = [{ord(c): logit for c, logit in logits.items()} for logits in (starts, ends)]
    model = FakeModel(lambda t, i: by_id[0].get(t, 0), lambda t, i: by_id[1].get(t, 0), **config)
    return LetterByLetter(model, FakeTokenizer())


def uneven(**config: int) -> QuestionAnswerer:
    """An answerer whose logits depend on a token and on its place in the window, with many ties."""
    model = FakeModel(lambda t, i: (31 * t + 17 * i) % 11 / 2, lambda t, i: (13 * t + 29 * i) % 7 / 2, **config)
    return LetterByLetter(model, FakeTokenizer())
