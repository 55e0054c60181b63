"""Patterns of attention as a config keeps them: one entry a layer, from a short text, a mapping or a pattern.

A text is layers with ``/`` between, from the lowest to the highest. Where there are fewer than the model has, they are
repeated in turn: ``"window=128/full"`` alternates local and full layers. A layer is items with commas between:

    window=256          256 tokens, half of them on each side, counted as ``attention_window`` counts them
    window=100:20       100 tokens before and 20 behind
    full                every token
    dilation=2          the gap between the window's tokens; ``dilation=1:1:2:4`` is one for each head
    causal              no later token; ``window=256`` is then its 128 earlier ones
    global=0:1:2        these positions are global; ``global=none``: those that a batch names are not
    global-ids=2:3      tokens with these ids are global
    global-every=64     every 64th token is, from the first

Without ``window`` or ``full`` a layer has the window and the dilation that ``attention_window`` and
``attention_dilation`` say. Parts with ``+`` between are a union: ``window=64+window=16,dilation=8`` sees what either
sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from longformer.errors import ConfigError, quoted, unknown_name

KEY = "attention_pattern"
FULL = "full"
MOST = 2**31  # the farthest that a pattern of the kernels reaches
ITEMS = ("window", "full", "dilation", "causal", "global", "global-ids", "global-every")


@dataclass(frozen=True, kw_only=True)
class GlobalEntry:
    """Which tokens of a layer are global, beside those that a batch names.

    positions: counted from the first token of the row. token_ids: wherever these ids stand. every: n is every n-th
    token from the first. only_these: those that a batch names are not global in this layer.
    """

    positions: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()
    every: tuple[int, ...] = ()
    only_these: bool = False

    def union(self, other: GlobalEntry | None) -> GlobalEntry:
        """What either names."""
        if other is None:
            return self
        joined = {name: tuple(sorted({*getattr(self, name), *getattr(other, name)})) for name in _LISTS}
        return GlobalEntry(**joined, only_these=self.only_these or other.only_these)


@dataclass(frozen=True, kw_only=True)
class LayerEntry:
    """The pattern of one layer.

    window: (left, right), or ``"full"``; None is that of ``attention_window``.
    dilation: one for all heads, or one for each; None is that of ``attention_dilation``.
    union: parts of which the layer sees what any sees; window, dilation and causal are then said of the parts.
    function: name of a function that the layer was made with. A config cannot keep it, only that there was one.
    """

    window: tuple[int, int] | str | None = None
    dilation: int | tuple[int, ...] | None = None
    causal: bool = False
    global_tokens: GlobalEntry | None = None
    union: tuple[LayerEntry, ...] = ()
    function: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The entry in ``config.json``: what is not said is left out."""
        found: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                found[field.name] = list(value) if isinstance(value, tuple) else value
        if self.union:
            found["union"] = [part.as_json() for part in self.union]
        if self.global_tokens is not None:
            named = {name: getattr(self.global_tokens, name) for name in _LISTS}
            found["global_tokens"] = {name: list(value) for name, value in named.items() if value}
            if self.global_tokens.only_these:
                found["global_tokens"]["only_these"] = True
        return found


_LISTS = ("positions", "token_ids", "every")
_KEYS = tuple(field.name for field in fields(LayerEntry))
_GLOBAL_KEYS = tuple(field.name for field in fields(GlobalEntry))


def entries_of(given: object, layers: int, heads: int, vocabulary: int) -> tuple[LayerEntry, ...] | None:
    """One entry for each layer, checked; None for None.

    Args:
        given: a text, a mapping such as ``{"window": [64, 0], "causal": True}``, an entry, a pattern of
            ``longformer.kernels``, or a list of these.
        layers, heads, vocabulary: how many the model has.

    Raises:
        ConfigError: it contradicts itself or does not fit the model. The message gives the value and the remedy.
    """
    if given is None:
        return None
    found = [entry for part in _parts(given) for entry in _entries(part)]
    if not found:
        raise ConfigError(f"{KEY} is {quoted(given)}; name the pattern of at least one layer, or leave it out")
    if len(found) > layers:
        raise ConfigError(f"{KEY} lists {len(found)} layers for num_hidden_layers {layers}; give at most that many")
    for entry in found:
        _check(entry, heads, vocabulary)
    return tuple(found[layer % len(found)] for layer in range(layers))


def _parts(given: object) -> Sequence[object]:
    is_list = isinstance(given, Sequence) and not isinstance(given, (str, bytes))
    return given if is_list else (given,)  # type: ignore[return-value]


def _entries(given: object) -> list[LayerEntry]:
    if isinstance(given, str):
        return [_from_text(layer, given) for layer in given.split("/")]
    if isinstance(given, Mapping):
        return [_from_mapping(given)]
    if isinstance(given, LayerEntry):
        return [given]
    as_entry = getattr(given, "as_entry", None)
    if as_entry is None:
        raise ConfigError(
            f"{KEY} is {quoted(given)}; it must be a text such as 'window=128/full', a mapping such as "
            "{'window': [64, 0], 'causal': True}, a pattern, or a list of these"
        )
    return [_from_mapping(as_entry())]


# ---- from a text


def _from_text(text: str, whole: str) -> LayerEntry:
    if not text.strip():
        raise ConfigError(
            f"{KEY} {quoted(whole)}: a layer is empty; each must say something, such as window=64 or full"
        )
    parts = [_part_from_text(part) for part in text.split("+")]
    if len(parts) == 1:
        return parts[0]
    named: GlobalEntry | None = None
    for part in parts:
        if part.global_tokens is not None:
            named = part.global_tokens.union(named)
    return LayerEntry(union=tuple(replace(part, global_tokens=None) for part in parts), global_tokens=named)


def _part_from_text(text: str) -> LayerEntry:
    found: dict[str, Any] = {}
    chosen: dict[str, tuple[int, ...]] = {}
    only_these = named = False
    if not text.strip():
        raise ConfigError(f"{KEY}: a part before or behind a '+' is empty; each must say something, such as window=64")
    for item in (item.strip() for item in text.split(",")):
        name, has_value, value = (part.strip() for part in item.partition("="))
        if name not in ITEMS:
            raise ConfigError(f"{KEY} {quoted(text)}: {unknown_name(name, ITEMS, 'item of a pattern')}")
        if bool(has_value) == (name in ("full", "causal")):
            raise ConfigError(f"{KEY} {quoted(text)}: {name} takes {'no' if has_value else 'a'} value")
        entry: Any
        if name in ("full", "causal"):
            key, entry = ("window", FULL) if name == "full" else ("causal", True)
        elif name.startswith("global"):
            if name == "global" and value == "none":
                only_these = True
            else:
                key = {"global": "positions", "global-ids": "token_ids", "global-every": "every"}[name]
                chosen[key] = (*chosen.get(key, ()), *_numbers(value, item, text))
            named = True
            continue
        else:
            key, entry = name, _numbers(value, item, text)
            entry = entry[0] if len(entry) == 1 else entry
        if key in found:
            raise ConfigError(f"{KEY} {quoted(text)} says {key} twice; say it once")
        found[key] = entry
    if named:
        found["global_tokens"] = {**chosen, "only_these": only_these}
    return _from_mapping(found)


def _numbers(value: str, item: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in value.split(":"))
    except ValueError:
        raise ConfigError(
            f"{KEY} {quoted(text)}: {quoted(item)} must be a whole number, or several with ':' between"
        ) from None


# ---- from a mapping, as config.json has it


def _from_mapping(given: Mapping[Any, Any]) -> LayerEntry:
    for key in given:
        if key not in _KEYS:
            raise ConfigError(f"{KEY}: {unknown_name(str(key), _KEYS, 'entry of a pattern')}")
    found = dict(given)
    causal = found.get("causal", False)
    _require(isinstance(causal, bool), "causal", causal, "true or false")
    if "window" in found:
        found["window"] = _window(found["window"], causal)
    dilation = found.get("dilation")
    if isinstance(dilation, (list, tuple)):
        found["dilation"] = tuple(dilation)
    if found.get("global_tokens") is not None:
        found["global_tokens"] = _global_entry(found["global_tokens"])
    union = found.get("union", ())
    _require(isinstance(union, (list, tuple)), "union", union, "a list of patterns")
    found["union"] = tuple(entry for part in union for entry in _entries(part))
    return LayerEntry(**found)


def _window(window: object, causal: bool) -> tuple[int, int] | str:
    if window is None or window == FULL:
        return FULL
    if _is_count(window, 1):
        assert isinstance(window, int)
        return (window // 2, 0 if causal else window // 2)
    if isinstance(window, (list, tuple)) and len(window) == 2 and all(_is_count(side, 0) for side in window):
        return (window[0], window[1])
    raise ConfigError(
        f"{KEY}: window is {quoted(window)}; it must be an int >= 1, two ints >= 0 (left and right), or 'full'"
    )


def _global_entry(given: object) -> GlobalEntry:
    if isinstance(given, GlobalEntry):
        return given
    if given == "none":
        return GlobalEntry(only_these=True)
    _require(isinstance(given, Mapping), "global_tokens", given, "'none', or a mapping of positions, token_ids, every")
    assert isinstance(given, Mapping)
    found: dict[str, Any] = {}
    for key, value in given.items():
        if key not in _GLOBAL_KEYS:
            raise ConfigError(f"{KEY}: {unknown_name(str(key), _GLOBAL_KEYS, 'choice of global tokens')}")
        if key == "only_these":
            _require(isinstance(value, bool), key, value, "true or false")
            found[key] = value
            continue
        numbers = (value,) if _is_count(value, 0) else value
        least = 1 if key == "every" else 0
        valid = isinstance(numbers, (list, tuple)) and all(_is_count(number, least) for number in numbers)
        _require(valid, f"global_tokens {key}", value, f"an int >= {least}, or a list of such ints")
        found[key] = tuple(sorted(set(numbers)))
    return GlobalEntry(**found)


# ---- what contradicts itself


def _check(entry: LayerEntry, heads: int, vocabulary: int) -> None:
    window, dilation = entry.window, entry.dilation
    if entry.function is not None:
        _require(isinstance(entry.function, str), "function", entry.function, "the name of a function")
    if entry.union:
        if (window, dilation, entry.causal) != (None, None, False):
            raise ConfigError(f"{KEY}: a union says window, dilation and causal of its parts; leave them out beside it")
        for part in entry.union:
            if part.global_tokens is not None or part.union:
                raise ConfigError(f"{KEY}: a part of a union is a plain window; say global tokens beside the union")
            _check(part, heads, vocabulary)
    if entry.causal and isinstance(window, tuple) and window[1]:
        raise ConfigError(
            f"{KEY}: window is {window} and causal is true, but a causal layer sees no later token; give the window "
            f"({window[0]}, 0), or leave causal out"
        )
    if dilation is not None:
        if window == FULL:
            raise ConfigError(
                f"{KEY}: dilation is {quoted(dilation)} without a window; give a window, since a full layer has no gaps"
            )
        gaps = dilation if isinstance(dilation, tuple) else (dilation,)
        valid = bool(gaps) and all(_is_count(gap, 1) for gap in gaps)
        _require(valid, "dilation", dilation, "an int >= 1, or a list of one such int for each head")
        if isinstance(dilation, tuple) and len(dilation) != heads:
            raise ConfigError(
                f"{KEY}: dilation lists {len(dilation)} gaps for num_attention_heads {heads}; give one for each head, "
                "or a single number for all"
            )
    beyond = [number for number in (entry.global_tokens or GlobalEntry()).token_ids if number >= vocabulary]
    if beyond:
        raise ConfigError(f"{KEY}: global token id {beyond[0]} is not in the vocabulary of {vocabulary} ids")


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= MOST


def _require(holds: bool, name: str, value: object, must: str) -> None:
    if not holds:
        raise ConfigError(f"{KEY}: {name} is {quoted(value)}; it must be {must}")
