"""Pictures: drawn from the kernels' own masks, and written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from longformer.kernels import attention_pairs
from longformer.plotting import draw_pattern, save_patterns

pytest.importorskip("matplotlib", reason="pictures need matplotlib, the extra plot")


def test_a_pattern_is_the_kernels_mask() -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    draw_pattern(axes, 12, (2, 1), dilation=2, global_tokens=(4,))
    drawn = np.asarray(axes.images[0].get_array())
    local = attention_pairs(12, (2, 1), dilation=(2,))[0, 0].numpy()
    rows = np.arange(12) == 4
    is_global = rows[:, None] | rows[None, :]
    assert ((drawn == 2) == is_global).all()
    assert ((drawn == 1) == (local & ~is_global)).all()


def test_the_readmes_picture(tmp_path: Path) -> None:
    save_patterns(tmp_path / "patterns.png")
    assert (tmp_path / "patterns.png").read_bytes().startswith(b"\x89PNG")
