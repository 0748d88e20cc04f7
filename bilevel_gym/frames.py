"""Stacks of pictures that share their pictures: a trajectory of pixels in a quarter of its memory.

A stack is the last few pictures that were seen, so whoever keeps the stacks of every step keeps each picture several times. Here every
picture is kept once, and a stack is a row of numbers of pictures; the pixels come together when a network asks for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["FrameStacks", "coarse", "concatenate_states", "to_stacks"]


@dataclass(frozen=True, eq=False)
class FrameStacks:
    """A table of stacks, in place of a uint8 tensor [..., stack, height, width]; what it is asked for is asked of the leading axes alone.

    Blocks of pictures are never written to, and may be shared: indexing and ``concatenate_states`` copy numbers, not pictures.

    Args:
        blocks: pictures, each [n, height, width] uint8.
        index: [..., stack] int64, numbers of pictures, counted through all blocks.
    """

    blocks: tuple[Tensor, ...]
    index: Tensor

    @classmethod
    def sliding(cls, pictures: Tensor, stack: int) -> FrameStacks:
        """The stacks of trajectories: at each step the picture of that step and those before it.

        Args:
            pictures: [N, stack − 1 + T, height, width] uint8, in the order of time; those of the first stack, then one a step.
            stack: pictures in a stack.

        Returns:
            [N, T].
        """
        count, length = pictures.shape[:2]
        step = torch.arange(length - stack + 1, device=pictures.device)[:, None] + torch.arange(stack, device=pictures.device)
        return cls((pictures.flatten(0, 1),), step + length * torch.arange(count, device=pictures.device)[:, None, None])

    @property
    def shape(self) -> torch.Size:
        """Of the tensor that this stands for: [..., stack, height, width]."""
        return torch.Size((*self.index.shape, *self.blocks[0].shape[1:]))

    @property
    def ndim(self) -> int:
        """Axes of that tensor."""
        return len(self.shape)

    @property
    def device(self) -> torch.device:
        """Where the pictures are."""
        return self.blocks[0].device

    @property
    def dtype(self) -> torch.dtype:
        """uint8."""
        return self.blocks[0].dtype

    @property
    def nbytes(self) -> int:
        """Memory of pictures and numbers, in bytes."""
        return sum(part.nbytes for part in (*self.blocks, self.index))

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: Any) -> FrameStacks:
        """Some of the stacks. Cost: of their numbers; they keep all pictures alive (see ``compact``)."""
        return FrameStacks(self.blocks, self.index[key])

    def flatten(self, first: int, last: int) -> FrameStacks:
        """Two or more neighbouring leading axes, counted from the front, as one."""
        return FrameStacks(self.blocks, self.index.flatten(first, last))

    def expand(self, *sizes: int) -> FrameStacks:
        """Repeat along leading axes; ``sizes`` may be those of the leading axes or, as for tensors, of all of them."""
        leading = sizes if len(sizes) < 3 or sizes[-3:] != tuple(self.shape[-3:]) else sizes[:-3]
        return FrameStacks(self.blocks, self.index.expand(*leading, self.index.shape[-1]))

    def split(self, size: int) -> list[FrameStacks]:
        """In parts along the first axis."""
        return [FrameStacks(self.blocks, part) for part in self.index.split(size)]

    def compact(self) -> FrameStacks:
        """The same stacks with no picture but theirs, in one block. Cost: a copy of these pictures."""
        used, index = self.index.unique(return_inverse=True)
        return FrameStacks((self._pictures(used),), index)

    def without_unused(self) -> FrameStacks:
        """The same stacks without the blocks that none of them needs. Cost: of their numbers."""
        sizes = torch.tensor([len(block) for block in self.blocks], device=self.device)
        ends = sizes.cumsum(0)
        needed = torch.bincount(torch.bucketize(self.index.flatten(), ends, right=True), minlength=len(sizes)) > 0
        if bool(needed.all()):
            return self
        dropped = (sizes * ~needed).cumsum(0)
        index = self.index - dropped[torch.bucketize(self.index, ends, right=True)]
        return FrameStacks(tuple(block for block, kept in zip(self.blocks, needed.tolist(), strict=True) if kept), index)

    def stacks(self) -> Tensor:
        """The pixels: [..., stack, height, width] uint8. Cost: a copy of each picture for every stack that it is in."""
        return self._pictures(self.index)

    def _pictures(self, index: Tensor) -> Tensor:
        """Pictures by their numbers: [...] → [..., height, width]."""
        if len(self.blocks) == 1:
            return self.blocks[0][index]
        wanted, begin = index.flatten(), 0
        found = self.blocks[0].new_empty(len(wanted), *self.blocks[0].shape[1:])
        for block in self.blocks:
            here = ((wanted >= begin) & (wanted < begin + len(block))).nonzero().squeeze(-1)
            found[here] = block[wanted[here] - begin]
            begin += len(block)
        return found.view(*index.shape, *found.shape[1:])


def concatenate_states(tables: Sequence[Any]) -> Any:
    """Tables of states one after the other along the first axis: tensors, or ``FrameStacks``, whose pictures are not copied; pixels among them become some."""
    if not any(isinstance(table, FrameStacks) for table in tables):
        return torch.cat(list(tables))
    begin, indices, kept = 0, [], [table if isinstance(table, FrameStacks) else _apart(table) for table in tables]
    for table in kept:
        indices.append(table.index + begin)
        begin += sum(map(len, table.blocks))
    return FrameStacks(tuple(block for table in kept for block in table.blocks), torch.cat(indices))


def _apart(pixels: Tensor) -> FrameStacks:
    """Pixels [..., stack, height, width] as stacks that share nothing."""
    shape = pixels.shape[:-2]
    return FrameStacks((pixels.flatten(0, -3),), torch.arange(shape.numel(), device=pixels.device).view(shape))


def to_stacks(states: Any) -> Tensor:
    """States as a network takes them: a tensor as it is, the pixels of ``FrameStacks``."""
    pixels: Tensor = states.stacks() if isinstance(states, FrameStacks) else states
    return pixels


def coarse(states: Any, cells: int = 6) -> Tensor:
    """Stacks as a few numbers: the newest picture in cells, and what has changed in each since the oldest one, in units of white.

    Args:
        states: [..., stack, height, width] uint8, or ``FrameStacks``, each picture of which is looked at once.
        cells: in a row and in a column.

    Returns:
        [..., 2·cells²] float32.
    """
    if isinstance(states, FrameStacks):
        seen = torch.cat([_in_cells(part, cells) for block in states.blocks for part in block.split(4096)])
        first, last = seen[states.index[..., 0]], seen[states.index[..., -1]]
    else:
        first, last = (_in_cells(states[..., place, :, :], cells) for place in (0, -1))
    return torch.cat([last, last - first], -1)


def _in_cells(pictures: Tensor, cells: int) -> Tensor:
    """The mean brightness of cells: [..., height, width] → [..., cells²]."""
    flat = pictures.flatten(0, -3).unsqueeze(1).to(torch.float32) / 255.0
    return functional.adaptive_avg_pool2d(flat, cells).view(*pictures.shape[:-2], cells * cells)
