"""One constructor a paper: each a few lines of composition."""

from __future__ import annotations

from functools import partial
from math import ceil
from typing import Any, Literal, TypeVar

import gymnasium as gym

from bilevel_gym.agents.adam import Adam
from bilevel_gym.agents.ceiling import Ceiling
from bilevel_gym.agents.cma_es import CMAES
from bilevel_gym.agents.gradient_descent import GradientDescent
from bilevel_gym.agents.hypergradient_agent import HypergradientAgent
from bilevel_gym.agents.loop import OuterEnv
from bilevel_gym.agents.search import RandomSearch, SearchAgent
from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.hypergradients import (
    AID,
    AdvantageWeighted,
    Exact,
    ExactRiccati,
    Implicit,
    Momentum,
    Penalty,
    RandomizedTruncation,
    SampledPenalty,
    ScoreFunction,
    SecondOrder,
    ZeroOrder,
)
from bilevel_gym.hypergradients.advantage import Variant
from bilevel_gym.hypergradients.momentum import Correction
from bilevel_gym.hypergradients.penalty import Kind
from bilevel_gym.hypergradients.score_function import Sensitivity, Weighting, Window
from bilevel_gym.hypergradients.zero_order import Differences
from bilevel_gym.types import Evaluation, SampledObjective

T = TypeVar("T", int, float)

__all__ = [
    "aid",
    "cma_es",
    "drlhf",
    "exact",
    "hpgd",
    "m_sobirl",
    "parl",
    "pbrl",
    "random_search",
    "sac",
    "sobirl",
    "stoc_sobirl",
    "zero_order",
]


def aid(env: OuterEnv, *, learning_rate: float = 1.0, iterations: int = 20, tolerance: float = 1e-10) -> HypergradientAgent:
    """AID, the vanilla update for a strongly convex lower level: ``hypergradients.AID`` and gradient descent (mathematics §7).

    x⁺ = x − β(∇_x f − ∇²_{xy}g [∇²_{yy}g]⁻¹ ∇_y f). With ``solvers.GradientDescentSolver(steps=N)`` as the environment's solver this
    is AID-BiO (Ji, Yang, Liang, ICML 2021): ``env.step`` takes the N inner gradient steps, the estimator carries the solution of the
    linear system from one outer iteration to the next.

    Args:
        env: an outer environment whose lower level is a function, such as ``bilevel/QuadraticBilevel-v0``.
        learning_rate: β.
        iterations: conjugate-gradient steps of an estimate at most.
        tolerance: of the linear system, relative.
    """
    return HypergradientAgent(env, AID(iterations, tolerance), partial(GradientDescent, lr=learning_rate))


def exact(env: OuterEnv, *, learning_rate: float = 8e-3) -> HypergradientAgent:
    """Gradient descent on φ with the exact hyper-gradient: ``hypergradients.Exact`` on tables, ``ExactRiccati`` on linear-quadratic tasks.

    Args:
        env: an outer environment whose follower is solved, such as a tabular one with ``solver="policy_iteration"``.
        learning_rate: β.
    """
    problem: Any = getattr(env.unwrapped, "problem", None)
    riccati = problem is not None and ExactRiccati().supports(problem) is None
    return HypergradientAgent(env, ExactRiccati() if riccati else Exact(), partial(GradientDescent, lr=learning_rate))


def hpgd(
    env: OuterEnv,
    *,
    learning_rate: float | None = None,
    variant: Variant = "sampled",
    trajectories: int = 50,
    draws: int | None = None,
    max_norm: float | None = 1.0,
    levels: int | None = None,
    updates_per_step: int | None = None,
    warmup_updates: int | None = None,
) -> HypergradientAgent:
    """HPGD (Thoma, Pasztor, Krause, Ramponi, Hu, NeurIPS 2024): both levels' advantages, and clipped gradient descent.

    On a discounted cost it is ``hypergradients.AdvantageWeighted``. Where f is a mean over fragments, as on preference tasks, it is
    ``sobirl`` with ``weighting="advantage"`` and fresh continuations: all but these two is shared with ``sobirl`` and ``drlhf``.

    Args:
        env: an outer environment whose objective is a discounted cost, such as ``bilevel/FourRoomsIncentive-v0``, or a preference task.
        learning_rate: β; the paper chooses among .5, .1, .05 and .01, and None takes .1. On fragments of Adam, and None takes 3e-4.
        variant: ``"sampled"`` sees trajectories only, ``"oracle"`` has exact occupancies and sensitivities; on fragments L is learnt from
            earlier ones, unless by ``"oracle"``.
        trajectories: of each estimate, where a cost is sampled.
        draws: steps of each trajectory, or fragment, at which sensitivities are sampled; None takes 4, of a fragment 1.
        max_norm: a cost's ∇̂φ is scaled down to this length at most; 1 in the paper.
        levels: K of RT-Q (``hypergradients.RandomizedTruncation``), for a cost and an environment whose solves are a few sweeps; None
            takes the environment's own response.
        updates_per_step: of x between two steps of the environment; None takes one, and on fragments what ``sobirl`` takes.
        warmup_updates: further ones before the first step; None takes none, and on fragments what ``sobirl`` takes.
    """
    objective = getattr(getattr(env.unwrapped, "problem", None), "objective", None)
    if variant != "oracle" and levels is None and isinstance(objective, SampledObjective):
        return sobirl(
            env,
            learning_rate=_or(learning_rate, 3e-4),
            sensitivity="rollout",
            weighting="advantage",
            branches=_or(draws, 1),
            updates_per_step=_or(updates_per_step, 50),
            warmup_updates=_or(warmup_updates, 200),
        )
    estimator = AdvantageWeighted(variant, trajectories, _or(draws, 4))
    return HypergradientAgent(
        env,
        estimator if levels is None else RandomizedTruncation(estimator, levels),
        partial(GradientDescent, lr=_or(learning_rate, 0.1), max_norm=max_norm),
        updates_per_step=_or(updates_per_step, 1),
        warmup_updates=_or(warmup_updates, 0),
    )


def m_sobirl(
    env: OuterEnv, *, learning_rate: float = 8e-3, step_size: float | None = None, initial: Any = None, adjoint_steps: int = 1
) -> HypergradientAgent:
    """M-SoBiRL (Yang, Gao, Yuan, AISTATS 2025), the model-based algorithm: ``hypergradients.Implicit`` and gradient descent.

    With ``solvers.SoftValueIteration(sweeps=N)`` as the environment's solver this is the paper's algorithm line by line: the
    estimator updates w_k and reads V_k, the optimizer makes x_{k+1}, ``env.step`` sweeps N times and makes π_{k+1} (mathematics §4).

    Args:
        env: a tabular outer environment.
        learning_rate: β; the paper's synthetic run takes 8e-3.
        step_size: ξ; the paper's takes .5, None the largest that is safe.
        initial: w_0 [S], zeros by default.
        adjoint_steps: steps on w in each outer iteration.
    """
    return HypergradientAgent(env, Implicit(step_size, initial, adjoint_steps), partial(GradientDescent, lr=learning_rate))


def pbrl(
    env: OuterEnv,
    *,
    learning_rate: float | None = None,
    kind: Kind = "value",
    penalty: float | None = None,
    growth: float = 0.0,
    policy_learning_rate: float = 1.0,
    policy_steps: int = 1,
    batch: int = 64,
    clip: float | None = 0.1,
    updates_per_step: int | None = None,
    warmup_updates: int | None = None,
) -> HypergradientAgent:
    """PBRL (Shen, Yang, Chen, ICML 2024), re-implemented: x and a policy of the agent's own descend F_λ = f + λ·penalty (mathematics §7).

    On tables ``hypergradients.Penalty`` and gradient descent: the own policy is a table of logits. Where f is a mean over fragments
    and the world a simulator, as on preference tasks, ``SampledPenalty`` and Adam: the own policy is a second actor of the
    environment's solver, and all else is shared with ``sobirl`` and ``drlhf``.

    What to know about λ there: V sums some 1/(1−γ) rewards. In the limit λ cancels out of λ∇_xp, since π is 1/λ away from π̂ and λ∇_xp
    about as long as the implicit part of ∇φ, a few units like E[∇l]. Its noise does not cancel: the trajectories looked at, and two
    actors that learn apart, move ∇_xp by 5 to 40 each on CartPole (preset ``"study"``, γ = .99, four trajectories of each), so that
    λ = 10 makes it a hundred times E[∇l], nearly all noise. A λ that is small against that leaves π a follower no more: on rewards
    in [−1, 1] the charge on what it does is (w/λ)(L − E_πL), w = .5 for pairs of 25 steps. λ = 1 is between the two. ``clip`` decides
    how much of x's way the noise may take, as it is the same for all updates at one response; look at ``norm_implicit_unclipped``, and
    raise ``clip`` where it is no longer than ``norm_direct``: with more trajectories, solves that converge, or a smaller γ.

    Args:
        env: a tabular outer environment, or a preference task.
        learning_rate: of x; None takes 8e-3 on tables, 3e-4 on simulators.
        kind: the ``"value"`` or the ``"bellman"`` penalty; there is only ``"value"`` on simulators.
        penalty: λ; None takes 10 on tables, 1 on simulators.
        growth: by what share of λ it grows each upper step; 0 keeps it constant, as the paper does.
        policy_learning_rate: on tables η; the own policy's logits move by η/λ times the gradient of F_λ.
        policy_steps: on tables steps of the own policy in each upper step; an actor takes those of the environment's solver.
        batch: on simulators labelled pairs of the own policy for each ∇l.
        clip: on simulators the penalty's part of the gradient is at most this multiple of the direct one's norm; None does not clip.
        updates_per_step: of x between two steps of the environment; None takes one on tables, what ``sobirl`` takes on simulators.
        warmup_updates: further ones before the first step; None takes none on tables, what ``sobirl`` takes on simulators.
    """
    problem: Any = getattr(env.unwrapped, "problem", None)
    if problem is not None and not problem.tabular and isinstance(problem.objective, SampledObjective):
        if kind != "value":
            raise UnsupportedProblem(
                f"kind is {kind!r}: the Bellman penalty needs Q* in every state, which only tables have; choose 'value'"
            )
        return HypergradientAgent(
            env,
            SampledPenalty(penalty=_or(penalty, 1.0), growth=growth, batch=batch, clip=clip),
            partial(Adam, lr=_or(learning_rate, 3e-4)),
            updates_per_step=_or(updates_per_step, 50),
            warmup_updates=_or(warmup_updates, 200),
        )
    estimator = Penalty(
        kind, penalty=_or(penalty, 10.0), growth=growth, policy_learning_rate=policy_learning_rate, policy_steps=policy_steps
    )
    return HypergradientAgent(
        env,
        estimator,
        partial(GradientDescent, lr=_or(learning_rate, 8e-3)),
        updates_per_step=_or(updates_per_step, 1),
        warmup_updates=_or(warmup_updates, 0),
    )


def parl(
    env: OuterEnv, *, learning_rate: float = 8e-3, damping: float = 1e-6, iterations: int = 100, tolerance: float = 1e-8
) -> HypergradientAgent:
    """PARL (Chakraborty et al., ICLR 2024), re-implemented: ``hypergradients.SecondOrder`` and gradient descent (mathematics §7).

    Args:
        env: a tabular outer environment.
        learning_rate: of x.
        damping: δ, added to the negative Hessian in the logits.
        iterations: of conjugate gradients in each upper step, at most.
        tolerance: on their relative residual.
    """
    estimator = SecondOrder(damping=damping, iterations=iterations, tolerance=tolerance)
    return HypergradientAgent(env, estimator, partial(GradientDescent, lr=learning_rate))


def sobirl(
    env: OuterEnv,
    *,
    learning_rate: float = 3e-4,
    sensitivity: Sensitivity | None = "critic",
    weighting: Weighting = "loss",
    branches: int | None = 1,
    window: Window = "frozen",
    batch: int | None = 64,
    clip: float | Literal["auto"] | None = "auto",
    delay: int = 0,
    stale: bool = False,
    weight_decay: float = 0.0,
    updates_per_step: int | None = 50,
    warmup_updates: int = 200,
) -> HypergradientAgent:
    """SoBiRL (Yang, Gao, Yuan, AISTATS 2025), the model-free algorithm: ``hypergradients.ScoreFunction`` and Adam.

    Args:
        env: an outer environment whose objective is a mean over fragments, such as a preference task.
        learning_rate: of Adam.
        sensitivity: how ∇(Q − V) is estimated; ``"critic"`` here, ``"rollout"`` in the paper, ``"one_step"`` in the released code
            (mathematics §5).
        weighting: what scores are weighted with, the ``"loss"`` or, as in ``hpgd``, its ``"advantage"``.
        branches: steps of each fragment that ``"rollout"`` plays on from; None takes every one.
        window: ``"reset"`` is unbiased on fragments cut at the reset, ``"frozen"`` is for fragments cut anywhere.
        batch: labelled pairs of the queue for each ∇l; None takes the fresh ones.
        clip: the implicit part's norm at most, in multiples of the direct part's; ``"auto"`` takes 1, and .1 where r_x reads pixels, which
            saturates there (``benchmarks/README.md``); None does not clip.
        delay: upper steps before the implicit part sets in.
        stale: whether scores are those of the queue's pairs, as in the released code, and not those of the fresh ones; biased.
        weight_decay: λ of AdamW, which takes learning_rate · λ of x away in each update; 0 is Adam.
        updates_per_step: updates of x between two steps of the environment; None makes one for each batch in the queue, so that all of it
            is seen about once.
        warmup_updates: further ones on the first pairs.

    Raises:
        InvalidProblem: an option is out of range, or the queue is to be gone through and there is no ``batch``.
    """
    if updates_per_step is None and batch is None:
        raise InvalidProblem("updates_per_step=None makes an update for each batch in the queue: give a batch, such as 64")
    limit = _clip(env) if clip == "auto" else clip
    estimator = ScoreFunction(sensitivity, window, batch, branches=branches, clip=limit, delay=delay, stale=stale, weighting=weighting)
    return HypergradientAgent(
        env,
        estimator,
        partial(Adam, lr=learning_rate, weight_decay=weight_decay),
        updates_per_step=partial(_batches, batch or 1) if updates_per_step is None else updates_per_step,
        warmup_updates=warmup_updates,
    )


def stoc_sobirl(
    env: OuterEnv,
    *,
    learning_rate: float | None = None,
    decay: float = 1 / 3,
    momentum: float = 1.0,
    momentum_decay: float = 2 / 3,
    sensitivity: Sensitivity | None = "rollout",
    window: Window = "reset",
    correction: Correction = "none",
    clip: float = 10.0,
    max_norm: float | None = None,
    implicit_clip: float | None = None,
) -> HypergradientAgent:
    """Stoc-SoBiRL (Yang, Gao, Yuan, AISTATS 2025): ``hypergradients.Momentum`` around ``ScoreFunction``, and gradient descent.

    One update for each step of the environment. The schedules are those that give the rate Õ(K^−2/3); their constants are ours.

    Args:
        env: an outer environment whose objective is a mean over fragments.
        learning_rate: β_1 of β_k = β_1 k^−decay; None takes 1 on tables and .1 on simulators.
        decay: of β.
        momentum: μ_1 of μ_k = μ_1 k^−momentum_decay, at most 1; with 1 and no decay there is no momentum.
        momentum_decay: of μ.
        sensitivity: how ∇(Q − V) is estimated, see ``sobirl``.
        window: ``"reset"`` is unbiased on fragments cut at the reset, ``"frozen"`` is for fragments cut anywhere.
        correction: ``"importance"`` weighs the samples of π_k to stand for those of π_{k−1}, ``"none"`` does not.
        clip: the largest such weight.
        max_norm: h_k is scaled down to this length at most; None does not on tables, and takes 1 on simulators, where one long step
            saturates a network's reward.
        implicit_clip: the implicit part of ĝ at most, in multiples of the direct part's norm; None does not clip on tables, and takes
            .1 on simulators: there is one update for each look, and none averages its noise.
    """
    deep = not getattr(getattr(env.unwrapped, "problem", None), "tabular", True)
    limit = 0.1 if deep and implicit_clip is None else implicit_clip
    inner = ScoreFunction(sensitivity, window, clip=limit)
    return HypergradientAgent(
        env,
        Momentum(inner, correction, clip, momentum, momentum_decay),
        partial(
            GradientDescent,
            lr=_or(learning_rate, 0.1 if deep else 1.0),
            decay=decay,
            max_norm=1.0 if deep and max_norm is None else max_norm,
        ),
    )


def drlhf(
    env: OuterEnv,
    *,
    learning_rate: float = 3e-4,
    batch: int | None = 64,
    weight_decay: float = 0.0,
    updates_per_step: int | None = 50,
    warmup_updates: int = 200,
) -> HypergradientAgent:
    """DRLHF (Christiano et al., 2017): ``sobirl`` without its implicit term, and nothing else changed (mathematics §7).

    Args:
        env: a preference task.
        learning_rate: of Adam.
        batch: labelled pairs of the queue for each ∇l; None takes the fresh ones.
        weight_decay: as for ``sobirl``.
        updates_per_step: updates of x between two steps of the environment; None makes one for each batch in the queue.
        warmup_updates: further ones on the first pairs.
    """
    return sobirl(
        env,
        learning_rate=learning_rate,
        sensitivity=None,
        batch=batch,
        weight_decay=weight_decay,
        updates_per_step=updates_per_step,
        warmup_updates=warmup_updates,
    )


def sac(env: OuterEnv, *, temperature: float | None = None) -> Ceiling:
    """The ceiling: the environment's own soft actor-critic, told the true reward; ``envs.with_true_reward``, and x left alone (mathematics §7).

    It logs what the others log. Labels are asked for and counted as theirs are, and nothing learns from them.

    Args:
        env: a preference task on a simulator; the agent steps a twin of it, ``agent.env``.
        temperature: τ in units of the true reward of a step (x = 1 scales nothing). None takes .2 where actions are a box, the τ of
            Haarnoja et al. (ICML 2018: rewards times five at τ = 1; on Humanoid times twenty, so take .05 there), and the task's own
            where they are finitely many, as on CartPole, whose true reward is −1 for each fall.
    """
    box = hasattr(getattr(getattr(env.unwrapped, "problem", None), "world", None), "action_low")
    return Ceiling(env, 0.2 if temperature is None and box else temperature)


def zero_order(
    env: OuterEnv, *, learning_rate: float = 8e-3, kind: Differences = "two_point", radius: float = 1e-2, directions: int | None = None
) -> HypergradientAgent:
    """Gradient descent on differences of φ: ``hypergradients.ZeroOrder``, which sees values only (Flaxman, Kalai, McMahan, SODA 2005).

    Args:
        env: an outer environment; each upper step costs 2n solves more (2D with finite differences).
        learning_rate: β; along random directions it has to be about 1 + D/n times smaller than for ``exact``.
        kind: ``"two_point"`` or ``"finite_differences"``.
        radius: r, in units of x.
        directions: n, of two points; None takes 10.
    """
    return HypergradientAgent(env, ZeroOrder(kind, radius=radius, directions=directions), partial(GradientDescent, lr=learning_rate))


def random_search(env: gym.Env[Any, Any], *, step_size: float = 0.05) -> SearchAgent:
    """Random steps from the best x so far, with the one-fifth success rule (Rechenberg, 1973).

    Args:
        env: an environment whose action is x.
        step_size: the first standard deviation of a step, in sides of the box.
    """
    return SearchAgent(env, RandomSearch(step_size=step_size))


def cma_es(env: gym.Env[Any, Any], *, step_size: float = 0.05, population: int | None = None, separable: bool | None = None) -> SearchAgent:
    """CMA-ES (Hansen, Ostermeier, 2001) around the library ``cmaes``; one upper step is one point of a generation.

    Args:
        env: an environment whose action is x.
        step_size: the first standard deviation of a step, in sides of the box.
        population: points in a generation; None takes 4 + ⌊3 log D⌋.
        separable: whether to adapt a diagonal covariance matrix only; None does above 500 dimensions.
    """
    return SearchAgent(env, CMAES(step_size=step_size, population=population, separable=separable))


def _clip(env: OuterEnv) -> float:
    """How long the implicit part may be where nobody says so, in multiples of the direct part's norm."""
    world = getattr(getattr(env.unwrapped, "problem", None), "world", None)
    return 0.1 if len(getattr(world, "observation_shape", ())) == 3 else 1.0


def _batches(size: int, evaluation: Evaluation) -> int:
    """Batches in the queue, the last of them perhaps smaller."""
    return ceil(len(evaluation.memory or ()) / size) or 1


def _or(given: T | None, default: T) -> T:
    """What was given, or else the default."""
    return default if given is None else given
