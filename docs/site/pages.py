"""What the site shows and nobody writes: pages made of docstrings, of the registry and of the examples, whenever it is built.

A hook of MkDocs (see ``mkdocs.yml``); new ids, agents and names appear by themselves. Wherever a page or a docstring says
``solvers.SAC`` in code type it becomes a link, and a name that does not exist ends the build.
"""

from __future__ import annotations

import importlib
import inspect
import io
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
from markdown import Extension, Markdown
from markdown.inlinepatterns import SimpleTextInlineProcessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url
from PIL import Image

import bilevel_gym
from bilevel_gym.agents.making import RECIPES
from bilevel_gym.registration import CATALOGUE, Entry

ROOT = Path(__file__).parents[2]
MODULES = bilevel_gym._MODULES
NAME = re.compile(rf"<code>((?:{'|'.join(MODULES)})(?!\.py\b)(?:\.\w+)+)((?:\([^<]*\))?)</code>")
SECTION = re.compile(r"^(\w[\w ]*):\n(?=    )", re.MULTILINE)
ARGUMENT = re.compile(r"^(\w+): ", re.MULTILINE)


# ------------------------------------------------------------------------------------------------------- the hook


class Underscores(Extension):
    """Underscores are subscripts here, never emphasis."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Take them as text before anything else does."""
        md.inlinePatterns.register(SimpleTextInlineProcessor("(_+)"), "underscores", 65)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Enter the pages into the navigation."""
    config.markdown_extensions.append(Underscores())
    made = list(pages())
    under = {folder: [path for path in made if path.startswith(folder)] for folder in ("environments", "reference")}
    assert config.nav is not None
    config.nav[2:2] = [{"Environments": under["environments"]}, {"Agents": "agents.md"}]
    config.nav += [{"Examples": "examples.md"}, {"Reference": under["reference"]}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages, and a picture of each id on tables."""
    for path, content in (*pages().items(), *pictures().items()):
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let links to the examples' files, which are right in the repository, lead to their page."""
    return re.sub(r"\]\((?:\.\./)+examples/(\w+)\.py\)", r"](examples.md#\1)", markdown)


def on_page_content(html: str, page: Page, **_: Any) -> str:
    """Turn names in code type into links, and "(mathematics §3" into one to that section."""
    section = get_relative_url("mathematics.html", page.url) + r"#section-\1"
    html = NAME.sub(r'<autoref identifier="bilevel_gym.\1"><code>\1\2</code></autoref>', html)
    return re.sub(r"\(mathematics §(\d)", rf'(<a href="{section}">mathematics §\1</a>', html)


# ------------------------------------------------------------------------------------------------------- the pages


def pages() -> dict[str, str]:
    """Every page that is made, by its path: Markdown."""
    return {
        "environments/index.md": environments(),
        **{f"environments/{short(name)}.md": environment(name, entry) for name, entry in CATALOGUE.items()},
        "agents.md": agents(),
        "examples.md": examples(),
        **{f"reference/{name}.md": reference(name) for name in (*MODULES, "problem")},
    }


def environments() -> str:
    """The table of ids."""
    rows = (f"| [{short(name)}]({short(name)}.md) | {entry.summary} | {recipes(entry)} |" for name, entry in CATALOGUE.items())
    head = (
        "`bilevel-gym list` prints this table. The page of an id is its docstring.\n\n| `bilevel/…` | what it is | agents |\n|---|---|---|"
    )
    return "\n".join(["# Environments", "", head, *rows, ""])


def environment(name: str, entry: Entry) -> str:
    """The page of an id."""
    parts = [f"# {short(name)}", f"*{entry.summary}*", f'```python\nenv = gym.make("{name}")\n```']
    if entry.batched:
        parts.append(f'`gym.make_vec("{name}", num_envs=N)` solves N of them as one batch.')
    parts.append(f"An episode has {entry.max_episode_steps} upper steps. Named agents: {recipes(entry, up='../')}.")
    if drawn(name):
        parts.append(f"![{short(name)} after a reset]({short(name)}.png)\n\n*`env.render()` after `env.reset(seed=0)`.*")
    function = creator(entry)
    summary, sections = split(inspect.getdoc(function) or "")
    parts.append(summary)
    for title, text in sections:
        parts.append(f"## {'Arguments' if title == 'Args' else title}")
        parts.append(table(text, defaults(function, entry)) if title in ("Args", "Raises") else text)
    return "\n\n".join(parts) + "\n"


def drawn(name: str) -> bool:
    """Whether a picture needs no simulator."""
    return not CATALOGUE[name].simulated


def pictures() -> dict[str, bytes]:
    """What each id on tables looks like after a reset, by its path: PNG."""
    made = {}
    for name in filter(drawn, CATALOGUE):
        env: Any = gym.make(name, render_mode="rgb_array")
        env.reset(seed=0)
        file = io.BytesIO()
        Image.fromarray(env.render()).save(file, "png")
        made[f"environments/{short(name)}.png"] = file.getvalue()
    return made


def agents() -> str:
    """The table of named agents with their papers, and the docstring of each."""
    rows = []
    for name, recipe in RECIPES.items():
        what = (inspect.getdoc(recipe) or "").partition("\n")[0].replace("``", "`")
        ids = ", ".join(f"[{short(one)}](environments/{short(one)}.md)" for one, entry in CATALOGUE.items() if name in entry.agents)
        rows.append(f"| [`{name}`](#bilevel_gym.agents.recipes.{name}) | {what} | {ids} |")
    parts = [
        "# Agents",
        "Each is a few lines of composition in `agents/recipes.py`, and so is yours; `bilevel-gym list --agents` prints the names.",
        "\n".join(["| name | what it is, and its paper | runs on |", "|---|---|---|", *rows]),
        *(
            f"::: bilevel_gym.agents.recipes.{name}\n    options: {{ show_root_heading: true, show_root_toc_entry: true }}"
            for name in RECIPES
        ),
    ]
    return "\n\n".join(parts) + "\n"


def examples() -> str:
    """Every example with its source."""
    parts = ["# Examples", "Each runs by itself, `--quick` in some seconds."]
    for path in sorted((ROOT / "examples").glob("*.py")):
        parts += [f"## {path.stem} {{ #{path.stem} }}", f"`python examples/{path.name}`", f"```python\n{path.read_text()}```"]
    return "\n\n".join(parts) + "\n"


def reference(name: str) -> str:
    """The public names of a module; the functions behind ids have pages of their own."""
    module = importlib.import_module(f"bilevel_gym.{name}")
    behind = {creator(entry).__name__ for entry in CATALOGUE.values()}
    members = [member for member in module.__all__ if member not in behind]
    options = f"    options:\n      members: [{', '.join(members)}]"
    return f"# {name}\n\n::: bilevel_gym.{name}\n{options}\n"


# ------------------------------------------------------------------------------------------------------- the pieces


def short(name: str) -> str:
    """An id without its namespace."""
    return name.partition("/")[2]


def creator(entry: Entry) -> Any:
    """The function behind an id."""
    module, _, name = entry.entry_point.partition(":")
    return getattr(importlib.import_module(module), name)


def recipes(entry: Entry, up: str = "../") -> str:
    """Links to the agents of an id."""
    return ", ".join(f"[`{name}`]({up}agents.md#bilevel_gym.agents.recipes.{name})" for name in entry.agents)


def split(docstring: str) -> tuple[str, list[tuple[str, str]]]:
    """The text before the first section, and each section's title and text."""
    summary, *rest = SECTION.split(docstring)
    return summary.strip(), [(title, inspect.cleandoc(text)) for title, text in zip(rest[::2], rest[1::2], strict=True)]


def defaults(function: Any, entry: Entry) -> dict[str, str]:
    """What each argument of an id is where it is not given."""
    own = {name: repr(value) for name, value in entry.kwargs.items()}
    parameters = inspect.signature(function).parameters.values()
    return {p.name: own.get(p.name, "" if p.default is p.empty else repr(p.default)) for p in parameters}


def table(text: str, default: dict[str, str]) -> str:
    """``name: meaning`` items as a table."""
    _, *rest = ARGUMENT.split(text)
    rows = []
    for name, meaning in zip(rest[::2], rest[1::2], strict=True):
        cell = " ".join(meaning.split()).replace("|", "\\|")
        rows.append(f"| `{name}` | {code(default.get(name, ''))} | {cell} |")
    return "\n".join(["| name | default | |", "|---|---|---|", *rows])


def code(text: str) -> str:
    """In code type, where there is something."""
    return f"`{text}`" if text else ""
