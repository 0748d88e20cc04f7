"""What a checkpoint costs with a replay of a million transitions of HalfCheetah: inside of it, and in a file beside it.

python benchmarks/checkpoint_size.py
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

from bilevel_gym import checkpoint
from bilevel_gym.solvers.replay import Replay

TRANSITIONS, FRESH = 1_000_000, 4000
"""In the replay, and added between two checkpoints."""


def add(replay: Replay, count: int, generator: torch.Generator) -> None:
    """Append random transitions."""
    states, actions = torch.randn(count, 17, generator=generator), torch.randn(count, 6, generator=generator)
    replay.add(states, actions, states, torch.zeros(count, dtype=torch.bool), torch.zeros(count))


def main() -> None:
    """Print seconds and bytes of the first checkpoint, and of each that follows."""
    torch.set_num_threads(1)
    generator, replay = torch.Generator().manual_seed(0), Replay(17, 6, TRANSITIONS)
    for _ in range(0, TRANSITIONS, 10_000):
        add(replay, 10_000, generator)
    for name, large in (("inside", 2**62), ("beside", checkpoint.LARGE)):
        with tempfile.TemporaryDirectory() as folder:
            path, seconds = Path(folder) / "checkpoint.pt", []
            for _ in range(6):
                began = time.perf_counter()
                with checkpoint.beside(path, large):
                    checkpoint.save(path, {"replay": checkpoint.pack(replay)})
                seconds.append(time.perf_counter() - began)
                add(replay, FRESH, generator)
            sizes = {file.name: file.stat().st_size for file in sorted(path.parent.iterdir())}
            began = time.perf_counter()
            checkpoint.unpack(checkpoint.load(path))
            later = sorted(seconds[1:])[2]
            print(f"{name}: first {seconds[0]:.3f} s, then {later:.3f} s, read {time.perf_counter() - began:.3f} s; bytes {sizes}")


if __name__ == "__main__":
    main()
