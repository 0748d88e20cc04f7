"""Whether ``torch.compile`` makes an update quicker: plain ones, as they are and compiled, beside ours, interleaved in one run.

    python benchmarks/compiled.py

Two updates: the gradient of the preference loss in the parameters of a 32×32 perceptron (64 pairs of fragments of 25 steps), and one
update of SAC with 256×256 networks on HalfCheetah's 17 + 6 numbers and a batch of 256, in the plain form of a textbook: modules, autograd,
one fused Adam a network. Ours does the same arithmetic (``tests/test_sac.py``, ``tests/test_network_reward.py``). On a CPU torch needs
a C++ compiler for it.

Written as CSV to ``benchmarks/results/compiled.csv``: the median milliseconds of an update, a row a round and side.
"""

from __future__ import annotations

import argparse
import csv
import platform
from collections.abc import Callable
from math import log, pi
from pathlib import Path
from statistics import median

import torch
from reward_learning import ACTION, LENGTH, OBSERVATION
from sac_vs_sb3 import BATCH, seconds, update
from torch import Tensor, nn
from torch.nn import functional

from bilevel_gym.numerics import gradients
from bilevel_gym.objectives import PreferenceObjective
from bilevel_gym.problem import BilevelProblem
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import MLPReward
from bilevel_gym.rewards.fused import plain_perceptron
from bilevel_gym.types import Fragments

PAIRS, TEMPERATURE, DISCOUNT = 64, 0.2, 0.99
Update = Callable[[], object]
"""Makes one."""


def reward_updates() -> dict[str, Update]:
    """The gradient of the preference loss."""
    source = torch.Generator().manual_seed(0)
    states = torch.randn(PAIRS, 2, LENGTH, OBSERVATION, generator=source)
    actions = 2.0 * torch.rand(PAIRS, 2, LENGTH, ACTION, generator=source) - 1.0
    pairs = Fragments(states, actions, torch.ones(PAIRS, 2, LENGTH, dtype=torch.bool), torch.randint(2, (PAIRS,), generator=source).float())
    objective, reward = PreferenceObjective(length=LENGTH, pairs=1), MLPReward(OBSERVATION, ACTION, hidden=(32, 32))
    problem = BilevelProblem(None, reward, Shannon(1.0), objective)  # type: ignore[arg-type]
    x = reward.initial(source)

    def loss(flat: Tensor) -> Tensor:
        rewards = torch.tanh(plain_perceptron(0.01, reward.network.shapes, torch.cat([states, actions], -1).flatten(0, -2), flat))
        first, second = (rewards.view(PAIRS, 2, LENGTH) * pairs.alive).sum(-1).unbind(-1)
        return functional.binary_cross_entropy_with_logits(first - second, pairs.outcome)

    compiled = torch.compile(loss)
    return {
        "plain": lambda: gradients(loss, x),
        "compiled": lambda: gradients(compiled, x),
        "ours": lambda: gradients(lambda leaf: objective.loss(problem, leaf, pairs).mean(), x),
    }


class PlainSAC:
    """SAC at a fixed temperature: two critics, their slow copies, a Gaussian actor behind a tanh."""

    def __init__(self, *, compiled: bool) -> None:
        self.actor = perceptron(OBSERVATION, 2 * ACTION)
        self.critics, self.targets = (nn.ModuleList(perceptron(OBSERVATION + ACTION, 1) for _ in range(2)) for _ in range(2))
        self.targets.load_state_dict(self.critics.state_dict())
        self.optimizers = [torch.optim.Adam(part.parameters(), lr=3e-4, fused=True) for part in (self.critics, self.actor)]
        wrap = torch.compile if compiled else (lambda function: function)
        self.losses = [wrap(self.critic_loss), wrap(self.actor_loss)]
        self.states, self.following = torch.randn(2, BATCH, OBSERVATION)
        self.actions, self.rewards = 2.0 * torch.rand(BATCH, ACTION) - 1.0, torch.randn(BATCH)

    def draw(self, states: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions and their log-probabilities."""
        mean, spread = self.actor(states).chunk(2, -1)
        spread = spread.clamp(-20.0, 2.0)
        drive = mean + spread.exp() * noise
        squash = 2.0 * (log(2.0) - drive - functional.softplus(-2.0 * drive))
        return torch.tanh(drive), (-0.5 * noise.square() - spread - 0.5 * log(2.0 * pi) - squash).sum(-1)

    def critic_loss(self, noise: Tensor) -> Tensor:
        """Of both critics, against the soft target."""
        with torch.no_grad():
            actions, likelihood = self.draw(self.following, noise)
            pair = torch.cat([self.following, actions], -1)
            value = torch.min(*(target(pair).squeeze(-1) for target in self.targets)) - TEMPERATURE * likelihood
            wanted = self.rewards + DISCOUNT * value
        pair = torch.cat([self.states, self.actions], -1)
        return sum((critic(pair).squeeze(-1) - wanted).square().mean() for critic in self.critics)  # type: ignore[return-value]

    def actor_loss(self, noise: Tensor) -> Tensor:
        """τ log π − min Q."""
        actions, likelihood = self.draw(self.states, noise)
        pair = torch.cat([self.states, actions], -1)
        return (TEMPERATURE * likelihood - torch.min(*(critic(pair).squeeze(-1) for critic in self.critics))).mean()

    def __call__(self) -> None:
        """One update."""
        for loss, optimizer in zip(self.losses, self.optimizers, strict=True):
            optimizer.zero_grad()
            self.critics.requires_grad_(optimizer is self.optimizers[0])
            loss(torch.randn(BATCH, ACTION)).backward()
            optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.targets.parameters()), list(self.critics.parameters()), 0.005)


def perceptron(inputs: int, outputs: int) -> nn.Sequential:
    """Two hidden layers of 256."""
    return nn.Sequential(nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, outputs))


def main() -> None:
    """Measure, print, and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=200, help="of a round, of each side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the CSV")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sides = {
        "reward": reward_updates(),
        "SAC": {"plain": PlainSAC(compiled=False), "compiled": PlainSAC(compiled=True), "ours": torch.inference_mode()(update())},
    }
    rows = []
    for number in range(-1, options.rounds):  # the first round compiles
        for kind, updates in sides.items():
            for side, action in updates.items():
                rows.append((number, kind, side, options.threads, 1e3 * seconds(action, options.updates)))
    rows = [row for row in rows if row[0] >= 0]
    print(f"{platform.machine()}, torch {torch.__version__}, {options.threads} threads; medians over the rounds")
    for kind, updates in sides.items():
        found = {side: median(row[-1] for row in rows if row[1:3] == (kind, side)) for side in updates}
        print(f"{kind:6s} " + "   ".join(f"{side} {value:6.2f} ms" for side, value in found.items()))
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "compiled.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("round", "update", "side", "threads", "milliseconds"))
        writer.writerows((*row[:4], f"{row[4]:.4f}") for row in rows)


if __name__ == "__main__":
    main()
