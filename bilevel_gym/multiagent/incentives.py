"""Incentive design: x shapes the rewards of all players of a game, and the designer looks at what they learn to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from bilevel_gym.arguments import check_call, check_numbers, checked
from bilevel_gym.envs import BilevelEnv
from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.multiagent.game_world import GameWorld, Steps
from bilevel_gym.numerics import ArrayLike
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import CornerBox
from bilevel_gym.types import Evaluation, LowerSolver, Regularizer, Response

__all__ = ["DesignObjective", "IncentiveProblem", "Incentives", "SocialCost", "incentive_design"]

Feature = Callable[[str, Tensor, Tensor], Tensor]
"""(agent, its observations [n, *observation], its actions [n, *action]) → [n]."""
Cost = Callable[[Tensor, Steps, Mapping[str, Tensor]], Tensor]
"""(x [D], steps, what each agent was paid [n]) → the designer's cost of each step [n]."""


class Incentives(CornerBox):
    """What x pays: an agent earns r_i + paid_i, paid_i a function of x and of what this agent sees and does.

    Args:
        function: (x [D], agent, observations [n, *observation], actions [n, *action]) → [n], in torch.
        low: [D] the lower corner of the box of x.
        high: [D] the upper corner.
        names: D names of the entries of x.

    Raises:
        InvalidProblem: the box is empty or endless, or there are not D names.
    """

    def __init__(
        self,
        function: Callable[[Tensor, str, Tensor, Tensor], Tensor],
        low: ArrayLike,
        high: ArrayLike,
        *,
        names: tuple[str, ...] = (),
    ) -> None:
        super().__init__(low, high)
        if names and len(names) != self.dimension:
            raise InvalidProblem(f"there are {len(names)} names for {self.dimension} entries of x: give one for each")
        check_call("the function of incentives", function, ["x", "agent", "observations", "actions"])
        self.function = function
        self.names = names or tuple(f"x[{index}]" for index in range(self.dimension))

    @classmethod
    def linear(cls, features: Mapping[str, Feature], *, low: float = 0.0, high: float = 1.0) -> Incentives:
        """paid_i = Σ_k x_k φ_k(i, observation, action): a rate for each named feature.

        Args:
            features: name → φ_k.
            low: of every rate.
            high: of every rate.

        Raises:
            InvalidProblem: the box is empty or endless, or a feature takes other arguments.
        """
        known = tuple(features.values())
        for name, feature in features.items():
            check_call(f"the feature {name!r}", feature, ["agent", "observations", "actions"])

        def function(x: Tensor, agent: str, observations: Tensor, actions: Tensor) -> Tensor:
            """⟨φ, x⟩: [n]."""
            columns = [
                _column(f"the feature {name!r}", feature(agent, observations, actions), len(actions)) for name, feature in features.items()
            ]
            return torch.stack([column.to(x.dtype) for column in columns], -1) @ x

        return cls(function, [low] * len(known), [high] * len(known), names=tuple(features))

    def paid(self, x: Tensor, agent: str, observations: Tensor, actions: Tensor) -> Tensor:
        """What x pays an agent: [D], agent, [n, *observation], [n, *action] → [n].

        Raises:
            InvalidProblem: the function returned something else.
        """
        return _column("the function of incentives", self.function(x, agent, observations, actions), len(actions))

    def table(self, x: Tensor, agent: str, states: int, actions: int) -> Tensor:
        """The same for every state and action of a small game: [S, A]."""
        state, action = (grid.flatten() for grid in torch.meshgrid(torch.arange(states), torch.arange(actions), indexing="ij"))
        return self.paid(x, agent, state, action).view(states, actions)


def _column(name: str, values: Any, count: int) -> Tensor:
    """One number for each step, if it is that."""
    if not isinstance(values, Tensor) or values.shape != (count,):
        what = f"a tensor of shape {list(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise InvalidProblem(f"{name} returned {what}: it must return a tensor [{count}], one number for each step")
    return values


@dataclass(frozen=True)
class IncentiveProblem:
    """min_x f(x, π), π what independent learners in a game arrive at under the rewards r_i + paid_i(x).

    There is no best response that x determines: what several learners arrive at depends on how they learn, and where from. See the
    solvers for what each is known to converge to, and ``Response.gap`` for how far from an equilibrium it is.

    Args:
        world: the game.
        incentives: what x pays.
        regularizer: τΩ of every follower.
        objective: f.
    """

    world: GameWorld
    incentives: Incentives
    regularizer: Regularizer
    objective: DesignObjective

    reward = None
    """There is no one reward: each agent has its own."""
    tabular = False

    @property
    def domain(self) -> Incentives:
        """Where x lives."""
        return self.incentives

    @property
    def dimension(self) -> int:
        """D."""
        return self.incentives.dimension

    @property
    def sizes(self) -> list[int]:
        """[D, N]."""
        return [self.dimension, len(self.world.agents)]


@dataclass(frozen=True)
class SocialCost:
    """−Σ_i r_i + price · Σ_i |paid_i|: the agents' own rewards are welfare, and moving money costs, whichever way it goes.

    Args:
        price: of a unit of money moved, ≥ 0.

    Raises:
        InvalidProblem: it is no such number.
    """

    price: float = 0.0

    def __post_init__(self) -> None:
        check_numbers(self)
        if not 0.0 <= self.price < float("inf"):
            raise InvalidProblem(f"price is {self.price}: it must be 0 or more, and finite")

    def __call__(self, x: Tensor, steps: Steps, paid: Mapping[str, Tensor]) -> Tensor:
        """The designer's cost of each step: [n]."""
        return torch.stack([self.price * paid[agent].abs() - reward for agent, reward in steps.rewards.items()]).sum(0)


@dataclass(frozen=True)
class DesignObjective:
    """f(x, π) = E Σ_t γ̄^t c(s_t, a_t; x), c the designer's cost of a joint step.

    On a ``TabularGame`` exact and without an end, by one linear solve, unless ``steps`` are given; elsewhere over sampled episodes.

    Args:
        cost: c, for many steps at once.
        discount: γ̄; None takes the followers'. It may be 1 where there are ``steps``.
        steps: of an episode at most; needed where the game is no table.
        episodes: sampled in an evaluation.

    Raises:
        InvalidProblem: a number is out of range.
    """

    cost: Cost = SocialCost()
    _: KW_ONLY
    discount: float | None = None
    steps: int | None = None
    episodes: int = 16

    def __post_init__(self) -> None:
        check_numbers(self)
        check_call("the designer's cost", self.cost, ["x", "steps", "paid"])
        limit = 1.0 if self.steps is not None else 1.0 - 1e-12
        if self.discount is not None and not 0.0 <= self.discount <= limit:
            raise InvalidProblem(f"discount is {self.discount}: it must be in [0, 1), or at most 1 where there are steps")
        if self.episodes < 1 or (self.steps is not None and self.steps < 1):
            raise InvalidProblem(f"steps is {self.steps} and episodes {self.episodes}: both must be 1 at least")

    def start(self) -> None:
        """No memory."""
        return

    def evaluate(
        self, problem: IncentiveProblem, x: Tensor, response: Response, memory: None, generator: torch.Generator
    ) -> tuple[Evaluation, None]:
        """f, with ``welfare`` (of the agents' own rewards) and ``paid`` among the metrics, discounted as f is.

        Raises:
            UnsupportedProblem: episodes need a limit, and there is none.
        """
        discount = problem.world.discount if self.discount is None else self.discount
        sampled = self.steps is not None or problem.world.table is None
        look = self._sampled if sampled else self._exact
        (value, welfare, paid), played = look(problem, x, response.policy, discount, generator)
        return Evaluation(value, metrics={"welfare": float(welfare), "paid": float(paid)}, env_steps=played), None

    def _columns(self, problem: IncentiveProblem, x: Tensor, steps: Steps) -> Tensor:
        """Cost, welfare and payments of each step: [n, 3]."""
        paid = {
            agent: problem.incentives.paid(x, agent, steps.observations[agent], steps.actions[agent]) * steps.alive[agent]
            for agent in problem.world.agents
        }
        cost: Any = self.cost(x, steps, paid)
        if not isinstance(cost, Tensor | float | int):
            raise InvalidProblem(
                f"the designer's cost returned a {type(cost).__name__}: it must return a tensor [{len(steps.time)}], one number for each step"
            )
        columns = (cost, sum(steps.rewards.values()), sum(paid.values()))
        return torch.stack([torch.as_tensor(column, dtype=x.dtype).expand(len(steps.time)) for column in columns], -1)

    def _exact(
        self, problem: IncentiveProblem, x: Tensor, policies: Mapping[str, Any], discount: float, generator: torch.Generator
    ) -> tuple[Tensor, int]:
        game = problem.world.table
        assert game is not None
        state, actions = game.joint()
        alive = torch.ones_like(state, dtype=torch.bool)
        by_agent = dict(zip(game.possible_agents, actions, strict=True))
        earned = {agent: game.rewards[index].flatten() for index, agent in enumerate(by_agent)}
        steps = Steps(torch.zeros_like(state), dict.fromkeys(by_agent, state), by_agent, earned, dict.fromkeys(by_agent, alive))
        tables = [policies[agent].table for agent in by_agent]
        columns = self._columns(problem, x, steps).view(*game.transition.shape[:-1], 3)
        one_step, moves = game.expected(columns, tables), game.expected(game.transition, tables)
        identity = torch.eye(len(game.start), dtype=moves.dtype)
        return game.start @ torch.linalg.solve(identity - discount * moves, one_step), 0

    def _sampled(
        self, problem: IncentiveProblem, x: Tensor, policies: Mapping[str, Any], discount: float, generator: torch.Generator
    ) -> tuple[Tensor, int]:
        if self.steps is None:
            raise UnsupportedProblem(
                "the game is no table, so f is estimated from episodes: give DesignObjective(steps=…), their length at most"
            )
        steps = problem.world.play(policies, episodes=self.episodes, steps=self.steps, generator=generator)
        weight = discount ** steps.time.to(x.dtype)
        return (weight[:, None] * self._columns(problem, x, steps)).sum(0) / self.episodes, len(steps.time)


@checked
def incentive_design(
    make: Callable[..., Any],
    incentives: Incentives,
    solver: LowerSolver,
    *,
    temperature: float,
    discount: float | None = None,
    objective: DesignObjective | None = None,
    solve_on_reset: bool = True,
    render_mode: str | None = None,
) -> BilevelEnv:
    """An outer environment whose action x shapes the rewards in a PettingZoo parallel environment: ``step(x)`` lets all followers learn.

    Observation: ``objective`` [1], ``gap`` [1], and ``x`` [D] where it is short. Reward: −f(x, π). The metrics in ``info`` are ``welfare``
    and ``paid``. What f is minimal at depends on what the followers learn, see ``IncentiveProblem``; there is no hyper-gradient: use
    ``agents.cma_es``, ``agents.random_search`` or ``agents.zero_order``.

    Args:
        make: makes the game; called with ``render_mode="rgb_array"`` for pictures of games that are no tables.
        incentives: what x pays.
        solver: how the followers learn: ``SoftGameIteration`` where the game is a table, ``IndependentTables`` where states and actions
            are numbered, ``IndependentNetworks`` elsewhere.
        temperature: τ of the followers' entropy.
        discount: γ of the followers; None takes that of a ``TabularGame``.
        objective: f; None is minus the discounted sum of all agents' own rewards.
        solve_on_reset: see ``BilevelEnv``.
        render_mode: ``"rgb_array"`` or ``"ansi"``.

    Raises:
        InvalidProblem: a part that is none, a number out of range, or a function that makes no parallel environment.
    """
    for name, part, method, cure in (
        ("incentives", incentives, "paid", "Incentives"),
        ("objective", objective, "evaluate", "DesignObjective"),
    ):
        if part is not None and not hasattr(part, method):
            raise InvalidProblem(f"{name} is {part!r}: give a multiagent.{cure}")
    world = GameWorld(make, discount=discount)
    problem = IncentiveProblem(world, incentives, Shannon(temperature), DesignObjective() if objective is None else objective)
    return BilevelEnv(problem, solver, solve_on_reset=solve_on_reset, render_mode=render_mode)
