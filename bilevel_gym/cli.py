"""The command line: ``bilevel-gym list · train · evaluate · check · plot``.

Each command is a page of words around one function of ``bilevel_gym.agents``; torch is loaded by the commands that need it, so that
``--help`` and ``list`` answer at once.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import re
import shlex
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

import bilevel_gym
from bilevel_gym.arguments import check_names
from bilevel_gym.errors import BilevelError, InvalidProblem, MissingExtra

if TYPE_CHECKING:
    from bilevel_gym.agents.callbacks import StopOnBudget
    from bilevel_gym.agents.loop import Callback
    from bilevel_gym.agents.runs import Run, RunSpec

__all__ = ["app"]

out, err = Console(highlight=False), Console(stderr=True, highlight=False)


class _Group(TyperGroup):
    """Prints what the package raises on purpose as one line, and leaves with code 2; an abort leaves with 130."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command, and turn what it raises on purpose into words."""
        if (here := str(Path.cwd())) not in sys.path:  # where the module of a module:id usually is
            sys.path.append(here)
        try:
            return super().invoke(ctx)
        except (BilevelError, OSError) as error:
            err.print(Text.assemble(("error:", "bold red"), " ", " ".join(str(error).split())), soft_wrap=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            err.print("aborted", style="red")
            raise typer.Exit(130) from error


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    help="Bilevel reinforcement learning: the action is the reward of somebody else's decision problem.",
    epilog="Begin with: [bold]bilevel-gym list[/bold], then [bold]bilevel-gym train bilevel/RandomMDP-v0 --steps 500[/bold]",
)

MEASURE = "Measure, log and stop"
"""The heading of options that change nothing of what is trained."""
Folder = Annotated[Path, typer.Argument(help="The folder of a run.", show_default=False)]
Id = Annotated[str, typer.Argument(help="A registered id, see [bold]list[/bold]; module:id imports the module first.", show_default=False)]


@app.command("list", epilog="Example: [bold]bilevel-gym list --agents[/bold]")
def list_(agents: Annotated[bool, typer.Option("--agents", help="The named agents instead of the ids.")] = False) -> None:
    """List the registered problems, or the named agents."""
    if agents:
        from bilevel_gym.agents.making import RECIPES

        table = Table("agent", "what it is", box=SIMPLE_HEAD)
        for name, recipe in RECIPES.items():
            table.add_row(name, Text((inspect.getdoc(recipe) or "").partition("\n")[0].replace("``", "")))
    else:
        table = Table("id", "what it is", "agents", box=SIMPLE_HEAD)
        for name, entry in bilevel_gym.registration.CATALOGUE.items():
            table.add_row(name, Text(entry.summary), ", ".join(entry.agents))
    table.columns[0].no_wrap = True
    out.print(table)


@app.command(
    epilog="Example: [bold]bilevel-gym train bilevel/RandomMDP-v0 --steps 1000 --set dimension=20 --agent-set learning_rate=0.01[/bold]"
)
def train(
    ctx: typer.Context,
    env_id: Annotated[str, typer.Argument(metavar="ID", help="A registered id, see [bold]list[/bold].", show_default=False)],
    agent: Annotated[
        str | None, typer.Option(help="A named agent, see [bold]list --agents[/bold].", show_default="the first of the id")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Upper steps in all.", show_default="the outer horizon of the id")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the instance and of all that is random.", show_default="0")] = None,
    num_envs: Annotated[
        int | None,
        typer.Option(min=1, help="Seeds as one batch: seed, seed + 1, …; metrics are means over them. Tabular ids.", show_default="1"),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="The folder of the run.", show_default="runs/<id>-<agent>-seed<seed>")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint; arguments left out are those of the run.")] = False,
    preset: Annotated[str | None, typer.Option(help="Short for --set preset=…", show_default=False)] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(min=1, help="Upper steps between two checkpoints.", show_default="steps / 20")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An argument of the environment; JSON.", show_default=False)
    ] = None,
    agent_set: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An argument of the agent; JSON.", show_default=False)
    ] = None,
    threads: Annotated[
        int, typer.Option(min=1, help="CPU threads; one is quickest for small networks, and another number rounds differently.")
    ] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
    eval_every: Annotated[
        int | None,
        typer.Option(min=1, rich_help_panel=MEASURE, help="Upper steps between two evaluations on the side.", show_default="never"),
    ] = None,
    eval_episodes: Annotated[
        int, typer.Option(min=1, rich_help_panel=MEASURE, help="Episodes of each; tables are evaluated exactly.")
    ] = 10,
    best: Annotated[
        str | None,
        typer.Option(
            metavar="METRIC",
            rich_help_panel=MEASURE,
            help="Keep the best state by a metric, such as objective or eval_true_return, in best.pt.",
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=NUMBER",
            rich_help_panel=MEASURE,
            help="Stop once so many lower_step, env_steps, comparisons or seconds are spent; may be given more than once.",
            show_default=False,
        ),
    ] = None,
    wandb: Annotated[
        str | None,
        typer.Option(
            metavar="PROJECT",
            rich_help_panel=MEASURE,
            help="Log to Weights & Biases too (extra [bold]wandb[/bold]); WANDB_MODE=offline needs no network.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train an agent, into a folder with metrics, checkpoints and a learning curve.

    Ctrl-C finishes the current upper step, saves, and prints the command that goes on; a second Ctrl-C aborts at once.
    """
    import torch

    from bilevel_gym.agents.callbacks import StopOnSignal

    torch.set_num_threads(threads)
    limits = _limits(budget or [])
    if best is not None and best.startswith("eval_") and eval_every is None:
        raise InvalidProblem(f"--best {best} is measured by evaluations: say --eval-every K, too")
    arguments = _options("--set", [*(set_ or []), *([f"preset={preset}"] if preset is not None else [])])
    asked = {"agent": agent, "seed": seed, "num_envs": num_envs, "env_kwargs": arguments}
    run = _run(env_id, output, resume, **asked, agent_kwargs=_options("--agent-set", agent_set or []))
    total = steps or run.planned or (run.env.spec and run.env.spec.max_episode_steps) or 100
    if run.step >= total:
        out.print(f"{run.folder} is at step {run.step} already: give a larger --steps to go on", soft_wrap=True)
        return
    callbacks, spending = _measuring(run, eval_every, eval_episodes, best, wandb), _spending(run, limits)
    heading = f"{run.spec.id} · {run.spec.agent} · {_seeds(run.spec)} · steps {run.step} to {total} · {run.folder}"
    out.print(heading, style="dim", soft_wrap=True)
    stop = StopOnSignal(announce=_announce)
    callbacks += [] if spending is None else [spending]
    run.train(total, checkpoint_every=checkpoint_every, progress_bar=not quiet, stop=stop, callbacks=callbacks)
    if stop.received is not None and run.step < total:
        err.print(f"stopped and saved at step {run.step} of {total}; to go on:")
        err.print(_resume_command(ctx, run, total), soft_wrap=True, markup=False)
        raise typer.Exit(128 + stop.received)
    if spending is not None and spending.spent is not None:
        out.print(f"stopped at step {run.step} of {total}: the budget of {spending.spent} is spent", soft_wrap=True)
    value = float(run.bilevel.evaluation.value.mean())
    out.print(f"objective {value:.6g} after {run.step} steps; the run is in {run.folder}", soft_wrap=True)
    _draw_curve(run.folder)


@app.command(epilog="Example: [bold]bilevel-gym evaluate runs/randommdp-v0-m_sobirl-seed0 --episodes 50[/bold]")
def evaluate(
    folder: Folder,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes for each return.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of the episodes.")] = 0,
    best: Annotated[bool, typer.Option("--best", help="The state that train --best has kept, in place of the last one.")] = False,
) -> None:
    """Measure what a run has learned: solved exactly on tables, played against random actions elsewhere."""
    from bilevel_gym.agents.evaluation import evaluate_env
    from bilevel_gym.agents.runs import BEST, CHECKPOINT, Run

    run = Run.load(folder, file=BEST if best else CHECKPOINT)
    heading = f"{run.spec.id} · {run.spec.agent} · {_seeds(run.spec)} · step {run.step}"
    table = Table("", "value", "± s.e.", "", title=heading, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for column in (1, 2):
        table.columns[column].justify = "right"
    for line in evaluate_env(run.bilevel, episodes=episodes, seed=seed):
        error = line.standard_error
        table.add_row(line.name, f"{line.value:.6g}", "" if error is None or math.isnan(error) else f"{error:.3g}", line.note)
    out.print(table)


@app.command(epilog="Example: [bold]bilevel-gym check bilevel/RandomMDP-v0[/bold]")
def check(
    env_id: Id,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An argument of the environment; JSON.", show_default=False)
    ] = None,
    no_render: Annotated[bool, typer.Option("--no-render", help="For machines that cannot render.")] = False,
) -> None:
    """Check that an environment keeps Gymnasium's contract, and this package's."""
    from gymnasium.utils.env_checker import check_env

    from bilevel_gym.agents.making import make_env
    from bilevel_gym.testing import check_bilevel_env
    from bilevel_gym.testing.environment import EXPECTED_ADVICE

    env = make_env(env_id, _options("--set", set_ or []))
    failed = False
    for name, checks in (("gymnasium's check_env", check_env), ("bilevel_gym.testing's check_bilevel_env", check_bilevel_env)):
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                checks(env.unwrapped, skip_render_check=no_render)
                out.print(f"[green]passed[/green]  {name}", soft_wrap=True)
            except BilevelError:
                raise
            except Exception as error:  # whatever a person's own environment raises, it has not passed
                failed = True
                out.print(Text.assemble(("failed", "bold red"), f"  {name}: {type(error).__name__}: {error}"), soft_wrap=True)
        for text in dict.fromkeys(str(warning.message) for warning in warned):
            if not any(re.match(pattern, text, re.DOTALL) for pattern in EXPECTED_ADVICE):
                out.print(Text.assemble(("warned", "yellow"), "  ", text), soft_wrap=True)
    env.close()
    if failed:
        raise typer.Exit(1)


@app.command(epilog="Example: [bold]bilevel-gym plot runs/a runs/b --output curves.png --metrics objective,norm_hypergradient[/bold]")
def plot(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs, drawn over each other.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The picture: .png, .pdf or .svg.", show_default="curves.png in the folder of the runs"),
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="Columns of metrics.csv, with commas between.", show_default="what suits the id")
    ] = None,
    over: Annotated[str, typer.Option(help="The horizontal axis, such as env_steps.")] = "upper_step",
) -> None:
    """Draw the learning curves of one run or several; without --output beside them: in the run's folder, or in what holds them all."""
    from bilevel_gym.agents.plotting import plot_runs

    shared = folders[0] if len(folders) == 1 else Path(os.path.commonpath([folder.absolute() for folder in folders]))
    picture = output or shared / "curves.png"
    plot_runs(folders, picture, metrics=None if metrics is None else [name.strip() for name in metrics.split(",")], over=over)
    out.print(f"wrote {picture}", soft_wrap=True)


def _options(flag: str, pairs: list[str]) -> dict[str, Any]:
    """``key=value`` pairs; a value that is not JSON is text, so that names need no quotes.

    Raises:
        InvalidProblem: there is no ``=``, or a key comes twice.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not (key and equals):
            raise InvalidProblem(f"{flag} {pair}: write {flag} key=value, such as {flag} {key or 'key'}=1")
        if key in found:
            raise InvalidProblem(f"{flag} {pair}: {key} is set to {found[key]!r} already; say it once")
        try:
            found[key] = json.loads(text)
        except ValueError:
            found[key] = text
    return found


def _run(env_id: str, output: Path | None, resume: bool, **asked: Any) -> Run:
    """A run that begins, or goes on; of what was not asked for it has the defaults, or what it had."""
    from bilevel_gym.agents.runs import Run, RunSpec

    given: dict[str, Any] = {"id": env_id, **{name: value for name, value in asked.items() if value not in (None, {})}}
    catalogued = bilevel_gym.registration.CATALOGUE.get(env_id)
    spec = RunSpec(**{"agent": catalogued.agents[0] if catalogued and catalogued.agents else "m_sobirl", **given})
    folder = output or Path("runs") / f"{env_id.rpartition('/')[2].lower()}-{spec.agent}-{_seeds(spec).replace(' ', '')}"
    return Run.load(folder, **given) if resume else Run.create(spec, folder)


def _measuring(run: Run, eval_every: int | None, episodes: int, best: str | None, wandb: str | None) -> list[Callback]:
    """What looks at a training and changes nothing, in the order in which it is called."""
    from bilevel_gym.agents.callbacks import BestKeeper, Evaluator, WandbLogger
    from bilevel_gym.agents.runs import BEST

    described = asdict(run.spec)
    callbacks: list[Callback] = [] if eval_every is None else [Evaluator(eval_every, episodes=episodes)]
    if best is not None:
        callbacks.append(BestKeeper(run.folder / BEST, best, run=described))
    if wandb is not None:
        callbacks.append(WandbLogger(wandb, folder=run.folder, resume=run.step > 0, name=run.folder.name, config=described))
    return callbacks


def _limits(pairs: list[str]) -> dict[str, float]:
    """What ends the training early.

    Raises:
        InvalidProblem: not KEY=NUMBER.
        UnknownName: no such counter.
    """
    from bilevel_gym.agents.callbacks import StopOnBudget

    limits = _options("--budget", pairs)
    check_names("counter", limits, inspect.signature(StopOnBudget).parameters)
    for name, limit in limits.items():
        if not isinstance(limit, int | float):
            raise InvalidProblem(f"--budget {name}={limit}: write a number, such as --budget {name}=100000")
    return limits


def _spending(run: Run, limits: dict[str, float]) -> StopOnBudget | None:
    """The same as a callback, where there is something.

    Raises:
        InvalidProblem: a number that is not positive, or comparisons of a task that asks for none.
    """
    from bilevel_gym.agents.callbacks import StopOnBudget
    from bilevel_gym.envs.oracle import check_asked

    if not limits:
        return None
    counters = run.bilevel.counters
    check_asked(limits, sum(one.comparisons for one in counters) if isinstance(counters, list) else counters.comparisons)
    return StopOnBudget(**limits)


def _seeds(spec: RunSpec) -> str:
    """``seed 3``, or ``seeds 3-12`` of a batch."""
    return f"seed {spec.seed}" if spec.num_envs == 1 else f"seeds {spec.seed}-{spec.seed + spec.num_envs - 1}"


def _resume_command(ctx: typer.Context, run: Run, steps: int) -> str:
    spec = run.spec
    words = [
        *ctx.find_root().command_path.split(),
        "train",
        spec.id,
        "--agent",
        spec.agent,
        "--steps",
        str(steps),
        "--seed",
        str(spec.seed),
        *(["--num-envs", str(spec.num_envs)] if spec.num_envs > 1 else []),
    ]
    for flag, kwargs in (("--set", spec.env_kwargs), ("--agent-set", spec.agent_kwargs)):
        for key, value in kwargs.items():
            words += [flag, f"{key}={json.dumps(value)}"]
    for flag, values in _given(ctx).items():
        for value in values:
            words += [flag, str(value)]
    return shlex.join([*words, "--output", str(run.folder), "--resume"])


def _given(ctx: typer.Context) -> dict[str, list[Any]]:
    """What was said, beside what the checkpoint holds, as words of the command line."""
    names = ("checkpoint_every", "threads", "eval_every", "eval_episodes", "best", "wandb", "budget")
    defaults = {one.name: one.default for one in ctx.command.params}
    said = {f"--{name.replace('_', '-')}": ctx.params[name] for name in names if ctx.params[name] not in (None, defaults[name])}
    return {flag: list(value) if isinstance(value, list | tuple) else [value] for flag, value in said.items()}


def _announce(_: int) -> None:
    """Written past all buffers, since a signal may come in the middle of a print."""
    os.write(2, b"\nfinishing this upper step, then saving; once more aborts at once\n")


def _draw_curve(folder: Path) -> None:
    from bilevel_gym.agents.plotting import plot_runs
    from bilevel_gym.agents.runs import CURVE

    try:
        plot_runs([folder], folder / CURVE)
    except MissingExtra as error:
        out.print(f"no learning curve was drawn: {error}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    app()
