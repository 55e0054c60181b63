"""Words and grapheme clusters: what an answer must not cut."""

from __future__ import annotations

import itertools
import unicodedata

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from longformer.answering.texts import LONGEST_WORD, check_text, inside_graphemes, whole_words
from longformer.errors import DataError

# What clusters are made of: marks, joiners, selectors, flags, emoji and their modifiers, Hangul parts, prefixes.
PARTS = [
    *"ae1 -\n\r",
    *"é\u0301\u0308\u0323",
    *"\u200d\u200c\ufe0f\u20e3\u00ad",
    *"👨👩👧👍❤\U0001f3fd\U0001f3ff",
    *"🇩🇪🇫",
    *"\u1100\u1161\u11a8각가",
    *"漢カ\uff9e",
    *"กำ\u0e31",
    *"\u0600\u06dd",
    *"\U0001f3f4\U000e0067\U000e007f",
]


class TestGraphemes:
    @pytest.mark.parametrize(
        ("text", "clusters"),
        [
            ("Zoe\u0308 sang", ["Z", "o", "e\u0308", " ", "s", "a", "n", "g"]),
            ("👨‍👩‍👧!", ["👨‍👩‍👧", "!"]),
            ("🇩🇪🇫🇷", ["🇩🇪", "🇫🇷"]),
            ("👍🏽❤️", ["👍🏽", "❤️"]),
            ("1️⃣2", ["1️⃣", "2"]),
            ("\u1100\u1161\u11a8각", ["\u1100\u1161\u11a8", "각"]),
            ("漢字", ["漢", "字"]),
            ("plain", list("plain")),
            ("Zürich", list("Zürich")),
        ],
    )
    def test_what_a_reader_takes_for_one_character(self, text: str, clusters: list[str]) -> None:
        inside = inside_graphemes(text)
        places = [0, *(i for i in range(1, len(text)) if i not in inside), len(text)]
        assert [text[a:b] for a, b in itertools.pairwise(places)] == clusters

    @given(st.lists(st.sampled_from(PARTS), max_size=30).map("".join))
    def test_by_another_implementation(self, text: str) -> None:
        edges = {0, *(match.end() for match in regex.finditer(r"\X", text))}
        inside = set(range(len(text) + 1)) - edges
        line_ends = {i for i in range(1, len(text)) if text[i - 1 : i + 1] == "\r\n"}
        assert inside_graphemes(text) - line_ends == inside - line_ends


class TestWords:
    @pytest.mark.parametrize(
        ("text", "part", "word"),
        [
            ("the Warsaw's old town", "arsa", "Warsaw"),
            ("the Warsaw's old town", "saw's o", "Warsaw's old"),
            ("it cost $5 then", "5", "5"),
            ("over $5million", "5", "5million"),
            ("the 20th-century", "20th", "20th"),
            ("the 20th-century", "0", "20th"),
            ("1,000 men", "1", "1"),
            ("snake_case", "snak", "snake"),
            ("88 km² large", "km", "km"),
            ("Zu\u0308rich is", "u", "Zu\u0308rich"),
            ("Москва́ была", "оск", "Москва́"),
            ("नमस्ते दुनिया", "म", "नमस्ते"),
            ("東京は日本の首都", "日本", "日本"),
            ("กรุงเทพมหานคร", "เทพ", "เทพ"),
            ("서울에서 만났다", "서울", "서울"),
            ("東京2020年", "02", "2020"),
            ("Ⅷ.", "Ⅷ", "Ⅷ"),
        ],
    )
    def test_the_rule(self, text: str, part: str, word: str) -> None:
        start = text.index(part)
        first, last = whole_words(text, start, start + len(part))
        assert text[first:last] == word

    def test_what_is_too_long_is_no_word(self) -> None:
        genome = "ACGT" * LONGEST_WORD
        assert whole_words(genome, 200, 204) == (200, 204)
        assert whole_words("a" * 150, 80, 90) == (0, 150)  # on either side fewer than the most
        assert whole_words(f"{genome} abc", len(genome) + 2, len(genome) + 3) == (len(genome) + 1, len(genome) + 4)

    @given(st.text("ab1 -é\u0301漢", min_size=1, max_size=20), st.data())
    def test_no_edge_is_left_inside_a_word(self, text: str, data: st.DataObject) -> None:
        start = data.draw(st.integers(0, len(text) - 1))
        end = data.draw(st.integers(start + 1, len(text)))

        def joined(place: int) -> bool:
            return 0 < place < len(text) and all(
                (unicodedata.category(c)[0] in "LM" or c.isdigit()) and c != "漢" for c in text[place - 1 : place + 1]
            )

        first, last = whole_words(text, start, end)
        assert first <= start < end <= last and not joined(first) and not joined(last)
        assert all(joined(i) for i in range(first + 1, start + 1)) and all(joined(i) for i in range(end, last))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the context is empty; give text"),
        ("\ufeff \n", "the context is blank; give text"),
        (None, "the context is of type NoneType, not str; give a str"),
        ("Dan \ud83d fell", "the context has U+D83D at character 4, half of a character"),
    ],
)
def test_what_is_no_text(text: object, message: str) -> None:
    with pytest.raises(DataError) as caught:
        check_text("context", text)
    assert str(caught.value).startswith(message)
