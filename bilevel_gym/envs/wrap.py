"""A bilevel task out of any Gymnasium environment."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Unpack

import gymnasium as gym
from torch import Tensor

from bilevel_gym.arguments import check_names, checked, spec_of
from bilevel_gym.envs.bilevel_env import BilevelEnv
from bilevel_gym.envs.preference_presets import FLAT, PIXELS, PreferenceOptions, Preset, choose, comparing
from bilevel_gym.envs.solver_names import simulated_solver
from bilevel_gym.errors import InvalidProblem, UnknownName
from bilevel_gym.objectives import PreferenceObjective, SampledReturn
from bilevel_gym.problem import BilevelProblem
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import CNNReward, EnvironmentReward, FeatureReward, RewardTerms, network_for
from bilevel_gym.types import LowerSolver, RewardModel, Trajectory, UpperObjective
from bilevel_gym.worlds import AtariWorld, VectorWorld, mujoco_world
from bilevel_gym.worlds.vector import Vectorization

__all__ = ["wrap_env"]

OF_VECTORS = ("num_envs", "vectorization_mode", "max_episode_steps")
"""Arguments in the spec of a vector environment that a single one does not take from it."""

Maker = str | Callable[..., gym.Env[Any, Any]]
Reward = RewardModel | Callable[[Any, Tensor], Tensor] | Literal["network", "linear", "terms", "environment"]
Objective = UpperObjective | Mapping[str, Any] | Callable[[Trajectory], Tensor] | Literal["preference", "return"]


@checked
def wrap_env(
    env: Maker | gym.vector.VectorEnv[Any, Any, Any],
    *,
    reward: Reward = "network",
    objective: Objective = "preference",
    terms: Sequence[str] = (),
    preset: str = "default",
    horizon: int | None = None,
    endless: bool | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    discount: float = 0.99,
    temperature: float | None = None,
    members: int = 1,
    solver: LowerSolver | str | None = None,
    device: str = "cpu",
    render_mode: str | None = None,
    **preferences: Unpack[PreferenceOptions],
) -> BilevelEnv:
    """A bilevel task out of an environment of your own: the action is x, the follower plays in it under r_x, the reward is −f.

        env = wrap_env("Pendulum-v1", preset="demo")                                     # learn its reward from comparisons
        env = wrap_env(make_my_env, reward="terms", terms=("speed", "cost"), objective=lambda played: …)

    The follower is ``solvers.SAC`` where actions are a box and ``solvers.DiscreteSAC`` where they are finitely many, in the sizes of the
    preset. What is registered as ``bilevel/GymPreference-v0`` is this, with a network and preferences. For environments that carry
    their probabilities (``P``) the exact tasks, such as ``bilevel/RewardShaping-v0``, take ``base="FrozenLake-v1"``.

    Args:
        env: a registered id (of Atari ``"ALE/Pong-v5"``, which is played from pixels by ``worlds.AtariWorld``); a function that makes an
            environment, a new one at each call; or a vector environment, of which copies are made by its first function, as many for the
            follower as it has, in turn or in processes as it does. It is not stepped itself, and yours to close.
        reward: ``"network"``, what ``rewards.network_for`` gives; ``"linear"``, weights of s and a; a function of (states, actions), whose
            values [..., D] x weighs; ``"terms"``, shares of the named ``terms``; ``"environment"``, a scale of the environment's own
            reward; or a reward model.
        objective: ``"preference"``, a teacher's comparisons by the environment's own (true) reward, or a mapping of sizes of it such as
            ``{"length": 25}``; ``"return"``, minus that reward's sum over an episode; a function of trajectories [N, T], of which the mean of what it returns [N] is to be raised
            (``objectives.SampledReturn``); or an upper objective.
        terms: names of numbers that each step's ``info`` has.
        preset: ``"default"``; ``"demo"`` (minutes on a laptop); ``"tiny"`` (seconds, learns nothing: for checks).
        horizon: steps of an episode; None takes the time limit of the environment, or the preset's where that is shorter.
        endless: whether ends before the horizon are hidden (``worlds.Endless``); None hides them from comparisons, where the length of an
            episode would tell of the reward, and shows them to other objectives. MuJoCo's ids never end at a fall, games of Atari not at all.
        env_kwargs: arguments of the environment, of Atari those of ``worlds.AtariWorld``.
        discount: γ of the follower.
        temperature: τ; None takes the preset's.
        members: networks in an ensemble, whose mean is r_x.
        solver: another follower, in place of the preset's, such as ``solvers.from_sb3(PPO)``; or the name of one in the preset's sizes,
            ``"soft_q"`` for ``solvers.SoftQ`` where actions are finitely many.
        device: where networks and replay live.
        render_mode: ``"rgb_array"`` (the follower at work) or ``"ansi"``.
        **preferences: ``rationality``, ``teacher``, ``query``, ``budget``, ``half_rate``, ``comparisons`` and ``experts``, as
            ``bilevel/GymPreference-v0`` takes them (``envs.gym_preference``).

    Returns:
        an outer environment without a time limit of its own: put a ``gymnasium.wrappers.TimeLimit`` around it where an agent needs
        episodes.

    Raises:
        UnknownName: there is no such preset, reward, objective, knob or size.
        gymnasium.error.Error: there is no such id.
        MissingExtra: the simulator is not installed.
        InvalidProblem: observations or actions are of a kind that no network or solver takes, with the wrapper that helps; episodes are
            shorter than fragments; an environment that cannot be made anew, or not with these arguments; or a value of another kind.
    """
    own = [name for name in inspect.signature(wrap_env).parameters if name != "preferences"]
    check_names("argument", preferences, [*own, *PreferenceOptions.__annotations__])
    for name, part, method in (("reward", reward, "dimension"), ("objective", objective, "evaluate")):
        if isinstance(part, type) or not (isinstance(part, str | Mapping) or callable(part) or hasattr(part, method)):
            raise InvalidProblem(f"{name} is {part!r}: give a name, a function or an object, see the arguments of wrap_env")
    named = isinstance(objective, Mapping) or objective == "preference"
    if preferences and not named:
        raise InvalidProblem(f"{', '.join(preferences)} are for objective='preference': leave them out, or build them into your objective")
    if members != 1 and reward != "network":
        raise InvalidProblem(f"members is {members}, and only reward='network' makes an ensemble: leave it out")
    maker, kwargs, vectorization, copies = _maker(env, dict(env_kwargs or {}))
    hidden = named or isinstance(objective, PreferenceObjective) if endless is None else endless
    world = _world(maker, kwargs, vectorization, tuple(terms), discount=discount, endless=hidden, device=device)
    sizes = choose(PIXELS if len(world.observation_shape) == 3 else FLAT, preset, horizon, getattr(world, "time_limit", None))
    world = _settled(world, sizes)
    regularizer = Shannon(sizes.temperature if temperature is None else temperature)
    problem = BilevelProblem(world, _reward(reward, world, sizes, members), regularizer, sizes.objective)
    follower = _follower(world, sizes, copies, solver) if solver is None or isinstance(solver, str) else solver
    problem = replace(problem, objective=_objective(objective, problem, sizes, preferences))
    return BilevelEnv(problem, follower, solve_on_reset=False, render_mode=render_mode)


def _maker(env: Any, kwargs: dict[str, Any]) -> tuple[Maker, dict[str, Any], Vectorization, int | None]:
    """What makes a single environment, its arguments, how copies of it are stepped, and how many the follower has."""
    if isinstance(env, gym.vector.VectorEnv):
        kind: Vectorization = "async" if isinstance(env, gym.vector.AsyncVectorEnv) else "sync"
        if functions := getattr(env, "env_fns", ()):
            return functions[0], kwargs, kind, env.num_envs
        if env.spec is not None and env is env.unwrapped:
            own = {name: value for name, value in env.spec.kwargs.items() if name not in OF_VECTORS}
            return env.spec.id, {**own, **kwargs}, kind, env.num_envs
        raise InvalidProblem(
            f"{env} does not say how a single one of its environments is made, or is wrapped: give the id, or a function that makes one, wrapped"
        )
    if isinstance(env, gym.Env) or not (isinstance(env, str) or callable(env)):
        raise InvalidProblem(
            f"{env!r} is no id and no function: copies of the environment are needed, so give what makes one, such as lambda: gym.make('Pendulum-v1')"
        )
    return env, kwargs, "sync", None


def _world(
    maker: Maker, kwargs: dict[str, Any], vectorization: Vectorization, terms: tuple[str, ...], *, device: str, **options: Any
) -> AtariWorld | VectorWorld:
    """The environment as a world, of a horizon that is not decided yet."""
    if isinstance(maker, str) and maker.startswith("ALE/"):
        if terms:
            raise InvalidProblem(f"Atari games do not report {list(terms)}: leave terms out")
        return AtariWorld(maker[4:].rpartition("-v")[0], options["discount"], horizon=1, device=device, **kwargs)
    if isinstance(maker, str) and "envs.mujoco" in str(spec_of(maker).entry_point):
        return mujoco_world(maker, horizon=1, terms=terms, device=device, **options, **kwargs)
    return VectorWorld(maker, horizon=1, terms=terms, env_kwargs=kwargs, vectorization=vectorization, device=device, **options)


def _settled(world: AtariWorld | VectorWorld, sizes: Preset) -> AtariWorld | VectorWorld:
    """The same world with the horizon that has been decided, and rewards as the preset's authors saw them."""
    if isinstance(world, AtariWorld) and sizes.authors:
        world = replace(world, clip_rewards=True)
    return replace(world, horizon=sizes.horizon)


def _reward(reward: Any, world: Any, sizes: Preset, members: int) -> RewardModel:
    if not isinstance(reward, str):
        model: RewardModel = reward if hasattr(reward, "dimension") else FeatureReward.for_world(world, reward)
        return model
    known: dict[str, Callable[[], RewardModel]] = {
        "network": lambda: _network(world, sizes, members),
        "linear": lambda: FeatureReward.for_world(world),
        "terms": lambda: RewardTerms.for_world(world),
        "environment": lambda: EnvironmentReward(device=world.device),
    }
    check_names("reward", [reward], known)
    return known[reward]()


def _network(world: Any, sizes: Preset, members: int) -> RewardModel:
    if len(world.observation_shape) == 3 and hasattr(world, "action_count"):
        theirs: dict[str, Any] = {"norm": "batch", "dropout": 0.5, "squash": "clip"} if sizes.authors else {}
        return CNNReward.for_world(world, layers=sizes.reward_layers, hidden=sizes.reward_hidden[-1], members=members, **theirs)
    return network_for(world, hidden=sizes.reward_hidden, members=members)


def _objective(objective: Any, problem: BilevelProblem, sizes: Preset, preferences: Mapping[str, Any]) -> UpperObjective:
    if objective == "preference":
        return comparing(problem, sizes, **preferences)
    if isinstance(objective, Mapping):
        return comparing(problem, sizes, objective=objective, **preferences)
    if objective == "return":
        return SampledReturn(trajectories=sizes.trajectories)
    if isinstance(objective, str):
        raise UnknownName("objective", objective, ["preference", "return"])
    own: UpperObjective = objective if hasattr(objective, "evaluate") else SampledReturn(objective, trajectories=sizes.trajectories)
    return own


def _follower(world: Any, sizes: Preset, copies: int | None, name: str | None) -> LowerSolver:
    own = sizes.follower(world)
    own = own if copies is None else replace(own, num_envs=copies)
    return own if name is None else simulated_solver(name, own)
