"""Updates as one captured CUDA graph: on a GPU an update is bound by launching its kernels, and a graph launches all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from bilevel_gym.errors import UnsupportedProblem
from bilevel_gym.solvers.learner import Learner

__all__ = ["GraphedUpdates", "capture"]

WARM_UP = 3
"""Runs before a capture, in which libraries choose their kernels and take their workspaces."""


def capture(body: Callable[[], None], state: Iterable[Tensor], generators: Sequence[torch.Generator]) -> Callable[[], None]:
    """Record what ``body`` does on the device, as torch's notes on CUDA graphs ask for it: warmed up on a stream of its own.

    Args:
        body: reads and writes tensors that stay where they are, and looks at no number on the host.
        state: the tensors that it changes; they are left as they were.
        generators: the sources of its draws, on one CUDA device, left as they were; each replay draws on from where the last one ended.

    Returns:
        a function that does the same again.
    """
    state, drawn = list(state), [generator.get_state() for generator in generators]
    kept = [tensor.clone() for tensor in state]
    with torch.cuda.device(generators[0].device):
        aside, present = torch.cuda.Stream(), torch.cuda.current_stream()
        aside.wait_stream(present)
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                body()
        present.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph):
            body()
        for tensor, value in zip(state, kept, strict=True):
            tensor.copy_(value)
        for generator, seed in zip(generators, drawn, strict=True):
            generator.set_state(seed)
    return graph.replay


class GraphedUpdates:
    """Updates in blocks, each of them one graph: drawing the batch, r_x, critics, actor, temperature and targets.

    Where the replay has moved in memory, as it does while it grows, the block is captured anew. Updates that do not fill a block are
    made one by one, with the same draws.

    Args:
        learner: whose networks learn.
        replay: what is drawn from.
        label: makes a batch one that an update takes; what it draws, it draws from ``generators``.
        batch_size: n.
        block: K, updates in a graph.
        generators: the first draws the batches; the others are those of parts that have one of their own, such as r_x. All are on one device.

    Raises:
        UnsupportedProblem: a generator is on another device; or at the first block, where something in it cannot be captured, such as a reward that looks at its numbers.
    """

    def __init__(
        self,
        learner: Learner[Any, Any],
        replay: Any,
        label: Callable[[Any], Any],
        *,
        batch_size: int,
        block: int,
        generators: Sequence[torch.Generator],
    ) -> None:
        device = generators[0].device
        if away := [other for other in generators if other.device != device]:
            raise UnsupportedProblem(
                f"r_x draws random numbers on {away[0].device}, and the updates are on {device}, where a CUDA graph has to find them: give it a generator there, or take graph_updates=0"
            )
        self._learner, self._replay, self._label = learner, replay, label
        self._batch_size, self._block, self._generators = batch_size, block, generators
        self._span = torch.zeros(2, dtype=torch.int64, device=device)  # the oldest transition's row, and how many there are
        self._places: list[int] = []
        self._run: Callable[[], None] | None = None

    def __call__(self, count: int) -> None:
        """Make so many updates."""
        self._span[0].fill_(self._replay.first % self._replay.capacity)
        self._span[1].fill_(len(self._replay))
        blocks, rest = divmod(count, self._block)
        if blocks:
            self._prepare()
        for _ in range(blocks):
            assert self._run is not None
            self._run()
        for _ in range(rest):
            self._update()
        self._learner.updates += count

    def _prepare(self) -> None:
        """Capture a block, unless there is one that reads the replay where it lies."""
        places = [part.data_ptr() for part in self._replay.parts]
        if self._run is not None and places == self._places:
            return
        networks = self._learner.networks
        try:
            self._run = capture(self._updates, (getattr(networks, field.name) for field in fields(networks)), self._generators)
        except RuntimeError as error:
            raise UnsupportedProblem(
                f"the updates cannot be captured as a CUDA graph ({error}); r_x must not look at numbers on the host, or take graph_updates=0"
            ) from error
        self._places = places

    def _updates(self) -> None:
        for _ in range(self._block):
            self._update()

    def _update(self) -> None:
        unit = torch.rand(self._batch_size, generator=self._generators[0], dtype=torch.float64, device=self._span.device)
        place = torch.minimum((unit * self._span[1]).long(), self._span[1] - 1)
        batch = self._replay.at((self._span[0] + place) % self._replay.capacity)
        self._learner.update_on_device(self._label(batch))
