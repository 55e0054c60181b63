"""Vocabulary: a tokenizer's tokens, their ids, and which of them are special; ids back to text."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, overload

import numpy as np
from tokenizers import AddedToken, Tokenizer, models

from longformer.checkpoints.tokenizer_files import EXTRA_TOKENS, ROBERTA_TOKENS
from longformer.errors import CheckpointError, LongformerError, listed, unknown_name

SPECIAL_TOKENS = tuple(ROBERTA_TOKENS)  # in the order in which transformers lists them

# Space that WordPiece leaves in English text, and that clean_up_tokenization_spaces takes out: transformers' list.
_SPACED_PUNCTUATION = (" .", " ?", " !", " ,")
_SPACED_ENDINGS = (" n't", " 'm", " 's", " 've", " 're")


class Vocabulary:
    """The tokens of a tokenizer by id and by text, the special ones by their roles.

    Args:
        tokenizer: of the ``tokenizers`` library; it is this object's own from now on.

    Attributes:
        cls_token, sep_token, pad_token: str; and with ``_id`` appended, int.
        bos_token, eos_token, unk_token, mask_token: likewise; None where the vocabulary has no such token.
        extra_special_tokens: list of str, special tokens without a role.
        clean_up_tokenization_spaces: whether ``decode`` of a WordPiece tokenizer takes out the space before
            punctuation where a call does not say.

    Every one of them can be set; a token must be in the vocabulary before it gets a role.
    """

    bos_token: str | None
    eos_token: str | None
    unk_token: str | None
    sep_token: str
    pad_token: str
    cls_token: str
    mask_token: str | None
    bos_token_id: int | None
    eos_token_id: int | None
    unk_token_id: int | None
    sep_token_id: int
    pad_token_id: int
    cls_token_id: int
    mask_token_id: int | None

    is_fast = True  # it runs on the tokenizers library
    name_or_path = ""  # where it was loaded from

    pad_token_type_id = 0

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._variants: dict[tuple[Any, ...], Tokenizer] = {}
        self.extra_special_tokens: list[str] = []
        self.clean_up_tokenization_spaces = False

    def __setattr__(self, name: str, value: Any) -> None:
        role = name.removesuffix("_id")
        if role in SPECIAL_TOKENS:
            token = value if value is None or name == role else self._token(value)
            index = None if token is None else self._tokenizer.token_to_id(str(token))
            if token is not None and index is None:
                call = f"add_special_tokens({{{role!r}: {str(token)!r}}})"
                raise LongformerError(f"{role} {str(token)!r} is not in the vocabulary; call {call}")
            super().__setattr__(role, None if token is None else str(token))
            super().__setattr__(f"{role}_id", index)
        else:
            super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_variants": {}}

    def _variant(self, split_special_tokens: bool, truncation: Any = None, padding: Any = None) -> Tokenizer:
        """This tokenizer with other settings. It shares the vocabulary with it, and nobody changes it: so threads may.

        Args:
            split_special_tokens: whether special tokens in a text are ordinary text.
            truncation, padding: None, or what ``enable_truncation`` and ``enable_padding`` take, as pairs of name and
                value.
        """
        key = (split_special_tokens, truncation, padding)
        if key == (False, None, None):
            return self._tokenizer
        if key not in self._variants:
            variant = Tokenizer(self._tokenizer.model)
            for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
                setattr(variant, part, getattr(self._tokenizer, part))
            in_order = [token for _, token in sorted(self._tokenizer.get_added_tokens_decoder().items())]
            for special, tokens in groupby(in_order, key=lambda token: token.special):
                (variant.add_special_tokens if special else variant.add_tokens)(list(tokens))
            variant.encode_special_tokens = split_special_tokens
            if truncation is not None:
                variant.enable_truncation(**dict(truncation))
            if padding is not None:
                variant.enable_padding(**dict(padding))
            kept = list(self._variants.items())[-7:]  # those in use at the moment; one takes microseconds to make
            self._variants = {**dict(kept), key: variant}
            return variant
        return self._variants[key]

    @property
    def backend_tokenizer(self) -> Tokenizer:
        """The tokenizer of the ``tokenizers`` library."""
        return self._tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of tokens without those added afterwards; ``len(tokenizer)`` counts all."""
        return self._tokenizer.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    def get_vocab(self) -> dict[str, int]:
        """Every token's id, added tokens included."""
        return self._tokenizer.get_vocab()

    vocab = property(get_vocab)

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """By id the tokens that are found in a text before it is split into words, special tokens among them."""
        return dict(sorted(self._tokenizer.get_added_tokens_decoder().items()))

    def get_added_vocab(self) -> dict[str, int]:
        """The ids of ``added_tokens_decoder``'s tokens, in order of id."""
        return {token.content: index for index, token in self.added_tokens_decoder.items()}

    def check_model(self, config: Any) -> None:
        """Refuse to stand beside a model of another tokenizer.

        Args:
            config: of the model.

        Raises:
            LongformerError: a special token has another id there.
            CheckpointError: as :meth:`check_rows` says.
        """
        for name in ("sep_token_id", "pad_token_id"):
            of_model, own = getattr(config, name), getattr(self, name)
            if of_model != own:
                raise LongformerError(
                    f"{name} is {of_model} for the model and {own} for the tokenizer; "
                    "load both from the same checkpoint"
                )
        self.check_rows(config.vocab_size)

    def check_rows(self, rows: int) -> None:
        """Refuse to stand beside a model whose embedding has fewer rows than the highest id needs.

        Args:
            rows: of the model's word embeddings, ``config.vocab_size``.

        Raises:
            CheckpointError: tokens whose ids are ``rows`` or more; the message names them.
        """
        beyond = sorted((index, token) for token, index in self.get_vocab().items() if index >= rows)
        if beyond:
            names = listed([f"{token!r} (id {index})" for index, token in beyond], most=3)
            raise CheckpointError(
                f"the tokenizer has {names}, but the model has embeddings for ids 0 to {rows - 1} only; take the "
                "tokenizer that the model was trained with (--tokenizer names one), or enlarge the model with "
                "model.resize_token_embeddings(len(tokenizer))"
            )

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The special tokens by role, as ``{"cls_token": "<s>"}``."""
        return {role: getattr(self, role) for role in SPECIAL_TOKENS if getattr(self, role) is not None}

    @property
    def all_special_tokens(self) -> list[str]:
        """Every special token once: those with a role, then the others."""
        return list(dict.fromkeys([*self.special_tokens_map.values(), *self.extra_special_tokens]))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of ``all_special_tokens``."""
        return self.convert_tokens_to_ids(self.all_special_tokens)

    @property
    def extra_special_tokens_ids(self) -> list[int]:
        """The ids of ``extra_special_tokens``."""
        return self.convert_tokens_to_ids(self.extra_special_tokens)

    @property
    def additional_special_tokens(self) -> list[str]:
        """What ``extra_special_tokens`` was called before."""
        return self.extra_special_tokens

    @additional_special_tokens.setter
    def additional_special_tokens(self, tokens: list[str]) -> None:
        self.extra_special_tokens = tokens

    def add_tokens(
        self, new_tokens: str | AddedToken | Sequence[str | AddedToken], special_tokens: bool = False
    ) -> int:
        """Add tokens to the vocabulary, with the next free ids. Give the model rows for them afterwards, by
        ``model.resize_token_embeddings(len(tokenizer))``. No other thread may use the tokenizer meanwhile.

        Args:
            new_tokens: one or several, as text or as ``tokenizers.AddedToken``.
            special_tokens: ``decode(..., skip_special_tokens=True)`` leaves them out.

        Returns:
            How many of them were not in the vocabulary.

        Raises:
            LongformerError: a token that is neither text nor AddedToken.
        """
        tokens = [new_tokens] if isinstance(new_tokens, (str, AddedToken)) else list(new_tokens)
        wrong = [token for token in tokens if not isinstance(token, (str, AddedToken))]
        if wrong:
            raise LongformerError(f"{str(wrong[0])[:60]!r} is no token; give a str or a tokenizers.AddedToken")
        self._variants = {}
        return (self._tokenizer.add_special_tokens if special_tokens else self._tokenizer.add_tokens)(tokens)

    def add_special_tokens(
        self, special_tokens_dict: Mapping[str, Any], replace_extra_special_tokens: bool = True
    ) -> int:
        """Give special tokens their roles, and add those that the vocabulary does not have.

        Texts are laid out with a new ``cls_token`` or ``sep_token`` once the tokenizer was saved and loaded again, as
        in transformers.

        Args:
            special_tokens_dict: tokens by role, as ``{"pad_token": "<pad>"}``; ``extra_special_tokens``, also called
                ``additional_special_tokens``, is a list.
            replace_extra_special_tokens: those that there were are no longer special; False keeps them.

        Returns:
            How many tokens were added to the vocabulary.

        Raises:
            LongformerError: a role that does not exist, or a value that is no token.
        """
        known = (*SPECIAL_TOKENS, *EXTRA_TOKENS)
        added = 0
        for role, value in special_tokens_dict.items():
            if role not in known:
                raise LongformerError(unknown_name(role, known, "special token"))
            if role in SPECIAL_TOKENS:
                added += self.add_tokens([value], special_tokens=True)
                setattr(self, role, value)
                continue
            if isinstance(value, (str, AddedToken)):
                raise LongformerError(f"{role} is {str(value)!r}; it must be a list of tokens")
            added += self.add_tokens(value, special_tokens=True)
            kept = [] if replace_extra_special_tokens and value else self.extra_special_tokens
            self.extra_special_tokens = list(dict.fromkeys([*kept, *map(str, value)]))
        return added

    def get_special_tokens_mask(
        self,
        token_ids_0: Iterable[int],
        token_ids_1: Iterable[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """By id 1 for a special token, else 0.

        Raises:
            LongformerError: ``already_has_special_tokens`` is False, or there is a second row.
        """
        if not already_has_special_tokens or token_ids_1 is not None:
            raise LongformerError(
                "get_special_tokens_mask reads one row with its special tokens: pass already_has_special_tokens=True, "
                "or call the tokenizer with return_special_tokens_mask=True"
            )
        special = set(self.all_special_ids)
        return [int(number in special) for number in token_ids(token_ids_0)]

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many special tokens a text gets, or a pair."""
        return self._tokenizer.num_special_tokens_to_add(pair)

    @overload
    def convert_ids_to_tokens(self, ids: int, skip_special_tokens: bool = False) -> str: ...
    @overload
    def convert_ids_to_tokens(self, ids: Iterable[int], skip_special_tokens: bool = False) -> list[str]: ...
    def convert_ids_to_tokens(self, ids: int | Iterable[int], skip_special_tokens: bool = False) -> str | list[str]:
        """The token of an id, or the list of tokens of several (any iterable of ints, as a 1-D tensor).

        Args:
            ids: one or several.
            skip_special_tokens: leave special tokens out of a list.

        Raises:
            LongformerError: an id that is not in the vocabulary, or no int at all.
        """
        if is_one_id(ids):
            return self._token(token_ids(ids)[0])
        skipped = set(self.all_special_ids) if skip_special_tokens else ()
        return [self._token(number) for number in token_ids(ids) if number not in skipped]

    def _token(self, number: int) -> str:
        token = self._tokenizer.id_to_token(number) if 0 <= number < 2**32 else None
        if token is None:
            raise LongformerError(f"token id {number} is not in the vocabulary, whose ids are 0 to {len(self) - 1}")
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

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Tokens joined to text."""
        decoder = self._tokenizer.decoder
        return " ".join(tokens) if decoder is None else decoder.decode(tokens)

    def decode(
        self, token_ids: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> Any:
        """Text of an id or of several; a list of texts for a batch.

        Args:
            token_ids: an int, S ints, or B rows of them: lists, an array or a tensor.
            skip_special_tokens: leave ``<s>``, ``</s>``, padding and the like out.
            clean_up_tokenization_spaces: take out the space before English punctuation, for WordPiece alone; byte-level
                tokens hold their own space, so nothing is taken out there. None is the tokenizer's.

        Raises:
            LongformerError: an id that is not in the vocabulary, or no int at all.
        """
        rows = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        if not isinstance(rows, (list, tuple)) or not rows or is_one_id(rows[0]) or not _is_row(rows[0]):
            return self._decode(rows, skip_special_tokens, clean_up_tokenization_spaces)
        return [self._decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in rows]

    def batch_decode(
        self, sequences: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> list[str]:
        """``decode`` of a batch."""
        texts = self.decode(sequences, skip_special_tokens, clean_up_tokenization_spaces)
        return [texts] if isinstance(texts, str) else texts

    def _decode(self, ids: Any, skip_special_tokens: bool, clean_up: bool | None) -> str:
        numbers = token_ids(ids)
        self.convert_ids_to_tokens(numbers)  # refuses unknown ids, which the library would silently leave out
        text: str = self._tokenizer.decode(numbers, skip_special_tokens=skip_special_tokens)
        clean_up = self.clean_up_tokenization_spaces if clean_up is None else clean_up
        if clean_up and not isinstance(self._tokenizer.model, models.BPE):
            for mark in _SPACED_PUNCTUATION:
                text = text.replace(mark, mark[1:])
            text = text.replace(" ' ", "'")
            for ending in _SPACED_ENDINGS:
                text = text.replace(ending, ending[1:])
        return text


def _is_row(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) == 1


def is_one_id(ids: Any) -> bool:
    """Whether ``ids`` is a single number, of Python, NumPy or torch, rather than several."""
    return getattr(ids, "ndim", None) == 0 or isinstance(ids, (int, np.integer))


def token_ids(ids: Any) -> list[int]:
    """``ids`` as a list of Python ints. Raises LongformerError where they are none."""
    try:
        return [operator.index(number) for number in ([ids] if is_one_id(ids) else ids)]
    except (TypeError, ValueError):
        raise LongformerError(
            f"token ids must be an int or one row of ints, but are {str(ids)[:60]!r}; of a batch, pass one row"
        ) from None
