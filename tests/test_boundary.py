"""Where NumPy becomes tensors and back: what is refused, what is put on the edge, and what an observation shows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_gym.envs.boundary import LARGEST, action_space, observation_space, observe, read_options, read_x
from bilevel_gym.errors import InvalidAction, InvalidProblem

CPU = torch.device("cpu")
BOX = gym.spaces.Box(np.array([-1.0, 0.0, -10.0], np.float32), np.array([1.0, 2.0, 10.0], np.float32), dtype=np.float32)


def problem(dimension: int, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """As much of one as is looked at."""
    bounds = (np.full(dimension, -1.0), np.full(dimension, 2.0))
    domain = SimpleNamespace(bounds=bounds, dtype=dtype)
    return SimpleNamespace(**{"domain": domain, "dimension": dimension, "tabular": False, "world": object(), **options})


def response(gap: float, policy: Any = None) -> Any:
    """A follower's answer."""
    return SimpleNamespace(gap=torch.tensor(gap), policy=policy)


def test_x_is_what_was_sent() -> None:
    """Numbers of any kind come in as they are, in the box's dtype, and later changes of the agent's array change nothing."""
    for sent in (
        np.array([0.5, 1.0, -3.0]),
        [0.5, 1, -3],
        torch.tensor([0.5, 1.0, -3.0], requires_grad=True),
        np.float32([0.5, 1.0, -3.0]),
    ):
        x = read_x(sent, BOX, CPU)
        assert (x.dtype, x.tolist(), x.requires_grad) == (torch.float32, [0.5, 1.0, -3.0], False)
    own = np.float32([0.5, 1.0, -3.0])
    x = read_x(own, BOX, CPU)
    own[:] = 0.0
    assert x.tolist() == [0.5, 1.0, -3.0]


def test_rounding_is_put_on_the_edge_and_no_more() -> None:
    """Beyond the edge a solver may divide by zero; and what misses it by more than rounding was meant to be somewhere else."""
    one = np.float32(1.0)
    for steps, fits in ((1, True), (8, True), (40, False)):
        beyond = one
        for _ in range(steps):
            beyond = np.nextafter(beyond, np.float32(2.0))
        sent = np.float32([beyond, 0.0, -10.0])
        if fits:
            assert read_x(sent, BOX, CPU).tolist() == [1.0, 0.0, -10.0]
        else:
            with pytest.raises(InvalidAction, match=r"x\[0\] = 1.0000"):
                read_x(sent, BOX, CPU)


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ([0.0, 1.0], r"x has shape \(2,\); it must be \(3,\)"),
        ([[0.0, 1.0, 2.0]], r"x has shape \(1, 3\)"),
        (0.0, r"x has shape \(\)"),
        ([0.0, np.nan, 0.0], r"x\[1\] = nan is not a number \(1 of 3 entries"),
        ([0.0, -1.0, 11.0], r"x\[1\] = -1.0 lies outside \[0, 2\] \(2 of 3 entries"),
        ([0.0, 0.0, 1e300], r"x\[2\] = inf lies outside"),
        ("here", "cannot be read as numbers"),
        ([True, False, True], "their type is bool"),
        ([1j, 0.0, 0.0], "their type is complex"),
        ([None, 0.0, 0.0], "their type is object"),
        ([[0.0], [0.0, 1.0]], "cannot be read as numbers"),
    ],
)
def test_what_is_no_x_is_refused(sent: Any, words: str) -> None:
    """Without it a NaN would reach the follower's rewards, and a row of another shape would be spread over the box."""
    with pytest.raises(InvalidAction, match=words):
        read_x(sent, BOX, CPU)


def test_the_box_is_the_problems() -> None:
    """In float64 on tables and in float32 for networks: another dtype and a corner of the box would lie outside of it."""
    for dtype, own in ((torch.float64, np.float64), (torch.float32, np.float32)):
        space = action_space(problem(2, dtype))
        assert (space.dtype, space.low.tolist(), space.high.tolist()) == (own, [-1.0, -1.0], [2.0, 2.0])


def test_observations_stay_in_their_space() -> None:
    """Before any solve the gap is infinite, and a loss may be huge: ``info`` says so, an observation has finite bounds."""
    short = problem(3)
    x, space = torch.tensor([0.5, 1.0, -0.5]), observation_space(short, action_space(short))
    for value, gap, seen in ((3.5, 0.25, (3.5, 0.25)), (1e12, float("inf"), (LARGEST, LARGEST)), (-1e12, 1e10, (-LARGEST, LARGEST))):
        found = observe(short, x, response(gap), SimpleNamespace(value=torch.tensor(value)), np.float32)  # type: ignore[arg-type]
        assert space.contains(found)
        assert (float(found["objective"][0]), float(found["gap"][0])) == pytest.approx(seen)
        found["x"][:] = 0.0
        assert x.tolist() == [0.5, 1.0, -0.5]


def test_x_is_observed_where_it_is_short_or_written_down() -> None:
    """A network's weights are too many numbers; thirty-two are not, and on tables any number is observed."""
    for dimension, options, shown in ((32, {}, True), (33, {}, False), (33, {"world": None}, True)):
        some = problem(dimension, **options)
        assert ("x" in observation_space(some, action_space(some)).spaces) == shown
    world = SimpleNamespace(context_weights=torch.ones(2) / 2, states=3, actions=4)
    table = problem(100, torch.float64, tabular=True, world=world)
    spaces = observation_space(table, action_space(table)).spaces
    assert (spaces["x"].shape, spaces["policy"].shape) == ((100,), (2 * 3 * 4,))
    policy = torch.full((2, 3, 4), 0.25, dtype=torch.float64)
    seen = observe(table, torch.zeros(100), response(0.0, policy), SimpleNamespace(value=torch.tensor(0.0)), np.float64)  # type: ignore[arg-type]
    seen["policy"][:] = 0.0
    assert bool((policy == 0.25).all())


def test_reset_options() -> None:
    """A misspelt option must not be a cold reset, nor a warm one of what has not begun."""
    assert read_options(None, seeded=True, begun=False) == (None, False)
    assert read_options({"x": 1, "keep": True}, seeded=False, begun=True) == (1, True)
    for options, seeded, begun, words in (
        ({"keap": True}, False, True, "keap"),
        ({"keep": True}, True, True, "starts anew"),
        ({"keep": True}, False, False, "reset without it first"),
    ):
        with pytest.raises(InvalidProblem, match=words):
            read_options(options, seeded=seeded, begun=begun)


@pytest.mark.parametrize("keep", [1, "yes", np.array([])])
def test_keep_is_true_or_false(keep: object) -> None:
    """An array in its place would end in NumPy's own error, and a text would mean yes whatever it says."""
    with pytest.raises(InvalidProblem, match="keep is"):
        read_options({"keep": keep}, seeded=False, begun=True)
