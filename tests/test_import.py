"""What importing the package loads, and what it does not."""

from __future__ import annotations

import subprocess
import sys


def run(code):
    """A fresh interpreter."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_import_registers_and_loads_nothing_heavy():
    """`import bilevel_gym` is what every script pays: torch and the simulators must wait until they are asked for."""
    heavy = "('torch', 'mujoco', 'ale_py', 'pettingzoo', 'matplotlib', 'stable_baselines3', 'scipy', 'sklearn')"
    found = run(
        f"import sys, bilevel_gym, gymnasium; print([m for m in {heavy} if m in sys.modules], 'bilevel/RandomMDP-v0' in gymnasium.registry)"
    )
    assert found == "[] True"


def test_gymnasium_imports_the_package_by_prefix():
    """gym.make('bilevel_gym:…') imports first, for people who do not write the import."""
    assert run("import gymnasium; print(gymnasium.make('bilevel_gym:bilevel/RandomMDP-v0').unwrapped.problem.dimension)") == "100"


def test_lazy_names():
    """Every name of __all__ is there when it is touched, and an unknown one is an AttributeError."""
    code = "import bilevel_gym\nfor name in bilevel_gym.__all__: getattr(bilevel_gym, name)\ntry: bilevel_gym.nothing\nexcept AttributeError: print('ok')"
    assert run(code) == "ok"
