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
    simulated: bool = False
    """Whether the follower plays in a simulator; such an id takes ``preset="tiny"``."""
    batched: bool = False
    """Whether ``gym.make_vec`` solves many of them as one batch; the module then has ``<function>_vector`` too."""


_BLACK_BOX = ("zero_order", "random_search", "cma_es")
_TABULAR_AGENTS = ("m_sobirl", "exact", "pbrl", "parl", *_BLACK_BOX)
_STEEP_AGENTS = ("exact", "m_sobirl", "pbrl", "parl", *_BLACK_BOX)
_PIXEL_AGENTS = ("sobirl", "pbrl", "drlhf", "sac", "random_search")
_PREFERENCE_AGENTS = ("sobirl", "stoc_sobirl", "hpgd", "pbrl", "drlhf", "sac", "random_search", "cma_es")


def _preference(env_id: str, summary: str, **kwargs: Any) -> Entry:
    """A preference task on flat observations."""
    return Entry(
        "bilevel_gym.envs.preference:gym_preference",
        50,
        f"reward from preferences, {env_id}, {summary}",
        {"env_id": env_id, **kwargs},
        _PREFERENCE_AGENTS,
        simulated=True,
    )


def _atari(game: str, summary: str) -> Entry:
    """A preference task on pixels."""
    return Entry(
        "bilevel_gym.envs.atari_preference:atari_preference",
        400,
        f"reward from preferences, {game}, {summary}",
        {"game": game},
        _PIXEL_AGENTS,
        simulated=True,
    )


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
    "bilevel/CartPolePreference-v0": _preference(
        "CartPole-v1", "discrete SAC follower, −1 for each fall", env_kwargs={"sutton_barto_reward": True}
    ),
    "bilevel/PendulumPreference-v0": _preference("Pendulum-v1", "SAC follower"),
    "bilevel/HopperPreference-v0": _preference("Hopper-v5", "MuJoCo, SAC follower"),
    "bilevel/HalfCheetahPreference-v0": _preference("HalfCheetah-v5", "MuJoCo, SAC follower"),
    "bilevel/Walker2dPreference-v0": _preference("Walker2d-v5", "MuJoCo, SAC follower"),
    "bilevel/AntPreference-v0": _preference("Ant-v5", "MuJoCo, SAC follower"),
    "bilevel/SwimmerPreference-v0": _preference("Swimmer-v5", "MuJoCo, SAC follower"),
    "bilevel/ReacherPreference-v0": _preference("Reacher-v5", "MuJoCo, SAC follower"),
    "bilevel/HumanoidPreference-v0": _preference("Humanoid-v5", "MuJoCo, SAC follower"),
    "bilevel/MujocoPreference-v0": _preference("HalfCheetah-v5", "any MuJoCo task as env_id"),
    "bilevel/GymPreference-v0": _preference("Acrobot-v1", "any Gymnasium task as env_id"),
    "bilevel/RewardTerms-v0": Entry(
        "bilevel_gym.envs.reward_terms:reward_terms",
        50,
        "shares of the named parts of a MuJoCo task's reward, for speed without effort; SAC follower",
        agents=("sobirl", "hpgd", "pbrl", *_BLACK_BOX),
        simulated=True,
    ),
    "bilevel/BeamRiderPreference-v0": _atari("BeamRider", "Atari from pixels, discrete SAC follower"),
    "bilevel/SeaquestPreference-v0": _atari("Seaquest", "Atari from pixels, discrete SAC follower"),
    "bilevel/SpaceInvadersPreference-v0": _atari("SpaceInvaders", "Atari from pixels, discrete SAC follower"),
    "bilevel/PongPreference-v0": _atari("Pong", "Atari from pixels, discrete SAC follower"),
    "bilevel/BreakoutPreference-v0": _atari("Breakout", "Atari from pixels, discrete SAC follower"),
    "bilevel/QbertPreference-v0": _atari("Qbert", "Atari from pixels, discrete SAC follower"),
    "bilevel/EnduroPreference-v0": _atari("Enduro", "Atari from pixels, discrete SAC follower"),
    "bilevel/AtariPreference-v0": _atari("Pong", "any Atari game as game"),
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
