"""What a perceptron computes: by torch's own operations, or as one node of the graph by the quickest products for float32 on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

__all__ = ["affine", "leaky_perceptron", "plain_perceptron"]

WORTH_IT = 2**20
"""Multiplications from which on a call of oneDNN, which costs some microseconds more, is the quicker one."""

LARGE = 2**24
"""The same for a product over the rows, which it has to turn round first."""


def leaky_perceptron(slope: float, inputs: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Affine layers with leaky ReLUs between them, for one network or for a population of them side by side.

    One network in float32 on a CPU is one node of the graph, which can be differentiated twice, the second time at the plain price.
    Torch sends products to MKL, which leaves AVX-512 alone on AMD's processors: a third of the time for wide layers, and for narrow ones
    the bookkeeping of every layer, are saved by this (``benchmarks/reward_learning.py``).

    Args:
        slope: of the leaky ReLU, 0 or more.
        inputs: [n, in], or [B or 1, n, in].
        parameters: weight [out, in] and bias [out] in turn, each with a leading axis B for a population.

    Returns:
        [n, out], or [B, n, out].
    """
    if not _fits(parameters[0]):
        return plain_perceptron(slope, inputs, parameters)
    outputs: Tensor = _Fused.apply(slope, inputs, *parameters)  # type: ignore[no-untyped-call]
    return outputs


def plain_perceptron(slope: float, inputs: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The same by torch's own operations."""
    units = affine(inputs, *parameters[:2])
    for weight, bias in zip(parameters[2::2], parameters[3::2], strict=True):
        units = affine(functional.leaky_relu(units, slope), weight, bias)
    return units


def affine(units: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Wu + b: [n, in], [out, in], [out] → [n, out]; for a population [B or 1, n, in], [B, out, in], [B, out] → [B, n, out]."""
    if weight.ndim == 2:
        return functional.linear(units, weight, bias)
    return torch.baddbmm(bias.unsqueeze(-2), units.expand(len(weight), -1, -1), weight.mT)


def _fits(weight: Tensor) -> bool:
    """Whether ``_Fused`` takes a network with this first weight: one alone, in float32 on a CPU, outside of autocast."""
    return (
        weight.ndim == 2
        and weight.dtype == torch.float32
        and weight.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


class _Fused(Function):
    @staticmethod
    def forward(ctx: Any, slope: float, inputs: Tensor, *parameters: Tensor) -> Tensor:
        units = [inputs]
        for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
            if len(units) > 1:
                functional.leaky_relu_(units[-1], slope)
            units.append(_product(units[-1], weight, bias))
        ctx.slope = slope
        ctx.save_for_backward(*units[:-1], *parameters)
        return units[-1]

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        tensors, wanted = ctx.saved_tensors, ctx.needs_input_grad[1:]
        layers = len(tensors) // 3
        units, parameters = tensors[:layers], tensors[layers:]
        if torch.is_grad_enabled():  # the derivative will be differentiated again
            leaves = [leaf for leaf, want in zip((units[0], *parameters), wanted, strict=True) if want]
            outputs = plain_perceptron(ctx.slope, units[0], parameters)
            found = iter(torch.autograd.grad(outputs, leaves, cotangent, create_graph=True))
            return (None, *(next(found) if want else None for want in wanted))
        gradients: list[Tensor] = []
        for layer in reversed(range(layers)):
            gradients[:0] = [_over_rows(cotangent, units[layer]), cotangent.sum(0)]
            if layer or wanted[0]:
                cotangent = _product(cotangent, parameters[2 * layer].mT, None)
            if layer:
                # In place: it is the product of the line above, and nobody else's.
                torch.ops.aten.leaky_relu_backward.grad_input(cotangent, units[layer], ctx.slope, True, grad_input=cotangent)
        return (None, cotangent if wanted[0] else None, *gradients)


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Wu + b for each row u: [n, in], [out, in], [out] → [n, out]."""
    if rows.shape[0] * weight.numel() < WORTH_IT:
        return functional.linear(rows, weight, bias)
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return product


def _over_rows(left: Tensor, right: Tensor) -> Tensor:
    """Σ_n left_n right_nᵀ: [n, out], [n, in] → [out, in]."""
    if left.numel() * right.shape[-1] < LARGE:
        return (right.mT @ left).mT
    return _product(left.mT, right.mT, None)
