"""QuestionAnswerer: question and document in, answers out, however long the document is.

The scores of all windows of a document make one list, and one softmax over it makes the probabilities.

Letters: B batch, S sequence, n tokens of a window's part of the document, W longest answer in tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from longformer.answering.mode import evaluating
from longformer.answering.settings import AnswerSettings, check_count
from longformer.answering.windows import Reading, Window, WindowReader, shorten
from longformer.config import LongformerConfig
from longformer.distributed import check_device
from longformer.errors import CheckpointError, DataError, LongformerError
from longformer.models.heads import LongformerForQuestionAnswering
from longformer.tokenizer import LongformerTokenizer

PRETRAINED = Path(__file__).parents[1] / "pretrained"  # the checkpoint that the package ships

BATCH_TOKENS = 4096
LEAST_FULL = 0.75  # a row shorter than this share of its batch's longest goes into the next batch


@dataclass(frozen=True)
class Answer:
    """A span of the document.

    Args:
        text: the answer, ``document[start:end]``, without space around it; "" for no answer.
        probability: of this span among all spans of the document of at most ``max_answer_tokens``; those of different
            answers sum to at most 1. It says which span the model takes the answer to be, given that the document has
            one; it does not say whether the document has one. With ``null_threshold`` no answer is one of them.
        start, end: characters of the document.
    """

    text: str
    probability: float
    start: int
    end: int


class QuestionAnswerer:
    """Answers questions with spans of documents. Threads may share one, and its model.

    Args:
        model: computes as in ``eval()`` mode whatever mode it is in, and stays in its mode.
        tokenizer: the one of the model's checkpoint.
        global_mask: which tokens are global, (B, S) bool, of a batch's ids, (B, S) int64, which are padded on the
            right; None is the question, by ``model.automatic_global_mask``. Every batch of ``answer_batch`` is given
            to it.

    Raises:
        LongformerError: a tokenizer that is not the model's, by its special tokens.
        CheckpointError: a tokenizer with tokens for which the model has no row.
    """

    def __init__(
        self,
        model: LongformerForQuestionAnswering,
        tokenizer: LongformerTokenizer,
        *,
        global_mask: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        for name in ("sep_token_id", "pad_token_id"):
            of_model, of_tokenizer = getattr(model.config, name), getattr(tokenizer, name)
            if of_model != of_tokenizer:
                raise LongformerError(
                    f"{name} is {of_model} for the model and {of_tokenizer} for the tokenizer; "
                    "load both from the same checkpoint"
                )
        tokenizer.check_rows(model.config.vocab_size)
        self.model = model
        self.tokenizer = tokenizer
        self.global_mask = global_mask

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path | None = None,
        *,
        revision: str | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        impl: str = "auto",
        local_files_only: bool = False,
        config: LongformerConfig | None = None,
        global_mask: Callable[[Tensor], Tensor] | None = None,
    ) -> QuestionAnswerer:
        """Load model and tokenizer of a checkpoint.

        Args:
            name_or_path: a folder or a name on the hub; None is the small checkpoint that comes with the package.
            revision, dtype, device, impl, local_files_only, config: as for
                :meth:`LongformerForQuestionAnswering.from_pretrained`.
            global_mask: as for the class.

        Raises:
            CheckpointError: not found, not readable, or without a head for question answering.
            ConfigError: a config of another architecture.
            LongformerError: a device that this machine does not have.
        """
        check_device(device)
        source = PRETRAINED if name_or_path is None else name_or_path
        tokenizer = LongformerTokenizer.from_pretrained(source, revision=revision, local_files_only=local_files_only)
        model = LongformerForQuestionAnswering.from_pretrained(
            source,
            revision=revision,
            dtype=dtype,
            device=device,
            impl=impl,
            local_files_only=local_files_only,
            config=config,
            new_head=False,
        )
        return cls(model, tokenizer, global_mask=global_mask)

    @classmethod
    def from_onnx(
        cls,
        folder: str | Path,
        *,
        threads: int | None = None,
        global_mask: Callable[[Tensor], Tensor] | None = None,
    ) -> QuestionAnswerer:
        """Load an exported model, which ONNX Runtime computes on the CPU, and the tokenizer beside it.

        Args:
            folder: what ``longformer export`` wrote into: a folder with one ``.onnx`` file, or that file.
            threads: of ONNX Runtime; None is one for each core.
            global_mask: as for the class.

        Raises:
            CheckpointError: no such file or no tokenizer beside it, or a file that is not ours or of another head.
            LongformerError: onnxruntime is not installed.
        """
        from longformer.exporting import OnnxModel
        from longformer.exporting.runtime import find_onnx

        path = find_onnx(folder)
        if path is None:
            raise CheckpointError(f"{folder} holds no .onnx file; write one with longformer export")
        model: Any = OnnxModel(path, threads=threads)
        if model.kind is not LongformerForQuestionAnswering:
            raise CheckpointError(f"{path} is a {model.kind.__name__}, which answers no questions")
        return cls(model, LongformerTokenizer.from_pretrained(path.parent), global_mask=global_mask)

    def answer(
        self, question: str, document: str, *, settings: AnswerSettings | None = None, **fields: Any
    ) -> list[Answer]:
        """The best answers to a question in a document, best first. Text like ``</s>`` is ordinary text in both.

        Args:
            question: space around it is ignored.
            document: of any length.
            settings: see :class:`AnswerSettings`; None is its defaults.
            fields: of the settings, in place of those in ``settings``, such as ``top_k=3``.

        Raises:
            DataError: a question or document that is no text, is blank, or has no tokens; a question so long that too
                little is left for the document.
            LongformerError: a setting out of range or unknown, or a model whose scores are not finite.
        """
        return self.answer_batch([(question, document)], settings=settings, **fields)[0]

    def answer_batch(
        self,
        pairs: Iterable[tuple[str, str]],
        *,
        settings: AnswerSettings | None = None,
        batch_tokens: int = BATCH_TOKENS,
        progress: Callable[[int], object] | None = None,
        **fields: Any,
    ) -> list[list[Answer]]:
        """Answer many questions, in batches of windows of like length. Nothing is computed before all are checked.

        Args:
            pairs: (question, document) each. Documents that occur more than once are tokenised once.
            settings, fields: as for :meth:`answer`.
            batch_tokens: most tokens of a batch, padding counted; a longer window goes alone.
            progress: called with the number of questions that were finished since its last call.

        Returns:
            What :meth:`answer` gives for each pair, in their order. Rounding may differ in the last digits, since
            sums are taken in another order in a batch of another shape.

        Raises:
            DataError, LongformerError: as :meth:`answer`; the message says which pair.
        """
        settings = AnswerSettings.of(settings, fields, besides=("batch_tokens", "progress"))
        check_count("batch_tokens", batch_tokens)
        found = self._read(list(pairs), settings)
        places = [(p, w) for p, spans in enumerate(found) for w in range(len(spans.reading.windows))]
        rows = [found[p].reading.row(w) for p, w in places]
        for batch in group_by_length([len(row) for row in rows], batch_tokens):
            finished = 0
            for n, logits in zip(batch, self.logits([rows[n] for n in batch]), strict=True):
                p, w = places[n]
                found[p].add(w, logits)
                finished += found[p].is_complete
            if progress is not None and finished:
                progress(finished)
        return [spans.answers() for spans in found]

    def _read(self, pairs: Sequence[Any], settings: AnswerSettings) -> list[_Spans]:
        reader = self.reader()
        reader.limit(settings)  # without a pair, an error of the settings is one all the same
        found = []
        for i, pair in enumerate(pairs):
            try:
                if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                    raise DataError(f"{shorten(pair)} is no pair; give (question, document)")
                question, document = pair
                found.append(_Spans(reader.read(question, document, settings), settings))
            except LongformerError as error:
                if len(pairs) == 1:
                    raise
                raise type(error)(f"pairs[{i}]: {error}") from None
        return found

    def reader(self, *, documents: int | None = None) -> WindowReader:
        """What makes a question and a document into the rows that the model reads. ``documents``: as for the class."""
        return WindowReader(self.tokenizer, self.model.config.max_tokens, documents=documents)

    def logits(self, rows: Sequence[np.ndarray]) -> list[Tensor]:
        """Start and end logits of each row, (2, S) float64 on the CPU, computed as one batch.

        Args:
            rows: (S,) int64 token ids each, as of :meth:`Reading.row`; S may differ from row to row.
        """
        longest = max(len(row) for row in rows)
        ids = torch.full((len(rows), longest), self.tokenizer.pad_token_id, dtype=torch.int64)
        mask = torch.zeros(len(rows), longest, dtype=torch.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.from_numpy(row)
            mask[i, : len(row)] = 1
        device = next(self.model.parameters(), torch.empty(0)).device  # an exported model has none, and takes the CPU's
        given = {"attention_mask": mask.to(device)}
        if self.global_mask is not None:
            given["global_attention_mask"] = self.global_mask(ids).to(device)
        start_logits, end_logits = self._compute(ids.to(device), given)
        logits = torch.stack([start_logits, end_logits], dim=1).cpu().double()  # (B, 2, S)
        return [logits[i, :, : len(row)] for i, row in enumerate(rows)]

    def _compute(self, ids: Tensor, given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            with evaluating(self.model) as model:
                changes = getattr(self.model, "mode_changes", 0)
                logits = model(ids, **given)
                unchanged = changes == getattr(self.model, "mode_changes", 0)
            if model is self.model and not unchanged:
                # Another thread has set the model to training meanwhile, and perhaps back: it is computed on a view.
                with evaluating(self.model, view=True) as model:
                    logits = model(ids, **given)
        start_logits, end_logits = logits
        return start_logits, end_logits


class _Spans:
    """One pair on its way through the model: its windows, and the best spans that were found in them so far."""

    def __init__(self, reading: Reading, settings: AnswerSettings) -> None:
        self.reading, self.settings = reading, settings
        self.best: dict[tuple[int, int], float] = {}  # characters to score
        self.null = math.inf  # score of no answer, the least over the windows: one that holds it denies it
        self.totals: dict[int, float] = {}  # window to the logarithm of its spans' summed exponentials

    def add(self, w: int, logits: Tensor) -> None:
        """Score the spans of window ``w`` by the logits (2, S) of its row."""
        window, document = self.reading.windows[w], self.reading.document
        self.null = min(self.null, float(logits[:, 0].sum()))
        start_logits, end_logits = logits[:, len(self.reading.prefix) : -1]
        if not bool(start_logits.isfinite().all() and end_logits.isfinite().all()):
            raise LongformerError(
                "the model's scores are not finite; if it runs in float16, take bfloat16 or float32, "
                "else its weights are damaged"
            )
        usable = document.usable[window.first : window.stop]
        scores = span_scores(start_logits, end_logits, usable, window, self.settings.max_answer_tokens)
        self.totals[w] = float(scores.flatten().logsumexp(dim=0))
        for span, score in self._distinct(scores, window.first).items():
            self.best[span] = max(score, self.best.get(span, -math.inf))

    def _distinct(self, scores: Tensor, first: int) -> dict[tuple[int, int], float]:
        """The best ``top_k`` spans of characters, or all. Tokens that share a character make a span occur twice."""
        count = self.settings.top_k
        while True:
            found: dict[tuple[int, int], float] = {}
            for score, i, j in top_spans(scores, count):
                found.setdefault(self._characters(first + i, first + j), score)
            if len(found) >= self.settings.top_k or count >= scores.numel():
                return found
            count *= 4

    def _characters(self, i: int, j: int) -> tuple[int, int]:
        """Start and end of the text from token ``i`` to ``j``, without space around it."""
        document = self.reading.document
        start, end = int(document.offsets[i, 0]), int(document.offsets[j, 1])
        text = document.text[start:end]
        return start + len(text) - len(text.lstrip()), end - len(text) + len(text.rstrip())

    @property
    def is_complete(self) -> bool:
        """Whether every window has been scored."""
        return len(self.totals) == len(self.reading.windows)

    def answers(self) -> list[Answer]:
        """The best ``top_k``, best first; "" first among them where it beats the others by the threshold."""
        # In the order of the windows, whatever order they were read in: a sum's last digit depends on it.
        totals = torch.tensor([self.totals[w] for w in range(len(self.reading.windows))], dtype=torch.float64)
        total = float(totals.logsumexp(dim=0))
        ranked = sorted((-score, start, end) for (start, end), score in self.best.items())
        if self.settings.null_threshold is not None:
            total = float(np.logaddexp(total, self.null))
            if self.null - max(self.best.values()) > self.settings.null_threshold:
                ranked.insert(0, (-self.null, 0, 0))
        text = self.reading.document.text
        return [
            Answer(text[start:end], min(1.0, math.exp(-negative - total)), start, end)
            for negative, start, end in ranked[: self.settings.top_k]
        ]


def span_scores(
    start_logits: Tensor, end_logits: Tensor, usable: Tensor, window: Window, max_answer_tokens: int
) -> Tensor:
    """Score of every span in a window: its start's logit plus its end's.

    Args:
        start_logits, end_logits: (n,), of the window's tokens.
        usable: (n,) bool, whether a token may begin and end a span.
        window: the spans that are scored here.
        max_answer_tokens: W.

    Returns:
        (n, min(W, n)), where column c of row i is the span from token i to token i + c, counted within the window;
        -inf where there is no such span, or where it is not to be scored here.
    """
    n = len(start_logits)
    width = min(max_answer_tokens, n)
    ends = F.pad(end_logits.masked_fill(~usable, -math.inf), (0, width - 1), value=-math.inf).unfold(0, width, 1)
    scores = start_logits.masked_fill(~usable, -math.inf)[:, None] + ends
    place = 2 * torch.arange(window.first, window.first + n)[:, None] + torch.arange(width)  # i + j
    return scores.masked_fill_((place <= window.low) | (place > window.high), -math.inf)


def top_spans(scores: Tensor, count: int) -> list[tuple[float, int, int]]:
    """The ``count`` best spans as (score, first token, last token), best first; fewer if there are fewer.

    Among equals the earlier and then the shorter comes first, which ``topk`` does not promise.

    Args:
        scores: (n, W), of ``span_scores``.
    """
    flat = scores.flatten()
    least = flat.topk(min(count, len(flat))).values[-1]
    places = ((flat >= least) & (flat > -math.inf)).nonzero().squeeze(1)
    values, order = flat[places].sort(descending=True, stable=True)
    width = scores.shape[1]
    return [
        (value, place // width, place // width + place % width)
        for value, place in zip(values[:count].tolist(), places[order[:count]].tolist(), strict=True)
    ]


def group_by_length(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Batches of indices into ``lengths``, from the longest to the shortest rows.

    A batch's rows times its longest are at most ``batch_tokens`` (a longer row goes alone), and none is shorter than
    three quarters of the longest. The longest come first, so that what does not fit into memory fails at once.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[batches[-1][0]] if batches else 0
        if batches and (len(batches[-1]) + 1) * longest <= batch_tokens and lengths[i] >= LEAST_FULL * longest:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
