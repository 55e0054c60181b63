"""What goes wrong because of what the user gave us: one family of exceptions, each message names value and remedy."""

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

LONGEST_WORD = 400  # characters of a message that follow each other without a space, such as those of a path
LONGEST_MESSAGE = 2000  # characters
LONGEST_VALUE = 200  # characters of a value in a message


class LongformerError(ValueError):
    """Bad input of any kind. The command line prints its message alone and exits with status 2.

    A message that quotes what the user gave stays one readable line, whatever that was: see :func:`presentable`.
    """

    def __str__(self) -> str:
        return presentable(super().__str__())


class ConfigError(LongformerError):
    """A config.json, or arguments of ``LongformerConfig``, that describe no Longformer."""


class CheckpointError(LongformerError):
    """A checkpoint that cannot be found, read, or fitted to the model."""


class DataError(LongformerError):
    """A question, document or data file that cannot be used."""


def presentable(message: str) -> str:
    """A message as one line of a readable length.

    Line ends become spaces. Characters that would steer a terminal, and halves of characters, are written as escapes
    such as ``\\x1b``. What is too long is cut in its middle, since a message ends with the remedy.
    """
    if message.isprintable() and len(message) <= LONGEST_WORD:
        return message
    message = " ".join(line.strip() for line in message.splitlines())
    message = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in message)
    message = re.sub(rf"\S{{{LONGEST_WORD + 1},}}", lambda word: _shortened(word[0], LONGEST_WORD), message)
    return _shortened(message, LONGEST_MESSAGE)


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most * 2 // 3]} ... {text[-most // 4 :]}"


def quoted(value: object) -> str:
    """A value as Python writes it, shortened. Python refuses to write an integer of thousands of digits."""
    try:
        text = repr(value)
    except ValueError:
        text = f"a value ({type(value).__name__}) with an integer of thousands of digits"
    return _shortened(text, LONGEST_VALUE)


@contextmanager
def explaining(error: type[LongformerError], what: str) -> Iterator[None]:
    """Raise ``error``, which says ``what`` and why, for any exception of a library that raises nothing more specific.

    Libraries in Rust raise a PanicException, which is no Exception, where they meet what they did not expect.
    """
    try:
        yield
    except LongformerError:
        raise
    except BaseException as failure:
        if not isinstance(failure, Exception) and type(failure).__name__ != "PanicException":
            raise
        raise error(f"{what}: {in_one_line(failure)}") from None


def in_one_line(error: BaseException) -> str:
    """An exception's kind and reason, in one line of a message."""
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no reason given'}"


def listed(items: Sequence[str], *, most: int = 8, separator: str = ", ") -> str:
    """The first ``most`` items as a list in a message, with a count of the rest."""
    rest = len(items) - most
    return separator.join(items[:most]) + (f" and {rest} more" if rest > 0 else "")


MOST_NAMES = 40  # that a message lists


def unknown_name(name: str, known: Sequence[str], kind: str) -> str:
    """The message for a name that is none of the known ones, with the one that is probably meant.

    Args:
        name: as the user wrote it.
        known: all names that there are.
        kind: what they name, as in "option of the tokenizer".
    """
    nearest = difflib.get_close_matches(name[:LONGEST_VALUE], known, n=1, cutoff=0.5)
    meant = f"did you mean {nearest[0]!r}? There are" if nearest else "there are"
    return f"{quoted(name)} is no {kind}; {meant} {_shown(name, known)}"


def _shown(name: str, known: Sequence[str]) -> str:
    """All names, or of very many those that are most like ``name``."""
    if len(known) <= MOST_NAMES:
        return ", ".join(known)
    like = difflib.get_close_matches(name[:LONGEST_VALUE], known, n=6, cutoff=0.0)
    return f"{len(known)}, among them {', '.join(like)}"
