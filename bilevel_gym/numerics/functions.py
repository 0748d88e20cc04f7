"""A person's numbers as tensors, functions of x, and their derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.types import Played

__all__ = ["ArrayLike", "TableFunction", "as_table", "gradients", "rewards_of", "split_flat", "stack_functions", "vjp"]


ArrayLike = Any
"""Anything that NumPy reads as numbers (an array, nested lists), or a tensor."""


def as_table(values: ArrayLike, device: str | torch.device) -> Tensor:
    """A float64 tensor of a person's numbers: tabular work needs that precision, at τ = .001 and γ = .99 logits reach 1e5.

    Raises:
        InvalidProblem: they are no array of numbers.
    """
    try:
        raw = values.detach() if isinstance(values, Tensor) else torch.as_tensor(np.array(values, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise InvalidProblem(f"{str(values)[:80]} cannot be read as an array of numbers ({error}): give rows of one length") from error
    return raw.to(device=device, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class TableFunction:
    """x ↦ function(x, *tables): a function of x with its numbers in the open, so that many such functions become one of a batch.

    Args:
        function: written in torch, broadcasting over leading axes: x [B, D] and tables [B, …] give [B, …].
        tables: what differs from instance to instance.
    """

    function: Callable[..., Tensor]
    tables: tuple[Tensor, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """function(x, *tables)."""
        return self.function(x, *self.tables)


def stack_functions(functions: Sequence[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    """Functions of x as one that maps a batch: each member's x to its own function of it.

    Args:
        functions: B times the same object, or ``TableFunction`` with one ``function`` and tables of one shape.

    Returns:
        a function of x [B, D].

    Raises:
        UnsupportedProblem: they are different functions whose numbers cannot be told from their code.
    """
    first = functions[0]
    if all(function is first for function in functions):
        return first
    if not isinstance(first, TableFunction) or not all(
        isinstance(other, TableFunction) and other.function is first.function for other in functions
    ):
        raise UnsupportedProblem(
            "different functions of x make no batch: write them as numerics.TableFunction(function, tables) with one function, or use vectorization_mode='sync'"
        )
    return TableFunction(first.function, tuple(torch.stack(tables) for tables in zip(*(f.tables for f in functions), strict=True)))  # type: ignore[attr-defined]


def gradients(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    """The gradients of Σ function(*inputs) in each input, by one backward pass; zero where an input is not used."""
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        total = function(*leaves)
        total = total if total.ndim == 0 else total.sum()
        if not total.requires_grad:
            return tuple(torch.zeros_like(leaf) for leaf in leaves)
        found: tuple[Tensor | None, ...] = torch.autograd.grad(total, leaves, allow_unused=True)
    return tuple(torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, found, strict=True))


def vjp(function: Callable[[Tensor], Tensor], x: Tensor, cotangent: Tensor) -> Tensor:
    """(∂function(x)/∂x)ᵀ cotangent, by one backward pass: the shape of x."""
    return gradients(lambda leaf: function(leaf) * cotangent, x)[0]


def split_flat(flat: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Views of a flat parameter vector, in the order of ``shapes``; nothing is copied, and the backward pass is one concatenation.

    Args:
        flat: [P] or [B, P], P the sum of the products of ``shapes``.
        shapes: the shape of each view.

    Returns:
        tensors [B, *shape].
    """
    return [
        part.view(*flat.shape[:-1], *shape)
        for part, shape in zip(flat.split([prod(shape) for shape in shapes], dim=-1), shapes, strict=True)
    ]


def rewards_of(reward: Any, x: Any, played: Played) -> Tensor:
    """r_x of steps that were made, differentiable in x: read from them by a ``TransitionReward``, computed from (s, a) by any other."""
    found: Tensor = (
        reward.of_transitions(x, played) if hasattr(reward, "of_transitions") else reward.along(x, played.states, played.actions)
    )
    return found
