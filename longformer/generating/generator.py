"""Text behind a prompt, from a character language model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from longformer.errors import CheckpointError, LongformerError
from longformer.generating.characters import Characters
from longformer.hub import PathOrName
from longformer.models.generation import Sampling, next_tokens
from longformer.models.generation import generate as generate  # beside what it serves
from longformer.models.heads import LongformerForCausalLM


class TextGenerator:
    """A character language model with its vocabulary.

    Args:
        model: in ``eval()`` mode.
        characters: its vocabulary.

    Raises:
        CheckpointError: they do not belong together.
    """

    def __init__(self, model: LongformerForCausalLM, characters: Characters) -> None:
        if model.config.vocab_size != len(characters):
            raise CheckpointError(
                f"the model has {model.config.vocab_size} token ids and the vocabulary {len(characters)}; give the "
                "vocabulary that the model was trained with"
            )
        self.model, self.characters = model, characters

    @classmethod
    def from_pretrained(cls, name_or_path: PathOrName, *, revision: str | None = None, **loading: Any) -> TextGenerator:
        """Load a model that `longformer train lm` wrote.

        Args:
            name_or_path: a folder, or a name on the hub.
            revision: branch, tag or commit on the hub.
            loading: further arguments of :meth:`longformer.LongformerForCausalLM.from_pretrained`, such as ``device``.

        Raises:
            CheckpointError: there is no such model, or it cannot be read.
        """
        characters = Characters.from_pretrained(name_or_path, revision=revision)
        model = LongformerForCausalLM.from_pretrained(name_or_path, revision=revision, new_head=False, **loading)
        return cls(model, characters)

    def generate(self, prompt: str = "", **arguments: Any) -> str:
        """The prompt with what the model makes follow. Arguments and errors are those of :meth:`stream`."""
        return prompt + "".join(self.stream(prompt, **arguments))

    def stream(
        self, prompt: str = "", *, max_characters: int = 256, stop: Sequence[str] = (), **sampling: Any
    ) -> Iterator[str]:
        """The characters that the model makes follow, each as soon as it is drawn.

        Args:
            prompt: what stands before them. Without one the model is given an end of line, or its first character if it
                has none, which is no part of the result.
            max_characters: most characters to make.
            stop: texts, behind the first of which the model stops; it is a part of the result.
            sampling: temperature, top_k, top_p and seed, see :class:`longformer.models.generation.Sampling`.

        Raises:
            DataError: the prompt has a character that is not in the vocabulary.
            LongformerError: a value is out of range, or the text would be longer than the model has positions for.
        """
        chosen = Sampling(**sampling)
        if max_characters < 0:
            raise LongformerError(f"max_characters is {max_characters}; it must be 0 or more")
        if "" in stop:
            raise LongformerError("stop is an empty text, at which every text would end; leave it out")
        known = self.characters.characters
        given = prompt or ("\n" if "\n" in known else known[0])
        ids = self.characters.ids(given, name="the prompt")[None].to(self.model.device)
        longest = self.model.config.max_tokens
        if len(given) + max_characters > longest:
            raise LongformerError(
                f"a prompt of {len(given)} characters and {max_characters} more are {len(given) + max_characters}; the "
                f"model has positions for {longest}: give a shorter prompt, or ask for fewer"
            )
        return self._stream(ids, chosen, max_characters, stop)

    def _stream(self, ids: torch.Tensor, sampling: Sampling, most: int, stop: Sequence[str]) -> Iterator[str]:
        # Apart from `stream`, so that what is wrong with its arguments is said when it is called.
        longest = max(map(len, stop), default=0)
        tail, tokens = "", next_tokens(self.model, ids, sampling)
        for _ in range(most):
            character = self.characters.text(next(tokens).tolist())
            yield character
            tail = (tail + character)[-longest:] if longest else ""
            if any(tail.endswith(end) for end in stop):
                return
