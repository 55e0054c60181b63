"""AnswerSettings: checked once, when they are made."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from typing import Any

import pytest

import longformer
from longformer import AnswerSettings, LongformerError


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_k": 0}, "top_k is 0; it must be an int of at least 1"),
        ({"top_k": None}, "top_k is None"),
        ({"max_answer_tokens": True}, "max_answer_tokens is True"),
        ({"stride": 2.5}, "stride is 2.5"),
        ({"max_length": -1}, "max_length is -1"),
        ({"null_threshold": math.nan}, "null_threshold is nan; it must be a finite number such as 0.0, or None"),
        ({"null_threshold": math.inf}, "null_threshold is inf"),
        ({"null_threshold": "0"}, "null_threshold is '0'"),
        ({"null_threshold": False}, "null_threshold is False"),
        ({"null_rule": "least"}, "null_rule is 'least'; it must be 'same-window' or 'minimum'"),
        ({"null_rule": None}, "null_rule is None"),
        ({"no_overlap": 1}, "no_overlap is 1; it must be True or False"),
        ({"inside_words": "no"}, "inside_words is 'no'; it must be True or False"),
    ],
)
def test_a_value_out_of_range(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(LongformerError, match=message):
        AnswerSettings(**fields)
    with pytest.raises(LongformerError, match=message):
        AnswerSettings.of(AnswerSettings(), fields)


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        AnswerSettings().top_k = 2  # type: ignore[misc]


def test_keywords_change_what_is_given() -> None:
    settings = AnswerSettings(top_k=3, stride=7)
    assert AnswerSettings.of(settings, {}) == settings
    assert AnswerSettings.of(settings, {"stride": None, "null_threshold": 0}) == AnswerSettings(
        top_k=3, null_threshold=0
    )
    assert AnswerSettings.of(None, {"top_k": 2}) == AnswerSettings(top_k=2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "max_answer_token",
            "'max_answer_token' is no setting of an answer; did you mean 'max_answer_tokens'? There are",
        ),
        ("k", "'k' is no setting of an answer; there are top_k, max_answer_tokens, stride, max_length, null_threshold"),
    ],
)
def test_an_unknown_keyword(name: str, message: str) -> None:
    with pytest.raises(LongformerError) as caught:
        AnswerSettings.of(None, {name: 1})
    assert str(caught.value).startswith(message)


def test_public_and_quick_to_import() -> None:
    assert longformer.AnswerSettings is longformer.answering.AnswerSettings
    script = "import sys, longformer.answering; longformer.answering.AnswerSettings(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout.strip() == b"False"
