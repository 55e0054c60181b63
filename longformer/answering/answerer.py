"""QuestionAnswerer: question and document in, answers out, however long the document is.

The scores of all windows of a document make one list, and one softmax over it makes the probabilities.

Letters: B batch, S sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longformer.answering.mode import evaluating
from longformer.answering.settings import AnswerSettings, check_count
from longformer.answering.spans import Answer, Found, SpanSearch
from longformer.answering.texts import shorten
from longformer.answering.windows import WindowReader
from longformer.config import LongformerConfig
from longformer.distributed import check_device
from longformer.errors import CheckpointError, DataError, LongformerError
from longformer.hub import PRETRAINED
from longformer.models.heads import LongformerForQuestionAnswering
from longformer.tokenizer import LongformerTokenizer, load_tokenizer

BATCH_TOKENS = 4096
LEAST_FULL = 0.75  # a row shorter than this share of its batch's longest goes into the next batch


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
        tokenizer.check_model(model.config)
        self.model = model
        self.tokenizer = tokenizer
        if global_mask is not None and not callable(global_mask):
            raise LongformerError(
                f"global_mask is a {type(global_mask).__name__}; it must be a function of a batch's ids"
            )
        self.global_mask = global_mask

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path | None = None,
        *,
        tokenizer: str | Path | None = None,
        revision: str | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        impl: str = "auto",
        local_files_only: bool = False,
        config: LongformerConfig | None = None,
        attention: Any = None,
        global_mask: Callable[[Tensor], Tensor] | None = None,
    ) -> QuestionAnswerer:
        """Load model and tokenizer of a checkpoint.

        Args:
            name_or_path: a folder or a name on the hub; None is the small checkpoint that comes with the package.
            tokenizer: folder or name on the hub of another tokenizer; None is the checkpoint's own.
            revision, dtype, device, impl, local_files_only, config: as for
                :meth:`LongformerForQuestionAnswering.from_pretrained`.
            attention: who attends to whom, as for :class:`longformer.LongformerModel`.
            global_mask: as for the class.

        Raises:
            CheckpointError: not found, not readable, or without a head for question answering.
            ConfigError: a config of another architecture.
            LongformerError: a device that this machine does not have, or ``attention`` does not fit the model.
        """
        check_device(device)
        source = PRETRAINED if name_or_path is None else name_or_path
        read = load_tokenizer(tokenizer, source, revision=revision, local_files_only=local_files_only)
        model = LongformerForQuestionAnswering.from_pretrained(
            source,
            revision=revision,
            dtype=dtype,
            device=device,
            impl=impl,
            local_files_only=local_files_only,
            config=config,
            attention=attention,
            new_head=False,
        )
        return cls(model, read, global_mask=global_mask)

    @classmethod
    def from_onnx(
        cls,
        folder: str | Path,
        *,
        tokenizer: str | Path | None = None,
        threads: int | None = None,
        global_mask: Callable[[Tensor], Tensor] | None = None,
    ) -> QuestionAnswerer:
        """Load an exported model, which ONNX Runtime computes on the CPU, and the tokenizer beside it.

        Args:
            folder: what ``longformer export`` wrote into: a folder with one ``.onnx`` file, or that file.
            tokenizer: folder or name on the hub of another tokenizer; None is the one beside the model.
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
        return cls(model, load_tokenizer(tokenizer, path.parent), global_mask=global_mask)

    def answer(
        self,
        question: str,
        document: str,
        *,
        settings: AnswerSettings | None = None,
        windows: Callable[[int, int], object] | None = None,
        **fields: Any,
    ) -> list[Answer]:
        """The best answers to a question in a document, best first. Text like ``</s>`` is ordinary text in both.

        Args:
            question: space around it is ignored.
            document: of any length.
            settings: see :class:`AnswerSettings`; None is its defaults.
            windows: called after each batch of windows with how many it had, and how many the document has.
            fields: of the settings, in place of those in ``settings``, such as ``top_k=3``.

        Raises:
            DataError: a question or document that is no text, is blank, or has no tokens; a question so long that too
                little is left for the document.
            LongformerError: a setting out of range or unknown, or a model whose scores are not finite.
        """
        return self.search([(question, document)], settings=settings, windows=windows, **fields)[0].answers

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
        found = self.search(pairs, settings=settings, batch_tokens=batch_tokens, progress=progress, **fields)
        return [of_pair.answers for of_pair in found.values()]

    def search(
        self,
        pairs: Iterable[tuple[str, str]],
        *,
        settings: AnswerSettings | None = None,
        batch_tokens: int = BATCH_TOKENS,
        progress: Callable[[int], object] | None = None,
        refused: Callable[[int, LongformerError], object] | None = None,
        windows: Callable[[int, int], object] | None = None,
        **fields: Any,
    ) -> dict[int, Found]:
        """As :meth:`answer_batch`, with what no answer scores, and without stopping at a pair that cannot be asked.

        Args:
            pairs, settings, batch_tokens, progress, fields: as for :meth:`answer_batch`.
            refused: called, before anything is computed, with the place of a pair that cannot be asked and with the
                reason; the pair is left out. Whatever it raises ends the search. None raises the first reason.
            windows: called after each batch with the number of windows that it had, and with that of all windows.

        Returns:
            What was found, by the pair's place in ``pairs``, in their order.

        Raises:
            DataError, LongformerError: as :meth:`answer_batch`.
        """
        settings = AnswerSettings.of(settings, fields, besides=("batch_tokens", "progress", "refused", "windows"))
        check_count("batch_tokens", batch_tokens)
        searches = self._read(list(pairs), settings, refused)
        places = [(p, w) for p, search in searches.items() for w in range(len(search.reading.windows))]
        rows = [searches[p].reading.row(w) for p, w in places]
        found: dict[int, Found] = {}
        for batch in group_by_length([len(row) for row in rows], batch_tokens):
            finished = 0
            for n, logits in zip(batch, self.logits([rows[n] for n in batch]), strict=True):
                p, w = places[n]
                searches[p].add(w, logits)
                if searches[p].is_complete:
                    found[p] = searches[p].found()
                    del searches[p]
                    finished += 1
            if progress is not None and finished:
                progress(finished)
            if windows is not None:
                windows(len(batch), len(rows))
        return {p: found[p] for p in sorted(found)}

    def _read(
        self,
        pairs: Sequence[Any],
        settings: AnswerSettings,
        refused: Callable[[int, LongformerError], object] | None,
    ) -> dict[int, SpanSearch]:
        reader = self.reader()
        reader.limit(settings)  # without a pair, an error of the settings is one all the same
        searches = {}
        for i, pair in enumerate(pairs):
            try:
                if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                    raise DataError(f"{shorten(pair)} is no pair; give (question, document)")
                question, document = pair
                searches[i] = SpanSearch(reader.read(question, document, settings), settings)
            except LongformerError as error:
                if refused is not None:
                    refused(i, error)
                elif len(pairs) == 1:
                    raise
                else:
                    raise type(error)(f"pairs[{i}]: {error}") from None
        return searches

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
            is_global = self.global_mask(ids)
            if not isinstance(is_global, Tensor):
                raise LongformerError(
                    f"global_mask returned a {type(is_global).__name__}; it must return a (B, S) tensor of bool"
                )
            given["global_attention_mask"] = is_global.to(device)
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
