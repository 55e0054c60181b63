"""Texts: what is no text, where a word begins and ends, and which characters a reader takes for one."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Any

from longformer.errors import DataError
from longformer.files import BOM

LONGEST_WORD = 100  # characters; a longer run of letters is no word, but data such as a genome or an encoded picture

# Scripts that put no space between words, or that write a particle and its noun together, by the first word of their
# characters' names. In a run of such letters an answer may begin and end anywhere.
UNSPACED = frozenset(
    "BALINESE BOPOMOFO CJK FULLWIDTH HALFWIDTH HANGUL HENTAIGANA HIRAGANA IDEOGRAPHIC JAVANESE KATAKANA "
    "KATAKANA-HIRAGANA KHMER LAO MYANMAR TAI THAI TIBETAN YI".split()
)

# Between two characters of ASCII a cluster ends, so that only what is near to others needs a look.
_BEYOND_ASCII = re.compile(r"[\x00-\x7f]?(?:[^\x00-\x7f]+[\x00-\x7f]?)+")


def check_text(name: str, text: object) -> None:
    """Raise DataError, which calls it ``name``, where ``text`` is no str, is blank, or holds half of a character."""
    if not isinstance(text, str):
        remedy = "decode it first, for example with .decode('utf-8')" if isinstance(text, bytes) else "give a str"
        raise DataError(f"the {name} is of type {type(text).__name__}, not str; {remedy}")
    if not text.removeprefix(BOM).strip():
        raise DataError(f"the {name} is {'blank' if text else 'empty'}; give text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"the {name} has U+{ord(text[error.start]):04X} at character {error.start}, half of a character; "
            "decode its source as UTF-8"
        ) from None


def check_texts(question: object, document: object) -> None:
    """:func:`check_text` for a question and its document. Raises DataError."""
    check_text("question", question)
    check_text("document", document)


def shorten(value: Any) -> str:
    """``value`` as Python writes it, cut off after 60 characters."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def whole_words(text: str, start: int, end: int) -> tuple[int, int]:
    """``text[start:end]`` made longer by the rest of the words in which it begins and ends.

    A word is the longest run of letters, digits and marks (Unicode's categories L, Nd, Nl and M), so that a hyphen, an
    apostrophe or a currency sign is part of none. Each letter of a script in ``UNSPACED`` is a word of its own. A run
    of more than ``LONGEST_WORD`` characters is no word.

    Args:
        text: of any length; at most ``LONGEST_WORD`` characters on either side are looked at.
        start, end: characters, ``0 <= start < end <= len(text)``.
    """
    first = start
    while 0 < first and start - first < LONGEST_WORD and _in_word(text[first - 1]) and _in_word(text[first]):
        first -= 1
    last = end
    while last < len(text) and last - end < LONGEST_WORD and _in_word(text[last]) and _in_word(text[last - 1]):
        last += 1
    return (start if start - first == LONGEST_WORD else first), (end if last - end == LONGEST_WORD else last)


@cache
def _in_word(character: str) -> bool:
    category = unicodedata.category(character)
    if category[0] not in "LM" and category not in ("Nd", "Nl"):
        return False
    return unicodedata.name(character, "").partition(" ")[0] not in UNSPACED


def inside_graphemes(text: str) -> frozenset[int]:
    """The places in ``text`` at which it must not be cut: those between the characters of a grapheme cluster.

    A cluster is what a reader takes for one character, such as a letter with its accents, a flag, or a family in one
    picture (Unicode Standard Annex 29). The tokenizers library finds them; it knows all rules of the annex but the
    newest, that of conjuncts in the scripts of India. A line end of two characters is left out: no answer begins or
    ends with white space.
    """
    if text.isascii():
        return frozenset()
    from tokenizers import Regex, pre_tokenizers

    clusters = pre_tokenizers.Split(Regex(r"\X"), "isolated")
    return frozenset(
        place
        for match in _BEYOND_ASCII.finditer(text)
        for _, (first, stop) in clusters.pre_tokenize_str(match.group())
        for place in range(match.start() + first + 1, match.start() + stop)
    )
