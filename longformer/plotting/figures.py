"""Figures into files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longformer.errors import LongformerError
from longformer.files import write_file


def format_of(path: str | Path) -> str:
    """The format that the ending of ``path`` names, such as "svg"; "png" where it has none, as ``-`` has not."""
    return Path(path).suffix.removeprefix(".").lower() or "png"


def check_format(path: str | Path) -> None:
    """Raise LongformerError where matplotlib has no format of the ending of ``path``."""
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if format_of(path) not in known:
        raise LongformerError(f"{path} cannot be drawn: there are pictures that end in {', '.join(sorted(known))}")


def write_figure(path: str | Path, figure: Any, *, dpi: int) -> None:
    """Write a picture, whole or not at all. The ending of the path, such as ``.png``, sets its format.

    Raises:
        LongformerError: matplotlib has no such format.
        DataError: the file cannot be written.
    """
    check_format(path)
    write_file(path, lambda new: figure.savefig(new, dpi=dpi, format=format_of(path)))
