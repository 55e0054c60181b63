"""The vocabulary of a character language model: the characters of its texts, numbered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longformer.errors import CheckpointError, DataError
from longformer.files import read_json, read_text, write_json
from longformer.hub import PathOrName, find_files

CHARACTERS_FILE = "characters.json"
PADDING = 0  # no character; characters have the numbers from 1 on


class Characters:
    """Characters and their numbers, which are the model's token ids. Number 0 is padding.

    Args:
        characters: all that there are, in the order of their numbers.

    Raises:
        DataError: there are fewer than two, or one stands twice.
    """

    def __init__(self, characters: Sequence[str]) -> None:
        if len(characters) < 2:
            what = f"the one character {characters[0]!r}" if characters else "no character"
            raise DataError(f"the text has {what}, so there is nothing to foretell; give a text with at least two")
        self.characters = tuple(characters)
        self._ids = {character: number for number, character in enumerate(characters, 1)}
        if len(self._ids) < len(characters):
            twice = next(character for character in characters if characters.count(character) > 1)
            raise DataError(f"the character {twice!r} stands twice in a vocabulary; it must have one number")

    @classmethod
    def of(cls, texts: Iterable[str]) -> Characters:
        """The characters of some texts, in the order of Unicode."""
        return cls(sorted(set().union(*texts)))

    def __len__(self) -> int:
        """How many token ids there are, padding included."""
        return 1 + len(self.characters)

    def ids(self, text: str, *, name: str = "the text") -> Tensor:
        """The numbers of a text's characters, (N,) int64.

        Raises:
            DataError: a character is not in the vocabulary. The message calls the text ``name``.
        """
        try:
            return torch.tensor([self._ids[character] for character in text], dtype=torch.int64)
        except KeyError as missing:
            unknown = missing.args[0]
            raise DataError(
                f"{name} has the character {unknown!r} at {text.index(unknown)}, which is not among the "
                f"{len(self.characters)} of the model; leave it out, or train a model on a text that has it"
            ) from None

    def text(self, ids: Iterable[int]) -> str:
        """The text of some numbers. Padding is nothing."""
        return "".join(self.characters[number - 1] for number in ids if number != PADDING)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``characters.json``. Raises DataError where that fails."""
        write_json(Path(folder) / CHARACTERS_FILE, {"characters": "".join(self.characters)})

    @classmethod
    def from_pretrained(cls, name_or_path: PathOrName, *, revision: str | None = None, **where: Any) -> Characters:
        """The vocabulary of a checkpoint: a folder, or a name on the hub.

        Raises:
            CheckpointError: it has none, or a file that is none.
        """
        found = find_files(name_or_path, [CHARACTERS_FILE], revision=revision, **where)
        if CHARACTERS_FILE not in found:
            raise CheckpointError(
                f"{name_or_path} has no {CHARACTERS_FILE}; it is no character language model, which `longformer train "
                "lm` makes"
            )
        path = found[CHARACTERS_FILE]
        characters = read_json(path, error=CheckpointError).get("characters")
        if not isinstance(characters, str):
            raise CheckpointError(f'{path} must hold a text "characters"')
        try:
            return cls(characters)
        except DataError as error:
            raise CheckpointError(f"{path}: {error}") from None


def read_characters(path: str | Path) -> str:
    """The text of a file, with \\n at the ends of lines.

    Raises:
        DataError: it cannot be read or is empty.
    """
    text = read_text(path).replace("\r\n", "\n").replace("\r", "\n")
    if not text:
        raise DataError(f"{path} is empty")
    return text
