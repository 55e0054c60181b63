"""Every tolerance of the comparisons with the reference, and why it is what it is."""

from __future__ import annotations

import math

# Equal formulas in float64, where rounding is 1e-16: what is left is a few hundred roundings in another order. A wrong
# formula, say one column too many in a window of 513, is off by 1e-3.
EXACT = 1e-12  # of the largest value, outputs
EXACT_GRADIENT = 1e-11  # of a gradient's norm: sums over all tokens, whose terms largely cancel

# Hidden states and logits in float32, absolute. They have order 1 (up to 7), where one rounding is up to 5e-7, and a
# token's state at layer 12 has been through some 40 sums of 768 to 3072 terms. Two runs of the reference itself whose
# sums are taken in another order are about 5e-6 apart.
FLOAT32 = 1e-5

# A parameter's gradient in float32, norm of the difference over norm of the reference's.
GRADIENT = 1e-5
# Some gradients are small differences of large terms, and float32 has no five digits of them: with weights as at
# initialisation attention is all but uniform, and by query.bias of the last layers the reference's own float32 is
# 1e-5 from the truth. There, the distance from float64 is compared, two single draws of rounding noise.
GRADIENT_RATIO = 2.0

# float16 weights in a file are exact in float32, so that both models compute with the same numbers: FLOAT32 holds.

# Released weights: published figures have the digits that they have.
PUBLISHED_STATE = 1e-4  # absolute, four decimals
PUBLISHED_SUM = 1e-4  # relative, sums of millions of float32
PUBLISHED_LOGIT = 1e-5  # absolute, printed in full; another framework's float32
PUBLISHED_SCORE = 0.5  # exact match and F1 in points: windows over the few longest documents were laid differently


def slack(count: int) -> float:
    """How much further from float64 than the reference ours may seem, as a factor on the root mean square error.

    Both errors are noise of one size, and a root mean square over ``count`` draws is itself uncertain by 1/sqrt(2n),
    the ratio of two by 1/sqrt(n); four standard deviations are allowed. Of fewer than 100 numbers, such as the logits
    of a short row, nothing can be said so. Beyond that 2%: our longest sums are longer (the reference adds a band up
    from three pieces), which costs 0.5% in the states, measured over all layers.
    """
    return 1.02 + 4 / math.sqrt(count) if count >= 100 else math.inf
