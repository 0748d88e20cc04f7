"""Checkpoints: whole nests as plain data, and files that are whole or not there."""

import importlib
import os
import string
import sys
import types
from dataclasses import dataclass, is_dataclass
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bilevel_gym import checkpoint
from bilevel_gym.envs import Counters
from bilevel_gym.errors import CheckpointError
from bilevel_gym.linear import DenseLU
from bilevel_gym.types import Evaluation, Response


def same(first: Any, second: Any) -> bool:
    """Equal in kind and in every bit, through containers, dataclasses and generators."""
    if type(first) is not type(second):
        return False
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and first.shape == second.shape and first.numpy().tobytes() == second.numpy().tobytes()
    if isinstance(first, np.ndarray):
        return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()
    if isinstance(first, torch.Generator):
        return torch.equal(first.get_state(), second.get_state())
    if isinstance(first, np.random.Generator):
        return same(first.bit_generator.state, second.bit_generator.state)
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    if hasattr(first, "__dataclass_fields__"):
        return all(same(getattr(first, name), getattr(second, name)) for name in first.__dataclass_fields__)
    return first == second or (isinstance(first, float) and isnan(first) and isnan(second))


SEEDS = st.integers(0, 2**32 - 1)
DTYPES = st.sampled_from([torch.float64, torch.float32, torch.int64, torch.uint8, torch.bool])
TENSORS = st.builds(
    lambda seed, shape, dtype: torch.from_numpy(np.random.default_rng(seed).integers(0, 9, shape)).to(dtype),
    SEEDS,
    st.lists(st.integers(0, 3), max_size=3),
    DTYPES,
)
GENERATORS = st.one_of(
    SEEDS.map(lambda seed: torch.Generator().manual_seed(seed)),
    SEEDS.map(np.random.default_rng),
    SEEDS.map(lambda seed: np.random.Generator(np.random.MT19937(seed))),
    SEEDS.map(lambda seed: np.random.Generator(np.random.Philox(seed))),
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**130), 2**130),
    st.floats(),
    st.text(string.printable, max_size=5),
    st.binary(max_size=5),
    TENSORS,
    TENSORS.map(lambda tensor: tensor.numpy()),
    GENERATORS,
    st.sampled_from([torch.device("cpu"), torch.float32, torch.bool]),
)
NESTS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=4), st.integers(0, 9)), inner, max_size=3),
        st.builds(DenseLU, inner, inner),
        st.builds(Response, policy=inner, value=TENSORS, state=inner),
        st.builds(Evaluation, TENSORS, metrics=st.dictionaries(st.text(max_size=4), st.floats(), max_size=3)),
        st.builds(Counters, st.integers(0, 9)),
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(NESTS)
def test_any_nest_survives_a_file(tmp_path_factory: pytest.TempPathFactory, nest: Any) -> None:
    """Without it a resumed run could go on from something else than where it stopped, or not load at all."""
    path = tmp_path_factory.mktemp("nest") / "nest.pt"
    checkpoint.save(path, {"nest": checkpoint.pack(nest)})
    assert same(checkpoint.unpack(checkpoint.load(path)["nest"]), nest)


def test_packed_data_share_nothing_with_what_they_were_made_of() -> None:
    """Without it an environment that goes on would change the snapshot that somebody took of it."""
    tensor, generator = torch.zeros(2), np.random.default_rng(0)
    packed = checkpoint.pack({"tensor": tensor, "generator": generator})
    tensor.add_(1.0)
    expected = np.random.default_rng(0).random()
    generator.random()
    first, second = checkpoint.unpack(packed), checkpoint.unpack(packed)
    first["tensor"].add_(2.0)
    first["generator"].random()
    assert torch.equal(second["tensor"], torch.zeros(2))
    assert second["generator"].random() == expected


def test_numpy_scalars_become_numbers(tmp_path: Path) -> None:
    """Without it a metric of type np.float64, which is a float, would be saved and could never be loaded again."""
    checkpoint.save(tmp_path / "a.pt", checkpoint.pack({"metric": np.float64(0.25), "count": np.int64(3)}))
    assert same(checkpoint.load(tmp_path / "a.pt"), {"metric": 0.25, "count": 3})


@dataclass
class Foreign:
    """A class that is not of the package."""

    number: int = 1


@pytest.mark.parametrize(
    "tag",
    [
        "os:system",
        f"{Foreign.__module__}:Foreign",
        "bilevel_gym.checkpoint:save",  # a function of the package
        "bilevel_gym.checkpoint:Path",  # what it imports
        "bilevel_gym.checkpoint:CheckpointError",  # a class, but not one of plain fields
        "bilevel_gym.types:Vanished",
        "bilevel_gym.nowhere:Response",
    ],
)
def test_only_data_classes_of_the_package_are_built(tag: str) -> None:
    """Without it a file that somebody sends could call any function with any arguments."""
    with pytest.raises(CheckpointError):
        checkpoint.unpack({"__class__": tag, "fields": {}})


def test_fields_that_have_changed_are_named() -> None:
    """Without it a checkpoint of another release would end in a bare TypeError."""
    with pytest.raises(CheckpointError, match="Counters"):
        checkpoint.unpack({"__class__": "bilevel_gym.envs.oracle:Counters", "fields": {"vanished": 1}})


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, {(1, 2): 3}, {"__class__": "tuple"}, np.array(["text"])], ids=["object", "set", "tuple-keys", "tag", "text"]
)
def test_what_cannot_be_loaded_is_not_saved(value: Any) -> None:
    """Without it the mistake would show when the run is needed again, not when it is saved."""
    with pytest.raises(CheckpointError, match="cannot be saved"):
        checkpoint.pack(value)


def test_a_failing_write_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a full disk would cost the last good checkpoint too."""
    path = tmp_path / "run.pt"
    checkpoint.save(path, {"step": 1})
    real = torch.save

    def fail(content: Any, file: Any) -> None:
        real(content, file)
        file.truncate(10)
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(path, {"step": 2})
    assert checkpoint.load(path) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]


def test_another_version_is_refused(tmp_path: Path) -> None:
    """Without it an old layout would be misread, or fail somewhere inside of set_state."""
    torch.save({"version": checkpoint.VERSION + 1, "state": {}}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=f"version {checkpoint.VERSION + 1}"):
        checkpoint.load(tmp_path / "a.pt")


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    """Without it loading somebody's checkpoint would run somebody's code."""
    torch.save({"version": checkpoint.VERSION, "state": Malicious(tmp_path / "hacked")}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        checkpoint.load(tmp_path / "a.pt")
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short"])
def test_damage_is_named_in_one_line(tmp_path: Path, content: bytes) -> None:
    """Without it a cut-off file would end in torch's page of advice."""
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.pt is not a checkpoint of this package, or it is damaged") as caught:
        checkpoint.load(tmp_path / "a.pt")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """Without it the message would not say how to begin."""
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        checkpoint.load(tmp_path / "a.pt")


def test_tensors_of_an_accelerator_come_back_to_it() -> None:
    """Without it a run on a GPU could not be resumed, its tensors would wait in main memory; elsewhere it has to be refused in words."""
    tensor = {"__class__": "tensor", "device": "cuda:0", "value": torch.ones(2)}
    generator = {"__class__": "torch.Generator", "device": "cuda:0", "state": torch.Generator().get_state()}
    if torch.cuda.is_available():
        assert checkpoint.unpack(tensor).device == torch.device("cuda:0")
        drawn = torch.Generator("cuda:0")
        assert same(checkpoint.unpack(checkpoint.pack(drawn)), drawn)
        assert checkpoint.pack(torch.ones(2, device="cuda"))["device"] == "cuda:0"
        return
    for packed in (tensor, generator):
        with pytest.raises(CheckpointError, match="which this machine does not have"):
            checkpoint.unpack(packed)


def test_classes_that_others_have_made_are_not_built(monkeypatch):
    """A file must not choose what is called: no package whose name begins like ours, and nothing that a module of ours has imported."""
    stranger = types.ModuleType("bilevel_gym_of_somebody")
    stranger.Own = dataclass(type("Own", (), {"__module__": stranger.__name__, "__annotations__": {"a": int}}))
    monkeypatch.setitem(sys.modules, stranger.__name__, stranger)
    with pytest.raises(CheckpointError, match="which is not of this package"):
        checkpoint.unpack({"__class__": "bilevel_gym_of_somebody:Own", "fields": {"a": 1}})
    assert is_dataclass(importlib.import_module("bilevel_gym.arguments").EnvSpec)
    with pytest.raises(CheckpointError, match="not a class of plain fields"):
        checkpoint.unpack({"__class__": "bilevel_gym.arguments:EnvSpec", "fields": {"id": "CartPole-v1"}})


@pytest.mark.parametrize("version", [checkpoint.VERSION - 1, checkpoint.VERSION + 1])
def test_a_file_of_another_layout_is_refused(version, tmp_path):
    """An older one is no more to be read than a newer one: its fields would be taken for others."""
    torch.save({"version": version, "state": {}}, tmp_path / "run.pt")
    with pytest.raises(CheckpointError, match=f"layout version {version}, this package reads {checkpoint.VERSION}"):
        checkpoint.load(tmp_path / "run.pt")
