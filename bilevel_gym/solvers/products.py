"""Batched matrix products by the quickest kernels that torch carries."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["LARGE", "Product", "product_for"]

Product = Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]
"""(left [C, n, i], right [C, i, o], bias [C, 1, o] or None, out [C, n, o]) → out, which then is left·right + bias."""

LARGE = 2**24
"""n·i·o from which on oneDNN is the quicker one: a call of it costs about 15 µs more, the arithmetic half."""


def product_for(like: Tensor) -> Product:
    """The quickest product for tensors of this dtype on this device.

    torch sends ``bmm`` on a CPU to the BLAS that it was built with. That is MKL on x86, which leaves AVX-512 alone on AMD's
    processors. oneDNN, which torch carries for its compiler, uses it: a 256×256×256 product on two cores of Zen 5 takes 80 µs instead
    of 158 (``benchmarks/sac_vs_sb3.py`` measures both). It has kernels for float32, on CPUs.
    """
    onednn = like.device.type == "cpu" and like.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    return _large_by_onednn if onednn and hasattr(torch.ops.mkldnn, "_linear_pointwise") else _batched


def _batched(left: Tensor, right: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    return torch.bmm(left, right, out=out) if bias is None else torch.baddbmm(bias, left, right, out=out)


def _large_by_onednn(left: Tensor, right: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    copies, rows, columns = out.shape
    if rows * columns * left.shape[-1] < LARGE:
        return _batched(left, right, bias, out)
    for copy in range(copies):
        offset = None if bias is None else bias[copy, 0]
        out[copy] = torch.ops.mkldnn._linear_pointwise(left[copy], right[copy].mT, offset, "none", [], "")
    return out
