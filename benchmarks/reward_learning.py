"""Pairs a second of reward learning, ours and imitation's, interleaved in one run.

    python -m venv .venv-imitation
    .venv-imitation/bin/pip install 'imitation==1.0.1' 'torch==2.13.0' 'numpy<2' 'setuptools<81'
    python benchmarks/reward_learning.py

imitation 1.0.1 needs Gymnasium 0.29, so it lives in a virtual environment of its own and answers turn by turn (``imitation_peer.py``;
pip may search long for versions that fit, ``uv pip install`` does not). Both sides learn a perceptron on HalfCheetah's 17 + 6 numbers
from 512 labelled pairs of fragments of 25 steps: equal batches, AdamW, float32; sampling, forward, backward and update. imitation's is
``BasicRewardTrainer`` with its logger turned off, which goes through the fragments one by one; ours is what the agents do for ∇l, one
forward pass over all steps of the batch. Both sides have the same number of threads; what is reported is each side at its better one.
Between turns there is a pause, in which the other side's threads go to sleep.

Written as CSV to ``benchmarks/results/reward_learning.csv``: one row a round and setting. ``--precision bfloat16`` lets our networks
multiply in that.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from bilevel_gym.agents.adam import Adam
from bilevel_gym.numerics import gradients
from bilevel_gym.objectives import PreferenceObjective
from bilevel_gym.preferences import PreferenceBuffer
from bilevel_gym.problem import BilevelProblem
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import MLPReward
from bilevel_gym.types import Fragments

PAIRS, LENGTH, OBSERVATION, ACTION = 512, 25, 17, 6
SETTINGS = (((32, 32), 64), ((32, 32), 256), ((256, 256, 256), 64))
"""Hidden layers, and pairs in a batch."""
PAUSE = 0.2
"""Seconds."""


def ours(hidden: tuple[int, ...], batch: int, precision: torch.dtype | None) -> Callable[[float], float]:
    """A function that learns for some seconds and returns the pairs per second."""
    source = torch.Generator().manual_seed(0)
    states = torch.randn(PAIRS, 2, LENGTH, OBSERVATION, generator=source)
    actions = 2.0 * torch.rand(PAIRS, 2, LENGTH, ACTION, generator=source) - 1.0
    labels = torch.randint(2, (PAIRS,), generator=source).float()
    queue = PreferenceBuffer(PAIRS).append(Fragments(states, actions, torch.ones(PAIRS, 2, LENGTH, dtype=torch.bool), labels))
    objective = PreferenceObjective(length=LENGTH, pairs=1)
    problem = BilevelProblem(None, MLPReward(OBSERVATION, ACTION, hidden=hidden, precision=precision), Shannon(1.0), objective)  # type: ignore[arg-type]
    x = problem.reward.initial(source)
    optimizer = Adam([x], lr=1e-3, weight_decay=1e-2)

    def update(drawn: Fragments) -> None:
        x.grad = gradients(lambda leaf: objective.loss(problem, leaf, drawn).mean(), x)[0]
        optimizer.step()

    def turn(seconds: float) -> float:
        begun, seen = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds:
            update(queue.sample(batch, source))
            seen += batch
        return seen / (time.perf_counter() - begun)

    return turn


class Peer:
    """imitation in a process of its own, with a number of threads."""

    def __init__(self, python: Path, threads: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        environment.pop("PYTHONPATH", None)
        script = Path(__file__).with_name("imitation_peer.py")
        self.process = subprocess.Popen(
            [str(python), str(script), str(PAIRS), str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __call__(self, hidden: tuple[int, ...], batch: int, seconds: float) -> float:
        """Learn for some seconds: pairs per second."""
        questions, answers = self.process.stdin, self.process.stdout
        assert questions is not None
        assert answers is not None
        questions.write(json.dumps({"hidden": hidden, "batch": batch, "seconds": seconds}) + "\n")
        questions.flush()
        line = answers.readline()
        if not line:
            raise RuntimeError("imitation's process has ended; run imitation_peer.py by hand to see why")
        return float(json.loads(line))


def main() -> None:
    """Measure, print, and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, default=Path(".venv-imitation/bin/python"), help="the Python that has imitation 1.0.1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.7, help="of a turn")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the CSV")
    options = parser.parse_args()
    if not options.peer.exists():
        parser.error(f"there is no {options.peer}: make the environment with the two commands that --help begins with, or name its Python")
    precision = None if options.precision == "float32" else torch.bfloat16

    peers = {threads: Peer(options.peer, threads) for threads in (1, 2)}
    sides = {setting: ours(*setting, precision) for setting in SETTINGS}
    for setting, side in sides.items():
        side(0.2)  # warm up
        for peer in peers.values():
            peer(*setting, 0.1)
    rows = []
    for number in range(options.rounds):
        for (hidden, batch), side in sides.items():
            for threads, peer in peers.items():
                torch.set_num_threads(threads)
                time.sleep(PAUSE)
                mine = side(options.seconds)
                time.sleep(PAUSE)
                rows.append((number, "x".join(map(str, hidden)), batch, threads, mine, peer(hidden, batch, options.seconds)))
                print("round {}  {:12s} batch {:3d}, {} threads: ours {:9.0f}/s   imitation {:7.0f}/s".format(*rows[-1]), flush=True)

    print(f"{platform.machine()}, torch {torch.__version__}, {options.precision}; medians over the rounds at the better number of threads")
    for hidden, batch in SETTINGS:
        name = "x".join(map(str, hidden))
        mine, theirs = (
            max(median(row[side] for row in rows if row[1:4] == (name, batch, threads)) for threads in peers) for side in (4, 5)
        )
        print(f"{name:12s} batch {batch:3d}: {mine:9.0f} pairs/s, imitation {theirs:7.0f}, ratio {mine / theirs:.1f}")
    options.out.mkdir(parents=True, exist_ok=True)
    suffix = "" if options.precision == "float32" else f"_{options.precision}"
    with (options.out / f"reward_learning{suffix}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("round", "network", "batch", "threads", "ours_pairs_per_second", "imitation_pairs_per_second"))
        writer.writerows((*row[:4], f"{row[4]:.1f}", f"{row[5]:.1f}") for row in rows)


if __name__ == "__main__":
    main()
