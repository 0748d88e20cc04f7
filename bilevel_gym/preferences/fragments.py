"""Pieces of trajectories, and how they are drawn."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.frames import FrameStacks, concatenate_states
from bilevel_gym.types import Fragments, Samples, Trajectory

__all__ = ["Cut", "as_samples", "concatenate", "draw_fragments", "draw_places", "gather", "misfit", "take", "window_sum"]

COLUMNS = ("actions", "alive", "outcome", "rewards", "terms")
"""What there is of each tuple beside its states."""

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
        generator: the source of the draws.

    Returns:
        origin [M, I] and offset [M, I].

    Raises:
        InvalidProblem: too few trajectories, or too short ones, or a number below 1.
    """
    count, steps = trajectories.alive.shape
    device = trajectories.alive.device
    if min(tuples, per_tuple, length) < 1:
        raise InvalidProblem(f"{tuples} tuples of {per_tuple} fragments of {length} steps are none: give numbers of 1 or more")
    if count < per_tuple or steps < length:
        raise InvalidProblem(
            f"{tuples} tuples of {per_tuple} fragments of {length} steps do not fit into {count} trajectories of {steps} steps: play more or longer ones"
        )
    if count >= tuples * per_tuple:
        origin = torch.randperm(count, generator=generator, device=device)[: tuples * per_tuple].view(tuples, per_tuple)
    else:
        origin = torch.rand(tuples, count, generator=generator, device=device).topk(per_tuple, dim=-1).indices
    if cut == "start":
        return origin, torch.zeros_like(origin)
    return origin, torch.randint(steps - length + 1, origin.shape, generator=generator, device=device)


def draw_fragments(
    trajectories: Trajectory, tuples: int, per_tuple: int, length: int, cut: Cut, generator: torch.Generator
) -> tuple[Samples, Tensor]:
    """Cut M tuples of I fragments, drawn uniformly as in ``draw_places``, which nobody has been asked about.

    Args:
        trajectories: [N, T], with the world's rewards.
        tuples: M.
        per_tuple: I ≤ N.
        length: H ≤ T.
        cut: where each piece starts.
        generator: the source of the draws.

    Returns:
        the fragments, with NaN for outcomes, and their true rewards [M, I, H], 0 past the end of an episode.

    Raises:
        InvalidProblem: too few trajectories, or too short ones, or without true rewards.
    """
    if trajectories.rewards is None:
        raise InvalidProblem("these trajectories carry no true rewards, by which fragments are compared: play them where there are some")
    origin, offset = draw_places(trajectories, tuples, per_tuple, length, cut, generator)
    states, actions, alive, rewards = (
        gather(table, origin, offset, length)
        for table in (trajectories.states, trajectories.actions, trajectories.alive, trajectories.rewards)
    )
    terms = None if trajectories.terms is None else gather(trajectories.terms, origin, offset, length)
    unknown = torch.full((tuples,), torch.nan, dtype=rewards.dtype, device=rewards.device)
    return Samples(
        trajectories, origin, offset, Fragments(states, actions, alive, unknown, rewards * alive, terms), asked=False
    ), rewards * alive


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


def as_samples(fragments: Fragments) -> Samples:
    """Fragments as trajectories of their own, with nothing before or after them: [M, I, H] out of [M·I, H]."""
    states, actions, alive = (table.flatten(0, 1) for table in (fragments.states, fragments.actions, fragments.alive))
    rewards, terms = (None if table is None else table.flatten(0, 1) for table in (fragments.rewards, fragments.terms))
    origin = torch.arange(len(alive), device=alive.device).view(fragments.alive.shape[:2])
    return Samples(Trajectory(states, actions, alive, rewards, terms=terms), origin, torch.zeros_like(origin), fragments)


def misfit(steps: Trajectory | Fragments, world: Any) -> str | None:
    """None, or why steps that somebody has kept are not of a world: of another shape, or numbers that it does not have.

    Args:
        steps: with leading axes as those of ``alive``.
        world: a table, or a simulator with ``observation_shape``; of any other kind nothing is known.
    """
    table = hasattr(world, "transition_at")
    if not table and not hasattr(world, "observation_shape"):
        return None
    counts = (world.states, world.actions) if table else (None, getattr(world, "action_count", None))
    shapes = () if table else tuple(world.observation_shape), () if counts[1] is not None else (world.action_size,)
    for name, values, shape, count in zip(("states", "actions"), (steps.states, steps.actions), shapes, counts, strict=True):
        found = tuple(values.shape[steps.alive.ndim :])
        if found != shape:
            return f"its {name} are of shape {list(found)}, and those of the world of shape {list(shape)}"
        if count is not None and values.numel() and not 0 <= int(values.min()) <= int(values.max()) < count:
            return f"its {name} are numbers up to {int(values.max())}, and the world has {count} {name}"
    return None


def take(fragments: Fragments, index: Tensor | slice) -> Fragments:
    """Some of the tuples, in the order of ``index``."""

    def of(table: Any) -> Any:
        whole = isinstance(table, FrameStacks) or isinstance(index, slice)
        return table[index] if whole else table.index_select(0, index)  # the quicker of the two where rows are whole

    states = of(fragments.states)
    kept: dict[str, Any] = {name: None if (table := getattr(fragments, name)) is None else of(table) for name in COLUMNS}
    return Fragments(states.without_unused() if isinstance(states, FrameStacks) else states, **kept)


def concatenate(first: Fragments, second: Fragments) -> Fragments:
    """The tuples of both, with true rewards and their terms where both have them."""
    pairs = {name: (getattr(first, name), getattr(second, name)) for name in COLUMNS}
    joined: dict[str, Any] = {name: None if any(table is None for table in pair) else torch.cat(pair) for name, pair in pairs.items()}
    return Fragments(concatenate_states((first.states, second.states)), **joined)
