"""The games in PettingZoo's registry: ids of ours whose objective is a loss of trajectories."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pettingzoo

from bilevel_gym.multiagent.leader_follower import leader_follower

__all__ = ["GAMES", "make_aec", "make_parallel", "register_games"]

GAMES: dict[str, dict[str, Any]] = {
    "bilevel/TabularPreference-v0": {},
    "bilevel/FourRoomsIncentive-v0": {},
    "bilevel/StackelbergGame-v0": {"horizon": 50},
    "bilevel/TaxDesign-v0": {"horizon": 50},
    "bilevel/PendulumPreference-v0": {},
    "bilevel/HopperPreference-v0": {},
    "bilevel/HalfCheetahPreference-v0": {},
}
"""Gymnasium's id, which is PettingZoo's too → options of the game."""


def register_games() -> None:
    """Enter the games into both of PettingZoo's registries; calling it again changes nothing."""
    for name, options in GAMES.items():
        for form, registry in (("aec", pettingzoo.aec_registry), ("parallel", pettingzoo.parallel_registry)):
            if name not in registry:
                entry, kwargs = f"bilevel_gym.multiagent.ids:make_{form}", {"env_id": name, **options}
                pettingzoo.register(form, name, entry, max_cycles=1000, kwargs=kwargs)


def make_aec(**options: Any) -> Any:
    """What ``pettingzoo.make("aec", "bilevel/…")`` calls; see ``_make``."""
    return _make("aec", **options)


def make_parallel(**options: Any) -> Any:
    """What ``pettingzoo.make("parallel", "bilevel/…")`` calls; see ``_make``."""
    return _make("parallel", **options)


def _make(
    form: Any, *, env_id: str, horizon: int | None = None, max_cycles: int = 1000, render_mode: str | None = None, **options: Any
) -> Any:
    """The game of a Gymnasium id; further options are those of ``gymnasium.make(env_id)``."""
    outer: Any = gym.make(env_id, **options).unwrapped
    return leader_follower(outer.problem, form, horizon=horizon, max_cycles=max_cycles, render_mode=render_mode)
