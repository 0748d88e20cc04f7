"""What a perceptron computes: by torch's own operations, or as one node of the graph by the quickest products for float32 on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from bilevel_gym.numerics import split_flat

__all__ = ["affine", "leaky_perceptron", "plain_perceptron"]

WORTH_IT = 2**20
"""Multiplications from which on a call of oneDNN, which costs some microseconds more, is the quicker one."""

LARGE = 2**24
"""The same for a product over the rows, which it has to turn round first."""


def leaky_perceptron(slope: float, shapes: Sequence[tuple[int, ...]], inputs: Tensor, flat: Tensor) -> Tensor:
    """Affine layers with leaky ReLUs between them, for one network or for a population of them side by side.

    One network in float32 on a CPU is one node of the graph, which can be differentiated twice, the second time at the plain price.
    Torch sends products to MKL, which leaves AVX-512 alone on AMD's processors: a third of the time for wide layers, and for narrow ones
    the bookkeeping of every layer, are saved by this (``benchmarks/reward_learning.py``).

    Args:
        slope: of the leaky ReLU, 0 or more.
        shapes: weight [out, in] and bias [out] in turn.
        inputs: [n, in], or [B or 1, n, in].
        flat: [P] weights row by row and biases in turn, or [B, P] for a population.

    Returns:
        [n, out], or [B, n, out].
    """
    if not _fits(flat):
        return plain_perceptron(slope, shapes, inputs, flat)
    if torch.is_grad_enabled() and (flat.requires_grad or inputs.requires_grad):
        outputs: Tensor = _Fused.apply(slope, shapes, inputs, flat)  # type: ignore[no-untyped-call]
        return outputs
    return _forward(slope, _views(flat, shapes), inputs)[-1]


def plain_perceptron(slope: float, shapes: Sequence[tuple[int, ...]], inputs: Tensor, flat: Tensor) -> Tensor:
    """The same by torch's own operations."""
    parameters = split_flat(flat, shapes)
    units = affine(inputs, *parameters[:2])
    for weight, bias in zip(parameters[2::2], parameters[3::2], strict=True):
        units = affine(functional.leaky_relu(units, slope), weight, bias)
    return units


def affine(units: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Wu + b: [n, in], [out, in], [out] → [n, out]; for a population [B or 1, n, in], [B, out, in], [B, out] → [B, n, out]."""
    if weight.ndim == 2:
        return functional.linear(units, weight, bias)
    return torch.baddbmm(bias.unsqueeze(-2), units.expand(len(weight), -1, -1), weight.mT)


def _fits(flat: Tensor) -> bool:
    """Whether ``_Fused`` takes a network with these parameters: one alone, in float32 on a CPU, outside of autocast."""
    return (
        flat.ndim == 1
        and flat.is_contiguous()
        and flat.dtype == torch.float32
        and flat.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


class _Fused(Function):
    @staticmethod
    def forward(ctx: Any, slope: float, shapes: Sequence[tuple[int, ...]], inputs: Tensor, flat: Tensor) -> Tensor:
        parameters = _views(flat, shapes)
        *units, outputs = _forward(slope, parameters, inputs)
        ctx.slope, ctx.shapes = slope, shapes
        ctx.save_for_backward(flat, *parameters[::2], *units)
        return outputs

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        flat, *saved = ctx.saved_tensors
        weights, units = saved[: len(saved) // 2], saved[len(saved) // 2 :]
        wanted = ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():  # the derivative will be differentiated again
            leaves = [leaf for leaf, want in zip((units[0], flat), wanted, strict=True) if want]
            outputs = plain_perceptron(ctx.slope, ctx.shapes, units[0], flat)
            found = iter(torch.autograd.grad(outputs, leaves, cotangent, create_graph=True))
            return (None, None, *(next(found) if want else None for want in wanted))
        gradients: list[Tensor] = []
        for layer in reversed(range(len(units))):
            above = cotangent
            if layer or wanted[0]:
                cotangent = _product(cotangent, weights[layer].mT, None)
            if layer:
                # In place: it is the product of the line above, and nobody else's.
                torch.ops.aten.leaky_relu_backward.grad_input(cotangent, units[layer], ctx.slope, True, grad_input=cotangent)
            if wanted[1]:
                gradients[:0] = [_over_rows(above, units[layer]).flatten(), above.sum(0)]
        return (None, None, cotangent if wanted[0] else None, torch.cat(gradients) if wanted[1] else None)


def _forward(slope: float, parameters: Sequence[Tensor], inputs: Tensor) -> list[Tensor]:
    """The inputs of each layer, and the outputs."""
    units = [inputs]
    for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        units.append(_product(units[-1], weight, bias, slope))
    return [*units, _product(units[-1], parameters[-2], parameters[-1])]


def _views(flat: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """``split_flat`` of a vector where nothing is differentiated, in half of its time."""
    found, start = [], flat.storage_offset()
    for shape in shapes:
        found.append(flat.as_strided(shape, (shape[-1], 1)[-len(shape) :], start))
        start += prod(shape)
    return found


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None, slope: float | None = None) -> Tensor:
    """Wu + b for each row u, or its leaky ReLU where there is a slope: [n, in], [out, in], [out] → [n, out]."""
    if rows.shape[1] == 1 and bias is None:
        return rows * weight.mT
    if rows.shape[0] * weight.numel() < WORTH_IT:
        small = functional.linear(rows, weight, bias)
        return small if slope is None else functional.leaky_relu_(small, slope)
    after: tuple[str, list[float]] = ("none", []) if slope is None else ("leaky_relu", [slope])
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, *after, "")
    return product


def _over_rows(left: Tensor, right: Tensor) -> Tensor:
    """Σ_n left_n right_nᵀ: [n, out], [n, in] → [out, in]."""
    if left.numel() * right.shape[-1] < LARGE:
        return (right.mT @ left).mT
    return _product(left.mT, right.mT, None)
