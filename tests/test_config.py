"""A config stays what it is: what may be assigned, what may not, and how another one is made."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from tiny_models import CONFIG

from longformer import CheckpointError, ConfigError, LongformerConfig


def test_what_it_has_may_be_assigned() -> None:
    config = CONFIG.replace()
    config.pad_token_id = 1
    config.use_cache = False
    config.attention_window = (8, 8)
    config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    assert config == CONFIG and hash(config) == hash(CONFIG)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("num_labels", 3, r"^num_labels is 2, and a config cannot be changed; make another with config\.replace\("),
        ("id2label", {0: "no"}, r"^id2label is .*; make another with config\.replace\(id2label=\{0: 'no'\}\), and a "),
        ("use_cache", True, r"^use_cache is False, and a config cannot be changed; leave out use_cache=True$"),
        ("head_dim", 5, r"^head_dim is 8, and a config cannot be changed; leave out head_dim=5$"),
        ("num_label", 3, r"^LongformerConfig has no 'num_label', so it cannot be set to 3$"),
    ],
)
def test_anything_else_may_not(name: str, value: Any, message: str) -> None:
    config = CONFIG.replace()
    with pytest.raises(ConfigError, match=message):
        setattr(config, name, value)
    assert config == CONFIG and not hasattr(config, "num_label")
    with pytest.raises(ConfigError, match="cannot be deleted"):
        del config.num_labels
    assert config.num_labels == 2


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))])
def test_copies_do_not_change_either(copied: Any) -> None:
    config = copied(CONFIG)
    assert config == CONFIG
    with pytest.raises(ConfigError, match="vocab_size"):
        config.vocab_size = 61


def test_from_pretrained(tmp_path: Path) -> None:
    CONFIG.save(tmp_path / "config.json")
    assert LongformerConfig.from_pretrained(tmp_path) == CONFIG
    changed = LongformerConfig.from_pretrained(str(tmp_path), num_labels=3, attention_window=16)
    assert changed == CONFIG.replace(num_labels=3, attention_window=16)
    with pytest.raises(CheckpointError, match=r"no has no config\.json; .* loaded with config="):
        (tmp_path / "no").mkdir()
        LongformerConfig.from_pretrained(tmp_path / "no")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ConfigError, match=r"config\.json: config has model_type 'bert'"):
        LongformerConfig.from_pretrained(tmp_path)


def test_its_text_is_the_file(tmp_path: Path) -> None:
    CONFIG.save(tmp_path / "config.json", architectures=["LongformerModel"])
    assert (tmp_path / "config.json").read_text() == CONFIG.to_json_string(architectures=["LongformerModel"])
    assert CONFIG.get_text_config() is CONFIG
