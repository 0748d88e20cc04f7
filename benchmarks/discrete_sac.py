"""Updates a second of the discrete soft actor-critic on the Nature CNN, and of a loop as CleanRL writes it, interleaved in one run.

    OMP_NUM_THREADS=2 python benchmarks/discrete_sac.py --threads 2
    OMP_NUM_THREADS=1 python benchmarks/discrete_sac.py --threads 1

Both make the same update of the same networks: batch 64, six actions, float32, an actor and two critics with encoders of their own,
targets copied every 8,000 updates, τ tuned towards .89 log A, Adam with ε = 1e-4, the critics before the actor, which sees them after
their step. An update begins with drawing a batch from a replay. They take turns of ``--updates`` updates; the first turn of each is
not counted. What is reported is the median over the rounds of each, and the median of the ratios within a round.

The peer is written here after what ``sac_atari`` of CleanRL (https://github.com/vwxyzjn/cleanrl) does: modules, one pass for each
network and purpose, autograd, ``torch.optim.Adam``, a replay of the stacks of s and s', ``.item()`` on the temperature in each update
and on the losses in every hundredth. It is the arithmetic of ``tests/test_discrete_sac.py``, which holds ours to it.

With ``--soft-q`` the sides are our ``SoftQ`` and, as the peer, our ``DiscreteSAC`` at CartPole's sizes: 64×64 perceptrons, batch 64, τ fixed.

The second row is memory: bytes of a million Atari transitions here, and as stacks of s and s'.

Written as CSV to ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import csv
import platform
import time
from collections.abc import Callable
from math import log
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bilevel_gym.solvers.architectures import MLP, architecture_for
from bilevel_gym.solvers.discrete_actor_critic import DiscreteLearner
from bilevel_gym.solvers.finite_actions import DiscreteLabelled
from bilevel_gym.solvers.frame_replay import FrameReplay
from bilevel_gym.solvers.learner import ActorCritic, Learner, Rates, Setting
from bilevel_gym.solvers.replay import Replay
from bilevel_gym.solvers.soft_q import SoftQLearner

BATCH, CHOICES, DISCOUNT = 64, 6, 0.99
ENTROPY = 0.89 * log(CHOICES)
RATES = Rates(learning_rate=3e-4, adam_epsilon=1e-4, polyak=1.0, target_every=8000)
GFLOP = 15.4
"""Of one update: 8 passes of 1.19 forward, and 3 of 1.96 back."""

Turn = Callable[[int], None]


def stream(count: int, generator: torch.Generator) -> list[tuple[Tensor, ...]]:
    """Steps of one environment whose pictures are noise, in episodes of 500 steps that begin with black frames."""
    steps, state = [], torch.zeros(1, 4, 84, 84, dtype=torch.uint8)
    for number in range(count):
        picture = torch.randint(256, (1, 1, 84, 84), generator=generator, dtype=torch.uint8)
        state = torch.cat([state[:, 1:], picture], 1) if number % 500 else torch.cat([torch.zeros_like(state[:, 1:]), picture], 1)
        following = torch.cat([state[:, 1:], torch.randint(256, (1, 1, 84, 84), generator=generator, dtype=torch.uint8)], 1)
        steps.append(
            (state, torch.randint(CHOICES, (1,), generator=generator), following, torch.zeros(1), torch.randn(1, generator=generator))
        )
        state = following
    return steps


def ours(steps: list[tuple[Tensor, ...]], generator: torch.Generator) -> Turn:
    """A function that makes so many of our updates."""
    network = architecture_for((4, 84, 84), (512,), CHOICES)
    setting = Setting(DISCOUNT, 1.0, network, network, ENTROPY)
    networks = ActorCritic.initial(setting, generator, torch.device("cpu"))
    learner, replay = DiscreteLearner(networks, setting, RATES, batch_size=BATCH), FrameReplay((84, 84), 4, len(steps))
    for step in steps:
        replay.add(*step)
    return turns(learner, replay, generator)


def small(kind: type[Learner[DiscreteLabelled, Any]], generator: torch.Generator) -> Turn:
    """A function that makes so many updates at CartPole's sizes, of noise."""
    network = MLP((4, 64, 64, 2))
    setting = Setting(DISCOUNT, 0.05, network if kind is DiscreteLearner else None, network)
    networks, replay, count = ActorCritic.initial(setting, generator, torch.device("cpu")), Replay(4, None, 5000), 5000
    states, following, rewards = (torch.randn(*shape, generator=generator) for shape in ((count, 4), (count, 4), (count,)))
    replay.add(states, torch.randint(2, (count,), generator=generator), following, torch.zeros(count), rewards)
    return turns(kind(networks, setting, Rates(), batch_size=BATCH), replay, generator)


def turns(learner: Learner[DiscreteLabelled, Any], replay: Replay | FrameReplay, generator: torch.Generator) -> Turn:
    """A function that draws and updates so many times."""

    def turn(updates: int) -> None:
        for _ in range(updates):
            batch = replay.sample(BATCH, generator)
            learner.update(DiscreteLabelled(batch.states, batch.actions, batch.following, 1.0 - batch.terminated, batch.rewards))

    return turn


class Network(nn.Module):
    """The Nature CNN with one score an action."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3, 1), nn.ReLU(), nn.Flatten()
        )
        self.head = nn.Sequential(nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, CHOICES))

    def forward(self, pixels: Tensor) -> Tensor:
        """[n, 4, 84, 84] → [n, A]."""
        return self.head(self.encoder(pixels / 255.0))


class Peer:
    """The update in CleanRL's manner."""

    def __init__(self) -> None:
        self.actor, self.first, self.second, self.first_target, self.second_target = (Network() for _ in range(5))
        options = {"lr": RATES.learning_rate, "eps": RATES.adam_epsilon}
        self.critic_adam = torch.optim.Adam([*self.first.parameters(), *self.second.parameters()], **options)
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), **options)
        self.log_temperature = torch.zeros(1, requires_grad=True)
        self.temperature_adam = torch.optim.Adam([self.log_temperature], **options)
        self.temperature, self.updates, self.logged = 1.0, 0, 0.0

    def policy(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """log π and π."""
        scores = self.actor(pixels)
        chosen = torch.distributions.Categorical(logits=scores)
        chosen.sample()  # drawn with every look at the policy, needed or not
        return functional.log_softmax(scores, 1), chosen.probs

    def update(self, states: Tensor, actions: Tensor, following: Tensor, terminated: Tensor, rewards: Tensor) -> None:
        """Critics, actor, temperature, targets."""
        with torch.no_grad():
            log_policy, policy = self.policy(following)
            lowest = torch.min(self.first_target(following), self.second_target(following))
            value = (policy * (lowest - self.temperature * log_policy)).sum(1)
            wanted = rewards + (1 - terminated) * DISCOUNT * value
        losses = [functional.mse_loss(critic(states).gather(1, actions[:, None]).view(-1), wanted) for critic in (self.first, self.second)]
        critic_loss = losses[0] + losses[1]
        self.critic_adam.zero_grad()
        critic_loss.backward()
        self.critic_adam.step()

        log_policy, policy = self.policy(states)
        with torch.no_grad():
            lowest = torch.min(self.first(states), self.second(states))
        actor_loss = (policy * (self.temperature * log_policy - lowest)).mean()
        self.actor_adam.zero_grad()
        actor_loss.backward()
        self.actor_adam.step()

        temperature_loss = (policy.detach() * (-self.log_temperature.exp() * (log_policy + ENTROPY).detach())).mean()
        self.temperature_adam.zero_grad()
        temperature_loss.backward()
        self.temperature_adam.step()
        self.temperature = self.log_temperature.exp().item()

        self.updates += 1
        if self.updates % RATES.target_every == 0:
            self.first_target.load_state_dict(self.first.state_dict())
            self.second_target.load_state_dict(self.second.state_dict())
        if self.updates % 100 == 0:
            self.logged = sum(number.item() for number in (*losses, critic_loss, actor_loss, temperature_loss))


def peer(steps: list[tuple[Tensor, ...]], generator: torch.Generator) -> Turn:
    """A function that makes so many of the peer's updates."""
    side, columns = Peer(), [torch.cat(column) for column in zip(*steps, strict=True)]

    def turn(updates: int) -> None:
        for _ in range(updates):
            rows = torch.randint(len(steps), (BATCH,), generator=generator)
            states, actions, following, terminated, rewards = (column[rows] for column in columns)
            side.update(states.float(), actions, following.float(), terminated, rewards)

    return turn


def memory() -> tuple[float, float]:
    """Gigabytes of a million transitions: here with every place for a frame taken, and as stacks of s and s'."""
    replay = FrameReplay((84, 84), 4, 1_000_000)
    frames, rest = len(replay.frames), len(replay.actions)
    row = (replay.nbytes - replay.frames.nbytes) / rest
    return (replay.frames.nbytes / frames * replay.frame_capacity + row * replay.capacity) / 1e9, (
        2 * 4 * 84 * 84 + 9
    ) * replay.capacity / 1e9


def main() -> None:
    """Measure, print, and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--updates", type=int, default=8, help="updates of a turn")
    parser.add_argument("--soft-q", action="store_true", help="SoftQ against DiscreteSAC instead, small")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the CSV")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    generator = torch.Generator().manual_seed(0)
    if options.soft_q:
        sides = {"ours": small(SoftQLearner, generator), "peer": small(DiscreteLearner, generator)}
    else:
        steps = stream(2000, generator)
        sides = {"ours": ours(steps, generator), "peer": peer(steps, generator)}
    rows = []
    for number in range(options.rounds + 1):
        rate = {}
        for name, turn in sides.items():
            begun = time.perf_counter()
            turn(options.updates)
            rate[name] = options.updates / (time.perf_counter() - begun)
        if number:
            rows.append((number, rate["ours"], rate["peer"], rate["ours"] / rate["peer"]))
            print(f"round {number}: ours {rate['ours']:5.2f}/s   peer {rate['peer']:5.2f}/s   ratio {rows[-1][3]:.2f}", flush=True)
    _, mine, theirs, ratio = (median(column) for column in zip(*rows, strict=True))
    machine = f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}"
    lines = [
        ("round", "ours", "peer", "ratio"),
        *((f"updates_per_second_{row[0]}", *(f"{number:.3f}" for number in row[1:])) for row in rows),
    ]
    if options.soft_q:
        print(f"median: ours {mine:.0f}/s, peer {theirs:.0f}/s, ratio {ratio:.2f} ({machine})")
    else:
        print(f"median: ours {mine:.2f}/s ({GFLOP * mine:.0f} GFLOP/s), peer {theirs:.2f}/s, ratio {ratio:.2f} ({machine})")
        here, stacked = memory()
        print(f"a million transitions: {here:.2f} GB as frames, {stacked:.2f} GB as stacks of s and s', ratio {stacked / here:.2f}")
        lines.append(("gigabytes_per_million", f"{here:.3f}", f"{stacked:.3f}", f"{stacked / here:.3f}"))

    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / f"{'soft_q' if options.soft_q else 'discrete_sac'}_{options.threads}.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)


if __name__ == "__main__":
    main()
