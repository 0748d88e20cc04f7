"""After an error nothing has changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["all_or_nothing"]


@contextmanager
def all_or_nothing(holders: Sequence[Any], generators: Iterable[np.random.Generator | torch.Generator]) -> Iterator[None]:
    """A block after whose failure, Ctrl-C included, attributes and random streams are what they were before it.

    Args:
        holders: objects whose attributes are assigned in the block, and not changed in place.
        generators: what is drawn from in it.

    Cost: some microseconds, and 5 kB for each generator of torch.
    """
    attributes = [dict(vars(holder)) for holder in holders]
    states: list[tuple[Any, Any]] = [
        (one, one.get_state() if isinstance(one, torch.Generator) else one.bit_generator.state) for one in generators
    ]
    try:
        yield
    except BaseException:
        for holder, values in zip(holders, attributes, strict=True):
            vars(holder).clear()
            vars(holder).update(values)
        for one, state in states:
            if isinstance(one, torch.Generator):
                one.set_state(state)
            else:
                one.bit_generator.state = state
        raise
