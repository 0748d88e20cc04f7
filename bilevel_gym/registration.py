"""The table of ids: strings and JSON only, so that importing the package loads neither torch nor a simulator."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym

__all__ = ["CATALOGUE", "Entry", "register_ids"]


class Entry(NamedTuple):
    """One row of the catalogue."""

    entry_point: str
    """``module:function``, imported when the id is made."""
    max_episode_steps: int
    """The outer horizon: upper steps before truncation."""
    summary: str
    """One line for ``bilevel-gym list``."""
    kwargs: dict[str, Any] = {}
    """Arguments of the entry point, JSON."""
    agents: tuple[str, ...] = ()
    """The named agents that run on it, the first of them the default."""
    batched: bool = False
    """Whether ``gym.make_vec`` solves many of them as one batch; the module then has ``<function>_vector`` too."""


_BLACK_BOX = ("zero_order", "random_search", "cma_es")
_TABULAR_AGENTS = ("m_sobirl", "exact", "pbrl", "parl", *_BLACK_BOX)
_STEEP_AGENTS = ("exact", "m_sobirl", "pbrl", "parl", *_BLACK_BOX)
_PREFERENCE_AGENTS = ("sobirl", "hpgd", "drlhf", "random_search", "cma_es")

CATALOGUE: dict[str, Entry] = {
    "bilevel/RandomMDP-v0": Entry(
        "bilevel_gym.envs.random_mdp:random_mdp",
        100,
        "the SoBiRL paper's synthetic problem: x in R^100, random dynamics, exact",
        agents=_TABULAR_AGENTS,
        batched=True,
    ),
    "bilevel/FourRoomsIncentive-v0": Entry(
        "bilevel_gym.envs.four_rooms:four_rooms_incentive",
        100,
        "charges on the cells of four rooms steer two followers through a marked cell, exact",
        agents=(*_STEEP_AGENTS, "hpgd"),
        batched=True,
    ),
    "bilevel/RewardShaping-v0": Entry(
        "bilevel_gym.envs.reward_shaping:reward_shaping",
        100,
        "a shaping of the true reward for a follower of another horizon; FrozenLake, Taxi, chain, grid, ...",
        agents=(*_TABULAR_AGENTS, "hpgd"),
        batched=True,
    ),
    "bilevel/Apprenticeship-v0": Entry(
        "bilevel_gym.envs.apprenticeship:apprenticeship",
        100,
        "maximum-entropy inverse RL: the reward under which demonstrations are likely, convex",
        agents=_TABULAR_AGENTS,
        batched=True,
    ),
    "bilevel/PolicyTeaching-v0": Entry(
        "bilevel_gym.envs.policy_teaching:policy_teaching",
        100,
        "reward poisoning: the smallest change of a reward that teaches a policy, convex",
        agents=_TABULAR_AGENTS,
        batched=True,
    ),
    "bilevel/StackelbergGame-v0": Entry(
        "bilevel_gym.envs.stackelberg_game:stackelberg_game",
        100,
        "a leader's mixed policy against a soft best response; x moves rewards and transitions, exact",
        agents=_STEEP_AGENTS,
        batched=True,
    ),
    "bilevel/ContractDesign-v0": Entry(
        "bilevel_gym.envs.contract_design:contract_design",
        100,
        "payments for outcomes to an agent whose actions are hidden, a binary decision tree, exact",
        agents=(*_STEEP_AGENTS, "hpgd"),
        batched=True,
    ),
    "bilevel/RobotNavigation-v0": Entry(
        "bilevel_gym.envs.robot_navigation:robot_navigation",
        100,
        "a cost map for a robot's planner among obstacles, judged by path length, energy and collisions, exact",
        agents=(*_STEEP_AGENTS, "hpgd"),
        batched=True,
    ),
    "bilevel/TabularPreference-v0": Entry(
        "bilevel_gym.envs.tabular_preference:tabular_preference",
        100,
        "a reward table from comparisons of fragments, on-policy or not, exact and sampled",
        agents=("sobirl", "stoc_sobirl", "hpgd", "drlhf", *_STEEP_AGENTS),
        batched=True,
    ),
    "bilevel/QuadraticBilevel-v0": Entry(
        "bilevel_gym.envs.quadratic_bilevel:quadratic_bilevel",
        100,
        "a strongly convex lower level with everything in closed form: x in R^10, y in R^20",
        agents=("aid", *_BLACK_BOX),
    ),
    "bilevel/RidgeRegression-v0": Entry(
        "bilevel_gym.envs.ridge_regression:ridge_regression",
        100,
        "the penalties of ridge regression, chosen on a validation set",
        agents=("aid", *_BLACK_BOX),
    ),
    "bilevel/DataHyperCleaning-v0": Entry(
        "bilevel_gym.envs.data_hyper_cleaning:data_hyper_cleaning",
        100,
        "digits with wrong labels: a weight for each training sample, chosen on a clean set",
        agents=("aid", *_BLACK_BOX),
    ),
    "bilevel/SoftLQR-v0": Entry(
        "bilevel_gym.envs.soft_lqr:soft_lqr",
        100,
        "cost weights of a maximum-entropy linear-quadratic regulator, continuous actions, exact",
        agents=("exact", *_BLACK_BOX),
    ),
    "bilevel/TaxDesign-v0": Entry(
        "bilevel_gym.envs.tax_design:tax_design",
        100,
        "value-added and income taxes on households that work, consume and save; x moves rewards and transitions, exact",
        agents=_STEEP_AGENTS,
        batched=True,
    ),
    "bilevel/CommonsIncentive-v0": Entry(
        "bilevel_gym.multiagent.commons_incentive:commons_incentive",
        100,
        "payments to two herders who learn independently to share a pasture; a game of several followers, exact",
        agents=_BLACK_BOX,
    ),
    "bilevel/PendulumPreference-v0": Entry(
        "bilevel_gym.envs.preference:gym_preference",
        50,
        "reward from preferences, Pendulum-v1, SAC follower",
        {"env_id": "Pendulum-v1"},
        _PREFERENCE_AGENTS,
    ),
    "bilevel/HopperPreference-v0": Entry(
        "bilevel_gym.envs.preference:gym_preference",
        50,
        "reward from preferences, MuJoCo Hopper-v5, SAC follower",
        {"env_id": "Hopper-v5"},
        _PREFERENCE_AGENTS,
    ),
    "bilevel/HalfCheetahPreference-v0": Entry(
        "bilevel_gym.envs.preference:gym_preference",
        50,
        "reward from preferences, MuJoCo HalfCheetah-v5, SAC follower",
        {"env_id": "HalfCheetah-v5"},
        _PREFERENCE_AGENTS,
    ),
}


def register_ids() -> None:
    """Enter the catalogue into Gymnasium's registry; calling it again changes nothing."""
    for name, entry in CATALOGUE.items():
        if name not in gym.registry:
            gym.register(
                name,
                entry_point=entry.entry_point,
                vector_entry_point=f"{entry.entry_point}_vector" if entry.batched else None,
                max_episode_steps=entry.max_episode_steps,
                kwargs=dict(entry.kwargs),
            )
