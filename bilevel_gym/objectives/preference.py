"""Learning a reward from comparisons: the expected cross-entropy of the teacher's labels under r_x."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from math import ceil, log
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.frames import concatenate_states
from bilevel_gym.numerics import as_table, gradients
from bilevel_gym.objectives.enumeration import Enumeration, fragments_of
from bilevel_gym.objectives.pairs import answer_entropy, mean_losses, pair_losses
from bilevel_gym.preferences import Cut, PreferenceBuffer, Teacher, cross_entropy, draw_places, gather
from bilevel_gym.types import Ensemble, Evaluation, Fragments, Problem, Response, Samples, Trajectory, World

__all__ = ["PreferenceMemory", "PreferenceObjective"]

NO_TRUE_REWARD = "the teacher compares true returns, and this world has no reward of its own: give TabularWorld a true_reward"


@dataclass(frozen=True)
class PreferenceMemory:
    """What the upper level keeps between steps."""

    queue: PreferenceBuffer
    """Labelled pairs, for ∇l."""
    held_out: Fragments | None = None
    """Pairs that nothing ever trains on; None before the first evaluation."""
    started: bool = False
    """Whether there has been an evaluation."""


@dataclass(frozen=True)
class PreferenceObjective:
    """f(x, π) = E_{d_1, d_2 ~ π} E_y[ −y log σ(z) − (1−y) log σ(−z) ],  z = Σ_h r_x(d_1) − Σ_h r_x(d_2) (mathematics §8).

    Each evaluation plays π, cuts fresh pairs, and asks the teacher about them. The metrics are kept apart:

    * ``accuracy_fresh``: how often r_x ranks the fresh pairs as their labels do, *before* anything has trained on them;
    * ``accuracy_held_out``: the same on a fixed set, drawn once by policies of random quality, that nothing trains on;
    * ``true_return`` and ``learned_return``: the mean undiscounted sum of the world's own reward, and of r_x, over the trajectories.

    On-policy, this f is *not* minimised at the true reward: r_x also chooses which fragments are compared. With fragments of a fixed
    ``reference`` policy in their place it is, for a teacher that follows the model: f is convex in x then and does not depend on π.

    Args:
        length: H, steps of a fragment.
        pairs: fresh pairs of an evaluation.
        initial_pairs: those of the first evaluation after a cold reset; None takes ``pairs``.
        teacher: who labels.
        capacity: pairs in the queue for ∇l; 0 keeps none, and ∇l is estimated on the fresh pairs.
        cut: whether fragments start at the reset or anywhere in the trajectory.
        trajectories: trajectories of an evaluation; None gives each fragment one of its own.
        steps: T of each; None takes H and the tail past it in which γ^t falls to .01.
        held_out_pairs: pairs of the fixed set, 0 for none.
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
    reference: Any = field(default=None, compare=False)
    exact: bool = False

    def __post_init__(self) -> None:
        if self.length < 1 or self.pairs < 1 or self.capacity < 0 or self.held_out_pairs < 0 or (self.initial_pairs or 1) < 1:
            raise InvalidProblem("length, pairs and initial_pairs must be positive, capacity and held_out_pairs not negative")
        if self.steps is not None and self.steps < self.length:
            raise InvalidProblem(f"steps is {self.steps}, shorter than a fragment of {self.length}: play at least {self.length} steps")
        if self.trajectories is not None and self.trajectories < 2:
            raise InvalidProblem(f"trajectories is {self.trajectories}: a pair takes its fragments from two different ones")
        if self.cut not in ("start", "anywhere"):
            raise InvalidProblem(f"cut is {self.cut!r}: choose 'start' or 'anywhere'")
        if self.exact and self.cut != "start":
            raise InvalidProblem("exact values need fragments that start at the reset: choose cut='start'")
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
        if any(other != first or other.reference is not first.reference for other in objectives):
            raise UnsupportedProblem("the problems of a batch have one preference objective: give them the same one")
        return first

    @property
    def on_policy(self) -> bool:
        """Whether π chooses what is compared, so that f depends on it."""
        return self.reference is None

    @property
    def per_tuple(self) -> int:
        """Fragments of a tuple: two are compared."""
        return 2

    # ------------------------------------------------------------------------------------------ sampled

    def start(self) -> PreferenceMemory:
        """An empty queue, and no held-out set yet."""
        return PreferenceMemory(PreferenceBuffer(self.capacity))

    @torch.no_grad()
    def evaluate(
        self, problem: Problem, x: Tensor, response: Response, memory: PreferenceMemory, generator: torch.Generator
    ) -> tuple[Evaluation, PreferenceMemory]:
        """Play the policy, cut and label fresh pairs, and measure before anything trains on them.

        Raises:
            UnsupportedProblem: the world has no true reward, so there is nothing that the teacher could compare, or there are contexts.
        """
        self._check(problem)
        world = problem.world.at(x) if getattr(problem.world, "depends_on_x", False) else problem.world
        held_out, spent = memory.held_out, 0
        if held_out is None and self.held_out_pairs:
            held_out, spent = self._held_out(problem, world, generator)
        pairs = self.pairs if memory.started or self.initial_pairs is None else self.initial_pairs
        count, steps = self.trajectories or 2 * pairs, self._steps(problem)
        trajectories = shown = _play(world, response.policy, count, steps, generator)
        if self.reference is not None:
            shown = _play(world, self.reference, count, steps, generator)
            spent += shown.alive.numel()
        fresh = self._cut(shown, pairs, self.cut, generator)
        logits = self.logits(problem, x, fresh.fragments)
        metrics = {
            "accuracy_fresh": _accuracy(logits.mean(0), fresh.fragments.outcome),
            "true_return": float(_total(trajectories)),
            "learned_return": float(
                (problem.reward.along(x, trajectories.states, trajectories.actions) * trajectories.alive).sum(-1).mean()
            ),
        }
        if held_out is not None:
            metrics["accuracy_held_out"] = _accuracy(self.logits(problem, x, held_out).mean(0), held_out.outcome)
        queue = memory.queue.append(fresh.fragments)
        evaluation = Evaluation(
            value=self.value(problem, x, response.policy) if self.exact else cross_entropy(logits, fresh.fragments.outcome).mean(),
            fresh=fresh,
            memory=queue,
            metrics=metrics,
            env_steps=trajectories.alive.numel() + spent,
            comparisons=pairs + (self.held_out_pairs if memory.held_out is None else 0),
        )
        return evaluation, PreferenceMemory(queue, held_out, started=True)

    def loss(self, problem: Problem, x: Tensor, fragments: Fragments) -> Tensor:
        """l of each pair, differentiable in x, 0 where the query was skipped; of an ensemble the mean over its members' own: [M]."""
        return cross_entropy(self.logits(problem, x, fragments), fragments.outcome).mean(0)

    def logits(self, problem: Problem, x: Tensor, fragments: Fragments) -> Tensor:
        """Σ_h r(d_1) − Σ_h r(d_2) of each of K members, one where r_x is no ensemble, by one batched forward pass: [K, M]."""
        reward, pairs = problem.reward, (fragments.states, fragments.actions)
        apart = isinstance(reward, Ensemble) and reward.members > 1
        rewards = reward.along_each(x, *pairs) if apart else reward.along(x, *pairs).unsqueeze(0)
        returns: Tensor = (rewards * fragments.alive).sum(-1)
        return returns[..., 0] - returns[..., 1]

    def episode_steps(self, problem: Problem) -> int:
        """Steps of a trajectory that a fragment is cut from: H where it starts at the reset, T of an evaluation elsewhere."""
        return self.length if self.cut == "start" else self._steps(problem)

    def tuple_of(self, trajectories: Trajectory, generator: torch.Generator) -> Fragments:
        """One labelled pair out of two trajectories [2, T] that somebody else has played: fields [1, 2, H].

        Raises:
            UnsupportedProblem: they carry no true reward that the teacher could compare.
        """
        return self._cut(_with_truth(trajectories), 1, self.cut, generator).fragments

    # ------------------------------------------------------------------------------------------ exact

    def not_explicit(self, problem: Problem) -> str | None:
        """None where f can be enumerated, else the reason why it can only be sampled. Cost: an enumeration, remembered where P is fixed."""
        low, high = problem.domain.bounds
        middle = torch.as_tensor((low + high) / 2.0, dtype=problem.domain.dtype, device=problem.domain.device)
        try:
            self._truth(problem, self.fragments(problem, middle))
        except UnsupportedProblem as error:
            return str(error)
        return None

    def value(self, problem: Problem, x: Tensor, policy: Tensor) -> Tensor:
        """f(x, π) by enumeration of all pairs of fragments, for small tables and ``cut="start"``: [B, D], [B, S, A] → [B].

        Raises:
            UnsupportedProblem: what ``not_explicit`` says, or a batch of x where P depends on x.

        Cost: O(B(FH + U²)), F fragments of U kinds; the pairs are taken in parts, which bounds the memory.
        """
        every, law = self._law(problem, x, policy)
        losses = mean_losses(law, every.returns(problem.reward.at(x)), self._truth(problem, every), self.teacher)
        return (law * losses).sum(-1)

    def entropy(self, problem: Problem, policy: Tensor) -> Tensor:
        """The least that f can be on fragments of a policy, which the teacher's noise leaves over: [B, S, A] → [B].

        It is the entropy of the answers, as far as the loss can tell (``pairs.answer_entropy``). Under a Bradley–Terry teacher with a
        ``reference`` f attains it, at the true reward times the rationality; on-policy the fragments move with x.
        """
        every, law = self._law(problem, torch.zeros(problem.dimension, dtype=policy.dtype, device=policy.device), policy)
        return answer_entropy(law, self._truth(problem, every), self.teacher)

    def fragments(self, problem: Problem, x: Tensor) -> Enumeration:
        """All fragments, of as many kinds as reward and teacher tell apart.

        Raises:
            UnsupportedProblem: there are contexts, the fragments are cut anywhere, there are too many of them, or more than one P.
        """
        self._check(problem)
        if self.cut != "start":
            raise UnsupportedProblem(
                "fragments cut anywhere have no closed-form start law: enumerate with cut='start', or use the sampled estimators"
            )
        return fragments_of(problem.world, x, self.length, self.teacher.discount)

    def pair_losses(self, problem: Problem, x: Tensor, every: Enumeration) -> Tensor:
        """E_y l of each pair of kinds of fragments, differentiable in x: [B, D] → [B, U, U].

        Raises:
            UnsupportedProblem: the world has no true reward.
        """
        return pair_losses(every.returns(problem.reward.at(x)), self._truth(problem, every), self.teacher)

    def gradient(self, problem: Problem, x: Tensor, policy: Tensor) -> tuple[Tensor, Tensor]:
        """(∇_x f [B, D], ∇_π f [B, S, A]) of the enumeration, by one backward pass."""
        by_x, by_policy = gradients(lambda x, policy: self.value(problem, x, policy), x, policy)
        return by_x, by_policy

    def advantage(self, problem: Problem, x: Tensor, policy: Tensor) -> tuple[Tensor, Tensor]:
        """L − E_πL with L(s, a) the mean of l given that (s, a) was visited in either fragment, and the visits of s in both.

        What HPGD's A_upper is for this loss (mathematics §7). With a ``reference`` π chooses nothing, and it is 0.

        Returns:
            A [B, S, A], zero where (s, a) is never visited, and d [B, S].
        """
        every, law = self._law(problem, x, policy)
        losses = mean_losses(law, every.returns(problem.reward.at(x)), self._truth(problem, every), self.teacher)
        visits, lost = (2.0 * (weight @ every.counts).view_as(policy) for weight in (law.expand_as(losses), law * losses))
        mean = torch.where(visits > 0, lost / visits.clamp_min(torch.finfo(visits.dtype).tiny), 0.0)
        advantage = torch.where(visits > 0, mean - (policy * mean).sum(-1, keepdim=True), 0.0)
        return advantage if self.on_policy else torch.zeros_like(advantage), visits.sum(-1)

    # ------------------------------------------------------------------------------------------ parts

    def _check(self, problem: Problem) -> None:
        if getattr(problem.world, "context_weights", None) is not None:
            raise UnsupportedProblem(
                "there are several followers (contexts), and fragments do not say whose they are: take one follower, in a world of its own"
            )
        if isinstance(self.reference, Tensor) and problem.tabular and list(self.reference.shape) != problem.sizes[1:]:
            raise UnsupportedProblem(f"reference has shape {tuple(self.reference.shape)}: it must be [S, A] = {problem.sizes[1:]}")

    def _steps(self, problem: Problem) -> int:
        if self.steps is not None:
            return self.steps
        discount = problem.world.discount
        return self.length + (ceil(log(0.01) / log(discount)) if discount > 0 else 0)

    def _cut(self, trajectories: Trajectory, pairs: int, cut: Cut, generator: torch.Generator) -> Samples:
        assert trajectories.rewards is not None
        origin, offset = draw_places(trajectories, pairs, 2, self.length, cut, generator)
        states, actions, alive, rewards = (
            gather(table, origin, offset, self.length)
            for table in (trajectories.states, trajectories.actions, trajectories.alive, trajectories.rewards)
        )
        labels = self.teacher.label(rewards * alive, generator)
        return Samples(trajectories, origin, offset, Fragments(states, actions, alive, labels))

    def _held_out(self, problem: Problem, world: World, generator: torch.Generator) -> tuple[Fragments, int]:
        """Pairs out of what sixteen policies of random quality play, each compared with any other; and the environment steps spent."""
        steps = self.length if self.cut == "start" else self._steps(problem)
        per_policy = min(ceil(self.held_out_pairs / 8), 4)
        played = [_play(world, world.exploratory(generator), per_policy, steps, generator) for _ in range(16)]
        order = torch.randperm(16 * per_policy, generator=generator, device=generator.device)
        mixed = Trajectory(
            *(concatenate_states([getattr(one, name) for one in played])[order] for name in ("states", "actions", "alive", "rewards"))
        )
        return self._cut(mixed, self.held_out_pairs, self.cut, generator).fragments, mixed.alive.numel()

    def _law(self, problem: Problem, x: Tensor, policy: Tensor) -> tuple[Enumeration, Tensor]:
        """All fragments, and the law of their kinds: [B, U]."""
        every = self.fragments(problem, x)
        return every, every.law(policy if self.reference is None else self.reference)

    def _truth(self, problem: Problem, every: Enumeration) -> Tensor:
        """What the teacher sees of each kind of fragment: [U, 2]."""
        true: Tensor | None = getattr(problem.world, "true_reward", None)
        if true is None:
            raise UnsupportedProblem(NO_TRUE_REWARD)
        return every.seen(true)


def _play(world: World, policy: object, trajectories: int, steps: int, generator: torch.Generator) -> Trajectory:
    return _with_truth(world.rollout(policy, trajectories=trajectories, steps=steps, generator=generator))


def _accuracy(logit: Tensor, outcome: Tensor) -> float:
    """The share of decided pairs that r_x ranks as the label does; ½ where nothing is decided."""
    decided = (outcome != 0.5) & ~outcome.isnan()
    if not bool(decided.any()):
        return 0.5
    agreement = logit.sign() * (outcome - 0.5).sign()  # 1 where the order is right, 0 where r_x knows of none
    return float((0.5 + 0.5 * agreement)[decided].mean())


def _with_truth(played: Trajectory) -> Trajectory:
    if played.rewards is None:
        raise UnsupportedProblem(NO_TRUE_REWARD)
    return played


def _total(trajectories: Trajectory) -> Tensor:
    assert trajectories.rewards is not None
    return (trajectories.rewards * trajectories.alive).sum(-1).mean()
