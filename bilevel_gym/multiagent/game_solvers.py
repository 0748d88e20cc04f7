"""Independent soft learners in games with numbered states and actions: exact ones on tables, and actor-critics from play."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bilevel_gym.arguments import check_numbers
from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.multiagent.game_world import TablePolicy
from bilevel_gym.multiagent.incentives import IncentiveProblem
from bilevel_gym.multiagent.tabular_game import TabularGame
from bilevel_gym.numerics import backup, draw_seed, policy_value
from bilevel_gym.regularizers import Shannon
from bilevel_gym.solvers.base import iterate, step_limit
from bilevel_gym.types import Budget, Response

__all__ = ["IndependentTables", "SoftGameIteration", "Tables"]


@dataclass(frozen=True)
class SoftGameIteration:
    """Soft policy iteration in turn: each agent improves its policy once against the others' of now, with everything known.

        π_i ← (1 − η) π_i + η ∇Ω*(Q_i/τ),    Q_i the soft action values of π_i against π_−i .

    A fixed point is a logit equilibrium of the game, also called a quantal-response equilibrium (McKelvey and Palfrey, Games and
    Economic Behavior 1995), here one in Markov policies: each π_i is soft-optimal against the others. Where τ is large beside what the
    agents can do to each other it is unique and is found from anywhere. Elsewhere there may be several, and which one is found depends on
    where the policies start (a warm start stays on its branch); or the iteration goes round in circles, as in matching pennies at a small
    τ, where η < 1 helps. ``converged`` says whether it has arrived; ``gap`` is max over i and s of F_i(V_i) − V_i, V_i the value of π_i:
    what one improvement would gain an agent, a quadratic function of how far its policy is off.

    Args:
        sweeps: rounds of all agents, at most.
        tolerance: stop where an improvement would move no probability by more than this.
        damping: η in (0, 1].

    Raises:
        InvalidProblem: a number is out of range.

    Cost: of a sweep, N linear solves, O(N(S³ + S²ΠA)).
    """

    _: KW_ONLY
    sweeps: int = 1000
    tolerance: float = 1e-10
    damping: float = 1.0

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.sweeps < 1 or not self.tolerance > 0 or not 0.0 < self.damping <= 1.0:
            raise InvalidProblem(
                f"sweeps is {self.sweeps}, tolerance {self.tolerance}, damping {self.damping}: they must be ≥ 1, positive and in (0, 1]"
            )

    def start(self, problem: IncentiveProblem) -> Response:
        """Every agent at random.

        Raises:
            UnsupportedProblem: the game is no table.
        """
        _table(problem)
        return Response({agent: problem.world.uniform(agent) for agent in problem.world.agents})

    @torch.no_grad()
    def solve(
        self,
        problem: IncentiveProblem,
        x: Tensor,
        *,
        warm: Response | None = None,
        budget: Budget | None = None,
        generator: torch.Generator | None = None,
    ) -> Response:
        """Iterate from the policies of ``warm``; ``generator`` is not used.

        Raises:
            UnsupportedProblem: the game is no table.
            InvalidProblem: a budget of no steps.
        """
        game, warm = _table(problem), self.start(problem) if warm is None else warm
        shapes = [(len(game.start), int(game.action_space(agent).n)) for agent in game.possible_agents]
        paid = [problem.incentives.table(x, agent, *shape) for agent, shape in zip(game.possible_agents, shapes, strict=True)]

        def look(index: int, policies: list[Tensor]) -> _Improved:
            """An agent's improvement against the others' of now."""
            mdp = game.against(index, policies, paid[index], problem.regularizer)
            value = policy_value(mdp, policies[index])
            q = backup(mdp, value)
            return _Improved(problem.regularizer.policy(q), (problem.regularizer.conjugate(q) - value).amax())

        def sweep(policies: list[Tensor]) -> list[Tensor]:
            """Each improves once, in turn."""
            policies = list(policies)
            for index, policy in enumerate(policies):
                policies[index] = torch.lerp(policy, look(index, policies).policy, self.damping)
            return policies

        def settled(policies: list[Tensor]) -> bool:
            """Whether no improvement would move anything."""
            moves = [(look(index, policies).policy - policy).abs().amax() for index, policy in enumerate(policies)]
            return bool(torch.stack(moves).amax() <= self.tolerance)

        begin = [warm.policy[agent].table for agent in game.possible_agents]
        found, steps, converged = iterate(sweep, begin, limit=step_limit(self.sweeps, budget), done=settled)
        gains = [look(index, found).gain for index in range(len(found))]
        named = {agent: TablePolicy(policy) for agent, policy in zip(game.possible_agents, found, strict=True)}
        return Response(named, gap=torch.stack(gains).amax().clamp_min(0.0), steps=steps, converged=converged)


class _Improved(NamedTuple):
    """An agent's soft policy improvement."""

    policy: Tensor
    """[S, A]."""
    gain: Tensor
    """[] what it gains at most, over all states."""


class Tables(NamedTuple):
    """What one agent has learnt."""

    value: Tensor
    """[S] V."""
    advantage: Tensor
    """[S, A] G ≈ Q − V."""


@dataclass(frozen=True)
class IndependentTables:
    """Soft actor-critics in tables, all agents at once, from play: to each, the others are part of a world that changes while they learn.

        δ = r_i + paid_i + γ V_i(s') − V_i(s),    V_i(s) ← V_i(s) + α (δ − τ log π_i(a|s)),    G_i(s, a) ← G_i(s, a) + β (δ − G_i(s, a))

    every agent plays π_i = softmax(G_i/τ); the answer averages G over the second half of a solve. With fixed others V and G tend to the soft
    value and advantage. Plain soft Q-learning would not do: each V(s') that rises lifts the actions that are played before those that are
    not, and this lag alone can end exploration (in the repeated prisoner's dilemma it ends at full cooperation, which is no equilibrium).

    Where the learners settle, it is near a logit equilibrium (see ``SoftGameIteration``), the nearer the smaller α and β; nothing guarantees
    that they do: simultaneous learners may chase each other round a cycle, and among several equilibria start and noise choose.

    Args:
        steps: environment steps of one solve.
        value_rate: α in (0, 1].
        advantage_rate: β in (0, 1].

    Raises:
        InvalidProblem: a number is out of range.

    Cost: ``steps`` environment steps.
    """

    _: KW_ONLY
    steps: int = 4000
    value_rate: float = 0.1
    advantage_rate: float = 0.02

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.steps < 1 or not 0.0 < self.value_rate <= 1.0 or not 0.0 < self.advantage_rate <= 1.0:
            raise InvalidProblem(
                f"steps is {self.steps} and the rates are {self.value_rate} and {self.advantage_rate}: at least 1, and in (0, 1]"
            )

    def start(self, problem: IncentiveProblem) -> Response:
        """Every agent at random, V = 0.

        Raises:
            UnsupportedProblem: a space that is not numbered, or another regularizer than Shannon's.
        """
        if not problem.world.numbered or not isinstance(problem.regularizer, Shannon):
            raise UnsupportedProblem(
                "IndependentTables learns under Shannon entropy in games with Discrete observations and actions; IndependentNetworks takes the others"
            )
        policies: dict[str, Any] = {agent: problem.world.uniform(agent) for agent in problem.world.agents}
        zeros = {agent: torch.zeros_like(policy.table) for agent, policy in policies.items()}
        return Response(policies, state={agent: Tables(table[:, 0].clone(), table) for agent, table in zeros.items()})

    def solve(
        self,
        problem: IncentiveProblem,
        x: Tensor,
        *,
        warm: Response | None = None,
        budget: Budget | None = None,
        generator: torch.Generator,
    ) -> Response:
        """Learn on from the tables of ``warm``, which stay as they are.

        Returns:
            ``gap`` is the mean |δ − τ log π| over the second half of the solve, noise of play included.

        Raises:
            UnsupportedProblem: as for ``start``.
            InvalidProblem: a budget of no steps.
        """
        warm = self.start(problem) if warm is None else warm
        limit = step_limit(self.steps, budget)
        world = problem.world
        learners = {
            agent: _Learner(self, tables, problem.incentives.table(x, agent, *tables.advantage.shape), problem)
            for agent, tables in warm.state.items()
        }
        rng = np.random.default_rng(draw_seed(generator))
        observations: dict[str, Any] = {}
        for time in range(limit):
            if time == 0 or not world.env.agents:
                observations, _ = world.env.reset(seed=int(rng.integers(2**31 - 1)))
            seen = {agent: int(world.as_observation(agent, observations[agent])) for agent in world.env.agents}
            chosen = {agent: learners[agent].act(state, rng) for agent, state in seen.items()}
            observations, rewards, terminated, _, _ = world.env.step({agent: world.as_action(agent, chosen[agent]) for agent in seen})
            for agent, state in seen.items():
                following = None if terminated[agent] else int(world.as_observation(agent, observations[agent]))
                learners[agent].learn(state, chosen[agent], float(rewards[agent]), following, averaged=2 * time >= limit)
        answers = {agent: learner.answer() for agent, learner in learners.items()}
        gap = torch.tensor(np.mean([learner.error / max(learner.averaged, 1) for learner in learners.values()]), dtype=x.dtype)
        policies = {agent: TablePolicy(problem.regularizer.policy(tables.advantage)) for agent, tables in answers.items()}
        return Response(policies, gap=gap, steps=limit, env_steps=limit, state=answers)


class _Learner:
    """One agent at work, in NumPy: a step is a few numbers."""

    def __init__(self, rates: IndependentTables, tables: Tables, paid: Tensor, problem: IncentiveProblem) -> None:
        self.value, self.advantage = tables.value.numpy().copy(), tables.advantage.numpy().copy()
        self.paid, self.rates = paid.numpy(), rates
        self.temperature, self.discount = problem.regularizer.temperature, problem.world.discount
        self.sum, self.averaged, self.error = np.zeros_like(self.advantage), 0, 0.0

    def chances(self, state: int) -> np.ndarray:
        """π(·|s): [A]."""
        scores = self.advantage[state] / self.temperature
        weights = np.exp(scores - scores.max())
        chances: np.ndarray = weights / weights.sum()
        return chances

    def act(self, state: int, rng: np.random.Generator) -> int:
        """Draw an action."""
        chances = self.chances(state)
        return min(int(np.searchsorted(chances.cumsum(), rng.random(), side="right")), len(chances) - 1)

    def learn(self, state: int, action: int, reward: float, following: int | None, *, averaged: bool) -> None:
        """One update from what a step brought; ``following`` is None where the episode has ended."""
        ahead = 0.0 if following is None else self.discount * self.value[following]
        delta = reward + self.paid[state, action] + ahead - self.value[state]
        soft = delta - self.temperature * np.log(self.chances(state)[action])
        self.value[state] += self.rates.value_rate * soft
        self.advantage[state, action] += self.rates.advantage_rate * (delta - self.advantage[state, action])
        if averaged:
            self.sum += self.advantage
            self.averaged, self.error = self.averaged + 1, self.error + abs(soft)

    def answer(self) -> Tables:
        """V of now, and the mean of G."""
        return Tables(torch.from_numpy(self.value), torch.from_numpy(self.sum / self.averaged if self.averaged else self.advantage))


def _table(problem: IncentiveProblem) -> TabularGame:
    game: TabularGame | None = problem.world.table
    if game is None:
        raise UnsupportedProblem(
            "SoftGameIteration needs a TabularGame, whose probabilities are known; IndependentTables learns from play, IndependentNetworks with networks"
        )
    return game
