"""A training run and its folder: what the command line is made of, and usable without it.

run = Run.create(RunSpec("bilevel/RandomMDP-v0", "m_sobirl", seed=1), "runs/first")
run.train(500)
run = Run.load("runs/first")        # bit for bit where it stopped, on tabular ids
run.train(1000)
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeGuard

import torch

from bilevel_gym import checkpoint
from bilevel_gym.agents.callbacks import Checkpointer, CSVLogger, StopOnSignal, TensorBoardLogger, together
from bilevel_gym.agents.loop import Callback
from bilevel_gym.agents.making import make_agent, make_env, make_envs
from bilevel_gym.arguments import check_names, check_numbers, checked
from bilevel_gym.envs import BilevelEnv, BilevelVectorEnv
from bilevel_gym.errors import (
    CheckpointError,
    InvalidAction,
    InvalidProblem,
    MissingExtra,
    OutputExists,
)

__all__ = ["BEST", "CHECKPOINT", "CURVE", "DESCRIPTION", "METRICS", "Run", "RunSpec"]

CHECKPOINT, BEST, METRICS, DESCRIPTION = "checkpoint.pt", "best.pt", "metrics.csv", "run.json"
CURVE, EVENTS = "learning_curve.png", "tensorboard"
"""The names in a run folder."""


@dataclass(frozen=True)
class RunSpec:
    """What decides every number of a run; JSON.

    Args:
        id: of the environment.
        agent: a name in ``RECIPES``.
        seed: of the environment's first reset, from which all else is drawn.
        env_kwargs: arguments of ``gymnasium.make``.
        agent_kwargs: arguments of the recipe.
        num_envs: N, seeds that are run as one batch: seed, seed + 1, …; metrics are means over them.

    Raises:
        InvalidProblem: a value of another kind, or arguments that are not JSON.
    """

    id: str
    agent: str
    seed: int = 0
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    agent_kwargs: Mapping[str, Any] = field(default_factory=dict)
    num_envs: int = 1

    def __post_init__(self) -> None:
        check_numbers(self)
        for name, arguments in (("env_kwargs", self.env_kwargs), ("agent_kwargs", self.agent_kwargs)):
            try:
                json.dumps(dict(arguments))
            except TypeError as error:
                raise InvalidProblem(
                    f"{name} must be JSON, so that the run can be described and gone on with: {error}; register an id whose function makes it"
                ) from error


class Run:
    """An environment and an agent that stand at some upper step, and the folder that they are kept in.

    Make one with ``Run.create`` or ``Run.load``.
    """

    def __init__(self, spec: RunSpec, folder: str | Path) -> None:
        self.spec, self.folder = spec, Path(folder)
        self.env = make_env(spec.id, spec.env_kwargs) if spec.num_envs == 1 else make_envs(spec.id, spec.num_envs, spec.env_kwargs)
        self.agent = make_agent(spec.agent, self.env, spec.agent_kwargs)
        self.planned: int | None = None
        """The total number of steps that was asked for last."""

    @classmethod
    def create(cls, spec: RunSpec, folder: str | Path) -> Run:
        """Begin a run: build and reset the environment, build the agent; nothing is written before ``train``.

        Raises:
            OutputExists: the folder holds a run or anything else; nothing has been written.
            UnknownName: no such id, agent or option.
        """
        place = Path(folder)
        if place.exists() and not place.is_dir():
            raise OutputExists(f"{folder} is a file: name a folder for the run")
        if (place / CHECKPOINT).exists():
            raise OutputExists(f"{folder} already holds a run: use --resume to go on with it, or choose another folder")
        if place.exists() and any(place.iterdir()):
            raise OutputExists(f"{folder} exists and is not empty: choose another folder, so that nothing in it is overwritten")
        run = cls(spec, folder)
        run.agent.env.reset(seed=spec.seed)
        return run

    @classmethod
    def load(cls, folder: str | Path, *, file: str = CHECKPOINT, **expected: Any) -> Run:
        """Go back to the last checkpoint in a folder.

        Args:
            folder: of the run.
            file: another checkpoint in it, such as ``BEST``, which a ``BestKeeper`` wrote.
            **expected: fields of ``RunSpec`` that the run must have been made with.

        Raises:
            UnknownName: there is no such field.
            CheckpointError: there is none, it is damaged, or the run was made with other arguments.
        """
        check_names("field of a run", expected, [one.name for one in fields(RunSpec)])
        if file == BEST and not (Path(folder) / file).exists():
            raise CheckpointError(f"{folder} has no {BEST}: train with --best METRIC, which keeps one")
        saved = checkpoint.load(Path(folder) / file)
        try:
            description = checkpoint.unpack(saved["run"])
            spec = RunSpec(**{one.name: description[one.name] for one in fields(RunSpec)})
            step, states = int(saved["step"]), (saved["env"], saved["agent"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{folder}/{file} was not written by a run ({error} is missing)") from error
        for name, wanted in expected.items():
            if getattr(spec, name) != wanted:
                raise CheckpointError(
                    f"{folder} holds a run with {name} = {getattr(spec, name)!r}, and {wanted!r} was asked for: "
                    "leave that argument out to go on with it, or choose another folder"
                )
        run = cls(spec, folder)
        try:
            run.bilevel.set_state(states[0])
            run.agent.set_state(states[1])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{folder}/{file} does not hold a whole run ({error!r}): it is damaged, or of another release") from error
        if run.step != step:
            raise CheckpointError(f"{folder}/{file} says step {step}, its environment says {run.step}: it was put together from two files")
        run.planned = description.get("steps")
        return run

    @property
    def bilevel(self) -> BilevelEnv | BilevelVectorEnv:
        """The environment without wrappers."""
        bilevel: BilevelEnv | BilevelVectorEnv = self.agent.bilevel
        return bilevel

    @property
    def step(self) -> int:
        """Upper steps done so far."""
        return self.bilevel.upper_step

    @checked
    def train(
        self,
        steps: int,
        *,
        checkpoint_every: int | None = None,
        progress_bar: bool = False,
        stop: StopOnSignal | None = None,
        callbacks: Iterable[Callback] = (),
    ) -> bool:
        """Train up to a total number of upper steps, writing metrics, TensorBoard events (where it is installed) and checkpoints.

        Args:
            steps: the total, those done before a resume included.
            checkpoint_every: upper steps between two checkpoints; None makes about twenty.
            progress_bar: whether to show one.
            stop: what may end the training early on a signal; it is entered here.
            callbacks: called in this order, before the run's own loggers, which log what these return; context managers are entered here.

        Returns:
            whether all steps are done.

        Raises:
            InvalidProblem: the folder cannot be written, or ``steps`` is negative; or a number is not finite any more, in a loss of the follower or in f; the message names step, quantity, and the
                checkpoint, which holds the state before that step.
            InvalidAction: the same of the hyper-gradient.
        """
        if steps < 0:
            raise InvalidProblem(f"steps is {steps}: it is the total of upper steps, and must not be negative")
        self.planned = steps
        described = {**asdict(self.spec), "steps": steps}
        keeper = Checkpointer(self.folder / CHECKPOINT, every=checkpoint_every or max(1, steps // 20), run=described)
        try:
            keeper.save(self.agent)  # before anything else is written: a folder that holds a run can always be resumed
            self._describe(described)
        except OSError as error:
            raise InvalidProblem(f"the run cannot be written to {self.folder} ({error.strerror}): choose another folder") from error
        with ExitStack() as stack:
            after: list[Callback] = [stack.enter_context(own) if _enters(own) else own for own in callbacks]
            after.append(stack.enter_context(CSVLogger(self.folder / METRICS, resume_at=self.step)))
            with suppress(MissingExtra):  # a run is complete without it
                after.append(stack.enter_context(TensorBoardLogger(self.folder / EVENTS, resume_at=self.step or None)))
            after.append(keeper)
            if stop is not None:
                after.append(stack.enter_context(stop))
            if steps > self.step:
                self._learn(steps - self.step, together(*after), progress_bar, keeper)
            keeper.save(self.agent)
        return self.step >= steps

    def _learn(self, steps: int, callback: Callback, progress_bar: bool, keeper: Checkpointer) -> None:
        try:
            self.agent.learn(steps, callback, progress_bar)
        except (InvalidAction, InvalidProblem) as error:
            keeper.save(self.agent)
            kind = InvalidAction if isinstance(error, InvalidAction) else InvalidProblem
            raise kind(f"upper step {self.step + 1}: {error}. The state before it is in {keeper.path}") from error

    def _describe(self, described: Mapping[str, Any]) -> None:
        assert self.env.spec is not None
        try:
            env_spec = json.loads(self.env.spec.to_json())
        except (TypeError, ValueError):  # registered with a function, not with its name: the id and its arguments are all that is known
            env_spec = None
        text = json.dumps(
            {**described, "env_spec": env_spec, "threads": torch.get_num_threads(), "versions": _versions()},
            indent=2,
        )
        (self.folder / DESCRIPTION).write_text(text + "\n")


def _enters(callback: Any) -> TypeGuard[AbstractContextManager[Any]]:
    return isinstance(callback, AbstractContextManager)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("bilevel-gym", "gymnasium", "numpy", "torch", "mujoco", "ale-py", "scikit-learn"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
