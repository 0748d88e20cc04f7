"""What a person hands over as JSON: names that are known, numbers that are numbers, mappings that are mappings."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from functools import wraps
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from bilevel_gym.errors import InvalidProblem, UnknownName

__all__ = ["build", "check_call", "check_names", "check_numbers", "checked", "spec_of"]

Arguments = ParamSpec("Arguments")
Made = TypeVar("Made")

_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "int": (lambda value: isinstance(value, Integral) and not isinstance(value, bool), "a whole number"),
    "float": (lambda value: isinstance(value, Real) and not isinstance(value, bool), "a number"),
    "bool": (lambda value: isinstance(value, bool | np.bool_), "True or False"),
    "Mapping": (lambda value: isinstance(value, Mapping), "a mapping of names to values"),
    "Sequence[str]": (lambda value: isinstance(value, list | tuple) and all(isinstance(name, str) for name in value), "a list of names"),
}
_ANNOTATION = re.compile(r"(int|float|bool|Sequence\[str\]|Mapping)(?:\[[^|]*\])?( \| None)?")


def check_names(kind: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse a name that is not among those that are known.

    Raises:
        UnknownName: the first such one, with all that are known.
    """
    names = list(known)
    for name in given:
        if name not in names:
            raise UnknownName(kind, name, names)


def check_numbers(part: Any) -> None:
    """Refuse a dataclass some of whose numbers are none; called first thing in ``__post_init__``.

    Args:
        part: a dataclass in a module with ``from __future__ import annotations``. Fields of ``int``, ``float`` or ``bool``, or of one
            of these or None, are looked at.

    Raises:
        InvalidProblem: text where a number belongs, or a fraction where a whole one does, or a number in the place of True or False.
    """
    _check((field.name, field.type, getattr(part, field.name)) for field in fields(part) if field.init)


def check_call(name: str, function: Callable[..., Any], given: Iterable[str] = (), named: Iterable[str] = ()) -> None:
    """Refuse a person's function that cannot be called as it is going to be.

    Args:
        name: what messages call it.
        function: theirs.
        given: words for what it is given by position.
        named: names of what it is given by name.

    Raises:
        InvalidProblem: it takes something else.
    """
    given, named = list(given), list(named)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of some that are written in C nobody knows
        return
    try:
        signature.bind(*given, **dict.fromkeys(named))
    except TypeError as error:
        words = ", ".join([*given, *(f"{one}=…" for one in named)])
        raise InvalidProblem(f"{name} is called with ({words}), and takes {signature}: {error}") from error


def checked(make: Callable[Arguments, Made]) -> Callable[Arguments, Made]:
    """A function that refuses arguments which are not of the kind that its annotations say, numbers, truth values, mappings and lists of names, and devices not there.

    Args:
        make: such as what makes the environment of an id; in a module with ``from __future__ import annotations``.
    """
    signature = inspect.signature(make)

    @wraps(make)
    def made(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Made:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:  # Python says it better, with the function's name
            return make(*args, **kwargs)
        _check((name, signature.parameters[name].annotation, value) for name, value in given.items())
        if "device" in given:
            _check_device(given["device"])
        return make(*args, **kwargs)

    return made


def spec_of(name: str) -> EnvSpec:
    """What an id is registered as; ``"module:id"`` imports the module first, as ``gymnasium.make`` does and ``gymnasium.spec`` does not.

    Raises:
        gymnasium.error.Error: there is no such id.
        ImportError: there is no such module.
    """
    module, _, own = name.rpartition(":")
    if module:
        importlib.import_module(module)
    return gym.spec(own)


def build(kind: str, make: Callable[..., Made], options: Mapping[str, Any]) -> Made:
    """What a class makes of options that are JSON.

    Args:
        kind: what the options are of, for the message.
        make: the class.
        options: its arguments by name.

    Raises:
        UnknownName: one that it does not take, with those that it does.
        InvalidProblem: one that is needed is missing.
    """
    signature = inspect.signature(make)
    check_names(f"option of the {kind}", options, signature.parameters)
    try:
        signature.bind(**options)
    except TypeError as error:
        raise InvalidProblem(f"the {kind} {dict(options)} is incomplete: {error}") from error
    return make(**options)


def _check(given: Iterable[tuple[str, Any, Any]]) -> None:
    """(name, annotation as text, value) of each."""
    for name, annotation, value in given:
        if known := _ANNOTATION.fullmatch(str(annotation)):
            (fits, kind), optional = _KINDS[known[1]], known[2]
            if not fits(value) and not (optional and value is None):
                raise InvalidProblem(f"{name} is {value!r}: it must be {kind}{', or None' if optional else ''}")


def _check_device(device: Any) -> None:
    """Whether torch can make a tensor there."""
    import torch

    try:
        torch.empty(0, device=torch.device(device))
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        raise InvalidProblem(f"device is {device!r}, which torch cannot use here ({str(error).splitlines()[0]}): take 'cpu'") from error
