"""A world of your own: a queue, as three arrays. A planner sets wages so that the clerk works fast when it matters.

    python examples/own_world.py            # some seconds
    python examples/own_world.py --quick

The clerk (the follower) serves slowly, which is free, or fast, which tires him. x pays him for two things: for each fast step, and for
a short queue. The planner wants few people waiting, and does not want to pay for a hurry that nobody needs.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import typer

from bilevel_gym import BilevelEnv, BilevelProblem, agents, objectives, regularizers, rewards, solvers, worlds

LENGTH, ARRIVE, SERVE, EFFORT = 12, 0.4, (0.4, 0.8), 0.5


def queue(discount: float = 0.95) -> worlds.TabularWorld:
    """States are people in the queue, actions are slow and fast."""
    transition = np.zeros((LENGTH, 2, LENGTH))
    for waiting in range(LENGTH):
        for action, serve in enumerate(SERVE):
            for came, left in ((0, 0), (0, 1), (1, 0), (1, 1)):
                following = min(max(waiting - left, 0) + came, LENGTH - 1)
                transition[waiting, action, following] += (ARRIVE if came else 1 - ARRIVE) * (serve if left else 1 - serve)
    return worlds.TabularWorld(transition, np.full(LENGTH, 1 / LENGTH), discount)


def main(quick: Annotated[bool, typer.Option("--quick", help="Fewer steps.")] = False) -> None:
    """Train the planner, and show what the clerk does before and after."""
    waiting = np.arange(LENGTH) / LENGTH
    fast = np.array([0.0, 1.0])
    features = np.stack(np.broadcast_arrays(fast, -(waiting[:, None] ** 2)), -1)  # what x pays for: [S, A, 2]
    costs = 4.0 * waiting[:, None] ** 2 + fast  # what the planner minds: [S, A]
    problem = BilevelProblem(
        queue(),
        rewards.LinearReward(features, offset=np.broadcast_to(-EFFORT * fast, (LENGTH, 2))),
        regularizers.Shannon(temperature=0.3),
        objectives.ReturnObjective(costs),
    )
    env = BilevelEnv(problem, solvers.SoftPolicyIteration(), initial_x=[0.0, 0.0])
    env.reset(seed=0)
    before, cost = env.response.policy[:, 1], float(env.evaluation.value)
    agents.exact(env, learning_rate=0.1).learn(100 if quick else 1000)
    after = env.response.policy[:, 1]
    print("people waiting   works fast, unpaid        works fast, paid")
    for state in range(LENGTH):
        print(f"{state:14d}   {'█' * round(20 * float(before[state])):25s} {'█' * round(20 * float(after[state]))}")
    assert env.x is not None
    print(
        f"wages: {env.x[0]:.2f} for a fast step, {env.x[1]:.2f} for a short queue; cost to the planner {cost:.2f}, then {env.evaluation.value:.2f}"
    )


if __name__ == "__main__":
    typer.run(main)
