"""Triton's interpreter, without what it does again for each call of a function inside a kernel."""

from __future__ import annotations

from typing import Any

from triton import language
from triton.runtime import interpreter


def patch_once() -> None:
    """Have the interpreter put its own functions in the language's places once a launch.

    It goes through all names of the language for each call of a function too, where they are replaced already: half of
    its time. The language has two names, ``triton.language`` and its ``core``, and a function may know either.
    """
    patch: Any = getattr(interpreter, "_patch_lang", None)
    scope: Any = getattr(interpreter, "_LangPatchScope", None)
    if patch is None or scope is None:  # of another version, which stays as it is
        return

    def unless_patched(function: Any) -> Any:
        known = [each for each in (language, language.core) if any(x is each for x in function.__globals__.values())]
        done = known and not any(language.core.is_builtin(each.load) for each in known)
        return scope() if done else patch(function)

    interpreter._patch_lang = unless_patched  # type: ignore[assignment]
