"""The PettingZoo view of a bilevel problem: its rules, its reduction back, and PettingZoo's own checks over everything registered."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pettingzoo
import pytest
import torch
from pettingzoo.test import api_test, max_cycles_test, parallel_api_test, parallel_seed_test, render_test, seed_test

from bilevel_gym import BilevelProblem, multiagent
from bilevel_gym.errors import InvalidAction, InvalidProblem, UnsupportedProblem
from bilevel_gym.multiagent.ids import GAMES, TABLES
from bilevel_gym.objectives import PreferenceObjective, QuadraticObjective, ReturnObjective
from bilevel_gym.preferences import BradleyTerry
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import DiscreteMLPReward, LinearReward, MLPReward
from bilevel_gym.solvers import SAC, SoftPolicyIteration
from bilevel_gym.worlds import SIDEWAYS, GridWorld, TabularWorld, VectorWorld
from tests import problems

# A leader and a follower see and do different things; MuJoCo's observations have no bounds; states of tables are numbers.
advice = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        "Agents have different observation space sizes",
        "Observations are different shapes",
        "Agent's minimum observation space value is -infinity",
        "Agent's maximum observation space value is infinity",
        "Observation is not a NumPy array",
    )
]


def tiny(name):
    """Options that keep an id's simulator quick."""
    return {"preset": "tiny"} if "Preference" in name and "Tabular" not in name else {}


def corridor(length=3, *, objective=None, discount=0.9):
    """States 0, 1, …; a step to the right succeeds, the action in the last one ends the episode. x is the reward of each state."""
    world = GridWorld(["S" + "." * (length - 2) + "G"], discount, directions=SIDEWAYS)
    features = np.broadcast_to(np.eye(length)[:, None], (length, 2, length))
    cost = torch.arange(1.0, length + 1, dtype=torch.float64).unsqueeze(-1).expand(length, 2)
    return BilevelProblem(world, LinearReward(features), Shannon(0.5), objective or ReturnObjective(cost, discount=0.5, horizon=5))


def pendulum(*, cut="start"):
    """Ten-step fragments of the real Pendulum."""
    world = VectorWorld("Pendulum-v1", 0.9, horizon=12)
    objective = PreferenceObjective(length=4, pairs=64, cut=cut, steps=12, teacher=BradleyTerry(0.3))
    return BilevelProblem(world, MLPReward.for_world(world, hidden=(8,)), Shannon(0.1), objective)


def cartpole():
    """The real CartPole, which has two actions and falls over."""
    world = VectorWorld("CartPole-v1", 0.9, horizon=30)
    return BilevelProblem(world, DiscreteMLPReward.for_world(world, hidden=(8,)), Shannon(0.1), PreferenceObjective(length=20, pairs=4))


RIGHT = 1


# ---------------------------------------------------------------------------------------------- PettingZoo's own checks


@pytest.mark.parametrize("name", [*GAMES, *TABLES])
class TestRegistered:
    """Every id in PettingZoo's registries."""

    pytestmark = advice

    def test_aec(self, name):
        """PettingZoo's api_test and seed_test: order of turns, accumulated rewards, spaces, dead agents, equal seeds."""
        api_test(pettingzoo.make("aec", name, max_cycles=40, **tiny(name)), num_cycles=60)
        seed_test(lambda: pettingzoo.make("aec", name, **tiny(name)), num_cycles=60)

    def test_parallel(self, name):
        """The same for the parallel form."""
        parallel_api_test(pettingzoo.make("parallel", name, **tiny(name)), num_cycles=60)
        parallel_seed_test(lambda: pettingzoo.make("parallel", name, **tiny(name)), num_cycles=60)

    def test_max_cycles(self, name):
        """Both forms stop after max_cycles."""
        forms = {"env": "aec", "parallel_env": "parallel"}
        module = {
            key: lambda max_cycles, form=form: pettingzoo.make(form, name, max_cycles=max_cycles, **tiny(name))
            for key, form in forms.items()
        }
        max_cycles_test(SimpleNamespace(**module))

    def test_render(self, name):
        """Every render mode gives what it says, the human one prints."""
        if name.startswith(("bilevel/Hopper", "bilevel/HalfCheetah")):
            pytest.skip("MuJoCo renders where there is a display or EGL")
        render_test(lambda render_mode: pettingzoo.make("aec", name, render_mode=render_mode, **tiny(name)))


def test_registered_on_import_and_not_before():
    """`import bilevel_gym` must load neither torch nor pettingzoo; `import bilevel_gym.multiagent` registers, and loads no simulator."""
    code = (
        "import sys, bilevel_gym; print([m for m in ('torch', 'pettingzoo') if m in sys.modules]);"
        "import bilevel_gym.multiagent, pettingzoo; print('bilevel/TabularPreference-v0' in pettingzoo.aec_registry, 'mujoco' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split("\n")[:2] == [
        "[]",
        "True False",
    ]


# ---------------------------------------------------------------------------------------------- the rules, by hand


def test_a_round_by_hand():
    """A round is one episode here: r_x to the follower at each step, and −Σ γ̄^t r̄ to the leader at the end, nothing before."""
    env = multiagent.leader_follower(corridor(), "aec")
    env.reset(seed=0)
    x, other = np.array([1.0, -2.0, 3.0]), np.array([5.0, 5.0, 5.0])
    seen = []
    for moved in (x, other, other):  # only the first binds
        assert env.agent_selection == "leader_0"
        env.step(moved)
        env.step(RIGHT)
        seen.append((env.rewards["follower_0"], env.rewards["leader_0"]))
    assert [reward for reward, _ in seen] == [1.0, -2.0, 3.0]
    assert [reward for _, reward in seen] == [0.0, 0.0, -(1 + 0.5 * 2 + 0.25 * 3)]
    assert env.infos["leader_0"] == {"round": 1, "round_over": True}
    assert env.infos["follower_0"] == {"episode": 0, "step": 2, "episode_terminated": True, "episode_truncated": False}
    assert env.observe("leader_0").tolist() == [2.0, 0.0, 2.75, *x]
    assert env.observe("follower_0").tolist() == [1.0, 0.0, 0.0, *x]  # the next episode has begun
    env.step(other)
    assert env.observe("follower_0").tolist() == [1.0, 0.0, 0.0, *other]


def test_an_end_at_the_last_step_is_an_end():
    """An episode that ends at T has terminated and is not cut off: a learner that bootstrapped would be wrong."""
    problem = corridor(objective=ReturnObjective(np.ones((3, 2)), horizon=3))
    env = multiagent.leader_follower(problem, "aec")
    env.reset(seed=0)
    for _ in range(3):
        env.step(np.ones(3))
        env.step(RIGHT)
    assert env.infos["follower_0"] == {"episode": 0, "step": 2, "episode_terminated": True, "episode_truncated": False}


def test_an_episode_that_is_cut_off():
    """At T the episode is truncated: a learner has to bootstrap from final_obs, which is where the follower would have gone on."""
    env = multiagent.leader_follower(corridor(9))
    env.reset(seed=0)
    x = np.arange(9.0)
    env.step({"leader_0": x, "follower_0": RIGHT})
    for time in range(5):
        _, rewards, _, _, infos = env.step({"leader_0": x, "follower_0": RIGHT})
        assert rewards["follower_0"] == time
        assert infos["follower_0"]["episode_truncated"] == ("final_obs" in infos["follower_0"]) == (time == 4)
    assert infos["follower_0"]["final_obs"].tolist() == [*np.eye(9)[5], *x]
    assert rewards["leader_0"] == -sum(0.5**t * (t + 1) for t in range(5))


def test_the_first_cycle_of_a_parallel_round_is_the_leaders():
    """Both act at once, so the follower's first action cannot know x: it must not count, and the follower must be told."""
    env = multiagent.leader_follower(corridor())
    observations, infos = env.reset(seed=0)
    assert not infos["follower_0"]["plays"]
    after, rewards, _, _, infos = env.step({"leader_0": np.ones(3), "follower_0": RIGHT})
    assert rewards == {"leader_0": 0.0, "follower_0": 0.0}
    assert infos["follower_0"]["plays"]
    assert after["follower_0"].tolist() == [1.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    assert observations["follower_0"].tolist() == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


GAMES_BY_HAND = {
    "a corridor": corridor,
    "preferences": lambda: problems.preference(3, ends=True),
    "several followers": lambda: problems.returns(1),
    "boxes of actions": lambda: pendulum(cut="anywhere"),
    "finitely many actions": cartpole,
}


@pytest.mark.parametrize("name", GAMES_BY_HAND)
def test_both_forms_are_one_game(name):
    """The same seed and the same moves give the same rewards in turn and at once."""
    problem = GAMES_BY_HAND[name]()
    turns, at_once = multiagent.leader_follower(problem, "aec"), multiagent.leader_follower(problem)
    turns.reset(seed=4)
    at_once.reset(seed=4)
    space, x = at_once.action_space("follower_0"), at_once.action_space("leader_0").sample()
    space.seed(0)
    for _ in range(60):
        action = space.sample()
        if not at_once.game.bound:
            at_once.step({"leader_0": x, "follower_0": action})
        seen, rewards, _, _, infos = at_once.step({"leader_0": x, "follower_0": action})
        turns.step(x)
        turns.step(action)
        assert turns.rewards == rewards
        assert turns.infos["leader_0"] == infos["leader_0"]
        assert np.array_equal(turns.observe("follower_0"), seen["follower_0"])


def test_two_episodes_make_a_comparison():
    """The leader's loss is that of the very fragments that were played, labelled by the teacher from true returns."""
    world = GridWorld(["S.G"], 0.9, directions=SIDEWAYS, goal_reward=0.4, rewards={".": -1.0})
    features = np.broadcast_to(np.eye(3)[:, None], (3, 2, 3))
    objective = PreferenceObjective(length=5, pairs=1, teacher=BradleyTerry(float("inf")))
    env = multiagent.leader_follower(BilevelProblem(world, LinearReward(features), Shannon(0.5), objective))
    env.reset(seed=0)
    x = np.array([0.3, 0.5, -0.9])
    for action in (0, RIGHT, RIGHT, RIGHT, 0, 0, 0, 0, 0):  # the announcement; to the goal; staying at the start
        _, rewards, _, _, _ = env.step({"leader_0": x, "follower_0": action})
    logit = (0.3 + 0.5 - 0.9) - 5 * 0.3
    # The second is the truly better one, −.6 to 0; if the steps after the end counted, it would be the first.
    assert rewards["leader_0"] == pytest.approx(-np.log1p(np.exp(logit)))


def test_the_seed_decides():
    """Equal seeds give equal games, a reset without a seed goes on."""
    env = multiagent.leader_follower(problems.preference(0))
    games = []
    for seed in (7, None, 7, None, 8):
        first, _ = env.reset(seed=seed)
        moves = [env.step({"leader_0": np.arange(6.0), "follower_0": 0})[1] for _ in range(30)]
        games.append((first["follower_0"].tolist(), moves))
    assert games[:2] == games[2:4]
    assert games[0] != games[1]
    assert games[0] != games[4]


# ---------------------------------------------------------------------------------------------- what a round is worth


def sparse(problem):
    """The same with lists of successors in place of the table."""
    world = problem.world
    kept = {"true_reward": world.true_reward, "context_weights": world.context_weights}
    return replace(problem, world=TabularWorld(world.transition, world.start, world.discount, world.termination, sparse=True, **kept))


PLAYED = {
    "preferences": (lambda: problems.preference(2), None, 600),
    "preferences, episodes that end": (lambda: problems.preference(5, ends=True, length=3), None, 600),
    "returns of several followers": (lambda: problems.returns(3), None, 600),
    "returns of one follower": (lambda: problems.returns(3, contexts=False), None, 600),
    "P(x)": (lambda: problems.returns(2, controlled=True), None, 600),
    "an endless return, cut off": (lambda: problems.returns(4, contexts=False, horizon=None, discount=0.5), 14, 300),
    "a sparse world": (lambda: sparse(problems.corridor()), None, 400),
}


@pytest.mark.parametrize("name", PLAYED)
def test_the_mean_of_a_round_is_f(name):
    """The leader's expected reward is −f(x, π*(x)): the outer environment that plays rounds agrees with the exact one within its error."""
    make, horizon, rounds = PLAYED[name]
    env = multiagent.leader_follower(make(), horizon=horizon)
    x = problems.point(env.problem, 0).numpy()
    solver = SoftPolicyIteration(tolerance=1e-12)
    values = []
    for outer in (multiagent.to_outer(env, solver), multiagent.to_outer(env, solver, rounds=rounds)):
        outer.reset(seed=0)
        _, reward, _, _, info = outer.step(x)
        values.append(-reward)
    exact = float(env.problem.objective.value(env.problem, torch.as_tensor(x), outer.response.policy))
    assert abs(values[1] - exact) < 4 * info["standard_error"]
    assert info["standard_error"] < 0.1 * abs(exact) + 0.03


@pytest.mark.parametrize("cut", ["start", "anywhere"])
def test_the_mean_of_a_round_is_f_in_a_simulator(cut):
    """In a simulator, too: rounds of the game and the objective's own evaluation estimate one number."""
    problem = pendulum(cut=cut)
    env = multiagent.leader_follower(problem)
    x = problem.reward.initial(torch.Generator().manual_seed(1)).numpy() * 3
    solver = SAC(steps=20, learning_starts=10, batch_size=8, hidden=(8,))
    generator = torch.Generator().manual_seed(0)
    follower = multiagent.follower_of(problem, problem.world.uniform(), generator)
    losses = -multiagent.play_rounds(multiagent.leader_follower(problem, max_cycles=10**6), x, follower, 150, seed=1)
    response = replace(solver.start(problem), policy=problem.world.uniform())
    objective = replace(problem.objective, pairs=400)
    expected, _ = objective.evaluate(problem, torch.as_tensor(x), response, objective.start(), generator)
    assert abs(losses.mean() - float(expected.value)) < 4 * losses.std() * (1 / 150 + 1 / 400) ** 0.5
    outer = multiagent.to_outer(env, solver, rounds=3, solve_on_reset=False)
    outer.reset(seed=0)
    assert np.isfinite(outer.step(x)[1])
    outer.close()
    env.close()


def test_the_round_trip_is_exact_on_tables():
    """The game's problem with a solver in the follower's seat is the outer environment that the game was made of, bit for bit."""
    first = gym.make("bilevel/TabularPreference-v0").unwrapped
    game = pettingzoo.make("aec", "bilevel/TabularPreference-v0")
    second = multiagent.to_outer(game, first.solver)
    for env in (first, second):
        env.reset(seed=3)
        env.action_space.seed(0)
    for _ in range(3):
        x = first.action_space.sample()
        assert first.step(x)[1] == second.step(x)[1]


def test_too_few_cycles_for_the_rounds():
    """Rounds that max_cycles cuts off would be missing from the mean, and those are the long ones."""
    env = multiagent.leader_follower(corridor(), max_cycles=9)
    with pytest.raises(InvalidProblem, match="max_cycles is 9, too few for 4 rounds"):
        multiagent.play_rounds(env, np.zeros(3), lambda seen: RIGHT, 4)
    with pytest.raises(InvalidProblem, match="play one at least"):
        multiagent.to_outer(env, SoftPolicyIteration(tolerance=1e-9), rounds=0)


# ---------------------------------------------------------------------------------------------- what is refused


REFUSED = {
    "no trajectories": (lambda: problems.quadratic(0), {}, UnsupportedProblem, "QuadraticObjective has no loss of trajectories"),
    "fixed fragments": (
        lambda: corridor(objective=PreferenceObjective(length=2, pairs=1, reference=torch.full((3, 2), 0.5))),
        {},
        UnsupportedProblem,
        "those of a fixed policy",
    ),
    "whose fragments": (
        lambda: problems.contexts(0, objective=PreferenceObjective(length=2, pairs=1)),
        {},
        UnsupportedProblem,
        "do not say whose they are",
    ),
    "another world": (lambda: problems.returns(0, elsewhere=True), {}, UnsupportedProblem, "cost in another world"),
    "an entropy": (lambda: problems.returns(0, entropy=0.3), {}, UnsupportedProblem, "entropy of its own"),
    "for ever": (lambda: problems.returns(0, horizon=None), {}, InvalidProblem, "give horizon"),
    "two horizons": (lambda: problems.returns(0), {"horizon": 3}, InvalidProblem, "leave it out"),
    "no horizon": (lambda: problems.returns(0, horizon=None), {"horizon": 0}, InvalidProblem, "one step at least"),
    "a function": (lambda: problems.convex(0), {}, UnsupportedProblem, "function of the whole policy"),
    "a form": (lambda: corridor(), {"form": "serial"}, InvalidProblem, "'aec' or 'parallel'"),
    "a render mode": (lambda: corridor(), {"render_mode": "gif"}, InvalidProblem, "'gif'"),
    "no cycles": (lambda: corridor(), {"max_cycles": 0}, InvalidProblem, "one cycle at least"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    """What cannot be a game is refused when it is made, with the reason."""
    make, options, kind, message = REFUSED[name]
    with pytest.raises(kind, match=message):
        multiagent.leader_follower(make(), **options)


def test_a_world_that_cannot_be_stepped():
    """A world that only rolls out whole trajectories is refused by name."""
    soft_lqr = gym.make("bilevel/SoftLQR-v0").unwrapped.problem
    problem = replace(soft_lqr, objective=PreferenceObjective(length=2, pairs=1))
    with pytest.raises(UnsupportedProblem, match="LinearGaussianWorld cannot be played one action at a time"):
        multiagent.leader_follower(problem)


def test_a_teacher_without_a_truth():
    """Comparisons need true returns: a table without them says so at the first label."""
    world = TabularWorld(np.ones((1, 2, 1)), [1.0], 0.9)
    problem = BilevelProblem(world, LinearReward(np.eye(2).reshape(1, 2, 2)), Shannon(1.0), PreferenceObjective(length=1, pairs=1))
    env = multiagent.leader_follower(problem, "aec")
    env.reset(seed=0)
    for _ in range(3):
        env.step(np.zeros(2) if env.agent_selection == "leader_0" else 0)
    env_before = env.observe("leader_0")
    with pytest.raises(UnsupportedProblem, match="true_reward"):
        env.step(0)
    assert env_before[0] == 1


BAD = {
    "an x outside the box": ("leader_0", np.full(8, 6.0)),
    "an x that is no number": ("leader_0", np.full(8, np.nan)),
    "an x of another size": ("leader_0", np.zeros(9)),
    "an action that is not there": ("follower_0", 2),
    "a broken action": ("follower_0", 0.5),
    "a word": ("follower_0", "left"),
    "nothing": ("follower_0", None),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_action_changes_nothing(name):
    """After a refusal the game goes on as if it had not been asked, in both forms, whoever's action it was."""
    agent, action = BAD[name]
    x = np.linspace(-1, 1, 8)
    runs = []
    for refused in (False, True):
        turns = pettingzoo.make("aec", "bilevel/TabularPreference-v0")
        at_once = pettingzoo.make("parallel", "bilevel/TabularPreference-v0")
        turns.reset(seed=0)
        at_once.reset(seed=0)
        for _ in range(9):
            good = {"leader_0": x, "follower_0": 1}
            if refused:
                with pytest.raises(InvalidAction):
                    at_once.step({**good, agent: action})
            at_once.step(good)
            for who in good:
                if refused and who == agent:
                    with pytest.raises(InvalidAction):
                        turns.step(action)
                turns.step(good[who])
        runs.append([turns.last(), at_once.step(good)])
    assert str(runs[0]) == str(runs[1])


def test_agents_that_are_gone():
    """Truncated agents take None and leave; nobody acts before the reset or after the end."""
    env, at_once = multiagent.leader_follower(corridor(), "aec", max_cycles=1), multiagent.leader_follower(corridor(), max_cycles=1)
    for step in (lambda: env.step(None), lambda: at_once.step({}), env.render):
        with pytest.raises(gym.error.ResetNeeded):
            step()
    env.reset(seed=0)
    env.step(np.zeros(3))
    env.step(RIGHT)
    assert env.truncations == {"leader_0": True, "follower_0": True}
    with pytest.raises(ValueError, match="None"):
        env.step(np.zeros(3))
    env.step(None)
    assert env.agents == ["follower_0"]
    env.step(None)
    assert env.agents == []
    at_once.reset(seed=0)
    with pytest.raises(InvalidAction, match="leader_0"):
        at_once.step({"follower_0": 0})
    *_, truncations, _ = at_once.step({"leader_0": np.zeros(3), "follower_0": 0})
    assert truncations == {"leader_0": True, "follower_0": True}
    for step in (lambda: env.step(None), lambda: at_once.step({})):
        with pytest.raises(gym.error.ResetNeeded):
            step()


def test_an_observed_state_is_in_the_picture():
    """The picture follows the follower over the map."""
    env = multiagent.leader_follower(corridor(9), render_mode="rgb_array")
    env.reset(seed=0)
    env.step({"leader_0": np.ones(9), "follower_0": RIGHT})
    first = env.render()
    for cell in range(3):
        changed = (env.render() != first).any((0, 2)).nonzero()[0] // 29
        assert set(changed) == ({0, cell} if cell else set())
        env.step({"leader_0": np.ones(9), "follower_0": RIGHT})


def test_quadratic_objectives_stay_with_the_outer_environment():
    """The refusal names what does take the problem."""
    problem = replace(corridor(), objective=QuadraticObjective())
    with pytest.raises(UnsupportedProblem, match="BilevelEnv takes this problem"):
        multiagent.leader_follower(problem)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda problem: multiagent.leader_follower(problem, max_cycles="a"), "max_cycles is 'a': it must be a whole number"),
        (lambda problem: multiagent.leader_follower(problem, max_cycles=1.5), "max_cycles is 1.5"),
        (lambda problem: multiagent.leader_follower(problem, horizon=2.5), "horizon is 2.5"),
        (
            lambda problem: multiagent.leader_follower("bilevel/TabularPreference-v0"),
            "is no problem: give a BilevelProblem, such as gym.make",
        ),
        (lambda problem: multiagent.leader_follower(gym.make("bilevel/TabularPreference-v0")), "is no problem"),
        (lambda problem: multiagent.to_outer(None, SoftPolicyIteration()), "None is not the game of a leader and a follower"),
        (lambda problem: multiagent.to_outer(gym.make("bilevel/TabularPreference-v0"), SoftPolicyIteration()), "is not the game"),
        (lambda problem: multiagent.to_outer(multiagent.leader_follower(problem), SoftPolicyIteration(), rounds=1.5), "rounds is 1.5"),
        (
            lambda problem: multiagent.play_rounds(multiagent.leader_follower(problem, "aec"), None, None, 1),
            "LeaderFollowerAEC for 1 rounds",
        ),
        (lambda problem: multiagent.play_rounds(multiagent.leader_follower(problem), None, None, 0), "for 0 rounds"),
    ],
)
def test_what_is_no_game_is_told_what_is(make, words):
    """An environment or an id in the place of its problem would end in an AttributeError, half a round in a game that never ends."""
    with pytest.raises(InvalidProblem, match=words):
        make(problems.preference(0))


def test_actions_that_are_no_mapping_and_looks_before_the_reset():
    """Each says what is missing, and the game stands where it stood."""
    game = multiagent.leader_follower(problems.preference(0), "aec")
    with pytest.raises(gym.error.ResetNeeded, match=r"before env\.observe"):
        game.observe("leader_0")
    both = multiagent.leader_follower(problems.preference(0))
    both.reset(seed=0)
    for actions in (None, [1, 2]):
        with pytest.raises(InvalidAction, match=r"actions are given for \[\]: give a mapping"):
            both.step(actions)
    assert not both.game.bound
