"""Pieces of trajectories, and how they are drawn."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.frames import FrameStacks, concatenate_states
from bilevel_gym.types import Fragments, Trajectory

__all__ = ["Cut", "concatenate", "draw_places", "gather", "take", "window_sum"]

Cut = Literal["start", "anywhere"]
"""Where a fragment is cut from its trajectory: at the reset (s_0 ~ ρ), or uniformly."""


def draw_places(
    trajectories: Trajectory, tuples: int, per_tuple: int, length: int, cut: Cut, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw M tuples of I places uniformly; the pieces of one tuple are of different trajectories, hence independent.

    Args:
        trajectories: [N, T]; each is used at most once where there are enough of them.
        tuples: M.
        per_tuple: I ≤ N.
        length: H ≤ T.
        cut: where each piece starts.

    Returns:
        origin [M, I] and offset [M, I].

    Raises:
        InvalidProblem: too few trajectories, or too short ones.
    """
    count, steps = trajectories.alive.shape
    device = trajectories.alive.device
    if count < per_tuple or steps < length:
        raise InvalidProblem(
            f"{tuples} tuples of {per_tuple} fragments of {length} steps do not fit into {count} trajectories of {steps} steps: play more or longer ones"
        )
    if count >= tuples * per_tuple:
        origin = torch.arange(tuples * per_tuple, device=device).view(tuples, per_tuple)
    else:
        origin = torch.rand(tuples, count, generator=generator, device=device).topk(per_tuple, dim=-1).indices
    if cut == "start":
        return origin, torch.zeros_like(origin)
    return origin, torch.randint(steps - length + 1, origin.shape, generator=generator, device=device)


def gather(table: Any, origin: Tensor, offset: Tensor, length: int) -> Any:
    """The pieces of a table of trajectories: [N, T, *], [M, I], [M, I] → [M, I, H, *]; of pictures only theirs are kept."""
    time = offset.unsqueeze(-1) + torch.arange(length, device=offset.device)
    pieces = table[origin.unsqueeze(-1), time]
    return pieces.compact() if isinstance(pieces, FrameStacks) else pieces


def window_sum(weight: Tensor, origin: Tensor, first: Tensor, last: Tensor, shape: tuple[int, int]) -> Tensor:
    """Add each window's weight to every step in it: out[n, t] = Σ of weight[m, i] over the windows of n with first ≤ t < last.

    Args:
        weight: [M, I].
        origin: [M, I] the trajectory of each window.
        first: [M, I] its first step.
        last: [M, I] the step after its last.
        shape: (N, T).

    Returns:
        [N, T]. Cost: O(MI + NT), by a running sum of the differences.
    """
    count, steps = shape
    edges = torch.zeros(count * (steps + 1), dtype=weight.dtype, device=weight.device)
    row = origin.flatten() * (steps + 1)
    edges.index_add_(0, row + first.flatten(), weight.flatten())
    edges.index_add_(0, row + last.flatten(), -weight.flatten())
    return edges.view(count, steps + 1).cumsum(-1)[:, :steps]


def take(fragments: Fragments, index: Tensor | slice) -> Fragments:
    """Some of the tuples, in the order of ``index``."""
    states = fragments.states[index]
    return Fragments(
        states.without_unused() if isinstance(states, FrameStacks) else states,
        *(table[index] for table in (fragments.actions, fragments.alive, fragments.outcome)),
    )


def concatenate(first: Fragments, second: Fragments) -> Fragments:
    """The tuples of both."""
    pairs = ((first.actions, second.actions), (first.alive, second.alive), (first.outcome, second.outcome))
    return Fragments(concatenate_states((first.states, second.states)), *(torch.cat(pair) for pair in pairs))
