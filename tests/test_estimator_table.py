"""One table: every estimator on every kind of problem, and the reason where it does not fit.

A new estimator is a line in ``EXACT`` or ``SAMPLED``, a new kind of problem a line in ``PROBLEMS``; what does not fit is named in ``REFUSED``.
"""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest
import torch

from bilevel_gym.envs import ProblemOracle, draw_soft_lqr
from bilevel_gym.hypergradients import AID, AdvantageWeighted, Exact, ExactRiccati, Momentum, ScoreFunction, SecondOrder, ZeroOrder
from bilevel_gym.objectives import DemonstrationLikelihood
from bilevel_gym.solvers import GradientDescentSolver, Riccati, SoftPolicyIteration
from bilevel_gym.testing import central_differences, check_hypergradient
from tests import problems
from tests.test_hypergradient_exact import ConvergedImplicit

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
    "convex": lambda: problems.convex(0),
    "regulator": lambda: draw_soft_lqr(np.random.default_rng(0))[0],
}
SOLVERS = {"regulator": Riccati(), "convex": GradientDescentSolver(tolerance=1e-8)}

"""One of each kind, and what solves it where it is no table."""

EXACT = {
    "Exact": (Exact(), 1e-6),
    "Implicit, converged": (ConvergedImplicit(), 1e-6),
    "SecondOrder, undamped": (SecondOrder(damping=1e-13, iterations=1000, tolerance=1e-13), 1e-6),
    "ExactRiccati": (ExactRiccati(), 1e-6),
    "AID": (AID(iterations=100, tolerance=1e-13), 1e-6),
    "AdvantageWeighted, oracle": (AdvantageWeighted("oracle"), 1e-6),
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
NO_LOSS, CONVEX, SPARSE, NO_TABLE = "no loss", "lower level is a function", "Tsallis", "transition probabilities"
REFUSED = {
    "Exact": {"convex": CONVEX, "regulator": NO_TABLE},
    "Implicit, converged": {"convex": CONVEX, "tsallis": SPARSE, "regulator": NO_TABLE},
    "SecondOrder, undamped": {"convex": CONVEX, "tsallis": SPARSE, "regulator": NO_TABLE},
    "ExactRiccati": dict.fromkeys([name for name in PROBLEMS if name != "regulator"], "Riccati"),
    "AID": dict.fromkeys([name for name in PROBLEMS if name != "convex"], "."),
    **{
        name: {**dict.fromkeys(EXPLICIT, NO_LOSS), "convex": ".", "regulator": NO_LOSS}
        for name in SAMPLED
        if not name.startswith(("ZeroOrder", "AdvantageWeighted"))
    },
    **{
        name: dict.fromkeys([other for other in PROBLEMS if not other.startswith("return")], "discounted")
        for name in (*EXACT, *SAMPLED)
        if name.startswith("AdvantageWeighted")
    },
    "ZeroOrder, two points": {},
}
"""A pattern of the reason, for each pair that does not fit."""


def with_objective(problem, objective):
    """The same follower under another upper level."""
    return type(problem)(problem.world, problem.reward, problem.regularizer, objective)


@cache
def made(name):
    """A problem, a point, and the truth there by central differences."""
    problem = PROBLEMS[name]()
    x = problems.point(problem, len(name))
    return problem, x, None if name == "convex" else central_differences(problem, x, solver=SOLVERS.get(name, SOLVER))


@pytest.mark.parametrize("estimator", [*EXACT, *SAMPLED])
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_table(name, estimator):
    """What fits is right, what does not fit says why: a term that is lost in any formula shows in its row."""
    problem, x, truth = made(name)
    asked, tolerance = EXACT.get(estimator) or (SAMPLED[estimator], None)
    reason = asked.supports(problem)
    if name in REFUSED[estimator]:
        assert reason is not None
        assert re.search(REFUSED[estimator][name], reason)
        return
    assert reason is None
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
