"""Learning a reward from comparisons: the expected cross-entropy of the teacher's labels under r_x."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from math import inf, nan
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel_gym.arguments import check_numbers
from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.numerics import as_table, rewards_of
from bilevel_gym.objectives.enumerated_preference import EnumeratedPreference
from bilevel_gym.objectives.held_out import accuracy, correlation, from_random_to_expert
from bilevel_gym.objectives.playing import play, reward_metrics, steps_with_tail, with_truth, world_at
from bilevel_gym.preferences import (
    Cut,
    PreferenceBuffer,
    Query,
    Teacher,
    compare,
    cross_entropy,
    draw_fragments,
    labels_due,
    misfit,
    pair_loss,
    take,
)
from bilevel_gym.types import Evaluation, Fragments, Problem, Response, Trajectory, World

__all__ = ["PreferenceMemory", "PreferenceObjective"]


@dataclass(frozen=True)
class PreferenceMemory:
    """What the upper level keeps between steps."""

    queue: PreferenceBuffer
    """Labelled pairs, for ∇l."""
    held_out: Fragments | None = None
    """Pairs that nothing ever trains on; None before the first evaluation."""
    held_out_returns: Tensor | None = None
    """[M, 2] the true returns of their fragments, for metrics."""
    evaluations: int = 0
    """How many there have been."""
    asked: int = 0
    """Labels that have been asked for, those of the held-out set left out."""


@dataclass(frozen=True)
class PreferenceObjective(EnumeratedPreference):
    """f(x, π) = E_{d_1, d_2 ~ π} E_y[ −y log σ(z) − (1−y) log σ(−z) ],  z = Σ_h r_x(d_1) − Σ_h r_x(d_2) (mathematics §8).

    Each evaluation plays π, cuts fresh pairs, and asks the teacher about them. The metrics are kept apart:

    * ``accuracy_fresh``: how often r_x ranks the fresh pairs as their labels do, *before* anything has trained on them;
    * ``accuracy_held_out``: the same on a fixed set, drawn once by policies of random quality, and by experts where they are given, that
      nothing trains on;
    * ``correlation_held_out``: Pearson's, of the learned and the true returns of the fixed set's fragments, 0 where one does not vary;
    * ``true_return`` and ``learned_return``: the mean undiscounted sum of the world's own reward, and of r_x, over the trajectories;
    * ``reward_saturated``: the share of their steps at which |r_x| is above .95 of its bound, where it has one;
    * ``comparisons_left``: of the budget, where there is one.

    On-policy, this f is *not* minimised at the true reward: r_x also chooses which fragments are compared. With fragments of a fixed
    ``reference`` policy in their place it is, for a teacher that follows the model: f is convex in x then and does not depend on π.

    Fresh pairs are drawn uniformly: they are what f is measured on and what scores are weighted with. A ``query`` rule chooses more
    pairs from the same trajectories, for ∇l only. All that is labelled enters the queue.

    Once the budget is spent, or between two labels of a rate below one, nobody is asked: f is then the mean loss of pairs drawn from the
    queue, the fresh fragments are marked as not ``asked``, and ``accuracy_fresh`` is NaN.

    Args:
        length: H, steps of a fragment.
        pairs: fresh pairs of an evaluation.
        initial_pairs: those of the first evaluation after a cold reset; None takes ``pairs``.
        teacher: who labels.
        capacity: pairs in the queue for ∇l; 0 keeps none, and ∇l is estimated on the fresh pairs.
        cut: whether fragments start at the reset or anywhere in the trajectory.
        trajectories: trajectories of an evaluation; None gives each fragment one of its own.
        steps: T of each; None takes H and the tail past it in which γ^t falls to .01. Episodes may be shorter, but not than H.
        held_out_pairs: pairs of the fixed set, 0 for none.
        experts: who plays half of the fixed set, such as policies that were trained on the true reward (of the same kind as the
            follower's), from poor to good ones; or trajectories [N, T] of theirs, with true rewards. Random policies play the other
            half, and all of it where there are none.
        comparisons: what is in the queue from the start, such as ``preferences.load_comparisons`` gives; nobody is asked about them.
        query: how further pairs are chosen, from the second evaluation on; None chooses none.
        budget: labels in all, those of the held-out set left out; None does not count.
        half_rate: the evaluation at which half as many labels are asked for as at first, as the rate falls hyperbolically (Christiano et
            al., NeurIPS 2017, let it fall as 1/(T + constant) in environment steps); None keeps the rate constant.
        reference: the policy whose fragments are compared, of the same kind as the follower's; None compares the follower's own.
        exact: whether an evaluation's value is f itself, by enumeration on a small table, and not the mean loss of its fresh pairs.

    Raises:
        InvalidProblem: a number that is out of range.
    """

    _: KW_ONLY
    length: int
    pairs: int
    initial_pairs: int | None = None
    teacher: Teacher = Teacher()
    capacity: int = 0
    cut: Cut = "start"
    trajectories: int | None = None
    steps: int | None = None
    held_out_pairs: int = 0
    query: Query | None = None
    budget: int | None = None
    half_rate: float | None = None
    reference: Any = field(default=None, compare=False)
    experts: Sequence[Any] = field(default=(), compare=False)
    comparisons: Fragments | None = field(default=None, compare=False)
    exact: bool = False

    def __post_init__(self) -> None:
        check_numbers(self)
        first = self.pairs if self.initial_pairs is None else self.initial_pairs
        if min(self.length, self.pairs, first) < 1 or min(self.capacity, self.held_out_pairs) < 0:
            raise InvalidProblem("length, pairs and initial_pairs must be positive, capacity and held_out_pairs not negative")
        if self.steps is not None and self.steps < self.length:
            raise InvalidProblem(f"steps is {self.steps}, shorter than a fragment of {self.length}: play at least {self.length} steps")
        if self.trajectories is not None and self.trajectories < 2:
            raise InvalidProblem(f"trajectories is {self.trajectories}: a pair takes its fragments from two different ones")
        if self.cut not in ("start", "anywhere"):
            raise InvalidProblem(f"cut is {self.cut!r}: choose 'start' or 'anywhere'")
        if self.exact and self.cut != "start":
            raise InvalidProblem("exact values need fragments that start at the reset: choose cut='start'")
        if self.budget is not None and self.budget < 1:
            raise InvalidProblem(f"budget is {self.budget}: the first evaluation asks for a label at least; None sets no limit")
        if self.half_rate is not None and not 0.0 < self.half_rate < inf:
            raise InvalidProblem(
                f"half_rate is {self.half_rate}: it is a number of evaluations, above 0 and finite; None keeps the rate constant"
            )
        if self.capacity == 0 and not (self.budget is None and self.half_rate is None and self.query is None):
            raise InvalidProblem("a budget, a falling rate and a query rule need a queue to train on: give a capacity, such as 3000")
        if self.comparisons is not None and self.capacity == 0:
            raise InvalidProblem("comparisons are kept in the queue: give a capacity, such as 3000")
        if self.comparisons is not None and self.comparisons.alive.shape[1:] != (2, self.length):
            raise InvalidProblem(
                f"comparisons are of {list(self.comparisons.alive.shape[1:])} fragments and steps: here two of {self.length} steps are compared"
            )
        if isinstance(self.experts, Tensor | Trajectory) or (self.experts and not self.held_out_pairs):
            raise InvalidProblem("experts are a list of policies or trajectories, which play the held-out set: give held_out_pairs, too")
        if isinstance(self.reference, list | tuple | np.ndarray):
            object.__setattr__(self, "reference", as_table(self.reference, "cpu"))
        if isinstance(self.reference, Tensor):
            rows = self.reference.sum(-1)
            if not bool((self.reference >= 0).all()) or not bool(((rows - 1.0).abs() < 1e-8).all()):
                raise InvalidProblem("reference must be a policy [S, A]: rows of probabilities, each with sum one")

    @classmethod
    def stack(cls, objectives: Sequence[PreferenceObjective]) -> PreferenceObjective:
        """The one objective of a batch of problems.

        Raises:
            UnsupportedProblem: they differ.
        """
        first = objectives[0]
        apart = ("reference", "experts", "comparisons")
        if any(other != first or any(getattr(other, name) is not getattr(first, name) for name in apart) for other in objectives):
            raise UnsupportedProblem("the problems of a batch have one preference objective: give them the same one")
        return first

    def aside(self) -> PreferenceObjective:
        """The same f for single looks: fresh pairs, without a queue, a held-out set, more pairs at first, or a budget."""
        nothing_kept: dict[str, Any] = {"held_out_pairs": 0, "experts": (), "comparisons": None, "query": None, "capacity": 0}
        return replace(self, initial_pairs=None, budget=None, half_rate=None, **nothing_kept)

    @property
    def per_tuple(self) -> int:
        """Fragments of a tuple: two are compared."""
        return 2

    def check(self, problem: Problem) -> None:
        """Refuse a problem that this objective is not for, before anything is played.

        Raises:
            UnsupportedProblem: there are contexts, a query rule asks a single network for disagreement, or the reward is none of the
                states and actions that comparisons from a file hold.
            InvalidProblem: the given comparisons, or an expert's trajectories, are not of this world.
        """
        super().check(problem)
        if self.query is not None:
            self.query.check(getattr(problem.reward, "members", 1))
        given = [("comparisons", self.comparisons), *(("experts", one) for one in self.experts if isinstance(one, Trajectory))]
        for name, steps in given:
            if steps is not None and (reason := misfit(steps, problem.world)):
                raise InvalidProblem(f"the {name} are not of this world: {reason}")
        if self.comparisons is not None and self.comparisons.rewards is None and hasattr(problem.reward, "of_transitions"):
            raise UnsupportedProblem(
                f"{type(problem.reward).__name__} is read from steps that were made, and the comparisons hold states and actions alone: leave them out"
            )

    def start(self) -> PreferenceMemory:
        """An empty queue, or the given comparisons, and no held-out set yet."""
        queue = PreferenceBuffer(self.capacity)
        return PreferenceMemory(queue if self.comparisons is None else queue.append(self.comparisons))

    @torch.no_grad()
    def evaluate(
        self, problem: Problem, x: Tensor, response: Response, memory: PreferenceMemory, generator: torch.Generator
    ) -> tuple[Evaluation, PreferenceMemory]:
        """Play the policy, cut and label fresh pairs, and measure before anything trains on them.

        Raises:
            UnsupportedProblem: the world has no true reward, so there is nothing that the teacher could compare, or there are contexts;
                or a query rule asks a single network for disagreement.
            InvalidProblem: fragments are longer than episodes.
        """
        self.check(problem)
        world = world_at(problem, x)
        held_out, truth, spent = memory.held_out, memory.held_out_returns, 0
        if held_out is None and self.held_out_pairs:
            held_out, spent = self._held_out(problem, world, generator)
            assert held_out.rewards is not None
            truth = held_out.rewards.sum(-1)
        due, more = self._due(memory)
        pairs, steps = due or self.pairs, self._steps(problem)
        trajectories = shown = play(world, response.policy, self.trajectories or 2 * pairs, steps, generator)
        if self.reference is not None:
            shown = play(world, self.shown(problem, None), self.trajectories or 2 * pairs, steps, generator)
            spent += shown.alive.numel()
        fresh, rewards = draw_fragments(shown, pairs, 2, self.length, self.cut, generator)
        queue = memory.queue
        if due:
            fresh = replace(fresh, fragments=self._labelled(fresh.fragments, rewards, generator), asked=True)
            queue = queue.append(fresh.fragments)
        if more:
            queue = queue.append(self._chosen(problem, x, shown, more, generator))
        logits = self.logits(problem, x, fresh.fragments)
        metrics = {
            "accuracy_fresh": accuracy(logits.mean(0), fresh.fragments.outcome) if due else nan,
            **reward_metrics(problem, x, trajectories),
        }
        if held_out is not None and truth is not None:
            learned = self.returns(problem, x, held_out).mean(0)
            metrics["accuracy_held_out"] = accuracy(learned[:, 0] - learned[:, 1], held_out.outcome)
            metrics["correlation_held_out"] = correlation(learned.flatten(), truth.flatten())
        asked = memory.asked + due + more
        if self.budget is not None:
            metrics["comparisons_left"] = float(self.budget - asked)
        if self.exact:
            value = self.value(problem, x, response.policy)
        elif due:
            value = cross_entropy(logits, fresh.fragments.outcome).mean()
        else:
            value = self.loss(problem, x, queue.sample(pairs, generator)).mean()
        evaluation = Evaluation(
            value=value,
            fresh=fresh,
            memory=queue,
            metrics=metrics,
            env_steps=trajectories.alive.numel() + spent,
            comparisons=due + more + (self.held_out_pairs if memory.held_out is None else 0),
        )
        return evaluation, PreferenceMemory(queue, held_out, truth, memory.evaluations + 1, asked)

    def loss(self, problem: Problem, x: Tensor, fragments: Fragments) -> Tensor:
        """l of each pair, differentiable in x, 0 where the query was skipped; of an ensemble the mean over its members' own: [M]."""
        return pair_loss(self._rewards(problem, x, fragments), fragments.alive, fragments.outcome)

    def logits(self, problem: Problem, x: Tensor, fragments: Fragments) -> Tensor:
        """Σ_h r(d_1) − Σ_h r(d_2) of each of K members, one where r_x is no ensemble: [K, M]."""
        first, second = self.returns(problem, x, fragments).unbind(-1)
        return first - second

    def returns(self, problem: Problem, x: Tensor, fragments: Fragments) -> Tensor:
        """Σ_h r of each fragment, by each of K members, in one batched forward pass: [K, M, 2]."""
        returns: Tensor = (self._rewards(problem, x, fragments) * fragments.alive).sum(-1)
        return returns

    def episode_steps(self, problem: Problem) -> int:
        """Steps of a trajectory that a fragment is cut from: H where it starts at the reset, T of an evaluation elsewhere."""
        return self.length if self.cut == "start" else self._steps(problem)

    def tuple_of(self, trajectories: Trajectory, generator: torch.Generator) -> Fragments:
        """One labelled pair out of two trajectories [2, T] that somebody else has played: fields [1, 2, H].

        Raises:
            UnsupportedProblem: they carry no true reward that the teacher could compare.
        """
        return self._compared(with_truth(trajectories), 1, generator)

    # ------------------------------------------------------------------------------------------ parts

    def _rewards(self, problem: Problem, x: Tensor, fragments: Fragments) -> Tensor:
        """r of each step by each of K members: [K, M, 2, H]."""
        reward: Any = problem.reward
        if not hasattr(reward, "along_each"):
            return rewards_of(reward, x, fragments).unsqueeze(0)
        rewards: Tensor = reward.along_each(x, fragments.states, fragments.actions)
        return rewards

    def _due(self, memory: PreferenceMemory) -> tuple[int, int]:
        """How many labels are asked for now, of fresh pairs and of chosen ones, within the budget."""
        if memory.evaluations == 0:
            fresh, chosen = self.pairs if self.initial_pairs is None else self.initial_pairs, 0
        else:
            counts = (self.pairs, 0 if self.query is None else self.query.pairs)
            fresh, chosen = (labels_due(count, memory.evaluations, self.half_rate) for count in counts)
        if self.budget is not None:
            fresh = min(fresh, self.budget - memory.asked)
            chosen = min(chosen, self.budget - memory.asked - fresh)
        return fresh, chosen

    def _steps(self, problem: Problem) -> int:
        horizon = getattr(problem.world, "horizon", None)
        if horizon is not None and horizon < self.length:
            raise InvalidProblem(f"fragments of {self.length} steps do not fit into episodes of {horizon}: shorten them")
        return steps_with_tail(problem.world, self.length, self.steps)

    def _labelled(self, fragments: Fragments, rewards: Tensor, generator: torch.Generator) -> Fragments:
        return replace(fragments, outcome=self.teacher.label(rewards, generator))

    def _chosen(self, problem: Problem, x: Tensor, shown: Trajectory, count: int, generator: torch.Generator) -> Fragments:
        """The pairs that the query rule picks out of many."""
        assert self.query is not None
        many = count if self.query.rule == "uniform" else count * self.query.ratio
        candidates, rewards = draw_fragments(shown, many, 2, self.length, self.cut, generator)
        index = self.query.choose(self.logits(problem, x, candidates.fragments), count)
        return self._labelled(take(candidates.fragments, index), rewards[index], generator)

    def _held_out(self, problem: Problem, world: World, generator: torch.Generator) -> tuple[Fragments, int]:
        """The fixed pairs, each fragment compared with any other, and environment steps."""
        played, spent = from_random_to_expert(
            world, self.experts, pairs=self.held_out_pairs, steps=self.episode_steps(problem), generator=generator
        )
        return self._compared(played, self.held_out_pairs, generator), spent

    def _compared(self, trajectories: Trajectory, pairs: int, generator: torch.Generator) -> Fragments:
        return compare(trajectories, self.teacher, pairs=pairs, length=self.length, cut=self.cut, generator=generator)
