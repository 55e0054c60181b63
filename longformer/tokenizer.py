"""LongformerTokenizer: text to token ids and back, over the ``tokenizers`` library."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Encoding as RawEncoding
from tokenizers import models, pre_tokenizers, processors

from longformer.checkpoints.tokenizer_files import (
    EXTRA_TOKENS,
    TOKENIZER_FILES,
    add_stated_tokens,
    family_of,
    listed_tokens,
    read_tokenizer_config,
    read_tokenizer_json,
    read_vocab_and_merges,
    read_wordpiece,
    token_content,
)
from longformer.encoding import Encoding, as_columns, check_halves, pad_columns
from longformer.encoding_options import NO_LIMIT, EncodingOptions, check_choice, text_rows
from longformer.errors import CheckpointError, DataError, LongformerError, explaining, in_one_line, quoted, unknown_name
from longformer.files import replace_file
from longformer.hub import find_files
from longformer.vocabulary import SPECIAL_TOKENS, Vocabulary

# What tokenizer_config.json says of how to tokenize, beside the special tokens.
_SETTINGS = (
    "model_max_length",
    "padding_side",
    "truncation_side",
    "add_prefix_space",
    "clean_up_tokenization_spaces",
    "model_input_names",
)


class LongformerTokenizer(Vocabulary):
    """Token ids of texts, and of pairs as ``<s> question </s></s> context </s>``, the layout Longformer reads.

    A BERT-style ``tokenizer.json`` is laid out in the same way with its own special tokens:
    ``[CLS] question [SEP][SEP] context [SEP]``. Truncation, padding and layout stated in the file are ignored. The
    calls are those of transformers' tokenizers and give the same results. Threads may share a tokenizer.

    Args:
        tokenizer_json: path of a ``tokenizer.json``. Give this, or ``vocab``.
        vocab: path of RoBERTa's ``vocab.json``, together with ``merges``; or of BERT's ``vocab.txt`` alone.
        merges: path of RoBERTa's ``merges.txt``.
        config: entries of the hub's ``tokenizer_config.json``. Read are the special tokens, ``added_tokens_decoder``,
            ``add_prefix_space``, ``model_max_length`` (before 2020 ``max_len``), ``padding_side``,
            ``truncation_side``, ``clean_up_tokenization_spaces`` and ``model_input_names``; for a ``vocab.txt`` also
            ``do_lower_case``, ``strip_accents``, ``tokenize_chinese_chars`` and ``do_basic_tokenize``.

    Attributes:
        model_max_length: most tokens of a row according to ``config``, the default of ``max_length``; ``int(1e30)`` if
            it does not say.
        padding_side, truncation_side: "right" or "left".
        model_input_names: list of str, what a call returns unless it says otherwise.

    Raises:
        CheckpointError: a file is missing or malformed, or lacks a special token.
    """

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
            source, tokenizer = tokenizer_json, read_tokenizer_json(Path(tokenizer_json))
        elif tokenizer_json is None and vocab is not None and merges is not None:
            source, tokenizer = vocab, read_vocab_and_merges(Path(vocab), Path(merges))
        elif tokenizer_json is None and vocab is not None and Path(vocab).suffix == ".txt":
            source, tokenizer = vocab, read_wordpiece(Path(vocab), config)
        else:
            raise LongformerError("give tokenizer_json alone, or both vocab and merges, or a vocab.txt alone")
        super().__init__(tokenizer)
        with explaining(CheckpointError, f"{source} and the files beside it make no tokenizer"):
            if tokenizer_json is None:
                add_stated_tokens(tokenizer, source, config)
            self._set_special_tokens(source, config)
            self._set_layout(config)
            self._set_settings(config)

    def _set_special_tokens(self, source: str | Path, config: Mapping[str, Any]) -> None:
        known = self._tokenizer.token_to_id
        family = family_of(self._tokenizer)
        for role in SPECIAL_TOKENS:
            token = token_content(config.get(role), family.get(role))
            index = known(token) if isinstance(token, str) else None
            if index is None and role in ("cls_token", "sep_token", "pad_token"):
                raise CheckpointError(f"{source}: the {role} {token!r} is not in the vocabulary")
            setattr(self, role, None if index is None else token)
        model = self._tokenizer.model
        if isinstance(model, models.WordPiece) and model.token_to_id(model.unk_token) is None:
            raise CheckpointError(f"{source}: the unknown token {model.unk_token!r} is not in the vocabulary")
        extra = [token_content(token, None) for name in EXTRA_TOKENS for token in listed_tokens(config, name)]
        if not all(isinstance(token, str) for token in extra):
            raise CheckpointError(f"{source}: {' or '.join(EXTRA_TOKENS)} beside it is no list of tokens")
        self.add_special_tokens({"extra_special_tokens": list(dict.fromkeys(extra))})

    def _set_layout(self, config: Mapping[str, Any]) -> None:
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        pre_tokenizer = self._tokenizer.pre_tokenizer
        self._byte_level = isinstance(pre_tokenizer, pre_tokenizers.ByteLevel)
        self.add_prefix_space = False
        if self._byte_level:
            self.add_prefix_space = bool(config.get("add_prefix_space", pre_tokenizer.add_prefix_space))
            pre_tokenizer.add_prefix_space = self.add_prefix_space
        # Byte-level tokens include the space before a word; trimming takes it out of their offsets.
        self._tokenizer.post_processor = processors.RobertaProcessing(
            (self.sep_token, self.sep_token_id),
            (self.cls_token, self.cls_token_id),
            self._byte_level,
            self.add_prefix_space,
        )

    def _set_settings(self, config: Mapping[str, Any]) -> None:
        limit = config.get("model_max_length", config.get("max_len"))
        self.model_max_length: int = limit if isinstance(limit, int) and 0 < limit < 10**9 else NO_LIMIT
        self.padding_side: str = config.get("padding_side", "right")
        self.truncation_side: str = config.get("truncation_side", "right")
        for name in ("padding_side", "truncation_side"):
            check_choice(name, getattr(self, name), ("right", "left"))
        names = config.get("model_input_names", ["input_ids", "attention_mask"])
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise LongformerError(f"model_input_names is {quoted(names)}; it must be a list of names")
        self.model_input_names: list[str] = list(names)
        self.clean_up_tokenization_spaces = bool(config.get("clean_up_tokenization_spaces", False))

    @property
    def max_len_single_sentence(self) -> int:
        """Tokens of one text that fit beside the special tokens."""
        return self.model_max_length - self.num_special_tokens_to_add()

    @property
    def max_len_sentences_pair(self) -> int:
        """Tokens of a pair, of both texts together, that fit beside the special tokens."""
        return self.model_max_length - self.num_special_tokens_to_add(True)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        **changes: Any,
    ) -> LongformerTokenizer:
        """Load the tokenizer of a checkpoint: ``tokenizer.json``; else ``vocab.json`` and ``merges.txt``; else
        ``vocab.txt``.

        Args:
            name_or_path: name on the hub, or a folder.
            revision: branch, tag or commit on the hub.
            local_files_only: look in the hub's cache only.
            cache_dir: where that cache is.
            token: to log in to the hub with.
            changes: entries of ``tokenizer_config.json`` that hold instead of the checkpoint's own, as
                ``padding_side="left"``: the settings and special tokens that the class reads.

        Raises:
            CheckpointError: no such checkpoint, no network, no tokenizer files, or malformed ones.
            LongformerError: a change of something that there is not.
        """
        where: dict[str, Any] = {
            "revision": revision,
            "local_files_only": local_files_only,
            "cache_dir": cache_dir,
            "token": token,
        }
        known = (*_SETTINGS, *SPECIAL_TOKENS, *EXTRA_TOKENS)
        for name in changes:
            if name not in known:
                raise LongformerError(unknown_name(name, (*where, *known), "option of from_pretrained"))
        files = find_files(name_or_path, TOKENIZER_FILES, **where)
        config = read_tokenizer_config(files) | changes
        missing = [name for name in ("vocab.json", "merges.txt") if name not in files]
        if "tokenizer.json" in files:
            sources = {"tokenizer_json": files["tokenizer.json"]}
        elif not missing:
            sources = {"vocab": files["vocab.json"], "merges": files["merges.txt"]}
        elif "vocab.txt" in files:
            sources = {"vocab": files["vocab.txt"]}
        else:
            raise CheckpointError(
                f"{name_or_path} has neither tokenizer.json nor {' and '.join(missing)}; "
                "a tokenizer needs tokenizer.json, or vocab.json together with merges.txt, or BERT's vocab.txt"
            )
        tokenizer = cls(**sources, config=config)
        tokenizer.name_or_path = str(name_or_path)
        return tokenizer

    def save_pretrained(self, save_directory: str | Path) -> tuple[str, ...]:
        """Write ``tokenizer.json``, ``tokenizer_config.json`` and the vocabulary's own files, for us and for others.

        Args:
            save_directory: a folder; it is made if there is none.

        Returns:
            Paths of the files.

        Raises:
            CheckpointError: they cannot be written, for example because the disk is full.
        """
        folder = Path(save_directory)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory() as made:
                self._tokenizer.save(str(Path(made) / "tokenizer.json"))
                self._tokenizer.model.save(made)
                (Path(made) / "tokenizer_config.json").write_text(self._config_text(), encoding="utf-8")
                names = sorted(path.name for path in Path(made).iterdir())
                for name in names:
                    replace_file(folder / name, partial(shutil.copyfile, Path(made) / name))
        except Exception as error:  # the library raises nothing narrower
            raise CheckpointError(
                f"the tokenizer cannot be written into {folder}: {in_one_line(error)}; "
                "make room, or name a folder that can be written"
            ) from None
        return tuple(str(folder / name) for name in names)

    def _config_text(self) -> str:
        config: dict[str, Any] = {
            # Transformers' own WordPiece classes lay pairs out with two separators; the general one obeys the file.
            "tokenizer_class": "LongformerTokenizer" if self._byte_level else "PreTrainedTokenizerFast",
            **{name: getattr(self, name) for name in _SETTINGS},
            **self.special_tokens_map,
        }
        if not self._byte_level:
            del config["add_prefix_space"]
        if self.model_max_length >= NO_LIMIT:
            del config["model_max_length"]
        if self.extra_special_tokens:  # by the name that every year's transformers read
            config["additional_special_tokens"] = self.extra_special_tokens
        return json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def __call__(self, text: Any, text_pair: Any = None, **options: Any) -> Encoding:
        """Encode a text, a pair, or a batch of either.

        Args:
            text: one text (the question), or a list of them; a list of (question, context) tuples is a batch of pairs.
                With ``is_split_into_words`` a list of words stands for a text.
            text_pair: the context, or a list of as many contexts as ``text`` has questions.
            options: what to add, cut, pad and return, see :class:`longformer.encoding_options.EncodingOptions`.

        Raises:
            DataError: a text that is no string or not representable in UTF-8; a pair with an empty half; a batch
                without rows or with halves of unequal number; a text that leaves no room within ``max_length``.
            LongformerError: an unknown option, a value that means nothing, or options that contradict each other.
        """
        asked = EncodingOptions.of(options)
        firsts, seconds, batched = text_rows(text, text_pair, words=asked.is_split_into_words)
        rows = firsts if seconds is None else list(zip(firsts, seconds, strict=True))
        truncation = self._truncation(asked, rows, pair=seconds is not None)
        variant = self._variant(asked.split_special_tokens, truncation, self._padding(asked))
        encode = variant.encode_batch if asked.track_offsets else variant.encode_batch_fast
        with explaining(LongformerError, "the tokenizer's files do not let it encode this text"):
            try:
                encodings = encode(
                    rows, is_pretokenized=asked.is_split_into_words, add_special_tokens=asked.add_special_tokens
                )
            except Exception:  # the library raises nothing narrower where a text is too short to be cut
                if asked.strategy is not None and seconds is not None:
                    self._check_room(asked, rows)
                raise
        if seconds is not None:
            check_halves(encodings, batched)
        return self._encoding(encodings, asked, batched)

    def encode_plus(self, text: Any, text_pair: Any = None, **options: Any) -> Encoding:
        """The same as calling the tokenizer, by its name of 2020."""
        return self(text, text_pair, **options)

    def batch_encode_plus(self, batch_text_or_text_pairs: Any, **options: Any) -> Encoding:
        """The same as calling the tokenizer with a list, by its name of 2020."""
        return self(batch_text_or_text_pairs, **options)

    def encode(self, text: Any, text_pair: Any = None, **options: Any) -> Any:
        """The ``input_ids`` alone: S ints, or what ``return_tensors`` says. Everything else is as for a call."""
        return self(text, text_pair, **options)["input_ids"]

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **options: Any
    ) -> list[str]:
        """The tokens of a text or of a pair as text. Everything else is as for a call."""
        return self(text, pair, add_special_tokens=add_special_tokens, **options).tokens()

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
    ) -> Encoding:
        """Pad encodings that were made one by one, as a data collator does.

        Args:
            encoded_inputs: a list of encodings of one text each, or one encoding of a text or of a batch. Entries
                that are not one number for each token, as labels, are put together as they are.
            padding, max_length, pad_to_multiple_of, padding_side, return_tensors: as for a call; tensors stay tensors.
            return_attention_mask: False makes no ``attention_mask`` where there is none.

        Raises:
            LongformerError: encodings without ``input_ids``, or values that mean nothing.
        """
        asked = EncodingOptions.of(
            {
                "padding": padding,
                "max_length": max_length if padding == "max_length" else None,
                "pad_to_multiple_of": pad_to_multiple_of,
                "padding_side": padding_side,
                "return_tensors": return_tensors,
            }
        )
        columns, batched, kind = as_columns(encoded_inputs)
        if self._returns("attention_mask", return_attention_mask):
            columns.setdefault("attention_mask", [[1] * len(row) for row in columns["input_ids"]])
        if asked.pads:
            length = max((len(row) for row in columns["input_ids"]), default=0)
            if asked.padding == "max_length":
                length = asked.length('padding="max_length"', self.model_max_length)
            length += -length % (pad_to_multiple_of or 1)
            columns = pad_columns(columns, length, self.pad_token_id, padding_side or self.padding_side)
        data = columns if batched else {name: column[0] for name, column in columns.items()}
        return Encoding(data).convert_to_tensors(return_tensors or kind)

    def _truncation(self, asked: EncodingOptions, rows: list[Any], *, pair: bool) -> tuple[tuple[str, Any], ...] | None:
        """What the library's ``enable_truncation`` takes, after the checks that it does not make itself."""
        if asked.strategy is None:
            return None
        limit = asked.length(f"truncation={asked.truncation!r}", self.model_max_length)
        taken = self.num_special_tokens_to_add(pair) if asked.add_special_tokens else 0
        if asked.strategy == "only_second" and not pair:
            raise LongformerError("truncation 'only_second' cuts text_pair, but there is none; pass truncation=True")
        if pair and (asked.stride or (limit <= taken and asked.strategy != "longest_first")):
            self._check_room(asked, rows)
        if limit < taken + asked.stride + 1:
            reason = f" and the stride {asked.stride}" if asked.stride else ""
            raise DataError(
                f"max_length {limit} leaves no room for text: the special tokens take {taken}{reason}; "
                f"give at least {taken + asked.stride + 1}"
            )
        if asked.pads and asked.pad_to_multiple_of and limit % asked.pad_to_multiple_of:
            raise LongformerError(
                f"max_length {limit} is no multiple of pad_to_multiple_of {asked.pad_to_multiple_of}; make it one"
            )
        return (
            ("max_length", limit),
            ("stride", asked.stride),
            ("strategy", asked.strategy),
            ("direction", self.truncation_side),
        )

    def _padding(self, asked: EncodingOptions) -> tuple[tuple[str, Any], ...] | None:
        """What the library's ``enable_padding`` takes."""
        if not asked.pads:
            return None
        fixed = asked.padding == "max_length"
        return (
            ("length", asked.length('padding="max_length"', self.model_max_length) if fixed else None),
            ("direction", asked.padding_side or self.padding_side),
            ("pad_id", self.pad_token_id),
            ("pad_token", self.pad_token),
            ("pad_type_id", self.pad_token_type_id),
            ("pad_to_multiple_of", asked.pad_to_multiple_of),
        )

    def _check_room(self, asked: EncodingOptions, rows: Sequence[Any]) -> None:
        """Raise DataError for the first pair of which too little would be left when it is cut."""
        limit = asked.length("truncation", self.model_max_length)
        taken = self.num_special_tokens_to_add(True) if asked.add_special_tokens else 0
        room = limit - taken
        tokenizer = self._variant(asked.split_special_tokens)
        for i, pair in enumerate(rows):
            first, second = (
                len(half)
                for half in tokenizer.encode_batch_fast(
                    list(pair), is_pretokenized=asked.is_split_into_words, add_special_tokens=False
                )
            )
            stays = {"only_first": second, "only_second": first}.get(str(asked.strategy), 0)
            least = stays + asked.stride + 1  # what is left of the cut half must be more than the windows share
            if asked.strategy == "longest_first":  # which cuts both halves where the shorter one is too long as well
                least += min(first, second, asked.stride + 1)
            if min(least, first + second) <= room:
                continue
            half = {"only_first": "the context", "only_second": "the question"}.get(str(asked.strategy))
            where = f"{half}{f' of row {i}' if len(rows) > 1 else ''} and " if half else ""
            stride = f" and the stride {asked.stride}" if asked.stride else ""
            raise DataError(
                f"max_length {limit} leaves no room for text: {where}the special tokens take "
                f"{taken + stays}{stride}; give at least {taken + max(min(least, first + second), asked.stride + 1)}"
            )

    def _returns(self, name: str, wanted: bool | None) -> bool:
        return name in self.model_input_names if wanted is None else wanted

    def _encoding(self, encodings: list[RawEncoding], asked: EncodingOptions, batched: bool) -> Encoding:
        """What the library made of the rows, as the caller wants it."""
        samples = list(range(len(encodings)))
        if asked.return_overflowing_tokens:
            samples = [i for i, encoding in enumerate(encodings) for _ in (encoding, *encoding.overflowing)]
            encodings = [window for encoding in encodings for window in (encoding, *encoding.overflowing)]
        wanted = {
            "token_type_ids": ("type_ids", self._returns("token_type_ids", asked.return_token_type_ids)),
            "attention_mask": ("attention_mask", self._returns("attention_mask", asked.return_attention_mask)),
            "special_tokens_mask": ("special_tokens_mask", asked.return_special_tokens_mask),
            "offset_mapping": ("offsets", asked.return_offsets_mapping),
        }
        data: dict[str, list[Any]] = {"input_ids": [encoding.ids for encoding in encodings]}
        for name, (attribute, is_wanted) in wanted.items():
            if is_wanted:
                data[name] = [getattr(encoding, attribute) for encoding in encodings]
        if asked.return_length:
            data["length"] = [len(encoding) for encoding in encodings]
        if asked.return_overflowing_tokens:
            data["overflow_to_sample_mapping"] = samples
        elif not batched and asked.return_tensors is None:
            data = {name: rows[0] if isinstance(rows[0], list) else rows for name, rows in data.items()}
        encoding = Encoding(data, encodings, tracks_offsets=asked.track_offsets)
        return encoding.convert_to_tensors(asked.return_tensors)

    def __repr__(self) -> str:
        return f"LongformerTokenizer({len(self)} tokens, cls={self.cls_token!r}, sep={self.sep_token!r})"


def load_tokenizer(name_or_path: str | Path | None, model: str | Path, **where: Any) -> LongformerTokenizer:
    """The tokenizer that a user named, or that of the model.

    Args:
        name_or_path: folder or name on the hub; None is ``model``.
        model: the model's.
        where: ``revision`` and the like of the model, as for ``from_pretrained``; the revision is not that of another.
    """
    if name_or_path is None:
        return LongformerTokenizer.from_pretrained(model, **where)
    return LongformerTokenizer.from_pretrained(name_or_path, **{**where, "revision": None})
