"""Does this outer environment keep the contract?"""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils.env_checker import check_env

from bilevel_gym.envs import BilevelEnv
from bilevel_gym.errors import InvalidAction, InvalidProblem

__all__ = ["EXPECTED_ADVICE", "check_bilevel_env"]

EXPECTED_ADVICE = (
    r".*symmetric and normalized.*",  # x is in its own units, and its box is what the reward model says
    r".*has dtype float64, we recommend.*",  # tabular problems need it: at τ = .001 and γ = .99 the logits reach 1e5
)
"""Patterns of the advice on unnormalised boxes and precision, which does not apply to x; the one place where it is listed."""


def check_bilevel_env(env: gym.Env[Any, Any], *, seed: int = 0, skip_render_check: bool = False) -> None:
    """Gymnasium's ``check_env``, and what a bilevel environment promises beyond it.

    Two seeded runs are identical; the x that is sent is the x that is applied, through all wrappers; −reward is the objective in
    ``info``; a refused action (wrong shape, NaN, outside the box) changes nothing; ``get_state``/``set_state`` go back exactly.

    Args:
        env: an outer environment, possibly wrapped.
        seed: of the runs.
        skip_render_check: for machines that cannot render.

    Raises:
        AssertionError: a promise is broken; the message says which.
        InvalidProblem: it is not a bilevel environment.
    """
    inner = getattr(env, "unwrapped", env)
    if not isinstance(inner, BilevelEnv):
        raise InvalidProblem(
            f"{type(inner).__name__} is not a bilevel environment: make one with gym.make('bilevel/…') or BilevelEnv(problem, solver)"
        )
    with warnings.catch_warnings():
        for pattern in EXPECTED_ADVICE:
            warnings.filterwarnings("ignore", message=pattern)
        check_env(inner, skip_render_check=skip_render_check or env.spec is None)
    _check_reproducible(env, seed)
    _check_arrival(env, inner, seed)
    _check_refusals(env, inner)
    _check_state(env, inner)


def _check_reproducible(env: gym.Env[Any, Any], seed: int) -> None:
    runs = []
    for _ in range(2):
        first = env.reset(seed=seed)
        env.action_space.seed(seed)
        runs.append((first, env.step(env.action_space.sample())))
    (reset_a, step_a), (reset_b, step_b) = runs
    assert _same(reset_a, reset_b), "two resets with one seed differ"
    assert _same(step_a, step_b), "two steps after one seed differ: something is drawn outside of the environment's generators"


def _check_arrival(env: gym.Env[Any, Any], inner: BilevelEnv, seed: int) -> None:
    env.reset(seed=seed)
    x = env.action_space.sample()
    _, reward, terminated, _, info = env.step(x)
    assert inner.x is not None
    assert np.array_equal(inner.x.cpu().numpy(), x), "the x that was sent is not the x that was applied"
    assert float(reward) == -info["objective"], "the reward is not −objective"
    assert not terminated, "an outer episode never terminates; use a TimeLimit"


def _check_refusals(env: gym.Env[Any, Any], inner: BilevelEnv) -> None:
    space = env.action_space
    assert isinstance(space, gym.spaces.Box)
    good = np.zeros(space.shape, space.dtype)
    nan, outside = good.copy(), good.copy()
    nan[0], outside[-1] = np.nan, space.high[-1] * 1.01 + 1.0
    for name, bad in (("a NaN", nan), ("a wrong shape", np.zeros(good.size + 1, good.dtype)), ("an x outside the box", outside)):
        before = inner.get_state()
        try:
            env.step(bad)
        except InvalidAction:
            assert _same(before, inner.get_state()), f"{name} was refused, but the environment has changed"
        else:
            raise AssertionError(f"{name} was not refused")


def _check_state(env: gym.Env[Any, Any], inner: BilevelEnv) -> None:
    x = env.action_space.sample()
    before = inner.get_state()
    first = inner.step(x)
    inner.set_state(before)
    assert _same(before, inner.get_state()), "set_state(get_state()) changes the state"
    if inner.problem.tabular or inner.problem.world is None:  # elsewhere live simulators are not part of the state
        assert _same(first, inner.step(x)), "a step after set_state differs from the same step before"


def _same(first: Any, second: Any) -> bool:
    """Bit for bit, through nested containers."""
    if isinstance(first, dict):
        return isinstance(second, dict) and first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(_same(a, b) for a, b in zip(first, second, strict=True))
    if hasattr(first, "shape"):
        return np.array_equal(np.asarray(first), np.asarray(second), equal_nan=np.asarray(first).dtype.kind == "f")
    return bool(first == second) or (first != first and second != second)
