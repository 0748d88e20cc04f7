"""PBRL: the gradients of F_λ in x and in the own policy, the limit λ → ∞, the state, and the recipe."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_gym import BilevelProblem, agents, checkpoint
from bilevel_gym.envs import ProblemOracle
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.hypergradients import Exact, Penalty, PenaltyState
from bilevel_gym.numerics import policy_value
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import QuadraticReward
from bilevel_gym.solvers import SoftPolicyIteration, SoftValueIteration
from bilevel_gym.worlds import TabularWorld
from tests import problems

SOLVER = SoftPolicyIteration(tolerance=1e-13)
KINDS = ("value", "bellman")

PROBLEMS = {
    "quadratic": problems.quadratic(1),
    "oblique": problems.quadratic(22, objective=problems.Oblique()),
    "linear-ending": problems.linear(0),
    "controlled": problems.controlled(0),
    "preference": problems.preference(2, ends=True),
    "chain": problems.chain(),
    "contexts": problems.contexts(0),
    "contexts-shared-P": problems.contexts(1, shared=True),
    "controlled-contexts": problems.controlled_contexts(0),
    "kl": problems.under_kl(problems.linear(1)),
    "kl-contexts": problems.under_kl(problems.contexts(1)),
}


def asked(problem, x, estimator, theta=None, response=None):
    """One call, from a given θ or from the response's: the hyper-gradient and the state afterwards."""
    oracle = ProblemOracle(problem, SOLVER, torch.Generator())
    response = SOLVER.solve(problem, x) if response is None else response
    state = estimator.init(oracle)
    state = state if theta is None else PenaltyState(theta)
    return estimator(oracle, x, response, oracle.evaluate(x, response), state)


def somewhere(problem, seed=0):
    """Random logits of an own policy, the shape of the problem's policies."""
    shape = SOLVER.start(problem).policy.shape
    return torch.as_tensor(np.random.default_rng(seed).standard_normal(shape))


def played(problem, theta):
    """The policy with logits θ: softmax(θ), or ∝ μ exp(θ)."""
    return problem.regularizer.policy(problem.regularizer.temperature * theta)


def penalised(problem, kind, distribution=None):
    """F_λ(x, θ) of the definition, with the lower level solved anew at each x: π ↦ V^π by a dense solve that autograd sees."""

    def penalty(x, theta):
        mdp, optimum = problem.at(x), SOLVER.solve(problem, x)
        policy = played(problem, theta)
        entropy = -problem.regularizer.penalty(policy)
        uniform = torch.full_like(optimum.value, 1 / problem.world.states)
        if kind == "bellman":
            lost = optimum.value - (policy * optimum.q).sum(-1) - entropy
            weights = uniform if distribution is None else distribution
        else:
            moves = torch.einsum("...sa,...sat->...st", policy, mdp.transition.expand(*policy.shape, -1))
            matrix = torch.eye(problem.world.states, dtype=x.dtype) - mdp.discount * moves
            lost = optimum.value - torch.linalg.solve(matrix, (policy * mdp.reward).sum(-1) + entropy)
            weights = problem.world.start if distribution is None else distribution
        return problem.over_contexts((weights * lost).sum(-1))

    return lambda weight, x, theta: problem.objective.value(problem, x, played(problem, theta)) + weight * penalty(x, theta)


def differences(function, at, step=1e-5):
    """The gradient of a function of one tensor by central differences, in its shape."""
    found = torch.zeros_like(at)
    for i in range(at.numel()):
        shift = torch.zeros_like(at).flatten()
        shift[i] = step
        shift = shift.view_as(at)
        found.view(-1)[i] = (function(at + shift) - function(at - shift)) / (2 * step)
    return found


def close(found, truth, tolerance=1e-6):
    """‖found − truth‖ is a rounding error of the differences."""
    assert float((found - truth).norm()) < tolerance * float(truth.norm()), (found, truth)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_gradient_in_x(name, kind):
    """∇_xF_λ far from the optimum: a sign, a weight of contexts, or a part that passes through P or Q* would show here."""
    problem = PROBLEMS[name]
    x = problems.point(problem, 1)
    found, state = asked(problem, x, Penalty(kind, penalty=3.0), somewhere(problem))
    penalty = penalised(problem, kind)
    close(found.value, differences(lambda x: penalty(3.0, x, state.logits), x))
    close(found.implicit, differences(lambda x: penalty(3.0, x, state.logits) - penalty(0.0, x, state.logits), x))
    assert found.stats["penalty"] == pytest.approx(float(penalty(1.0, x, state.logits) - penalty(0.0, x, state.logits)), rel=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_gradient_in_the_policy(name, kind):
    """The step on θ is −(η/λ)∇_θF_λ: a wrong weight of the states, an advantage of the wrong policy or a lost f would show here."""
    problem = PROBLEMS[name]
    x, theta = problems.point(problem, 2), somewhere(problem)
    _, state = asked(problem, x, Penalty(kind, penalty=3.0, policy_learning_rate=0.7), theta)
    penalty = penalised(problem, kind)
    close((theta - state.logits) * 3.0 / 0.7, differences(lambda theta: penalty(3.0, x, theta), theta))


def stationary(problem, kind, weight, x):
    """The θ that minimises F_λ(x, ·), by Newton's method on the definition, from the follower's optimum."""
    penalty = penalised(problem, kind)
    theta = SOLVER.solve(problem, x).q / problem.regularizer.temperature
    for _ in range(20):
        hessian = torch.autograd.functional.hessian(lambda theta: penalty(weight, x, theta), theta)
        slope = torch.autograd.functional.jacobian(lambda theta: penalty(weight, x, theta), theta)
        step = torch.linalg.pinv(hessian.reshape(theta.numel(), -1), rtol=1e-12, hermitian=True) @ slope.flatten()
        theta = theta - step.view_as(theta)
        if float(step.abs().max()) < 1e-12:
            break
    return theta


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "first"), [("quadratic", 10), ("preference", 10), ("chain", 10), ("contexts", 1000), ("controlled-contexts", 1000)]
)
def test_large_penalties_give_the_exact_gradient(name, first, kind):
    """With π at a minimum of F_λ(x, ·) the error of ∇_xF_λ falls like 1/λ; where π or the penalty were wrong it would level off."""
    problem = PROBLEMS[name]
    x = problems.point(problem, 4)
    exact, _ = asked(problem, x, Exact())
    weights, errors = first * 10.0 ** np.arange(3), []
    for weight in weights:
        theta = stationary(problem, kind, weight, x)
        found, state = asked(problem, x, Penalty(kind, penalty=weight), theta)
        torch.testing.assert_close(state.logits, theta, rtol=0, atol=1e-8)
        errors.append(float((found.value - exact.value).norm() / exact.value.norm()))
    assert np.polyfit(np.log(weights), np.log(errors), 1)[0] == pytest.approx(-1.0, abs=0.05)
    assert errors[-1] < 5e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("contexts", [False, True], ids=["one-follower", "contexts"])
def test_distribution(kind, contexts):
    """A ν of one's own is the one that is used, in both gradients, under either penalty."""
    problem = PROBLEMS["contexts" if contexts else "linear-ending"]
    start = problem.world.start
    nu = torch.as_tensor(problems.rows(np.random.default_rng(5), *start.shape))
    x, theta = problems.point(problem, 5), somewhere(problem)
    estimator = Penalty(kind, penalty=2.0, distribution=nu)
    found, state = asked(problem, x, estimator, theta)
    penalty = penalised(problem, kind, nu)
    close(found.value, differences(lambda x: penalty(2.0, x, state.logits), x))
    close((theta - state.logits) * 2.0, differences(lambda theta: penalty(2.0, x, theta), theta))


def test_value_penalty_of_an_unsolved_response():
    """π̂ may lag behind: the penalty is then V^π̂ − V^π at that very π̂, not at the solver's rough V."""
    problem = PROBLEMS["controlled"]
    x, theta = problems.point(problem, 3), somewhere(problem)
    rough = SoftValueIteration(sweeps=2).solve(problem, x)
    found, state = asked(problem, x, Penalty(penalty=2.0), theta, rough)
    own = torch.softmax(state.logits, -1)

    def penalised(x):
        mdp = problem.at(x)
        lost = (problem.world.start * (policy_value(mdp, rough.policy) - policy_value(mdp, own))).sum()
        return problem.objective.value(problem, x, own) + 2.0 * lost

    close(found.value, differences(penalised, x))


def test_first_call_starts_at_the_response():
    """θ starts where the penalty is zero, so that ∇_xF_λ has no transient of order λ in it."""
    problem = PROBLEMS["linear-ending"]
    x = problems.point(problem, 0)
    for kind in KINDS:
        found, state = asked(problem, x, Penalty(kind, penalty=1e3, policy_learning_rate=1e-12))
        torch.testing.assert_close(torch.softmax(state.logits, -1), SOLVER.solve(problem, x).policy, rtol=0, atol=1e-10)
        assert abs(found.stats["penalty"]) < 1e-10
        assert found.stats["objective_own"] == pytest.approx(found.stats["objective_response"], rel=1e-9)


def test_growth_and_steps():
    """λ_k = λ(1 + growth·k), and two policy steps in one call are two calls of one step."""
    problem = PROBLEMS["linear-ending"]
    x, oracle = problems.point(problem, 0), ProblemOracle(PROBLEMS["linear-ending"], SOLVER, torch.Generator())
    response = SOLVER.solve(problem, x)
    state, weights = PenaltyState(somewhere(problem)), []
    for _ in range(3):
        found, state = Penalty(penalty=4.0, growth=0.5)(oracle, x, response, oracle.evaluate(x, response), state)
        weights.append(found.stats["penalty_weight"])
    assert weights == [4.0, 6.0, 8.0]
    constant = Penalty(penalty=4.0)
    once = PenaltyState(somewhere(problem))
    for _ in range(2):
        found, once = constant(oracle, x, response, oracle.evaluate(x, response), once)
    both, twice = asked(problem, x, replace(constant, policy_steps=2), somewhere(problem))
    torch.testing.assert_close(twice.logits, once.logits, rtol=0, atol=0)
    torch.testing.assert_close(both.value, found.value, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_batch_equals_single_problems(kind):
    """A leading axis changes no number, with a P that is shared and one for each problem."""
    rng = np.random.default_rng(0)
    for shape in ((), (3,)):
        transition, start = problems.rows(rng, *shape, 5, 3, 5), problems.rows(rng, *shape, 5)
        coefficients, matrix = rng.random((3, 5, 3)), rng.standard_normal((3, 4, 4))
        x, theta = torch.as_tensor(rng.standard_normal((3, 4))), torch.as_tensor(rng.standard_normal((3, 5, 3)))

        def made(i, shape=shape, transition=transition, start=start, coefficients=coefficients, matrix=matrix):
            tables = (transition[i], start[i]) if shape else (transition, start)
            return BilevelProblem(TabularWorld(*tables, 0.8), QuadraticReward(coefficients[i], matrix[i]), Shannon(0.7), problems.Oblique())

        whole, after = asked(made(slice(None)), x, Penalty(kind, policy_steps=2), theta)
        for i in range(3):
            alone, state = asked(made(i), x[i], Penalty(kind, policy_steps=2), theta[i])
            torch.testing.assert_close(whole.value[i], alone.value, rtol=0, atol=1e-9)
            torch.testing.assert_close(after.logits[i], state.logits, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"kind": "policy"}, "'value' or 'bellman'"),
        ({"penalty": 0.0}, "penalty is 0.0"),
        ({"penalty": float("nan")}, "penalty is nan"),
        ({"policy_learning_rate": float("inf")}, "policy_learning_rate inf"),
        ({"growth": -0.1}, "growth is -0.1"),
        ({"policy_steps": 0}, "policy_steps 0"),
        ({"distribution": [0.5, 0.5]}, "must be"),
        ({"distribution": np.eye(7)[0]}, "positive in every state"),
        ({"distribution": np.full(7, 1.0)}, "sum one"),
    ],
)
def test_refusals(options, word):
    """Numbers that make no penalty are refused before the first step, with the reason."""
    with pytest.raises(InvalidProblem, match=word):
        asked(PROBLEMS["linear-ending"], problems.point(PROBLEMS["linear-ending"], 0), Penalty(**options))


def test_unsupported_problems():
    """A simulator has no tables to write the penalty down with, and a sparse policy no logits that lead back to what it left out."""
    assert "softmax" in Penalty().supports(problems.under_tsallis(PROBLEMS["linear-ending"]))
    problem = gym.make("bilevel/PendulumPreference-v0", preset="tiny").unwrapped.problem
    assert "transition probabilities" in Penalty().supports(problem)


def small(**options):
    """RandomMDP in three dimensions."""
    env = gym.make("bilevel/RandomMDP-v0", states=4, actions=3, dimension=3, **options)
    env.reset(seed=1)
    return env


@pytest.mark.parametrize("kind", KINDS)
def test_recipe_descends(kind):
    """``agents.pbrl`` brings φ of the response, not of its own policy alone, near its minimum S/(2A)."""
    env = small()
    agent = agents.pbrl(env, kind=kind, learning_rate=0.03, policy_learning_rate=3.0)
    before = float(env.unwrapped.evaluation.value)
    agent.learn(300)
    least = env.unwrapped.problem.world.states / (2 * env.unwrapped.problem.world.actions)
    assert before > least + 0.5
    assert float(env.unwrapped.evaluation.value) < least + 1e-3


def test_state_goes_through_a_checkpoint(tmp_path):
    """The own policy is part of the agent's state: a run that is saved and resumed makes the same steps."""
    env = small()
    agent = agents.pbrl(env, growth=0.01)
    agent.learn(5)
    checkpoint.save(tmp_path / "state.pt", {"env": env.unwrapped.get_state(), "agent": agent.get_state()})
    agent.learn(5)
    other = small()
    resumed = agents.pbrl(other, growth=0.01)
    saved = checkpoint.load(tmp_path / "state.pt")
    other.unwrapped.set_state(saved["env"])
    resumed.set_state(saved["agent"])
    resumed.learn(5)
    torch.testing.assert_close(resumed.x, agent.x, rtol=0, atol=0)
