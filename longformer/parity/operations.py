"""Arithmetic in few digits, imitated in float64: every operation's result is rounded up or down by chance.

:class:`Rounding` sees each operation of torch, in the forward and in the backward pass. A result that lies between two
numbers of the imitated precision becomes one of them, the nearer one more often, so that it is right on average. A
result that the precision has is left alone: multiplying by 2, masking or copying costs nothing here either.

A sum of many terms is rounded after every term. How far that moves it depends on the order of summation, and every
order is right. The error that is added here is that of adding the terms one after another. Each of the K roundings is
in proportion to the running sum. Of terms with sum s and sum of squares q, the running sums have a mean square of
s²/3 + q/6 on average over all orders, and of up to q where one large term comes first: (s² + q) / 2 is taken. Sums in
blocks or in pairs have less. Where all terms are equal, the roundings add up as they are, and not by chance. (Higham,
Accuracy and Stability of Numerical Algorithms, chapter 4, has the bounds; the mean over all orders is elementary.)

Chance falls alike on equal numbers of one result. Arithmetic is a function of its arguments, so rows that are equal, as
padding and repeated rows of a batch are, get equal errors, which add up in a sum over them instead of cancelling.

Softmax, LayerNorm, GELU and the like are taken apart into sums, products and functions of one number.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from longformer.kernels.compat import DispatchMode, formulas

aten = torch.ops.aten

# Mean square of one rounding by chance, in units of eps² · x²: 1/6 of a unit's square, where units are between eps/2
# and eps of the number, as numbers with all leading digits (1/m² on average: 3 / (8 ln 2)).
ROUNDING = 3 / (8 * math.log(2)) / 6

EQUAL = 1e-9  # relative spread of terms, squared, up to which they count as equal
LOOSE = 8  # last bits of a float64 by which two numbers may differ that count as equal
_ODD = -0x61C8864680B583EB  # 2^64 over the golden ratio, as an int64: it spreads neighbouring integers evenly

# Operations that torch has as one, and that are computed in at least float32 inside.
_COMPOSED = (
    "native_layer_norm",
    "native_layer_norm_backward",
    "_softmax",
    "_softmax_backward_data",
    "_log_softmax",
    "_log_softmax_backward_data",
    "gelu",
    "gelu_backward",
    "silu",
    "silu_backward",
    "tanh_backward",
    "sigmoid_backward",
    "logsumexp",
    "native_batch_norm",
    "_native_batch_norm_legit",
    "native_group_norm",
    "linalg_vector_norm",
    "_safe_softmax",
    "nll_loss_forward",
    "nll_loss2d_forward",
    "mse_loss",
    "binary_cross_entropy_with_logits",
)
# Functions that libraries of vector mathematics give to within some units in the last place, and not to half a unit.
_UNITS = {aten.rsqrt: 1.0}
_UNITS |= {getattr(aten, name): 1.0 for name in ("exp", "exp2", "expm1", "log", "log2", "log1p", "pow", "sin", "cos")}
_UNITS |= {getattr(aten, name): 3.5 for name in ("erf", "erfc", "tanh", "sigmoid")}
# Operations that torch sums up in the precision of their arguments, as half-precision gradients by tables and factors.
_NARROW = {aten.embedding_dense_backward, aten.index_add, aten.scatter_add, aten.native_layer_norm_backward}
_SCALED = {aten.mul, aten.div}  # operations whose numbers that are no tensors are factors


class Rounding(DispatchMode):
    """While this is open, results in float64 are rounded to numbers of ``dtype``. ``dtype`` may be changed meanwhile.

    Args:
        dtype: the precision that is imitated. For float64 itself, results move by up to one unit in the last place.
        generator: of the random numbers; on the device on which they are drawn.
    """

    def __init__(self, dtype: torch.dtype, generator: torch.Generator) -> None:
        super().__init__()
        self.dtype, self.generator = dtype, generator
        self._narrow = self._paused = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While this is open, nothing is rounded."""
        outer, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = outer

    @property
    def sums(self) -> torch.dtype:
        """The precision of running sums."""
        return self.dtype if self._narrow else wide(self.dtype)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._paused:
            return func(*args, **(kwargs or {}))
        outer, self._narrow = self._narrow, self._narrow or func.overloadpacket in _NARROW
        try:
            return self._rounded(func, args, kwargs or {})
        finally:
            self._narrow = outer

    def _rounded(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result of an operation."""
        if not _is_wide(args):
            return func(*args, **kwargs)
        composed = decompositions().get(func)
        if composed is not None:
            return self._composed(composed, args, kwargs)
        with self:  # an operation that torch itself makes of others
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        if func.overloadpacket in _SCALED:
            args = tuple(self._constant(x) if isinstance(x, float) else x for x in args)
        returns = func._schema.returns
        if any(each.alias_info is not None and not each.alias_info.is_write for each in returns):
            return func(*args, **kwargs)  # a view, which has its base's numbers
        mean_square = _SUMS.get(func.overloadpacket)
        given = None if mean_square is None else mean_square(func, args, kwargs)
        result = func(*args, **kwargs)
        if given is not None:
            result = _map(self._add_error, result, *given)
        elif func.overloadpacket in _UNITS:
            result = self._move(result, _UNITS[func.overloadpacket])
        if returns and returns[0].alias_info is None:
            return _map(self.round, result)
        return self._in_place(result)

    def _composed(self, composed: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """An operation in its parts: those in at least float32, the result in the precision."""
        outer = self.dtype
        self.dtype = self.sums
        try:
            with self:
                result = composed(*args, **kwargs)
        finally:
            self.dtype = outer
        return _map(self.round, result)

    def _constant(self, x: float) -> float:
        """A factor such as 1/√2, which is rounded as all numbers are."""
        given = torch.tensor(x, dtype=torch.float64, device=self.generator.device)
        return float(round_by_chance(given, wide(self.dtype), self.generator))

    def _move(self, x: Tensor, units: float) -> Tensor:
        """``x`` moved by up to so many units in the last place."""
        if x.dtype != torch.float64:
            return x
        share = _shares(x, self.generator).mul_(units * torch.finfo(wide(self.dtype)).eps)
        return x.add_(share * x.masked_fill(x.isinf(), 0))

    def _in_place(self, result: Any) -> Any:
        def write(x: Tensor) -> Tensor:
            return x.copy_(self.round(x)) if x.dtype == torch.float64 else x

        return _map(write, result)

    def _add_error(self, result: Tensor, count: Tensor, squares: Tensor) -> Tensor:
        """``result``, a sum of ``count`` terms whose squares sum up to ``squares``, with its running sums' error."""
        if result.dtype != torch.float64:
            return result
        eps, square = torch.finfo(self.sums).eps, result.square()
        # Of equal terms each rounding may fall the same way. Their sum's square is K times their sum of squares.
        roundings = torch.where(count * squares * (1 - EQUAL) <= square, count * count, count)
        size = square.add_(squares).mul_(roundings).mul_(ROUNDING * eps * eps / 2).sqrt_()
        error = _shares(result, self.generator).mul_(math.sqrt(3))  # with a variance of 1
        return result.add_(size.mul_(error).nan_to_num_(0.0, 0.0, 0.0))

    def round(self, x: Tensor) -> Tensor:
        """``x`` rounded by chance; integers and what is in float32 already are left as they are."""
        if x.dtype == torch.complex128:
            return torch.view_as_complex(round_by_chance(torch.view_as_real(x), self.dtype, self.generator))
        return round_by_chance(x, self.dtype, self.generator) if x.dtype == torch.float64 else x


class CoarsestSeen(DispatchMode):
    """While this is open, it notes in which precision operations give their results. It changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[torch.dtype] = set()

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """What is compiled stays compiled."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        _map(self._see, result)
        return result

    def _see(self, x: Tensor) -> Tensor:
        if x.is_floating_point() and x.dim() > 1:  # and no constant
            self._seen.add(x.dtype)
        return x

    def take(self) -> set[torch.dtype]:
        """The dtypes that were seen since this was last asked."""
        seen, self._seen = self._seen, set()
        return seen


def coarsest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """Of floating-point dtypes the one with the fewest digits."""
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The precision in which sums of ``dtype`` are accumulated."""
    return torch.promote_types(dtype, torch.float32)


def round_by_chance(x: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """``x`` (float64) rounded up or down to a number of ``dtype``, with the chances by which it is right on average."""
    drawn = _draws(x, generator)
    if dtype == torch.float64:
        chance = drawn.remainder_(3).sub_(1)
        return torch.where((x == 0) | ~x.isfinite(), x, (x.contiguous().view(torch.int64) + chance).view(torch.float64))
    info = torch.finfo(dtype)
    bits = 52 + round(math.log2(info.eps))  # of the fraction of a float64, those that the precision has not
    chance = drawn.bitwise_right_shift_(64 - bits).bitwise_and_((1 << bits) - 1)
    # Float64s read as integers are in order: adding a random part of a unit and cutting rounds up as often as it must.
    rounded = (x.contiguous().view(torch.int64) + chance).bitwise_and_(-(1 << bits)).view(torch.float64)
    if dtype == torch.float16:  # small gradients are below its smallest normal number, where units do not shrink
        least = info.tiny * info.eps
        share = chance / float(1 << bits)
        rounded = torch.where(x.abs() < info.tiny, (x / least + share).floor() * least, rounded)
    # The largest float64, with which a model masks scores, must not be rounded to infinity.
    return torch.where(rounded.isfinite(), rounded, x)


def _draws(x: Tensor, generator: torch.Generator) -> Tensor:
    """Random int64s in the shape of ``x`` (float64), whose leading bits are the best; of equal numbers they are equal.

    Each number's bits are hashed with a random key. The last bits are left out: sums of equal rows may differ in them.
    """
    key = torch.empty((), dtype=torch.int64, device=generator.device).random_(generator=generator).to(x.device)
    drawn = (x.contiguous().view(torch.int64) >> LOOSE).bitwise_xor_(key).mul_(_ODD)
    return drawn.bitwise_xor_(drawn >> 32).mul_(_ODD)


def _shares(x: Tensor, generator: torch.Generator) -> Tensor:
    """Random float64s between -1 and 1 in the shape of ``x``; of equal numbers they are equal."""
    return _draws(x, generator).double().mul_(2.0**-63)


@functools.cache
def decompositions() -> dict[Any, Callable[..., Any]]:
    """torch's own formulas for the operations in ``_COMPOSED``."""
    table = formulas([getattr(aten, name) for name in _COMPOSED if hasattr(aten, name)])
    own = {getattr(packet, name): formula for packet, formula in _VARIANCES.items() for name in packet.overloads()}
    return {op: formula for op, formula in {**table, **own}.items() if op._overloadname not in ("out", "grad_input")}


def _variance(x: Tensor, dim: Any = None, correction: Any = None, keepdim: bool = False, **keywords: Any) -> Tensor:
    return _variance_and_mean(x, dim, correction, keepdim, **keywords)[0]


def _variance_and_mean(
    x: Tensor, dim: Any = None, correction: Any = None, keepdim: bool = False, unbiased: bool | None = None
) -> tuple[Tensor, Tensor]:
    """torch.var_mean in two passes, as it is defined. ``correction`` may be the older ``unbiased``."""
    if isinstance(dim, bool):  # var(x, unbiased)
        dim, unbiased = None, dim
    correction = unbiased if correction is None else correction
    dims = list(range(x.dim())) if dim is None or dim == [] else ([dim] if isinstance(dim, int) else list(dim))
    mean = x.mean(dims, keepdim=True)
    count = x.numel() / max(1, mean.numel())
    divisor = max(0.0, count - (1 if correction is None else float(correction)))
    variance = (x - mean).square().sum(dims, keepdim=keepdim) / divisor
    return variance, mean if keepdim else mean.sum(dims)


_VARIANCES: dict[Any, Callable[..., Any]] = {aten.var: _variance, aten.var_mean: _variance_and_mean}


def _is_wide(args: Any) -> bool:
    return any(
        x.dtype in (torch.float64, torch.complex128)
        for each in args
        for x in (each if isinstance(each, (list, tuple)) else (each,))
        if isinstance(x, Tensor)
    )


def _map(function: Callable[..., Tensor], result: Any, *others: Any) -> Any:
    if isinstance(result, Tensor):
        return function(result, *others)
    if isinstance(result, (list, tuple)):
        mapped = [_map(function, *each) for each in zip(result, *others, strict=True)]
        return mapped if isinstance(result, list) else tuple(mapped)
    return result


def _filled(x: Tensor) -> Tensor:
    """How many elements of the last axis are not 0: a term that is 0 costs no rounding."""
    return (x != 0).sum(dim=-1, keepdim=True)


def _is_constant(x: Tensor) -> Tensor:
    """(..., K) to (..., 1): whether all numbers are equal up to float64's own rounding."""
    if not x.shape[-1]:
        return torch.zeros_like(x.sum(dim=-1, keepdim=True), dtype=torch.bool)
    least, most = x.aminmax(dim=-1, keepdim=True)
    return (most - least) <= 1e-12 * torch.maximum(most.abs(), least.abs())


def _squares(x: Tensor, y: Tensor) -> Tensor:
    """Σ x² y² over the axis of a matrix product, from float32, in which numbers near 1 neither overflow nor vanish."""
    largest = [each.abs().amax().clamp(min=torch.finfo(torch.float64).tiny) if each.numel() else 1.0 for each in (x, y)]
    a, b = ((each / most).float().square_() for each, most in zip((x, y), largest, strict=True))
    return (a @ b).double() * (largest[0] * largest[1]) ** 2


def _product(func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
    """Of ``x @ y``."""
    x, y = args[:2]
    if y.dim() == 1:
        return _filled(x).squeeze(-1), _squares(x, y[:, None]).squeeze(-1)
    squares = _squares(x, y)
    constant = _is_constant(x) & _is_constant(y.mT).mT
    if bool(constant.any()):  # where float32 is too coarse to say that the terms are equal
        squares = torch.where(constant, x.shape[-1] * (x[..., :1] * y[..., :1, :]).square(), squares)
    return torch.minimum(_filled(x), _filled(y.mT).mT), squares


def _product_and_sum(func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
    """Of ``beta · bias + alpha · x @ y``."""
    bias, x, y = args[:3]
    beta, alpha = kwargs.get("beta", 1), kwargs.get("alpha", 1)
    count, squares = _product(func, (x, y), {})
    return count + 1, squares * alpha**2 + (bias * beta).square()


def _sum(func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
    """Of a sum or a mean, in which every term is divided."""
    x = args[0]
    dims = args[1] if len(args) > 1 else kwargs.get("dim")
    keepdim = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
    dims = list(range(x.dim())) if dims is None or dims == [] else dims
    count = (x != 0).sum(dim=dims, keepdim=keepdim) if x.dim() else (x != 0).long()
    squares = x.square().sum(dim=dims, keepdim=keepdim) if x.dim() else x.square()
    if func.overloadpacket is aten.mean:
        one = torch.ones((), dtype=x.dtype, device=x.device).expand(x.shape)
        squares = squares / (one.sum(dim=dims, keepdim=keepdim) if x.dim() else one).square()
    return count, squares


def _linear(func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Of an operation whose result is a sum of products of its arguments: of their squares it is the sum of squares."""

    def each(function: Callable[[Tensor], Tensor]) -> tuple[Any, Any]:
        def changed(x: Any) -> Any:
            return function(x) if isinstance(x, Tensor) and x.is_floating_point() else x

        return [changed(x) for x in args], {name: changed(x) for name, x in kwargs.items()}

    count, squares = (func(*positional, **named) for positional, named in (each(_is_filled), each(torch.square)))
    return count, squares


def _is_filled(x: Tensor) -> Tensor:
    return (x != 0).to(x.dtype)


_SUMS: dict[Any, Callable[[Any, Any, Any], tuple[Any, Any]]] = {
    aten.mm: _product,
    aten.bmm: _product,
    aten.mv: _product,
    aten.addmm: _product_and_sum,
    aten.baddbmm: _product_and_sum,
    aten.sum: _sum,
    aten.mean: _sum,
    aten.dot: _linear,
    aten.cumsum: _linear,
    aten.convolution: _linear,
    aten.convolution_backward: _linear,
    aten.index_add: _linear,
    aten.scatter_add: _linear,
    aten.embedding_dense_backward: _linear,
}
