"""Why an answer was chosen: attention of every layer and head, rollout and scores, as a page or a still picture."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longformer.explain.explanation import Explanation, explain
    from longformer.explain.page import write_page
    from longformer.explain.picture import write_picture

__all__ = ["Explanation", "explain", "write_page", "write_picture"]

# As in longformer/__init__.py: the command line imports this package, and has no need of torch to print its help.
_HOMES = {
    "Explanation": "explanation",
    "explain": "explanation",
    "write_page": "page",
    "write_picture": "picture",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
