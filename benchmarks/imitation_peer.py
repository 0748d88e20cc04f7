"""The side of ``reward_learning.py`` that runs in a virtual environment of its own, with imitation 1.0.1: one line in, one line out.

It reads a JSON object {"hidden": […], "batch": …, "seconds": …} a line, trains a reward network of these hidden layers on its pairs in
such batches for at least that long by imitation's own trainer, and answers with the pairs per second.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings

warnings.simplefilter("ignore")

import gymnasium as gym  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from imitation.algorithms import preference_comparisons as comparisons  # noqa: E402
from imitation.data.types import TrajectoryWithRew  # noqa: E402
from imitation.rewards.reward_nets import BasicRewardNet  # noqa: E402
from imitation.util import logger  # noqa: E402

OBSERVATION, ACTION, LENGTH = 17, 6, 25


def fragment(source: np.random.Generator) -> TrajectoryWithRew:
    """Random steps of HalfCheetah's sizes."""
    states, actions = source.standard_normal((LENGTH + 1, OBSERVATION)), source.uniform(-1, 1, (LENGTH, ACTION))
    return TrajectoryWithRew(states.astype(np.float32), actions.astype(np.float32), None, True, source.standard_normal(LENGTH))


def main() -> None:
    """Answer until the input ends."""
    pairs, threads = int(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(threads)
    answers = os.fdopen(os.dup(1), "w")  # imitation's logger prints
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123
    source = np.random.default_rng(0)
    data = comparisons.PreferenceDataset()
    data.push([(fragment(source), fragment(source)) for _ in range(pairs)], source.integers(2, size=pairs).astype(np.float32))
    spaces = (gym.spaces.Box(-np.inf, np.inf, (OBSERVATION,), np.float32), gym.spaces.Box(-1.0, 1.0, (ACTION,), np.float32))
    trainers = {}
    for line in sys.stdin:
        asked = json.loads(line)
        hidden, batch = tuple(asked["hidden"]), asked["batch"]
        if (hidden, batch) not in trainers:
            model = comparisons.PreferenceModel(BasicRewardNet(*spaces, hid_sizes=hidden))
            quiet = logger.configure(None, [])
            trainers[hidden, batch] = comparisons.BasicRewardTrainer(
                model, comparisons.CrossEntropyRewardLoss(), source, batch_size=batch, custom_logger=quiet
            )
        begun, seen = time.perf_counter(), 0
        while time.perf_counter() - begun < asked["seconds"]:
            trainers[hidden, batch].train(data)
            seen += pairs
        print(json.dumps(seen / (time.perf_counter() - begun)), file=answers, flush=True)


if __name__ == "__main__":
    main()
