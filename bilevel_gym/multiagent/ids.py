"""The games in PettingZoo's registry: ids of ours whose objective is a loss of trajectories, and small games of followers."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pettingzoo
from pettingzoo.utils import parallel_to_aec

from bilevel_gym.multiagent.leader_follower import leader_follower
from bilevel_gym.multiagent.tabular_game import TabularGame, commons, prisoners_dilemma

__all__ = ["GAMES", "TABLES", "make_aec", "make_parallel", "register_games"]

GAMES: dict[str, dict[str, Any]] = {
    "bilevel/TabularPreference-v0": {},
    "bilevel/FourRoomsIncentive-v0": {},
    "bilevel/StackelbergGame-v0": {"horizon": 50},
    "bilevel/TaxDesign-v0": {"horizon": 50},
    "bilevel/PendulumPreference-v0": {},
    "bilevel/HopperPreference-v0": {},
    "bilevel/HalfCheetahPreference-v0": {},
}
"""Games of a leader and a follower. Gymnasium's id, which is PettingZoo's too → options of the game."""

TABLES: dict[str, Any] = {"bilevel/Commons-v0": commons, "bilevel/PrisonersDilemma-v0": prisoners_dilemma}
"""Games of followers alone, for incentive design."""


def register_games() -> None:
    """Enter the games into both of PettingZoo's registries; calling it again changes nothing."""
    for form, registry in (("aec", pettingzoo.aec_registry), ("parallel", pettingzoo.parallel_registry)):
        for name, options in (*GAMES.items(), *((name, {}) for name in TABLES)):
            if name not in registry:
                entry = f"bilevel_gym.multiagent.ids:make_{form}"
                pettingzoo.register(form, name, entry, max_cycles=1000, kwargs={"name": name, **options})


def make_aec(**options: Any) -> Any:
    """What ``pettingzoo.make("aec", "bilevel/…")`` calls; see ``_make``."""
    made = _make("aec", **options)
    return parallel_to_aec(made) if isinstance(made, TabularGame) else made


def make_parallel(**options: Any) -> Any:
    """What ``pettingzoo.make("parallel", "bilevel/…")`` calls; see ``_make``."""
    return _make("parallel", **options)


def _make(
    form: Any, *, name: str, horizon: int | None = None, max_cycles: int = 1000, render_mode: str | None = None, **options: Any
) -> Any:
    """The game of a name; further options are those of ``gymnasium.make(name)``, or of the table's function."""
    if name in TABLES:
        return TABLES[name](max_cycles=max_cycles, render_mode=render_mode, **options)
    outer: Any = gym.make(name, **options).unwrapped
    return leader_follower(outer.problem, form, horizon=horizon, max_cycles=max_cycles, render_mode=render_mode)
