"""One table: every estimator on every kind of problem, and the reason where it does not fit.

A new estimator is a line in ``EXACT`` or ``SAMPLED``, a new kind of problem a line in ``PROBLEMS``; what does not fit is named in ``REFUSED``.
"""

from __future__ import annotations

import contextlib
import re
from functools import cache

import numpy as np
import pytest
import torch

from bilevel_gym import BilevelEnv, agents, hypergradients
from bilevel_gym.envs import ProblemOracle, draw_soft_lqr
from bilevel_gym.errors import UnsupportedProblem
from bilevel_gym.hypergradients import (
    AID,
    AdvantageWeighted,
    Exact,
    ExactRiccati,
    Momentum,
    Penalty,
    PenaltyState,
    ScoreFunction,
    SecondOrder,
    ZeroOrder,
)
from bilevel_gym.objectives import DemonstrationLikelihood, SampledReturn
from bilevel_gym.solvers import SAC, GradientDescentSolver, Riccati, SoftPolicyIteration
from bilevel_gym.testing import central_differences, check_hypergradient
from tests import problems
from tests.test_hypergradient_exact import ConvergedImplicit
from tests.test_penalty import stationary

SOLVER = SoftPolicyIteration(tolerance=1e-13)

PROBLEMS = {
    "quadratic": lambda: problems.quadratic(20, objective=problems.Oblique()),
    "ending": lambda: problems.linear(0),
    "controlled": lambda: problems.controlled(0),
    "contexts": lambda: problems.contexts(0),
    "controlled-contexts": lambda: problems.controlled_contexts(0),
    "kl": lambda: problems.under_kl(problems.linear(1)),
    "tsallis": lambda: problems.under_tsallis(problems.linear(0), hotter=4.0),
    "return": lambda: problems.returns(0, contexts=False),
    "return-contexts": lambda: problems.returns(1, horizon=None, discount=0.8),
    "likelihood": lambda: with_objective(problems.linear(2), DemonstrationLikelihood(np.random.default_rng(0).random((7, 3)), ridge=0.1)),
    "preference": lambda: problems.preference(0),
    "preference-ending": lambda: problems.preference(2, ends=True),
    "preference-controlled": lambda: problems.preference_controlled(0),
    "preference-reference": lambda: problems.preference_variant(0, reference=torch.full((3, 2), 0.5, dtype=torch.float64)),
    "preference-tsallis": lambda: problems.under_tsallis(problems.preference(1), hotter=4.0),
    "preference-contexts": lambda: problems.preference_in(problems.contexts(0).world),
    "preference-anywhere": lambda: problems.preference_variant(0, cut="anywhere"),
    "preference-long": lambda: problems.preference_variant(0, length=8, steps=None),
    "preference-untrue": lambda: problems.preference_in(problems.linear(0).world),
    "trajectories": lambda: with_objective(problems.preference(2, ends=True), SampledReturn(length=3)),
    "convex": lambda: problems.convex(0),
    "regulator": lambda: draw_soft_lqr(np.random.default_rng(0))[0],
}
SOLVERS = {"regulator": Riccati(), "convex": GradientDescentSolver(tolerance=1e-8)}

"""One of each kind, and what solves it where it is no table."""


class StationaryPenalty(Penalty):
    """PBRL's estimator with a policy of its own that has come to rest, where it is ∇φ up to O(1/λ)."""

    def __call__(self, oracle, x, response, evaluation, state):
        """At the θ that minimises F_λ(x, ·)."""
        resting = PenaltyState(stationary(oracle.problem, self.kind, self.penalty, x))
        return super().__call__(oracle, x, response, evaluation, resting)


EXACT = {
    "Exact": (Exact(), 1e-6),
    "Implicit, converged": (ConvergedImplicit(), 1e-6),
    "SecondOrder, undamped": (SecondOrder(damping=1e-13, iterations=1000, tolerance=1e-13), 1e-6),
    "ExactRiccati": (ExactRiccati(), 1e-6),
    "AID": (AID(iterations=100, tolerance=1e-13), 1e-6),
    "AdvantageWeighted, oracle": (AdvantageWeighted("oracle"), 1e-6),
    "Penalty, value": (StationaryPenalty("value", penalty=1e6), 1e-4),
    "Penalty, Bellman": (StationaryPenalty("bellman", penalty=1e6), 1e-4),
}
"""Deterministic estimators, and the relative error that they must be below."""

SAMPLED = {
    "ScoreFunction, exact": ScoreFunction("exact"),
    "ScoreFunction, rollout": ScoreFunction("rollout"),
    "ZeroOrder, two points": ZeroOrder(radius=1e-2, directions=1),
    "Momentum, first step": Momentum(ScoreFunction("exact")),
    "AdvantageWeighted, sampled": AdvantageWeighted("sampled", trajectories=200),
    "AdvantageWeighted, model-free": AdvantageWeighted("model_free", trajectories=200),
}
"""Unbiased estimators, whose means must be within their confidence intervals."""

EXPLICIT = (
    "quadratic",
    "ending",
    "controlled",
    "contexts",
    "controlled-contexts",
    "kl",
    "tsallis",
    "return",
    "return-contexts",
    "likelihood",
)
PREFERENCE = [name for name in PROBLEMS if name.startswith("preference")]
NO_LOSS, SPARSE = "no loss", "Tsallis"
NOT_EXPLICIT = {
    "convex": "lower level is a function.*hypergradients.AID",
    "regulator": "transition probabilities.*hypergradients.ExactRiccati",
    "preference-contexts": "several followers.*world of its own",
    "preference-anywhere": "cut anywhere.*hypergradients.ScoreFunction",
    "preference-long": "more than 4096 fragments of 8 steps.*hypergradients.ScoreFunction",
    "preference-untrue": "no reward of its own.*hypergradients.ScoreFunction",
    "trajectories": r"SampledReturn has no value\(problem, x, policy\).*hypergradients.ScoreFunction",
}
"""Where no f(x, π) can be written down on a table."""
NOT_SOFTMAX = {**NOT_EXPLICIT, "tsallis": SPARSE, "preference-tsallis": SPARSE}
NOT_SCORED = {
    **dict.fromkeys(EXPLICIT, NO_LOSS),
    "convex": NO_LOSS,
    "regulator": NO_LOSS,
    "preference-controlled": "P depends on x.*hypergradients.Exact",
    "preference-reference": "fixed policy.*sensitivity=None",
    "preference-tsallis": "Tsallis.*hypergradients.Exact",
    "preference-contexts": "several followers.*world of its own",
}
NOT_DISCOUNTED = dict.fromkeys([name for name in PROBLEMS if not name.startswith("return")], "discounted")
REFUSED = {
    "Exact": NOT_EXPLICIT,
    "Implicit, converged": NOT_SOFTMAX,
    "SecondOrder, undamped": NOT_SOFTMAX,
    "Penalty, value": NOT_SOFTMAX,
    "Penalty, Bellman": NOT_SOFTMAX,
    "ExactRiccati": dict.fromkeys([name for name in PROBLEMS if name != "regulator"], "Riccati"),
    "AID": dict.fromkeys([name for name in PROBLEMS if name != "convex"], "decision problem"),
    "AdvantageWeighted, oracle": {
        **dict.fromkeys(
            [name for name in (*EXPLICIT, "trajectories", "convex", "regulator") if not name.startswith("return")], "advantage"
        ),
        **{name: reason for name, reason in NOT_SOFTMAX.items() if name in PREFERENCE},
    },
    **{name: NOT_SCORED for name in SAMPLED if name.startswith(("ScoreFunction", "Momentum"))},
    **{name: NOT_DISCOUNTED for name in SAMPLED if name.startswith("AdvantageWeighted")},
    "ZeroOrder, two points": {"preference-contexts": "several followers"},
}
"""A pattern of the reason, for each pair that does not fit."""

UNKNOWN = [name for name in NOT_EXPLICIT if name.startswith(("preference", "trajectories"))]
"""Where nothing tells the truth: what fits is asked for its reason only."""


def with_objective(problem, objective):
    """The same follower under another upper level."""
    return type(problem)(problem.world, problem.reward, problem.regularizer, objective)


made = cache(lambda name: PROBLEMS[name]())
"""The problem of a name, made once."""


@cache
def truth_of(name):
    """A point, and the truth there by central differences."""
    problem = made(name)
    x = problems.point(problem, len(name))
    return x, None if name == "convex" else central_differences(problem, x, solver=SOLVERS.get(name, SOLVER))


@pytest.mark.parametrize("estimator", [*EXACT, *SAMPLED])
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_table(name, estimator):
    """What fits is right, what does not fit says why: a term that is lost in any formula shows in its row."""
    problem = made(name)
    asked, tolerance = EXACT.get(estimator) or (SAMPLED[estimator], None)
    reason = asked.supports(problem)
    if name in REFUSED[estimator]:
        assert reason is not None
        assert re.search(REFUSED[estimator][name], reason)
        return
    assert reason is None
    if name in UNKNOWN:
        return
    x, truth = truth_of(name)
    if tolerance is None:
        check_hypergradient(problem, x, asked, estimates=40 if name == "convex" else 120, solver=SOLVERS.get(name, SOLVER))
    elif name == "convex":
        assert convex_error(problem, x, asked) < tolerance
    else:
        solver = SOLVERS.get(name, SOLVER)
        response = solver.solve(problem, x)
        oracle = ProblemOracle(problem, solver, torch.Generator())
        found, _ = asked(oracle, x, response, oracle.evaluate(x, response), asked.init(oracle))
        assert np.linalg.norm(found.value.numpy() - truth) < tolerance * np.linalg.norm(truth)


@pytest.mark.parametrize("name", PROBLEMS)
def test_what_is_recommended_fits(name):
    """Every refusal ends with an estimator, an agent and a solver that take the problem: two refusals must not point at each other."""
    problem, hints = made(name), set()
    for estimator in (*(asked for asked, _ in EXACT.values()), *SAMPLED.values()):
        reason = estimator.supports(problem) or ""
        hints |= set(re.findall(r"use hypergradients\.(\w+)(?:\((\w+)\))? \(agents\.(\w+)\)", reason))
    assert len(hints) == (name != "preference-contexts")
    solver = SOLVERS.get(name, SOLVER)
    for part, sensitivity, agent in hints:
        options = ([None] if sensitivity else ["critic", "frozen"]) if part == "ScoreFunction" else []
        assert getattr(hypergradients, part)(*options).supports(problem) is None
        assert getattr(agents, agent)(BilevelEnv(problem, solver, solve_on_reset=False)).act is not None
    for other in {SoftPolicyIteration(), Riccati(), GradientDescentSolver(steps=1), SAC()} - {solver, SOLVER}:
        with contextlib.suppress(UnsupportedProblem):
            other.start(problem)
            continue
        with pytest.raises(UnsupportedProblem, match=rf"use solvers\.{type(solver).__name__}"):
            other.start(problem)


def test_contexts_have_no_fragments():
    """An environment whose objective cannot tell followers apart says so at its first reset, and not with a shape."""
    with pytest.raises(UnsupportedProblem, match="several followers"):
        BilevelEnv(made("preference-contexts"), SOLVER).reset(seed=0)


def convex_error(problem, x, estimator):
    """The relative error on a strongly convex lower level, against central differences of the solved one."""
    solver = GradientDescentSolver(steps=100_000, tolerance=1e-12)
    generator = torch.Generator()

    def phi(at):
        response = solver.solve(problem, at, warm=None, budget=None, generator=generator)
        return float(problem.objective.evaluate(problem, at, response, None, generator)[0].value)

    truth = np.array([(phi(x + h) - phi(x - h)) / 2e-5 for h in 1e-5 * torch.eye(len(x), dtype=x.dtype)])
    oracle = ProblemOracle(problem, solver, generator)
    response = solver.solve(problem, x, warm=None, budget=None, generator=generator)
    found, _ = estimator(oracle, x, response, oracle.evaluate(x, response), estimator.init(oracle))
    return np.linalg.norm(found.value.numpy() - truth) / np.linalg.norm(truth)
