"""What goes wrong because of what the user gave us: one family of exceptions, each message names value and remedy."""

import difflib
from collections.abc import Sequence


class LongformerError(ValueError):
    """Bad input of any kind. The command line prints its message alone and exits with status 2."""


class ConfigError(LongformerError):
    """A config.json, or arguments of ``LongformerConfig``, that describe no Longformer."""


class CheckpointError(LongformerError):
    """A checkpoint that cannot be found, read, or fitted to the model."""


class DataError(LongformerError):
    """A question, document or data file that cannot be used."""


def in_one_line(error: BaseException) -> str:
    """An exception's kind and reason, in one line of a message."""
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no reason given'}"


def listed(items: Sequence[str], *, most: int = 8, separator: str = ", ") -> str:
    """The first ``most`` items as a list in a message, with a count of the rest."""
    rest = len(items) - most
    return separator.join(items[:most]) + (f" and {rest} more" if rest > 0 else "")


def unknown_name(name: str, known: Sequence[str], kind: str) -> str:
    """The message for a name that is none of the known ones, with the one that is probably meant.

    Args:
        name: as the user wrote it.
        known: all names that there are.
        kind: what they name, as in "option of the tokenizer".
    """
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    meant = f"did you mean {nearest[0]!r}? There are" if nearest else "there are"
    return f"{name!r} is no {kind}; {meant} {', '.join(known)}"
