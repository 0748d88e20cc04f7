"""Every Python block of the README and the documentation runs, and the demo does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_python_blocks_run(page):
    """A renamed function or a changed signature must not leave the documentation behind; the blocks of a page share their names."""
    names: dict[str, object] = {}
    for block in BLOCK.findall(page.read_text()):
        exec(compile(block, str(page), "exec"), names)


def test_the_parts_of_the_documentation_work_together():
    """The solver, objective and estimator of the how-to are more than text: the solver answers, and the check sees that ∇φ lacks a term."""
    import gymnasium as gym

    from bilevel_gym.testing import check_hypergradient
    from tests import problems

    names: dict[str, object] = {}
    for block in BLOCK.findall((ROOT / "docs" / "own-parts.md").read_text()):
        exec(compile(block, "own-parts.md", "exec"), names)
    env = gym.make("bilevel/RandomMDP-v0", solver=names["HalfHearted"]())
    env.reset(seed=0)
    env.step(env.action_space.sample())
    problem = problems.quadratic(0, objective=names["Reach"]())
    with pytest.raises(AssertionError, match="disagrees"):
        check_hypergradient(problem, problems.point(problem, 0), names["Nothing"]())


def test_links_lead_somewhere():
    """A file that the README or a page names is there."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_demo_quick(tmp_path):
    """`make demo` in small: it trains on real MuJoCo physics, prints the table, and leaves picture and numbers."""
    command = [sys.executable, str(ROOT / "examples" / "demo.py"), "--quick", "--output", str(tmp_path / "run")]
    text = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert "true return, learned policy" in text
    assert (tmp_path / "run" / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 3
    again = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert "from step 2" in again
