"""Patterns in a config: what may be said, what it means, what is kept, and what contradicts itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_models import CONFIG

from longformer import ConfigError, LongformerConfig
from longformer.kernels import AttentionPattern
from longformer.kernels.global_tokens import GlobalTokens

FULL = AttentionPattern(None)
LOCAL = AttentionPattern((4, 4), (1,) * 4)
CASES: list[tuple[Any, list[Any]]] = [
    ("window=8/full", [LOCAL, FULL]),
    (" window = 8 / full ", [LOCAL, FULL]),
    (["window=8", FULL], [LOCAL, FULL]),
    ("causal", [AttentionPattern((4, 0), (1,) * 4, True)] * 2),
    ({"causal": True, "window": 6, "dilation": 3}, [AttentionPattern((3, 0), 3, True)] * 2),
    ("full,causal", [AttentionPattern(None, causal=True)] * 2),
    ("window=5:1,dilation=1:1:2:4", [AttentionPattern((5, 1), (1, 1, 2, 4))] * 2),
    ("window=8,dilation=2+causal", [AttentionPattern((4, 4), 2) | AttentionPattern((4, 0), (1,) * 4, True)] * 2),
    ("global=none,global=3", [replace(LOCAL, global_tokens=GlobalTokens(3, only_these=True))] * 2),
    ("global=3,global=none", [replace(LOCAL, global_tokens=GlobalTokens(3, only_these=True))] * 2),
    (
        [replace(FULL, global_tokens=GlobalTokens(only_these=True)), "global=0:3,global-ids=2,global-every=9"],
        [
            replace(FULL, global_tokens=GlobalTokens(only_these=True)),
            replace(LOCAL, global_tokens=GlobalTokens((0, 3), (2,), (9,))),
        ],
    ),
]


@pytest.mark.parametrize("given, patterns", CASES, ids=[str(n) for n in range(len(CASES))])
def test_what_a_config_says_is_kept(given: Any, patterns: list[Any], tmp_path: Path) -> None:
    config = CONFIG.replace(attention_pattern=given)
    assert [config.pattern(layer) for layer in range(2)] == patterns
    by_patterns = CONFIG.replace(attention_pattern=patterns)
    assert [by_patterns.pattern(layer) for layer in range(2)] == patterns
    config.save(tmp_path / "config.json")
    read = LongformerConfig.from_file(tmp_path / "config.json")
    assert read == config and hash(read) == hash(config)
    assert [read.pattern(layer) for layer in range(2)] == patterns


def test_what_it_leaves_open_the_windows_say() -> None:
    config = CONFIG.replace(attention_pattern="causal", attention_window=[8, 12], attention_dilation=[1, 3])
    assert config.pattern(1) == AttentionPattern((6, 0), (3,) * 4, True)
    assert config.replace(attention_window=2).pattern(0) == AttentionPattern((1, 0), (1,) * 4, True)


def test_layers_are_repeated_in_turn() -> None:
    config = CONFIG.replace(num_hidden_layers=7, attention_window=8, attention_pattern="window=8/window=8/full")
    assert [config.pattern(layer).window is None for layer in range(7)] == [False, False, True] * 2 + [False]


def test_a_config_without_patterns_is_written_as_before() -> None:
    assert "attention_pattern" not in CONFIG.to_dict()
    assert CONFIG.pattern(0) == LOCAL


def test_transformers_ignores_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = CONFIG.replace(attention_pattern="causal,global=0/full")
    config.save(tmp_path / "config.json")
    theirs = transformers.LongformerConfig.from_pretrained(tmp_path)
    assert transformers.LongformerModel(theirs, add_pooling_layer=False).config.attention_window == [8, 8]
    assert LongformerConfig.from_dict(json.loads(theirs.to_json_string())) == config, "and hands it back"


@pytest.mark.parametrize(
    "given, message",
    [
        ("window=2:2,causal", r"window is \(2, 2\) and causal is true, but .* give the window \(2, 0\), or leave"),
        ({"window": [2, 1], "causal": True}, r"window is \(2, 1\) and causal is true"),
        ("full,dilation=2", "dilation is 2 without a window; give a window"),
        ({"window": "full", "dilation": 2}, "dilation is 2 without a window"),
        ("widow=3", "'widow' is no item of a pattern; did you mean 'window'"),
        ("window", "window takes a value"),
        ("", r"attention_pattern '': a layer is empty; each must say something, such as window=64 or full"),
        ("window=8/", r"attention_pattern 'window=8/': a layer is empty"),
        ("window=64+", r"a part before or behind a '\+' is empty"),
        ("causal=1", "causal takes no value"),
        ("window=3,full", "says window twice; say it once"),
        ("window=a", "'window=a' must be a whole number, or several with ':' between"),
        ("window=0", r"window is 0; it must be an int >= 1, two ints >= 0 \(left and right\), or 'full'"),
        ("window=1:2:3", r"window is \(1, 2, 3\); it must be an int >= 1"),
        ("dilation=0", "dilation is 0; it must be an int >= 1"),
        ("dilation=1:2", "dilation lists 2 gaps for num_attention_heads 4; give one for each head"),
        ("global-ids=60", "global token id 60 is not in the vocabulary of 60"),
        ("global-every=0", "global_tokens every is"),
        ([], r"attention_pattern is \[\]; name the pattern of at least one layer"),
        ("full/full/full", "lists 3 layers for num_hidden_layers 2; give at most that many"),
        ({"windo": 1}, "'windo' is no entry of a pattern; did you mean 'window'"),
        ({"causal": 1}, "causal is 1; it must be true or false"),
        ({"global_tokens": {"position": 1}}, "'position' is no choice of global tokens; did you mean 'positions'"),
        ({"global_tokens": "all"}, "global_tokens is 'all'; it must be 'none', or a mapping"),
        ({"union": ["full", "causal"], "causal": True}, "a union says window, dilation and causal of its parts"),
        ({"union": ["full", "full,global=1"]}, "say global tokens beside the union"),
        ({"union": 3}, "union is 3; it must be a list of patterns"),
        (7, r"attention_pattern is 7; it must be a text such as 'window=128/full', a mapping"),
    ],
)
def test_what_contradicts_itself_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CONFIG.replace(attention_pattern=given)


def test_of_a_function_only_its_name_is_kept() -> None:
    chosen = AttentionPattern((2, 2), global_tokens=GlobalTokens(predicates=lambda ids: ids == 3))
    config = CONFIG.replace(attention_pattern=["full", chosen])
    assert LongformerConfig.from_dict(config.to_dict()) == config
    assert config.pattern(0) == FULL
    with pytest.raises(ConfigError, match="layer 1 was made with the function <lambda>, which a config cannot keep"):
        config.pattern(1)
