"""Incentive design over PettingZoo games: tables with a known equilibrium, learners from play and with networks, and a game of mpe2."""

from __future__ import annotations

import gc
from dataclasses import replace
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from mpe2 import simple_spread_v3, simple_tag_v3
from pettingzoo import ParallelEnv
from pettingzoo.utils import parallel_to_aec
from scipy.optimize import brentq, root

from bilevel_gym import agents, multiagent
from bilevel_gym.errors import InvalidAction, InvalidProblem, UnknownName, UnsupportedProblem
from bilevel_gym.multiagent import DesignObjective, Incentives, IndependentNetworks, IndependentTables, SocialCost, SoftGameIteration
from bilevel_gym.multiagent.game_world import Steps
from bilevel_gym.regularizers import Shannon, Tsallis
from bilevel_gym.solvers import SAC, DiscreteSAC, SoftPolicyIteration
from bilevel_gym.testing import check_bilevel_env
from bilevel_gym.types import Budget

TAU = 0.5


def cooperates(agent, observations, actions):
    """Of the dilemma, and sparing of the commons."""
    return actions == 0


def spares_green(agent, observations, actions):
    """Of the commons."""
    return (observations == 0) & (actions == 0)


def design(make=multiagent.prisoners_dilemma, solver=None, *, features=None, price=0.3, high=5.0, temperature=TAU, **options):
    """An outer environment around a small game."""
    incentives = Incentives.linear(features or {"cooperation": cooperates}, high=high)
    objective = options.pop("objective", DesignObjective(SocialCost(price)))
    return multiagent.incentive_design(
        make, incentives, solver or SoftGameIteration(), temperature=temperature, objective=objective, **options
    )


def dilemma_equilibrium(x, *, temperature=TAU):
    """The probability of cooperation in the prisoner's dilemma: p = σ((x + 3p − 5p − (1 − p))/τ), by bisection."""
    return brentq(lambda p: p - 1.0 / (1.0 + np.exp(-(x - 1.0 - p) / temperature)), 0.0, 1.0, xtol=1e-14)


def commons_equilibrium(x, *, temperature=TAU, discount=0.9):
    """The herders' symmetric equilibrium by solving for the soft values, and (f, welfare, paid): nothing of it is the package's."""
    green = np.array([[[0.95, 0.6], [0.6, 0.1]], [[0.4, 0.1], [0.1, 0.02]]])
    earned = np.array([[1.0, 2.0], [0.0, 0.2]]) + np.array([[x, 0.0], [0.0, 0.0]])

    def act(value):
        def gap(p):  # of the probabilities of sparing, given V
            chances = np.stack([p, 1 - p], -1)
            onwards = np.einsum("sab,sb->sa", green, chances)
            q = earned + discount * (onwards * value[0] + (1 - onwards) * value[1])
            return q, 1.0 / (1.0 + np.exp(-(q[:, 0] - q[:, 1]) / temperature)) - p

        return gap

    def equations(z):
        q, rest = act(z[:2])(z[2:])
        return np.concatenate([temperature * np.log(np.exp(q / temperature).sum(-1)) - z[:2], rest])

    found = root(equations, np.array([8.0, 7.0, 0.5, 0.5]), tol=1e-13)
    assert found.success
    chances = np.stack([found.x[2:], 1 - found.x[2:]], -1)
    onwards = np.einsum("sab,sa,sb->s", green, chances, chances)
    moves = np.stack([onwards, 1 - onwards], -1)
    base = np.array([[1.0, 2.0], [0.0, 0.2]])
    columns = np.stack([2 * (chances * base).sum(-1), 2 * x * chances[:, 0] * np.array([1.0, 0.0])], -1)
    welfare, paid = np.linalg.solve(np.eye(2) - discount * moves, columns)[0]
    return found.x[2:], welfare, paid


# ---------------------------------------------------------------------------------------------- known answers


@pytest.mark.parametrize("x", [0.0, 1.0, 2.3, 5.0])
def test_the_dilemma_is_answered_by_its_logit_equilibrium(x):
    """The exact learners end where each is soft-optimal against the other, and f is what that is worth: both against a closed form."""
    env = design(price=0.3)
    env.reset(seed=0)
    _, reward, _, _, info = env.step(np.array([x]))
    p = dilemma_equilibrium(x)
    for policy in env.response.policy.values():
        assert float(policy.table[0, 0]) == pytest.approx(p, abs=1e-9)
    welfare = 10 * 2 * (3 * p * p + 5 * p * (1 - p) + (1 - p) ** 2)  # 1/(1−γ) times both payoffs
    assert info["welfare"] == pytest.approx(welfare, rel=1e-9)
    assert info["paid"] == pytest.approx(10 * 2 * x * p, rel=1e-9, abs=1e-12)
    assert reward == pytest.approx(welfare - 0.3 * info["paid"], rel=1e-9)
    assert env.response.converged
    assert float(env.response.gap) <= 1e-10


@pytest.mark.parametrize("x", [0.0, 0.7, 2.0])
def test_the_commons_are_answered_by_their_logit_equilibrium(x):
    """With two states the agents' values matter, too: against a root finder that knows nothing of this package."""
    env = design(multiagent.commons, features={"sparing": spares_green})
    env.reset(seed=0)
    _, reward, _, _, info = env.step(np.array([x]))
    p, welfare, paid = commons_equilibrium(x)
    for policy in env.response.policy.values():
        np.testing.assert_allclose(policy.table[:, 0], p, atol=1e-8)
    assert info["welfare"] == pytest.approx(welfare, rel=1e-8)
    assert info["paid"] == pytest.approx(paid, rel=1e-8, abs=1e-12)
    assert reward == pytest.approx(welfare - 0.3 * paid, rel=1e-8)


def test_the_best_incentive_is_found():
    """An agent that searches from outside finds the payment that a fine grid over the closed form says is best."""
    grid = np.linspace(0.0, 5.0, 5001)
    p = np.array([dilemma_equilibrium(x) for x in grid])
    f = 20 * (0.3 * grid * p - (3 * p * p + 5 * p * (1 - p) + (1 - p) ** 2))
    env = design()
    env.reset(seed=0)
    agent = agents.cma_es(env)
    agent.learn(120)
    assert agent.best_objective == pytest.approx(f.min(), abs=1e-4)
    assert float(agent.best_x[0]) == pytest.approx(grid[f.argmin()], abs=0.02)


def test_the_reference_value_of_the_commons():
    """What the docstring of CommonsIncentive says of its optimum holds, and no neighbour is better."""
    env = multiagent.commons_incentive()
    env.reset(seed=0)
    best = -env.step(np.array([0.97484, 0.97484]))[1]
    assert best == pytest.approx(-15.862553, abs=1e-6)
    assert env.evaluation.metrics["welfare"] == pytest.approx(17.31, abs=0.005)
    for shift in ((0.02, 0.0), (-0.02, 0.0), (0.0, 0.02), (0.02, 0.02), (-0.02, 0.02)):
        assert -env.step(np.array([0.97484, 0.97484]) + shift)[1] > best
    assert -env.step(np.zeros(2))[1] == pytest.approx(-12.782160, abs=1e-6)


def test_three_players_face_the_mean_of_the_others():
    """What one agent faces is the mean over all the others' actions, whoever comes first: against a loop over all joint actions."""
    rng = np.random.default_rng(0)
    game = multiagent.TabularGame(rng.standard_normal((3, 2, 2, 3, 2)), 0.9 * rng.dirichlet(np.ones(2), (2, 2, 3, 2)), [0.3, 0.7], 0.8)
    policies = [torch.as_tensor(rng.dirichlet(np.ones(size), 2)) for size in (2, 3, 2)]
    for index, size in enumerate((2, 3, 2)):
        paid = torch.as_tensor(rng.standard_normal((2, size)))
        mdp = game.against(index, policies, paid, Shannon(1.0))
        reward, moves = paid.clone(), torch.zeros(2, size, 2, dtype=torch.float64)
        for s, *joint in np.ndindex(2, 2, 3, 2):
            weight = np.prod([float(policies[j][s, a]) for j, a in enumerate(joint) if j != index])
            reward[s, joint[index]] += weight * game.rewards[(index, s, *joint)]
            moves[s, joint[index]] += weight * game.transition[(s, *joint)]
        torch.testing.assert_close(mdp.reward, reward)
        torch.testing.assert_close(mdp.transition, moves)


def test_coordination_has_two_equilibria_and_pennies_need_damping():
    """What is said of the learners is so: a warm start stays on its branch, and undamped turns can go round for ever."""
    ones = np.ones((1, 2, 2, 1))
    match = np.array([[2.0, 0.0], [0.0, 1.9]])
    coordination = design(lambda: multiagent.TabularGame([match[None], match[None]], ones, [1.0], 0.0), temperature=0.2, high=1.0)
    coordination.reset(seed=0, options={"x": np.zeros(1)})
    alone = float(coordination.response.policy["player_0"].table[0, 0])
    pay = Incentives(lambda x, agent, s, a: -2.0 * x[0] * (a == 0), [0.0], [1.0])
    taxed = multiagent.incentive_design(
        lambda: multiagent.TabularGame([match[None], match[None]], ones, [1.0], 0.0), pay, SoftGameIteration(), temperature=0.2
    )
    taxed.reset(seed=0, options={"x": np.ones(1)})  # the other branch
    taxed.step(np.zeros(1))
    assert alone > 0.9
    assert float(taxed.response.policy["player_0"].table[0, 0]) < 0.1
    assert taxed.response.converged
    pennies = np.array([[1.0, -1.0], [-1.0, 1.0]]) + np.array([[0.5, 0.0], [0.0, 0.0]])
    game = lambda: multiagent.TabularGame([pennies[None], -pennies[None]], ones, [1.0], 0.0)  # noqa: E731
    for damping, arrives in ((1.0, False), (0.1, True)):
        env = design(game, SoftGameIteration(sweeps=400, damping=damping), temperature=0.2)
        env.reset(seed=0, options={"x": np.zeros(1)})
        assert env.response.converged is arrives
        assert (float(env.response.gap) < 1e-9) is arrives


# ---------------------------------------------------------------------------------------------- learners


@pytest.mark.parametrize(("make", "feature"), [(multiagent.prisoners_dilemma, cooperates), (multiagent.commons, spares_green)])
def test_learners_from_play_come_near_the_equilibrium(make, feature):
    """Tables learnt from play, by agents that know nothing of each other, are near the exact equilibrium."""
    near = design(
        make, IndependentTables(steps=12000, value_rate=0.05, advantage_rate=0.02), features={"it": feature}, solve_on_reset=False
    )
    exact = design(make, features={"it": feature})
    for env in (near, exact):
        env.reset(seed=3)
        env.step(np.array([1.0]))
    for agent, policy in exact.response.policy.items():
        np.testing.assert_allclose(near.response.policy[agent].table, policy.table, atol=0.06)
    assert near.response.env_steps == 12000


def test_taking_money_costs_as_much_as_giving_it():
    """Without the modulus a designer would be paid for fining everybody."""
    earned = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([0.0, -1.0])}
    paid = {"a": torch.tensor([-3.0, 0.0]), "b": torch.tensor([1.0, 2.0])}
    steps = Steps(torch.arange(2), {}, {}, earned, {})
    assert SocialCost(0.5)(torch.zeros(1), steps, paid).tolist() == [0.5 * (3 + 1) - 1, 0.5 * 2 - 1]


def test_sampled_and_exact_objectives_agree():
    """f from episodes of the game is f from its tables: the discount, the payments and the order of agents are the same."""
    objective = DesignObjective(SocialCost(0.3), discount=0.5)
    env = design(multiagent.commons, features={"sparing": spares_green, "cooperation": cooperates}, objective=objective)
    env.reset(seed=0)
    env.step(np.array([0.8, 0.1]))
    sampled = replace(objective, steps=12, episodes=400)
    found, _ = sampled.evaluate(env.problem, env.x, env.response, None, torch.Generator().manual_seed(0))
    for name in ("welfare", "paid"):
        assert found.metrics[name] == pytest.approx(env.evaluation.metrics[name], rel=0.05)
    assert float(found.value) == pytest.approx(float(env.evaluation.value), rel=0.05)
    assert found.env_steps == 12 * 400


class OneHot(ParallelEnv):
    """A table whose agents see a vector."""

    def __init__(self, game):
        self.game, self.possible_agents, self.metadata = game, game.possible_agents, game.metadata
        space = gym.spaces.Box(0.0, 1.0, (len(game.start) + 1,), np.float32)
        self.spaces = dict.fromkeys(self.possible_agents, space)

    agents = property(lambda self: self.game.agents)

    def observation_space(self, agent):
        """One-hot, and a one."""
        return self.spaces[agent]

    def action_space(self, agent):
        """As it was."""
        return self.game.action_space(agent)

    def seen(self, states):
        """Vectors."""
        return {agent: np.append(np.eye(len(self.game.start))[state], 1.0).astype(np.float32) for agent, state in states.items()}

    def reset(self, seed=None, options=None):
        """Begin."""
        states, infos = self.game.reset(seed=seed)
        return self.seen(states), infos

    def step(self, actions):
        """Play."""
        states, *rest = self.game.step(actions)
        return self.seen(states), *rest

    def close(self):
        """Nothing."""


@pytest.mark.parametrize("x", [0.0, 3.0])
def test_learners_with_networks_come_near_the_equilibrium(x):
    """Each agent's own soft actor-critic, in turn, learns what the game pays and what x adds: the dilemma's equilibrium, roughly."""
    solver = DiscreteSAC(steps=300, learning_starts=50, batch_size=64, hidden=(16,), learning_rate=3e-3, polyak=0.05, capacity=600)
    env = design(
        lambda: OneHot(multiagent.prisoners_dilemma(discount=0.3)),
        IndependentNetworks(solver, rounds=3),
        discount=0.3,
        objective=DesignObjective(steps=20, episodes=2),
        solve_on_reset=False,
    )
    env.reset(seed=0)
    env.step(np.array([x]))
    seen = torch.ones(1, 2)
    for policy in env.response.policy.values():
        assert float(policy.probabilities(seen)[0, 0]) == pytest.approx(dilemma_equilibrium(x), abs=0.1)
    assert env.response.env_steps == 2 * 3 * 300
    own = [float(response.gap) for response in env.response.state.responses.values()]
    assert min(own) < max(own) == pytest.approx(float(env.response.gap))  # no farther from an equilibrium than the worst of them
    env.close()


SPREAD = partial(simple_spread_v3.parallel_env, N=2, max_cycles=10)
TINY = {"steps": 30, "learning_starts": 10, "batch_size": 8, "hidden": (8,)}
SMOKE = {
    "boxes": (
        partial(SPREAD, continuous_actions=True),
        SAC(**TINY),
        Incentives.linear({"standing still": lambda agent, s, a: 1.0 - a[..., 1:].sum(-1) / 4}),
    ),
    "finitely many": (SPREAD, DiscreteSAC(**TINY), Incentives.linear({"standing still": cooperates})),
    "agents of several kinds": (
        partial(simple_tag_v3.parallel_env, num_good=1, num_adversaries=2, num_obstacles=1, max_cycles=10),
        {name: DiscreteSAC(**TINY) for name in ("adversary_0", "adversary_1", "agent_0")},
        Incentives(lambda x, agent, s, a: x[0] * (a != 0) * (1.0 if agent == "agent_0" else -1.0), [-1.0], [1.0], names=("motion",)),
    ),
}


@pytest.mark.parametrize("name", SMOKE)
def test_a_game_of_mpe2(name):
    """Real games of several followers, with a tiny budget: steps are finite and equal for equal seeds, x stays when refused, state goes round."""
    make, solver, incentives = SMOKE[name]
    runs = []
    for _ in range(2):
        env = multiagent.incentive_design(
            make,
            incentives,
            IndependentNetworks(solver),
            temperature=0.1,
            discount=0.9,
            objective=DesignObjective(steps=10, episodes=2),
            render_mode="rgb_array",
        )
        first, _ = env.reset(seed=5)
        x = np.array([0.5])
        assert "x" in first
        runs.append([env.step(x), env.step(x)])
    assert str(runs[0]) == str(runs[1])
    assert np.isfinite(runs[0][0][1])
    with pytest.raises(InvalidAction):
        env.step(np.array([7.0]))
    assert float(env.x[0]) == 0.5
    assert env.render().shape[2] == 3
    before = env.get_state()
    env.set_state(before)
    assert np.isfinite(env.step(x)[1])
    beside = env.oracle.solve(env.x, warm=env.response)
    assert beside.policy.keys() == env.response.policy.keys()
    env.close()
    gc.collect()


def test_incentives_are_paid_as_x_is_now():
    """Transitions are kept without incentives: a batch drawn later is paid by the x of then, on top of what the game paid."""
    from bilevel_gym.multiagent.independent_networks import AgentReward
    from bilevel_gym.solvers.replay import Batch, score

    incentives = Incentives.linear({"zero": cooperates, "seen": lambda agent, s, a: s[..., 0]}, high=9.0)
    batch = Batch(torch.tensor([[2.0], [3.0]]), torch.tensor([0, 1]), torch.zeros(2, 1), torch.zeros(2), torch.tensor([10.0, 20.0]))
    for x, expected in (([0.0, 0.0], [10.0, 20.0]), ([5.0, 1.0], [17.0, 23.0])):
        paid = score(AgentReward(incentives, "anyone"), torch.tensor(x, dtype=torch.float64), batch)
        assert paid.tolist() == expected
        assert paid.dtype == torch.float32


class Mortal(ParallelEnv):
    """Two agents, of which the first leaves after a step, for good; the second after three."""

    metadata = {"name": "mortal"}
    possible_agents = ["a_0", "a_1"]

    def __init__(self):
        self.agents = []

    def observation_space(self, agent):
        """Five numbers from 2 on."""
        return gym.spaces.Discrete(5, start=2)

    def action_space(self, agent):
        """Two numbers from 1 on."""
        return gym.spaces.Discrete(2, start=1)

    def reset(self, seed=None, options=None):
        """Begin."""
        self.agents, self.time = list(self.possible_agents), 0
        return dict.fromkeys(self.agents, 2), {agent: {} for agent in self.agents}

    def step(self, actions):
        """The reward is 1 for each."""
        assert set(actions) == set(self.agents)
        assert all(action in (1, 2) for action in actions.values())
        self.time += 1
        ended = {agent: self.time >= (1 if agent == "a_0" else 3) for agent in self.agents}
        result = dict.fromkeys(self.agents, 2 + self.time % 3), dict.fromkeys(self.agents, 1.0), ended, dict.fromkeys(self.agents, False)
        infos = {agent: {} for agent in self.agents}
        self.agents = [agent for agent in self.agents if not ended[agent]]
        return *result, infos

    def close(self):
        """Nothing."""


def test_agents_may_leave_at_different_times():
    """One that is out earns and is paid nothing more, the others go on; spaces may begin at another number than 0."""
    world = multiagent.GameWorld(Mortal, discount=0.9)
    policies = {agent: world.uniform(agent) for agent in world.agents}
    steps = world.play(policies, episodes=2, steps=10, generator=torch.Generator().manual_seed(0))
    assert steps.time.tolist() == [0, 1, 2] * 2
    assert steps.rewards["a_0"].tolist() == [1.0, 0.0, 0.0] * 2
    assert steps.alive["a_0"].tolist() == [True, False, False] * 2
    assert steps.observations["a_1"].tolist() == [0, 1, 2] * 2
    env = design(
        Mortal,
        IndependentTables(steps=1500, value_rate=0.05),
        features={"being there": lambda agent, s, a: torch.ones_like(s)},
        discount=0.9,
        objective=DesignObjective(SocialCost(1.0), steps=10, discount=1.0, episodes=2),
    )
    env.reset(seed=0, options={"x": np.array([2.0])})
    assert env.evaluation.metrics == {"welfare": 4.0, "paid": 8.0}
    learnt = env.response.state["a_1"].value.numpy()
    entropy = TAU * np.log(2)
    last = 3.0 + entropy  # of the last step, in state 2; an end is worth nothing
    np.testing.assert_allclose(learnt[:3], [last * (1 + 0.9 + 0.81), last * 1.9, last], rtol=0.03)


# ---------------------------------------------------------------------------------------------- the outer environment, and what is refused


@pytest.mark.parametrize("solver", ["iteration", "play"])
def test_it_is_an_outer_environment(solver):
    """Gymnasium's check and ours: seeds, x that arrives, refusals without a trace, state that goes round."""
    named = {"iteration": "iteration", "play": IndependentTables(steps=50)}[solver]
    check_bilevel_env(multiagent.commons_incentive(solver=named, render_mode="rgb_array"))


@pytest.mark.parametrize("recipe", ["cma_es", "random_search", "zero_order"])
def test_black_box_agents_improve_it(recipe):
    """The agents that need values alone run on it and find something better than what they began with."""
    env = multiagent.commons_incentive()
    env.reset(seed=1)
    first = float(env.evaluation.value)
    agent = getattr(agents, recipe)(env)
    agent.learn(15)
    assert getattr(agent, "best_objective", float(env.evaluation.value)) < first


GAME = {"rewards": np.zeros((2, 1, 2, 2)), "transition": np.ones((1, 2, 2, 1)), "start": [1.0], "discount": 0.9}
BROKEN = {
    "rewards of another size": ({"rewards": np.zeros((2, 1, 2, 3))}, "must be"),
    "an agent too many": ({"rewards": np.zeros((3, 1, 2, 2))}, "must be"),
    "a row above one": ({"transition": np.full((1, 2, 2, 1), 1.1)}, "sum of one"),
    "a reward that is none": ({"rewards": np.full((2, 1, 2, 2), np.nan)}, "finite"),
    "a start that is no law": ({"start": [0.5]}, "distribution"),
    "no discount": ({"discount": 1.0}, "discount"),
    "one name for two": ({"agents": ["a", "a"]}, "different names"),
    "no cycles": ({"max_cycles": 0}, "one cycle"),
    "no render mode": ({"render_mode": "gif"}, "render mode"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_tables_are_refused(name):
    """Numbers that make no game are named when it is made."""
    change, message = BROKEN[name]
    with pytest.raises(InvalidProblem, match=message):
        multiagent.TabularGame(**{**GAME, **change})


REFUSED = {
    "no discount": (lambda: multiagent.GameWorld(Mortal), InvalidProblem, "give the followers one"),
    "two discounts": (lambda: multiagent.GameWorld(multiagent.commons, discount=0.5), InvalidProblem, "leave it out"),
    "an unknown solver": (lambda: multiagent.commons_incentive(solver="magic"), UnknownName, "magic"),
    "names": (lambda: Incentives(lambda *_: 0, [0.0], [1.0], names=("a", "b")), InvalidProblem, "2 names for 1"),
    "damping": (lambda: SoftGameIteration(damping=0.0), InvalidProblem, "damping"),
    "rates": (lambda: IndependentTables(value_rate=2.0), InvalidProblem, "rates"),
    "rounds": (lambda: IndependentNetworks(SAC(), rounds=0), InvalidProblem, "at least"),
    "a design without end": (lambda: DesignObjective(discount=1.0), InvalidProblem, "where there are steps"),
    "no episodes": (lambda: DesignObjective(episodes=0), InvalidProblem, "1 at least"),
    "tables are needed": (lambda: design(Mortal, discount=0.9).reset(), UnsupportedProblem, "TabularGame"),
    "numbers are needed": (
        lambda: design(partial(SPREAD), IndependentTables(), discount=0.9).reset(),
        UnsupportedProblem,
        "IndependentNetworks takes the others",
    ),
    "vectors are needed": (
        lambda: design(multiagent.commons, IndependentNetworks(DiscreteSAC(**TINY))).reset(),
        UnsupportedProblem,
        "use IndependentTables",
    ),
    "a solver for each": (lambda: design(SPREAD, IndependentNetworks({}), discount=0.9).reset(), InvalidProblem, "no solver for agent_0"),
    "a limit is needed": (
        lambda: design(Mortal, IndependentTables(steps=5), discount=0.9, objective=DesignObjective()).reset(),
        UnsupportedProblem,
        "give DesignObjective",
    ),
    "no budget": (
        lambda: SoftGameIteration().solve(design().problem, torch.zeros(1, dtype=torch.float64), budget=Budget(0)),
        InvalidProblem,
        "budget of no steps",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    """Parts that do not fit are refused with the reason and what fits."""
    make, kind, message = REFUSED[name]
    with pytest.raises(kind, match=message):
        make()


def test_another_regularizer():
    """Tables are solved under any regularizer; learning from play knows only entropy, and says so."""
    env = design()
    problem = replace(env.problem, regularizer=Tsallis(1.0))
    response = SoftGameIteration().solve(problem, torch.tensor([2.0], dtype=torch.float64))
    assert response.converged
    with pytest.raises(UnsupportedProblem, match="Shannon"):
        IndependentTables().start(problem)


def test_a_joint_action_that_does_not_exist():
    """A refused joint action leaves the game as it was, and nobody plays before the reset or after the end."""
    game = multiagent.prisoners_dilemma(max_cycles=1)
    with pytest.raises(gym.error.ResetNeeded):
        game.step({})
    game.reset(seed=0)
    for bad in ({"player_0": 0}, {"player_0": 0, "player_1": 2}, {"player_0": 0, "player_1": None}):
        with pytest.raises(InvalidAction):
            game.step(bad)
    _, rewards, _, truncated, _ = game.step({"player_0": 0, "player_1": 1})
    assert rewards == {"player_0": 0.0, "player_1": 5.0}
    assert truncated == {"player_0": True, "player_1": True}
    with pytest.raises(gym.error.ResetNeeded):
        game.step({"player_0": 0, "player_1": 1})


def test_a_table_that_ends():
    """What is missing to one ends the episode for all, as a termination."""
    game = multiagent.TabularGame(**{**GAME, "transition": np.zeros((1, 2, 2, 1))})
    game.reset(seed=0)
    *_, terminated, truncated, _ = game.step({"player_0": 0, "player_1": 0})
    assert terminated == {"player_0": True, "player_1": True}
    assert truncated == {"player_0": False, "player_1": False}
    assert game.agents == []
    last = multiagent.TabularGame(**{**GAME, "transition": np.zeros((1, 2, 2, 1))}, max_cycles=1)
    last.reset(seed=0)
    assert not any(last.step({"player_0": 0, "player_1": 0})[3].values())  # an end in the last cycle is an end


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: design(temperature="a"), "temperature is 'a': it must be a number"),
        (lambda: design(discount="a"), "discount is 'a'"),
        (lambda: design(make=multiagent.prisoners_dilemma()), "make is .*give a function that makes a PettingZoo parallel environment"),
        (lambda: design(make="bilevel/PrisonersDilemma-v0"), "make is 'bilevel/PrisonersDilemma-v0'"),
        (lambda: design(make=lambda size: None), r"the function that makes the game is called with \(\)"),
        (lambda: design(make=lambda: 3), "made a int, and no PettingZoo parallel environment"),
        (lambda: design(make=lambda: parallel_to_aec(multiagent.prisoners_dilemma())), "aec_to_parallel makes one of it"),
        (
            lambda: multiagent.incentive_design(multiagent.commons, cooperates, SoftGameIteration(), temperature=1.0),
            "give a multiagent.Incentives",
        ),
        (lambda: design(objective=3), "objective is 3: give a multiagent.DesignObjective"),
        (lambda: design(features={"c": lambda: 1}), r"the feature 'c' is called with \(agent, observations, actions\)"),
        (lambda: design(features={"c": lambda *seen: None}).reset(), r"the feature 'c' returned a NoneType: .*\[2\]"),
        (lambda: design(features={"c": lambda *seen: torch.ones(3)}).reset(), r"the feature 'c' returned a tensor of shape \[3\]"),
        (lambda: Incentives(lambda x: x, [0.0], [1.0]), r"the function of incentives is called with \(x, agent, observations, actions\)"),
        (
            lambda: multiagent.incentive_design(
                multiagent.commons, Incentives(lambda *seen: 1.0, [0.0], [1.0]), SoftGameIteration(), temperature=1.0
            ).reset(),
            "the function of incentives returned a float",
        ),
        (lambda: SocialCost("a"), "price is 'a'"),
        (lambda: SocialCost(-1.0), "price is -1.0: it must be 0 or more"),
        (lambda: SocialCost(float("nan")), "price is nan"),
        (lambda: DesignObjective(steps="a"), "steps is 'a'"),
        (lambda: DesignObjective(lambda: 0), r"the designer's cost is called with \(x, steps, paid\)"),
        (lambda: design(objective=DesignObjective(lambda x, steps, paid: None)).reset(), "the designer's cost returned a NoneType"),
        (lambda: SoftGameIteration(sweeps="a"), "sweeps is 'a'"),
        (lambda: IndependentTables(steps=1.5), "steps is 1.5"),
        (lambda: IndependentNetworks(SAC(), rounds="a"), "rounds is 'a'"),
        (lambda: multiagent.prisoners_dilemma(discount="a"), "discount is 'a'"),
        (lambda: multiagent.TabularGame(3.0, [[[1.0]]], [1.0], 0.9), r"rewards \(\), transition"),
    ],
)
def test_parts_of_a_design_that_are_none(make, words):
    """A forgotten return, a game in place of what makes it, an AEC game: each would be an AttributeError from deep inside."""
    with pytest.raises(InvalidProblem, match=words):
        make()


def test_solvers_of_other_problems_name_those_of_games():
    """SAC's refusal of a game ended with the advice to use SAC."""
    for solver in (SAC(), SoftPolicyIteration()):
        with pytest.raises(UnsupportedProblem, match=r"use multiagent\.SoftGameIteration, IndependentTables or IndependentNetworks"):
            design(solver=solver).reset(seed=0)


def test_a_game_before_its_first_reset():
    """It has no state to draw, and no joint action is a list."""
    game = multiagent.commons(render_mode="ansi")
    with pytest.raises(gym.error.ResetNeeded, match=r"before env\.render"):
        game.render()
    game.reset(seed=0)
    with pytest.raises(InvalidAction, match="must be one for each of"):
        game.step([0, 1])
