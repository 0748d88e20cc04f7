"""Every Python block of the README and the documentation runs, and the demo does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bilevel_gym.agents import Evaluator, together
from bilevel_gym.agents.making import RECIPES
from bilevel_gym.registration import CATALOGUE
from tests.small import small_agent, small_env

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAIRS = dict.fromkeys(
    [
        *((name, entry.agents[0]) for name, entry in CATALOGUE.items()),
        *((next(name for name, entry in CATALOGUE.items() if agent in entry.agents), agent) for agent in RECIPES),
    ]
)
"""Each id with its first agent, and each agent with its first id: between them they report every metric."""
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


@pytest.mark.parametrize(("name", "agent"), PAIRS, ids=lambda text: text.rpartition("/")[2])
def test_every_metric_is_in_the_glossary(name, agent):
    """A number that nobody explains must not be logged."""
    glossary = (ROOT / "docs" / "metrics.md").read_text()
    explained = {word for row in re.findall(r"^\| (`[^|]*) \|", glossary, re.MULTILINE) for word in re.findall(r"`(\w+)`", row)}
    env = small_env(name)
    env.reset(seed=0)
    seen: set[str] = set()
    small_agent(agent, name, env).learn(1, together(Evaluator(1, episodes=1), lambda _, metrics: seen.update(metrics)))
    env.close()
    assert seen <= explained


def test_the_readme_names_every_id_and_agent():
    """Whoever reads the map must find what is there, and nothing that is not."""
    cells = re.findall(r"^\| (`[^|]*) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    rows = [name for cell in cells for name in re.findall(r"`([\w/-]+)`", cell)]
    assert sorted(row for row in rows if row.startswith("bilevel/")) == sorted(CATALOGUE)
    assert sorted(row for row in rows if "/" not in row) == sorted(RECIPES)


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


def test_leader_follower_quick(tmp_path):
    """The PettingZoo example runs, and what is seen in play is near the exact numbers beside it."""
    command = [sys.executable, str(ROOT / "examples" / "leader_follower.py"), "--quick"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    rows = [[float(cell) for cell in line.split("│")[2:8]] for line in text.splitlines() if line.startswith("│ ")]
    assert len(rows) == 8
    assert sum(abs(row[4] - row[5]) for row in rows) / len(rows) < 0.1
    assert "best of a grid: payments [0.00, 0.9" in text
