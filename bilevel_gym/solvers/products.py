"""Which kernels multiply matrices on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

__all__ = ["quick_products"]


@contextmanager
def quick_products(like: Tensor) -> Iterator[None]:
    """Within this, matrices of this dtype on this device are multiplied by the quickest kernels that torch carries.

    torch sends products on a CPU to the BLAS that it was built with. That is MKL on x86, which leaves AVX-512 alone on AMD's
    processors. oneDNN, which torch carries as well, uses it: a 256×256×256 product on two cores of Zen 5 takes 80 µs instead of 160,
    and of two in a batch each has a core of its own (``benchmarks/sac_vs_sb3.py`` measures them).

    torch takes oneDNN for float32 only where its switch ``torch.backends.mkldnn.matmul.fp32_precision`` permits to round factors to
    bfloat16. oneDNN makes use of that where a processor multiplies such numbers faster (AMX on x86), and nowhere else; so the
    switch is touched only where a product shows that nothing is rounded, and set back in the end.
    """
    if like.device.type != "cpu" or like.dtype != torch.float32 or not _exact():
        yield
        return
    with _onednn():
        yield


@contextmanager
def _onednn() -> Iterator[None]:
    switch = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = switch.fp32_precision
    switch.fp32_precision = "bf16"
    try:
        yield
    finally:
        switch.fp32_precision = before


@cache
def _exact() -> bool:
    """Whether there is such a switch (torch 2.9), and float32 stays float32 under it: the last bit of a factor comes out again."""
    if not hasattr(torch.backends.mkldnn, "matmul"):
        return False
    factor = torch.full((2, 256, 256), 1.0 + torch.finfo(torch.float32).eps)
    with _onednn():
        return torch.equal(factor @ torch.eye(256).expand(2, -1, -1), factor)
