"""Character language models in use: text from a prompt, and how well a model foretells a text.

Read in this order: ``characters``, the vocabulary; ``generator``, text behind a prompt; ``scoring``, bits per
character. ``cli`` has the commands. How a token is drawn says :mod:`longformer.models.generation`.
"""

from typing import TYPE_CHECKING

from longformer.lazy import lazily

if TYPE_CHECKING:
    from longformer.generating.characters import Characters
    from longformer.generating.generator import TextGenerator
    from longformer.generating.scoring import bits_per_character
    from longformer.models.generation import generate

__all__ = ["Characters", "TextGenerator", "bits_per_character", "generate"]

# The command line reads none of them.
_HOMES = {
    "Characters": "characters",
    "TextGenerator": "generator",
    "bits_per_character": "scoring",
    "generate": "generator",
}
__getattr__, __dir__ = lazily(__name__, globals(), _HOMES)
