"""Replays in files beside a checkpoint: whatever happens when, what the checkpoint names is there, whole and in order."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bilevel_gym import checkpoint, rings
from bilevel_gym.errors import CheckpointError
from bilevel_gym.solvers import frame_replay
from bilevel_gym.solvers.frame_replay import FrameReplay
from bilevel_gym.solvers.replay import Replay
from tests.test_cli import equal
from tests.test_frame_replay import STACK, Player
from tests.test_replay import add


class Killed(BaseException):
    """The process ends here."""


def commit(path: Path, replay: Any, *, dies: str = "never", part: float = 1.0) -> None:
    """Save a checkpoint; it may end while rows are written, before the checkpoint is, or before old files are gone."""
    write = rings._bytes

    def cut(rows: torch.Tensor) -> Any:
        whole = write(rows)
        if dies == "writing" and float(torch.rand(())) < part:
            raise Killed
        return whole

    with mock.patch.object(rings, "_bytes", cut), checkpoint.beside(path, 0):
        packed = {"replay": checkpoint.pack(replay)}
        if dies == "before":
            raise Killed
        checkpoint.save(path, packed)
        if dies == "after":
            raise Killed


def reopened(path: Path) -> Any:
    """The replay of the checkpoint, as another process reads it."""
    return checkpoint.unpack(checkpoint.load(path)["replay"])


def window(replay: Any) -> Any:
    """What it holds, oldest first."""
    if not len(replay):
        return None
    return list(replay.at((replay.first + torch.arange(len(replay))) % replay.capacity))[:-1]


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 9)),
        st.tuples(st.just("commit"), st.just(0)),
        st.tuples(st.just("kill"), st.sampled_from(["writing", "before", "after"])),
        st.tuples(st.just("reopen"), st.just(0)),
    ),
    min_size=5,
    max_size=40,
)


@pytest.mark.parametrize("kind", ["rows", "frames"])
@settings(deadline=None, max_examples=25)
@given(capacity=st.integers(4, 24), events=EVENTS, seed=st.integers(0, 99))
def test_a_file_keeps_what_memory_would(
    kind: str, capacity: int, events: list[tuple[str, Any]], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Without it a run that is killed at the wrong moment would go on with transitions that never were, or with none."""
    with mock.patch.object(frame_replay, "SLACK", 40):
        check(kind, capacity, events, seed, tmp_path_factory.mktemp("ring") / "run.pt")


def check(kind: str, capacity: int, events: list[tuple[str, Any]], seed: int, path: Path) -> None:
    """Play events on a replay with files, and on one without."""
    torch.default_generator.manual_seed(seed)
    player = Player(seed)
    stored, plain = ((Replay(2, 1, capacity) if kind == "rows" else FrameReplay((2, 3), STACK, capacity)) for _ in range(2))
    commit(path, stored)
    kept, total, before = checkpoint.pack(plain), 0, 0
    for event, detail in events:
        if event == "add" and kind == "rows":
            add(stored, total, detail)
            add(plain, total, detail)
            total += detail
        elif event == "add":
            for _ in range(detail):
                player.step(stored, 2, 0.2)
                columns = [torch.stack(column) for column in zip(*player.seen[-2:], strict=True)]
                plain.add(*columns)
        elif event == "commit":
            commit(path, stored)
            kept, before = checkpoint.pack(plain), total
        else:
            if event == "kill":
                try:
                    commit(path, stored, dies=detail, part=0.5)
                except Killed:
                    pass
                else:
                    detail = "after"
                if detail == "after":
                    kept, before = checkpoint.pack(plain), total
            stored, plain, total = reopened(path), checkpoint.unpack(kept), before
        assert equal(window(stored), window(plain))
        assert (stored.written, stored.first) == (plain.written, plain.first)
    assert len(list(path.parent.glob("*.ring"))) <= 3 * len(stored.parts), "files of the past must not pile up"


def test_only_what_is_new_is_written(tmp_path: Path) -> None:
    """Without it each checkpoint of a large replay would write all of it."""
    replay, path = Replay(2, 1, 1000), tmp_path / "run.pt"
    add(replay, 0, 1500)
    commit(path, replay)
    written: list[range] = []
    write = rings._write

    def watched(file: Path, places: int, rows: torch.Tensor, numbers: range, capacity: int) -> None:
        written.append(numbers)
        write(file, places, rows, numbers, capacity)

    with mock.patch.object(rings, "_write", watched):
        for turn in range(4):
            add(replay, 1500 + 40 * turn, 40)
            commit(path, replay)
        assert written == [range(1500 + 40 * turn, 1540 + 40 * turn) for turn in range(4)]
        add(replay, 1660, 500)  # more than there is room for: a new file, whose room is that of such intervals
        commit(path, replay)
        add(replay, 2160, 500)
        commit(path, replay)
    assert written[4:] == [range(1160, 2160), range(2160, 2660)]
    assert [file.name for file in tmp_path.glob("*.ring")] == ["run.1.ring"]
    assert (tmp_path / "run.pt").stat().st_size < 4000
    assert equal(window(reopened(path)), window(replay))


def test_copies_and_two_checkpoints_do_not_share_a_file(tmp_path: Path) -> None:
    """Without it a fork of the follower, or the best state, would overwrite the rows of the run's own."""
    replay = Replay(2, 1, 50)
    add(replay, 0, 70)
    commit(tmp_path / "run.pt", replay)
    fork = replay.copy()
    add(fork, 1000, 3)
    add(replay, 70, 2)  # both of which the file would have room for
    commit(tmp_path / "best.pt", replay)
    with checkpoint.beside(tmp_path / "run.pt", 0):
        checkpoint.save(tmp_path / "run.pt", {"replay": checkpoint.pack(replay), "fork": checkpoint.pack(fork)})
    add(replay, 72, 9)
    loaded = checkpoint.load(tmp_path / "run.pt")
    assert equal(window(checkpoint.unpack(loaded["fork"])), window(fork))
    assert sorted((-checkpoint.unpack(loaded["replay"]).at(torch.arange(50)).rewards).tolist()) == list(range(22, 72))
    assert sorted((-reopened(tmp_path / "best.pt").at(torch.arange(50)).rewards).tolist()) == list(range(22, 72))


@pytest.mark.parametrize("other", ["run.best.pt", "run[1].pt", "run.0.pt"])
def test_a_checkpoint_deletes_no_other_ones_files(other: str, tmp_path: Path) -> None:
    """Without it ``run.pt`` would take the replay of ``run.best.pt`` for a file of its own past, and delete it."""
    replay = Replay(2, 1, 50)
    add(replay, 0, 70)
    commit(tmp_path / other, replay)
    for path in ("run.pt", "run1.pt"):
        commit(tmp_path / path, replay)
    assert equal(window(reopened(tmp_path / other)), window(replay))
    for first in (70, 200):  # outgrown, so that a file of its own past is there
        add(replay, first, 120)
        commit(tmp_path / other, replay)
    assert len(list(tmp_path.glob("*.ring"))) == 3


def test_files_that_do_not_belong_are_refused(tmp_path: Path) -> None:
    """Without it a checkpoint that was copied alone, or an old one put back, would load another replay in silence."""
    replay, path = Replay(2, 1, 50), tmp_path / "run.pt"
    add(replay, 0, 70)
    commit(path, replay)
    shutil.copy(path, tmp_path / "old.pt")
    for turn in range(6):
        add(replay, 70 + turn, 1)
        commit(path, replay)
    shutil.copy(tmp_path / "old.pt", path)
    with pytest.raises(CheckpointError, match="written on since"):
        reopened(path)
    file = tmp_path / "run.0.ring"
    with file.open("r+b") as opened:
        opened.write(b"something")
    with pytest.raises(CheckpointError, match="damaged"):
        reopened(path)
    file.unlink()
    with pytest.raises(CheckpointError, match="copy them together"):
        reopened(path)
    with checkpoint.beside(path, 0), pytest.raises(CheckpointError, match=r"checkpoint\.load"):
        checkpoint.unpack(checkpoint.pack(replay))


def test_small_replays_stay_inside(tmp_path: Path) -> None:
    """Without it every run of a minute would leave a handful of files behind."""
    replay = Replay(2, 1, 10_000)
    add(replay, 0, 5000)
    with checkpoint.beside(tmp_path / "run.pt"):
        checkpoint.save(tmp_path / "run.pt", {"replay": checkpoint.pack(replay)})
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]
    assert equal(window(reopened(tmp_path / "run.pt")), window(replay))


def test_what_was_never_written_is_not_kept(tmp_path: Path) -> None:
    """A young replay of a million places would fill every checkpoint with nothing; and one that lies in a list finds its file, too."""
    replay = Replay(2, 1, 1000)
    add(replay, 0, 4)
    tables = [value for value in checkpoint.pack(replay)["fields"].values() if isinstance(value, torch.Tensor) and value.ndim]
    assert tables
    assert {len(table) for table in tables} == {4}
    with checkpoint.beside(tmp_path / "run.pt", 0):
        checkpoint.save(tmp_path / "run.pt", {"replays": checkpoint.pack([replay])})
    assert equal(checkpoint.pack(checkpoint.unpack(checkpoint.load(tmp_path / "run.pt")["replays"])[0]), checkpoint.pack(replay))
