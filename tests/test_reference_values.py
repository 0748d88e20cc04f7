"""What the docstrings of the ids promise under "Reference value": every number is computed here, or named as somebody else's."""

from __future__ import annotations

import inspect
import re
from functools import cache

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import load_env_creator
from scipy.optimize import minimize

from bilevel_gym import agents
from bilevel_gym.envs import ProblemOracle
from bilevel_gym.envs.contract_design import draw_contract_tree
from bilevel_gym.envs.robot_navigation import drive_cost
from bilevel_gym.envs.soft_lqr import draw_soft_lqr
from bilevel_gym.hypergradients import Exact, ExactRiccati
from bilevel_gym.numerics import dense
from bilevel_gym.registration import CATALOGUE
from bilevel_gym.solvers import GradientDescentSolver, Riccati, SoftPolicyIteration

NUMBER = r"([−-]?\d*\.?\d+)"


def section(name):
    """The text under "Reference value" of an id, on one line."""
    creator = load_env_creator(CATALOGUE[f"bilevel/{name}-v0"].entry_point)
    text = inspect.getdoc(creator).partition("Reference value:")[2]
    return " ".join(re.split(r"\n\w[\w ]*:\n", text)[0].split())


def environment(name, *, x=None, seed=0, **options):
    """An environment of an id after its first reset, at an x."""
    env = gym.make(f"bilevel/{name}-v0", **options)
    env.reset(seed=seed, options=None if x is None else {"x": np.asarray(x, dtype=env.action_space.dtype)})
    return env


def at(name, x=None, **options):
    """φ at an x (the first x of seed 0 where none is given), or at one number in every coordinate."""
    if isinstance(x, float):
        x = np.full(gym.make(f"bilevel/{name}-v0", **options).action_space.shape, x)
    return float(environment(name, x=x, **options).unwrapped.evaluation.value)


@cache
def descended(name, steps, rate, recipe="exact", **options):
    """The environment of seed 0 after so many steps."""
    env = environment(name, **options)
    getattr(agents, recipe)(env, **({} if rate is None else {"learning_rate": rate})).learn(steps)
    return env.unwrapped


def value(env):
    """φ, or f at the response, where an environment stands."""
    return float(env.evaluation.value)


def slope(problem, x, estimator, solver):
    """φ and ∇φ at an x, solved to rounding."""
    oracle = ProblemOracle(problem, solver, torch.Generator())
    response = solver.solve(problem, x)
    evaluation = oracle.evaluate(x, response)
    return float(evaluation.value), estimator(oracle, x, response, evaluation, None)[0].value.numpy()


def minimised(name, start=0.0, **options):
    """The minimum of φ by L-BFGS in the box, from an x: φ there, and x."""
    problem = gym.make(f"bilevel/{name}-v0", **options).unwrapped.problem
    solver = SoftPolicyIteration(tolerance=1e-12)
    found = minimize(
        lambda x: slope(problem, torch.as_tensor(x), Exact(), solver),
        np.broadcast_to(start, (problem.dimension,)),
        jac=True,
        method="L-BFGS-B",
        bounds=list(zip(*problem.domain.bounds, strict=True)),
        options={"maxiter": 2000, "ftol": 1e-15, "gtol": 1e-9},
    )
    return found.fun, found.x


def hard_value(world, reward, discount):
    """max_π of the discounted reward from ρ, no entropy: value iteration to rounding."""
    best = torch.zeros(world.states, dtype=torch.float64)
    for _ in range(5000):
        best = (torch.as_tensor(reward) + discount * dense(world.transition) @ best).amax(-1)
    return float(world.start @ best)


def shaping_bound():
    """Minus the optimal true value at γ̄ = .95."""
    world = gym.make("bilevel/RewardShaping-v0").unwrapped.problem.world
    return -hard_value(world, world.true_reward, 0.95)


def robot_bound():
    """The designer's own optimal control."""
    world = gym.make("bilevel/RobotNavigation-v0").unwrapped.problem.world
    cost = drive_cost(world.grid, slip=0.1, energy=1.0, collision=5.0) * ~world.grid.marked("G")[:, None]
    return -hard_value(world, -cost, 0.99)


def expert():
    """The true reward of the grid, which its features span."""
    world = gym.make("bilevel/Apprenticeship-v0").unwrapped.problem.world
    return world.true_reward[:, 0].numpy()


def contract(margin):
    """The least payments of seed 0 and what they are worth to the principal in the limit."""
    return draw_contract_tree(np.random.default_rng(0)).least_payments(margin)


def teacher(fragments):
    """The environment at the true reward."""
    true = gym.make("bilevel/TabularPreference-v0").unwrapped.problem.world.true_reward
    return environment("TabularPreference", x=true.flatten().numpy(), fragments=fragments).unwrapped


def designer(*, entropy=True):
    """Problem and designer's log weights of seed 0."""
    rng = environment("SoftLQR").unwrapped  # the instance is the first draw of the environment's generator
    problem, truth = draw_soft_lqr(np.random.default_rng(0), entropy=entropy)
    assert torch.equal(problem.world.state_matrix, rng.problem.world.state_matrix)
    return slope(problem, truth, ExactRiccati(), Riccati(tolerance=1e-13))


def ridge(seed, *, shared=False, everywhere=None):
    """The closed form of one split: φ and the test's R² at the best x in the box (or at one number everywhere), and x."""
    problem = environment("RidgeRegression", seed=seed, shared=shared).unwrapped.problem
    train = problem.lower.data
    gram, right = train.inputs.T @ train.inputs / len(train.inputs), train.inputs.T @ train.targets / len(train.inputs)

    def answer(x):
        return torch.linalg.solve(gram + x.exp().expand(10).diag(), right)

    def phi(x):
        leaf = torch.tensor(x, requires_grad=True)
        found = problem.objective.value(problem, leaf, answer(leaf))
        return float(found.detach()), torch.autograd.grad(found, leaf)[0].numpy()

    x = np.full(problem.dimension, 0.0 if everywhere is None else everywhere)
    if everywhere is None:
        box = list(zip(*problem.domain.bounds, strict=True))
        x = minimize(phi, x, jac=True, method="L-BFGS-B", bounds=box, options={"ftol": 1e-14, "gtol": 1e-9}).x
    at_x = torch.as_tensor(x)
    return phi(x)[0], problem.objective.metrics(problem, at_x, answer(at_x))["test_r2"], float(x[0])


@cache
def ridge_means(**options):
    """The means over the seeds 0 to 9."""
    return np.mean([ridge(seed, **options) for seed in range(10)], axis=0)


def cleaned(*, wrong):
    """Accuracy and f of seed 0 with equal weights, or with those of the wrong labels (nearly) zero."""
    problem = environment("DataHyperCleaning").unwrapped.problem
    x = torch.where(problem.objective.corrupted, wrong, 10.0).double()
    answer = GradientDescentSolver(tolerance=1e-4).solve(problem, x).policy
    return problem.objective.metrics(problem, x, answer)["test_accuracy"], float(problem.objective.value(problem, x, answer))


def learned():
    """The environment after a hundred steps of AID."""
    return descended("DataHyperCleaning", 100, None, "aid")


VALUES = {
    "RandomMDP": [("x* = 0 with φ* = S/(2A) = {}", lambda: at("RandomMDP", 0.0, solver="policy_iteration"))],
    "RewardShaping": [
        ("φ(0) = {}", lambda: at("RewardShaping", 0.0)),
        ("no reward does better than {}", shaping_bound),
    ],
    "Apprenticeship": [("φ* = {}", lambda: at("Apprenticeship", expert()))],
    "PolicyTeaching": [
        ("φ* = {}", lambda: minimised("PolicyTeaching", 1.0)[0]),
        ("φ(0) = {}", lambda: at("PolicyTeaching", 0.0)),
    ],
    "StackelbergGame": [
        ("φ = {} at the first x", lambda: at("StackelbergGame")),
        ("{} after 300 steps", lambda: value(descended("StackelbergGame", 300, 1.0))),
        ("inf φ = {}", lambda: at("StackelbergGame", [-10.0, 10.0], payoffs=[[[3, 3], [6, 4]], [[4, 6], [2, 2]]])),
    ],
    "ContractDesign": [
        ("φ = {} at the first x", lambda: at("ContractDesign")),
        ("{} after 200 steps", lambda: value(descended("ContractDesign", 200, 0.1))),
        ("is worth {}, and no contract", lambda: contract(0.0)[1]),
        ("with a margin of .05 is worth {} in the limit", lambda: contract(0.05)[1]),
        ("and {} at τ = .02", lambda: -at("ContractDesign", contract(0.05)[0])),
    ],
    "RobotNavigation": [
        ("φ = {} at x = 0", lambda: at("RobotNavigation", 0.0)),
        ("for seed 0, {} at the first x", lambda: at("RobotNavigation")),
        ("{} after 100 steps", lambda: value(descended("RobotNavigation", 100, 0.4))),
        ("less than {} (her own", robot_bound),
    ],
    "TaxDesign": [
        ("φ = {} at the first x", lambda: at("TaxDesign")),
        ("{} after 60 steps", lambda: value(descended("TaxDesign", 60, None))),
        ("with u = {}", lambda: float(descended("TaxDesign", 60, None).x[3])),
        ("φ is {} on this grid", lambda: at("TaxDesign", [0.6, 0.2, 0.3, 0.75])),
        ("{} with ``assets=41``", lambda: at("TaxDesign", [0.6, 0.2, 0.3, 0.75], assets=41)),
    ],
    "SoftLQR": [
        ("Seed 0: φ = {} at the first x", lambda: at("SoftLQR")),
        ("φ* = {}, reached", lambda: designer()[0]),
        ("φ* = {}, reached in 150 steps", lambda: value(descended("SoftLQR", 150, 0.2))),
        ("‖∇φ‖ at her weights is {}", lambda: float(np.linalg.norm(designer(entropy=False)[1]))),
    ],
    "TabularPreference": [
        ("φ* = {}. ``on_policy``", lambda: value(teacher("reference"))),
        ("the true reward, with φ = {}", lambda: value(teacher("on_policy"))),
        (
            "‖∇φ‖ = {} there",
            lambda: float(np.linalg.norm(slope(teacher("on_policy").problem, teacher("on_policy").x, Exact(), SoftPolicyIteration())[1])),
        ),
        ("the nearest one has φ = {}", lambda: minimised("TabularPreference", teacher("on_policy").x.numpy())[0]),
    ],
    "RidgeRegression": [
        ("over the seeds 0 to 9: {};", lambda: ridge_means()[0]),
        ("; {} with one penalty for all", lambda: ridge_means(shared=True)[0]),
        ("{} with hardly any (all at", lambda: ridge_means(everywhere=-4.0)[0]),
        ("Seed 0: {}, and", lambda: ridge(0)[0]),
        ("and {} with one penalty, which", lambda: ridge(0, shared=True)[0]),
        ("attained at x = {};", lambda: ridge(0, shared=True)[2]),
        ("``aid`` come to {} and", lambda: value(descended("RidgeRegression", 100, None, "aid"))),
        ("and to {}. Single", lambda: value(descended("RidgeRegression", 100, None, "aid", shared=True))),
        ("at the optimum {},", lambda: ridge_means()[1]),
        (", {} with one penalty, .432", lambda: ridge_means(shared=True)[1]),
        (", {} with hardly any; mean", lambda: ridge_means(everywhere=-4.0)[1]),
    ],
    "DataHyperCleaning": [
        ("Test accuracy {} ± {} with equal", lambda: cleaned(wrong=10.0)[0]),
        ("{} ± {} with the wrong labels left out, .930", lambda: cleaned(wrong=-10.0)[0]),
        ("{} ± {} after 100 steps", lambda: learned().evaluation.metrics["test_accuracy"]),
        ("whose f is then {} ± {}", lambda: value(learned())),
        ("({} ± {} with equal weights,", lambda: cleaned(wrong=10.0)[1]),
        ("{} ± {} with the wrong labels left out: f", lambda: cleaned(wrong=-10.0)[1]),
        ("{} ± {} after those steps", lambda: learned().evaluation.metrics["separation"]),
    ],
    "CommonsIncentive": [
        ("φ* = {} at", lambda: at("CommonsIncentive", [0.9748, 0.9748])),
        ("the welfare is {};", lambda: environment("CommonsIncentive", x=[0.9748, 0.9748]).unwrapped.evaluation.metrics["welfare"]),
        ("φ(0) = {}", lambda: at("CommonsIncentive", 0.0)),
    ],
    "PendulumPreference": [("log 2 = {} for a reward", lambda: at("PendulumPreference", 0.0, preset="tiny"))],
}
"""The words around each number, in which it stands for {}, and what it is. Mean ± deviation over seeds: seed 0 is within three of them."""

OTHERS = {
    "RandomMDP": "0 2 1.00009 .0138 823",
    "FourRoomsIncentive": "10,000 10 1 3 5 .91 .51 .46 .001 .95 .73 .29 .003 1.17 1.01 .87 .005 0.44 750 1.16 1.31 .005 1 .39 .003 3 1.28 .39",
    "RewardShaping": "0 1 0 .95",
    "PolicyTeaching": "0",
    "StackelbergGame": "0 300 1 3,3 6,4 4,6 2,2 1",
    "ContractDesign": "0 200 .1 0 1.3616 .05 .02",
    "RobotNavigation": "0 0 100 .4",
    "TaxDesign": "0 60 1 .6 .2 .3 .75 41 −5.132 161",
    "SoftLQR": "0 150 .2 0",
    "RidgeRegression": "0 9 −4 0 100 2 242 0 9",
    "DataHyperCleaning": "100 0 9 1097 ½",
}
"""All other numbers: published ones, arguments, and what another test or a benchmark computes (the linear programme of contracts,
161 assets, a minute's descents on four rooms)."""


ROWS = [(name, words) for name, rows in VALUES.items() for words, _ in rows]


def place(name, words):
    """The match of a row in the docstring."""
    found = re.search(re.escape(words).replace(r"\{\}", NUMBER), section(name))
    assert found is not None, f"the docstring of {name} does not say {words!r}"
    return found


@pytest.mark.parametrize(("name", "words"), ROWS, ids=[f"{name}-{words}" for name, words in ROWS])
def test_the_number_is_right(name, words):
    """A docstring that promises another number than the code gives is worse than one that promises none."""
    found = dict(VALUES[name])[words]()
    written, *deviation = [text.replace("−", "-") for text in place(name, words).groups()]
    slack = 3.0 * float(deviation[0]) if deviation else 0.51 * 10.0 ** -len(written.partition(".")[2])
    assert abs(found - float(written)) <= slack


def test_no_number_is_left_out():
    """Whoever writes another number into a docstring finds it here, and says what it is."""
    exact = [name.removeprefix("bilevel/").removesuffix("-v0") for name, entry in CATALOGUE.items() if {"exact", "aid"} & set(entry.agents)]
    for name in exact:
        text = section(name)
        for words, _ in VALUES.get(name, []):
            for start, end in place(name, words).regs[1:]:
                text = text[:start] + " " * (end - start) + text[end:]
        assert " ".join(re.findall(r"[−-]?(?:\d[\d,]*)?\.?\d+|½", text)) == OTHERS.get(name, ""), name
