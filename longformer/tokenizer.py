"""LongformerTokenizer: text to token ids and back, over the ``tokenizers`` library."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, overload

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from tokenizers import Encoding as RawEncoding

from longformer.checkpoints.hub import find_files
from longformer.checkpoints.tokenizer_files import (
    BERT_TOKENS,
    ROBERTA_TOKENS,
    TOKENIZER_FILES,
    read_tokenizer_config,
    read_tokenizer_json,
    read_vocab_and_merges,
    token_content,
)
from longformer.encoding import Encoding, as_tensor, is_one_id, pad_rows, text_rows, token_ids
from longformer.errors import CheckpointError, DataError, LongformerError, in_one_line
from longformer.files import replace_file


class LongformerTokenizer:
    """Token ids of texts, and of pairs as ``<s> question </s></s> context </s>``, the layout Longformer reads.

    A BERT-style ``tokenizer.json`` is laid out in the same way with its own special tokens:
    ``[CLS] question [SEP][SEP] context [SEP]``. Truncation, padding and layout stated in the file are ignored.

    Args:
        tokenizer_json: path of a ``tokenizer.json``. Give this, or ``vocab`` and ``merges``.
        vocab: path of RoBERTa's ``vocab.json``.
        merges: path of RoBERTa's ``merges.txt``.
        config: entries of the hub's ``tokenizer_config.json``. Read are ``cls_token``, ``sep_token``, ``pad_token``,
            ``unk_token``, ``mask_token``, ``added_tokens_decoder``, ``add_prefix_space`` and ``model_max_length``.

    Attributes:
        cls_token, sep_token, pad_token: str; and with ``_id`` appended, int.
        unk_token, mask_token: likewise; None where the vocabulary has no such token.
        model_max_length: most tokens of a sequence according to ``config``, the default of ``truncation``; None if
            it does not say.

    Raises:
        CheckpointError: a file is missing or malformed, or lacks a special token.
    """

    cls_token: str
    sep_token: str
    pad_token: str
    unk_token: str | None
    mask_token: str | None
    cls_token_id: int
    sep_token_id: int
    pad_token_id: int
    unk_token_id: int | None
    mask_token_id: int | None

    def __init__(
        self,
        tokenizer_json: str | Path | None = None,
        *,
        vocab: str | Path | None = None,
        merges: str | Path | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        config = config or {}
        if tokenizer_json is not None and vocab is None and merges is None:
            source, self._tokenizer = tokenizer_json, read_tokenizer_json(Path(tokenizer_json))
        elif tokenizer_json is None and vocab is not None and merges is not None:
            source, self._tokenizer = vocab, read_vocab_and_merges(Path(vocab), Path(merges))
        else:
            raise LongformerError("give tokenizer_json alone, or both vocab and merges")
        if tokenizer_json is None:
            self._add_tokens(source, config)
        self._set_special_tokens(source, config)
        self._set_layout(config)
        limit = config.get("model_max_length")
        # Files write "no limit" as a huge number.
        self.model_max_length: int | None = limit if isinstance(limit, int) and 0 < limit < 10**9 else None

    def _set_special_tokens(self, source: str | Path, config: Mapping[str, Any]) -> None:
        known = self._tokenizer.token_to_id
        family = BERT_TOKENS if known("<s>") is None and known("[CLS]") is not None else ROBERTA_TOKENS
        for role, usual in family.items():
            token = token_content(config.get(f"{role}_token"), usual)
            index = known(token) if isinstance(token, str) else None
            if index is None and role in ("cls", "sep", "pad"):
                raise CheckpointError(f"{source}: the {role} token {token!r} is not in the vocabulary")
            setattr(self, f"{role}_token", None if index is None else token)
            setattr(self, f"{role}_token_id", index)
        model = self._tokenizer.model
        if isinstance(model, models.WordPiece) and model.token_to_id(model.unk_token) is None:
            raise CheckpointError(f"{source}: the unknown token {model.unk_token!r} is not in the vocabulary")

    def _add_tokens(self, source: str | Path, config: Mapping[str, Any]) -> None:
        """Make special tokens written in a text count as such. A ``tokenizer.json`` says that by itself."""
        tokens: dict[str, tuple[int, Mapping[str, Any]]] = {}
        try:
            for index, entry in (config.get("added_tokens_decoder") or {}).items():
                tokens[entry["content"]] = int(index), entry
        except (AttributeError, KeyError, TypeError, ValueError):
            raise CheckpointError(f"{source}: added_tokens_decoder beside it does not map ids to tokens") from None
        for role, usual in ROBERTA_TOKENS.items():
            given = config.get(f"{role}_token")
            token = token_content(given, usual)
            number = self._tokenizer.token_to_id(token) if isinstance(token, str) else None
            if number is not None and token not in tokens:
                tokens[token] = number, given if isinstance(given, Mapping) else {}
        for content, (number, entry) in sorted(tokens.items(), key=lambda item: item[1][0]):
            flags = {flag: bool(entry.get(flag, False)) for flag in ("single_word", "lstrip", "rstrip", "normalized")}
            special = bool(entry.get("special", True))
            add = self._tokenizer.add_special_tokens if special else self._tokenizer.add_tokens
            add([AddedToken(content, special=special, **flags)])
            got = self._tokenizer.token_to_id(content)
            if got != number:
                raise CheckpointError(
                    f"{source}: added token {content!r} has id {got}, not {number} as stated beside it"
                )

    def _set_layout(self, config: Mapping[str, Any]) -> None:
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        pre_tokenizer = self._tokenizer.pre_tokenizer
        self._byte_level = isinstance(pre_tokenizer, pre_tokenizers.ByteLevel)
        prefix_space = False
        if self._byte_level:
            prefix_space = bool(config.get("add_prefix_space", pre_tokenizer.add_prefix_space))
            pre_tokenizer.add_prefix_space = prefix_space
        # Byte-level tokens include the space before a word; trimming takes it out of their offsets.
        self._tokenizer.post_processor = processors.RobertaProcessing(
            (self.sep_token, self.sep_token_id), (self.cls_token, self.cls_token_id), self._byte_level, prefix_space
        )

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, *, revision: str | None = None, local_files_only: bool = False
    ) -> LongformerTokenizer:
        """Load the tokenizer of a checkpoint: ``tokenizer.json``, else ``vocab.json`` and ``merges.txt``.

        Args:
            name_or_path: name on the hub, or a folder.
            revision: branch, tag or commit on the hub.
            local_files_only: look in the hub's cache only.

        Raises:
            CheckpointError: no such checkpoint, no network, no tokenizer files, or malformed ones.
        """
        files = find_files(name_or_path, TOKENIZER_FILES, revision=revision, local_files_only=local_files_only)
        config = read_tokenizer_config(files)
        if "tokenizer.json" in files:
            return cls(files["tokenizer.json"], config=config)
        missing = [name for name in ("vocab.json", "merges.txt") if name not in files]
        if missing:
            raise CheckpointError(
                f"{name_or_path} has neither tokenizer.json nor {' and '.join(missing)}; "
                "a tokenizer needs tokenizer.json, or vocab.json together with merges.txt"
            )
        return cls(vocab=files["vocab.json"], merges=files["merges.txt"], config=config)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``tokenizer.json``, ``tokenizer_config.json`` and the vocabulary's own files, for us and for others.

        Raises:
            CheckpointError: they cannot be written, for example because the disk is full.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory() as made:
                self._tokenizer.save(str(Path(made) / "tokenizer.json"))
                self._tokenizer.model.save(made)
                (Path(made) / "tokenizer_config.json").write_text(self._config_text(), encoding="utf-8")
                for path in sorted(Path(made).iterdir()):
                    replace_file(folder / path.name, partial(shutil.copyfile, path))
        except Exception as error:  # the library raises nothing narrower
            raise CheckpointError(
                f"the tokenizer cannot be written into {folder}: {in_one_line(error)}; "
                "make room, or name a folder that can be written"
            ) from None

    def _config_text(self) -> str:
        config: dict[str, Any] = {
            # Transformers' own WordPiece classes lay pairs out with two separators; the general one obeys the file.
            "tokenizer_class": "LongformerTokenizer" if self._byte_level else "PreTrainedTokenizerFast",
            "model_input_names": ["input_ids", "attention_mask"],
        }
        for role in ROBERTA_TOKENS:
            if getattr(self, f"{role}_token") is not None:
                config[f"{role}_token"] = getattr(self, f"{role}_token")
        if self._byte_level:
            config["add_prefix_space"] = self._tokenizer.pre_tokenizer.add_prefix_space
        if self.model_max_length is not None:
            config["model_max_length"] = self.model_max_length
        return json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special and added ones included."""
        return self._tokenizer.get_vocab_size()

    def __len__(self) -> int:
        return self.vocab_size

    def __call__(
        self,
        text: str | Sequence[str] | Sequence[tuple[str, str]],
        text_pair: str | Sequence[str] | None = None,
        *,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_offsets: bool = True,
        split_special_tokens: bool = False,
    ) -> Encoding:
        """Encode a text, a pair, or a batch of either.

        Args:
            text: one text (the question), or a list of them; a list of (question, context) tuples is a batch of pairs.
            text_pair: the context, or a list of as many contexts as ``text`` has questions.
            padding: True or "longest" pads a batch on the right to its longest row.
            truncation: cut what exceeds ``max_length`` off the end of the context (of the text, if there is no pair);
                the question is never cut.
            max_length: most tokens of a row, special tokens included; ``model_max_length`` if None.
            return_tensors: None for lists, "pt" for tensors, "np" for arrays.
            return_offsets: False saves their time; ``offsets`` is None then.
            split_special_tokens: treat special tokens written in the text, as ``</s>``, like any other text. Without
                it they become the special token, as in transformers.

        Raises:
            DataError: a text that is no string or not representable in UTF-8; a pair with an empty half; a batch
                without rows or with halves of unequal number; a question that leaves no room within ``max_length``.
            LongformerError: arguments that contradict each other.
        """
        firsts, seconds, batched = text_rows(text, text_pair)
        if padding not in (False, True, "longest"):
            raise LongformerError(f'padding is {padding!r}; it must be False, True or "longest"')
        if return_tensors not in (None, "pt", "np"):
            raise LongformerError(f'return_tensors is {return_tensors!r}; it must be None, "pt" or "np"')
        limit = self._limit(truncation, max_length)

        tokenizer = self._verbatim if split_special_tokens else self._tokenizer
        encode = tokenizer.encode_batch if return_offsets else tokenizer.encode_batch_fast
        question_encodings = encode(firsts, add_special_tokens=False)
        context_encodings = encode(seconds, add_special_tokens=False) if seconds is not None else None
        ids, offsets, sequences = [], [], []
        for i, first in enumerate(question_encodings):
            parts = [first] if context_encodings is None else [first, context_encodings[i]]
            where = f" of row {i}" if batched else ""
            row_ids, row_offsets, row_sequences = self._lay_out(parts, limit, where)
            ids.append(row_ids)
            offsets.append(row_offsets)
            sequences.append(row_sequences)

        lengths = [len(row) for row in ids]
        if padding:
            pad_rows(ids, self.pad_token_id)
            pad_rows(offsets, (0, 0))
            pad_rows(sequences, None)
        masks = [[1] * length + [0] * (len(row) - length) for length, row in zip(lengths, ids, strict=True)]
        given_offsets = offsets if return_offsets else None
        if return_tensors is None and not batched:
            return Encoding(
                input_ids=ids[0],
                attention_mask=masks[0],
                offsets=given_offsets and given_offsets[0],
                sequence_ids=sequences[0],
            )
        if return_tensors is not None and len({len(row) for row in ids}) > 1:
            raise LongformerError(
                f"rows of {min(lengths)} to {max(lengths)} tokens do not fit one tensor; pass padding=True"
            )
        return Encoding(
            input_ids=as_tensor(ids, return_tensors),
            attention_mask=as_tensor(masks, return_tensors),
            offsets=given_offsets,
            sequence_ids=sequences,
        )

    def _limit(self, truncation: bool, max_length: int | None) -> int | None:
        if not isinstance(truncation, bool):
            raise LongformerError(f"truncation is {truncation!r}; it must be True or False")
        if not truncation:
            if max_length is not None:
                raise LongformerError(
                    f"max_length {max_length} does nothing without truncation=True; pass both or neither"
                )
            return None
        limit = self.model_max_length if max_length is None else max_length
        if limit is None:
            raise LongformerError("truncation=True needs max_length, since this tokenizer states no model_max_length")
        return limit

    def _lay_out(
        self, parts: list[RawEncoding], limit: int | None, where: str
    ) -> tuple[list[int], list[tuple[int, int]], list[int | None]]:
        """Ids, offsets and sequence ids of ``<s> first </s>`` or ``<s> first </s></s> second </s>``."""
        last = parts[-1]
        kept = len(last.ids)
        if len(parts) == 2 and not (parts[0].ids and last.ids):
            name = "context" if parts[0].ids else "question"
            raise DataError(f"the {name}{where} has no tokens; give a text that is not empty")
        if limit is not None:
            fixed = 2 if len(parts) == 1 else 4 + len(parts[0].ids)
            if limit < fixed + 1:
                needs = "the special tokens take" if len(parts) == 1 else f"the question{where} and special tokens take"
                raise DataError(
                    f"max_length {limit} leaves no room for text: {needs} {fixed}; give at least {fixed + 1}"
                )
            kept = min(kept, limit - fixed)
        ids, offsets = [self.cls_token_id], [(0, 0)]
        sequences: list[int | None] = [None]
        for i, part in enumerate(parts):
            stop = kept if part is last else len(part.ids)
            if i == 1:
                ids.append(self.sep_token_id)
                offsets.append((0, 0))
                sequences.append(None)
            ids += part.ids[:stop]
            offsets += part.offsets[:stop]
            sequences += [i] * stop
            ids.append(self.sep_token_id)
            offsets.append((0, 0))
            sequences.append(None)
        return ids, offsets, sequences

    @cached_property
    def _verbatim(self) -> Tokenizer:
        """A second tokenizer that finds no special tokens in texts: a switch on the first would not be thread-safe."""
        verbatim = Tokenizer.from_str(self._tokenizer.to_str())
        verbatim.encode_special_tokens = True
        return verbatim

    @overload
    def convert_ids_to_tokens(self, ids: int) -> str: ...
    @overload
    def convert_ids_to_tokens(self, ids: Iterable[int]) -> list[str]: ...
    def convert_ids_to_tokens(self, ids: int | Iterable[int]) -> str | list[str]:
        """The token of an id, or the list of tokens of several (any iterable of ints, as a 1-D tensor).

        Raises:
            LongformerError: an id that is not in the vocabulary, or no int at all.
        """
        tokens = [self._token(number) for number in token_ids(ids)]
        return tokens[0] if is_one_id(ids) else tokens

    def _token(self, number: int) -> str:
        token = self._tokenizer.id_to_token(number) if 0 <= number < 2**32 else None
        if token is None:
            raise LongformerError(
                f"token id {number} is not in the vocabulary, whose ids are 0 to {self.vocab_size - 1}"
            )
        return token

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int: ...
    @overload
    def convert_tokens_to_ids(self, tokens: list[str] | tuple[str, ...]) -> list[int]: ...
    def convert_tokens_to_ids(self, tokens: str | list[str] | tuple[str, ...]) -> int | list[int]:
        """The id of a token, or the list of ids of several; an unknown token has the id of ``unk_token``.

        Raises:
            LongformerError: an unknown token where the vocabulary has no ``unk_token``.
        """
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        index = self._tokenizer.token_to_id(tokens)
        index = self.unk_token_id if index is None else index
        if index is None:
            raise LongformerError(f"token {tokens!r} is not in the vocabulary, which has no token for the unknown")
        return index

    def decode(self, ids: int | Iterable[int], skip_special_tokens: bool = False) -> str:
        """Text of an id or of several.

        Args:
            ids: ints, as a list or a 1-D tensor.
            skip_special_tokens: leave ``<s>``, ``</s>``, padding and the like out.

        Raises:
            LongformerError: an id that is not in the vocabulary, or no int at all.
        """
        numbers = token_ids(ids)
        self.convert_ids_to_tokens(numbers)  # refuses unknown ids, which the library would silently leave out
        return self._tokenizer.decode(numbers, skip_special_tokens=skip_special_tokens)

    def __repr__(self) -> str:
        return f"LongformerTokenizer(vocab_size={self.vocab_size}, cls={self.cls_token!r}, sep={self.sep_token!r})"
