"""What an agent tried, in a file."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any

import gymnasium as gym
import numpy as np

from bilevel_gym.arguments import checked
from bilevel_gym.checkpoint import replacing
from bilevel_gym.errors import InvalidProblem, OutputExists
from bilevel_gym.types import Evaluation
from bilevel_gym.wrappers.inner import Outer, inner

__all__ = ["RecordUpperSteps"]

Columns = Mapping[str, np.ndarray]


class RecordUpperSteps(Outer, gym.utils.RecordConstructorArgs):
    """Keeps x, objective, gap and counters of every upper step, and of where each episode begins, in a file.

    The columns are ``episode`` (cold resets, from 0), ``upper_step`` (0 where it begins), ``objective``, ``gap``, ``lower_step``,
    ``env_steps``, ``comparisons``, all [T], and ``x`` [T, D], as it arrived in the environment. They are arrays in ``.npz``, lists in
    ``.json`` (null where a number is not finite), and in ``.csv`` x is spread over columns ``x_0`` to ``x_D−1``.

    The file is written whole, beside the old one, flushed and put in its place: at no moment is there half a file. That is done every so
    many steps and when the environment is closed; a run that is killed loses what came since.

    Args:
        env: an outer environment.
        path: of a new file, ``.npz``, ``.csv`` or ``.json``.
        every: upper steps from one writing to the next.

    Raises:
        InvalidProblem: it is not a bilevel environment, the file is of another kind or cannot be written, or ``every`` is not positive.
        OutputExists: there is such a file.

    Cost: all steps so far, in memory, and written every ``every`` steps.
    """

    @checked
    def __init__(self, env: gym.Env[Any, Any], path: str | Path, *, every: int = 50) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, path=str(path), every=every)
        self._bilevel = inner(env, "RecordUpperSteps")
        super().__init__(env)
        self.path, self.every = Path(str(path)), every
        if self.path.suffix not in WRITERS or every < 1:
            raise InvalidProblem(f"path is {path} and every {every}: give a file {', '.join(WRITERS)}, and a positive number")
        if self.path.exists():
            raise OutputExists(f"{self.path} exists: choose another file, or move it away")
        try:  # now, and not after an hour of steps
            with replacing(self.path):
                pass
            self.path.unlink()
        except OSError as error:
            raise InvalidProblem(f"{self.path} cannot be written: {error}") from error
        self._rows: list[dict[str, Any]] = []
        self._episode, self._written = -1, 0
        self._seen: Evaluation | None = None

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """What has been recorded so far: name → [T], and x [T, D]."""
        return {name: np.stack([row[name] for row in self._rows]) for name in self._rows[0]} if self._rows else {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As the environment's; where it solves there is a row."""
        answer = self.env.reset(seed=seed, options=options)
        self._episode += not (options or {}).get("keep")
        self._note()
        return answer

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the environment's, and a row."""
        answer = self.env.step(action)
        self._note()
        if len(self._rows) - self._written >= self.every:
            self.flush()
        return answer

    def flush(self) -> None:
        """Put the file up to date.

        Raises:
            OutputExists: somebody else has written it in the meantime, such as another copy of this environment; their file stays.
        """
        if len(self._rows) > self._written:
            if not self._written and self.path.exists():
                raise OutputExists(f"{self.path} was written by another environment: give each a file of its own")
            with replacing(self.path) as file:
                WRITERS[self.path.suffix](file, self.columns)
            self._written = len(self._rows)

    def close(self) -> None:
        """Put the file up to date, and close the environment."""
        try:
            self.flush()
        finally:
            self.env.close()

    def _note(self) -> None:
        bilevel = self._bilevel
        if bilevel.evaluation is self._seen:  # a reset that went on where it stood
            return
        assert bilevel.x is not None
        self._seen = bilevel.evaluation
        self._rows.append(
            {
                "episode": self._episode,
                **vars(bilevel.counters),
                "objective": float(bilevel.evaluation.value),
                "gap": float(bilevel.response.gap),
                "x": bilevel.x.cpu().numpy().copy(),
            }
        )


def _npz(file: IO[bytes], columns: Columns) -> None:
    np.savez(file, **dict(columns))  # type: ignore[arg-type]  # its annotation takes the names for allow_pickle


def _json(file: IO[bytes], columns: Columns) -> None:
    def plain(values: np.ndarray) -> Any:
        """Lists, with None for what JSON has no number for."""
        return [plain(row) for row in values] if values.ndim > 1 else [value if np.isfinite(value) else None for value in values.tolist()]

    file.write(json.dumps({name: plain(values) for name, values in columns.items()}, allow_nan=False).encode())


def _csv(file: IO[bytes], columns: Columns) -> None:
    flat = {name: values for name, values in columns.items() if values.ndim == 1}
    text = TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*flat, *(f"x_{index}" for index in range(columns["x"].shape[1]))])
    writer.writerows(
        [*numbers, *x] for *numbers, x in zip(*(values.tolist() for values in flat.values()), columns["x"].tolist(), strict=True)
    )
    text.flush()
    text.detach()


WRITERS: dict[str, Callable[[IO[bytes], Columns], None]] = {".npz": _npz, ".csv": _csv, ".json": _json}
"""By the end of the file's name."""
