"""The ``swamp`` command. Nothing heavy is imported before a command really needs it."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import click

from swamp_ray.config.files import ConfigFile, read_config_file
from swamp_ray.config.paths import absolute, expanded
from swamp_ray.config.reading import load_config, with_values
from swamp_ray.config.schema import SwampConfig
from swamp_ray.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, SwampError, UserError
from swamp_ray.text.metric_names import shown_primary
from swamp_ray.text.output import leave_stdout, make_streams_safe, visible
from swamp_ray.version import __version__

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


class Commands(click.Group):
    """Turns the project's errors into one message and an exit code, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; SWAMP_TRACEBACK=1 shows the traceback of an error as well."""
        make_streams_safe()
        try:
            done = super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()
            return done
        except BrokenPipeError:  # nobody reads on, as after | head
            leave_stdout()
            ctx.exit(EXIT_DONE)
        except SwampError as error:
            if os.environ.get("SWAMP_TRACEBACK"):
                raise
            click.echo(f"swamp: {visible(str(error))}", err=True)
            ctx.exit(error.exit_code)
        except OSError as error:
            if os.environ.get("SWAMP_TRACEBACK"):
                raise
            click.echo(f"swamp: {visible(str(error))}. Once that is mended, the same command goes on.", err=True)
            ctx.exit(EXIT_FAILED)
        except KeyboardInterrupt:
            click.echo("swamp: stopped. Run the same command again to go on.", err=True)
            ctx.exit(EXIT_INTERRUPTED)


def _expanded(_: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """A path with ``~`` and variables replaced: a shell does that only where they stand alone and unquoted."""
    return None if value is None else expanded(value, option.opts[0])


CONFIG = click.argument("config", metavar="CONFIG")
SET = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Set one option, e.g. "
                   "--set pruning.target=0.9; may be repeated.")
STORAGE = click.option("--storage", metavar="URI", callback=_expanded, help="Storage root, a folder or "
                       "s3://bucket/folder; default: the config's, or ./results.")
CODE_CHANGED = click.option("--code-changed", type=click.Choice(["refuse", "retrain"]), default="refuse",
                            help="If your code is another than the run or sweep was begun with: refuse (default), or "
                            "train anew under its name.")
JOB = click.argument("job", metavar="JOB")
JOBS_ADDRESS = click.option("--address", metavar="URL", help="The cluster's dashboard; default: "
                            "RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or http://127.0.0.1:8265.")
INSECURE = click.option("--insecure", is_flag=True, help="Allow plain HTTP without a token to another host.")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="swamp")
def main() -> None:
    """Sparse networks by iterative magnitude pruning with averaged particles, on Ray.

    \b
    Example:
      swamp run configs/quickstart.yaml
    """


@main.command(short_help="Run CONFIG to its end, or go on where it stopped.")
@CONFIG
@SET
@click.option("--name", help="Name of the run; default: the config's, or the file's name.")
@STORAGE
@click.option("--address", metavar="ADDR", help="A running Ray cluster, e.g. auto or 10.0.0.1:6379; default: embedded.")
@click.option("--executor", type=click.Choice(["ray", "inline"]), help="inline: in this process, without Ray.")
@CODE_CHANGED
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def run(config: str, overrides: tuple[str, ...], name: str | None, storage: str | None, address: str | None,
        executor: str | None, code_changed: Literal["refuse", "retrain"], quiet: bool) -> None:
    """Run CONFIG to its end, or go on where it stopped.

    \b
    Examples:
      swamp run configs/quickstart.yaml
      swamp run configs/quickstart.yaml --set seed=1 --name quickstart-seed1
    """
    file = read_config_file(config)
    _refuse_sweep(file)
    resolved = _resolve(file, overrides, name, storage,
                        {"execution.address": address, "execution.executor": executor})
    from swamp_ray.run.signals import Stopping

    stopping = Stopping()
    stopping.install()
    from swamp_ray.commands.run_progress import make_reporter, print_results
    from swamp_ray.launch import run as run_config

    reporter, console = make_reporter(quiet)
    done = run_config(resolved, reporter, stopping, code_changed=code_changed)
    print_results(console, done.rundir, done.records, shown_primary(done.prepared.task))


@main.command(short_help="Run the sweep CONFIG to its end, or go on where it stopped.")
@CONFIG
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Set one option of the sweep, e.g. "
              "--set seeds=5, or of its base run, e.g. --set base.round.length=8; may be repeated.")
@click.option("--name", help="Name of the sweep; default: the config's, or the file's name.")
@STORAGE
@click.option("--address", metavar="ADDR", help="A running Ray cluster, e.g. auto or 10.0.0.1:6379; default: embedded.")
@CODE_CHANGED
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def sweep(config: str, overrides: tuple[str, ...], name: str | None, storage: str | None, address: str | None,
          code_changed: Literal["refuse", "retrain"], quiet: bool) -> None:
    """Run every setting of the sweep CONFIG with all its seeds, or go on where it stopped.

    Settings share what they have in common: no particle is trained twice.

    \b
    Examples:
      swamp sweep configs/sweeps/sparsity_x_particles.yaml
      swamp sweep configs/sweeps/method_comparison.yaml --set seeds=5 --name methods-5
    """
    from swamp_ray.config.sweep_reading import load_sweep
    from swamp_ray.run.signals import Stopping

    loaded = load_sweep(config, overrides, storage, name, {} if address is None else {"execution.address": address})
    stopping = Stopping()
    stopping.install()
    from swamp_ray.commands.sweep_progress import sweep_to_the_end

    if not sweep_to_the_end(loaded, quiet, stopping, code_changed):
        sys.exit(EXIT_FAILED)


@main.command()
@CONFIG
@SET
@STORAGE
@click.option("--name", help="Name of the run or sweep; default: the config's, or the file's name.")
def check(config: str, overrides: tuple[str, ...], storage: str | None, name: str | None) -> None:
    """Validate CONFIG, of a run or of a sweep, print what it would do, and exit.

    \b
    Examples:
      swamp check configs/cifar10_resnet20.yaml --set particles.count=8
      swamp check configs/sweeps/sparsity_x_particles.yaml
    """
    from swamp_ray.config.sweep_reading import is_sweep, load_sweep

    file = read_config_file(config)
    if is_sweep(file):
        from swamp_ray.commands.check import print_sweep_plan

        print_sweep_plan(load_sweep(file, overrides, storage, name))
        return
    resolved = _resolve(file, overrides, name, storage, {})
    from swamp_ray.commands.check import print_plan

    print_plan(resolved)


@main.command("submit", short_help="Run CONFIG on a cluster, through Ray Jobs.")
@CONFIG
@SET
@click.option("--name", help="Name of the run or sweep; default: the config's, or the file's name.")
@click.option("--storage", metavar="URI", callback=_expanded, help="Storage root as the cluster sees it: an absolute "
              "path that all nodes share, or s3://bucket/folder; default: the config's.")
@JOBS_ADDRESS
@click.option("--working-dir", metavar="FOLDER", callback=_expanded, default=".", help="Folder of your code, "
              "which is uploaded; default: the current one.")
@CODE_CHANGED
@click.option("--follow", is_flag=True, help="Print what it prints until it ends, and end with its exit code.")
@INSECURE
def submit(config: str, overrides: tuple[str, ...], name: str | None, storage: str | None, address: str | None,
           working_dir: str, code_changed: Literal["refuse", "retrain"], follow: bool, insecure: bool) -> None:
    """Run CONFIG, of a run or of a sweep, on a cluster. The same command again goes on where it stopped.

    Config, versions, packages, nodes and storage root are checked before your code is uploaded. data.root stays here,
    and so does what .gitignore and .rayignore name.

    \b
    Examples:
      swamp submit configs/quickstart.yaml --storage /mnt/shared/swamp --follow
      swamp submit configs/sweeps/method_comparison.yaml --storage s3://bucket/swamp
    """
    from swamp_ray.commands.submit import submit_and_print
    from swamp_ray.submit.submission import read_submission

    submission = replace(read_submission(config, overrides, name, storage), code_changed=code_changed)
    sys.exit(submit_and_print(submission, Path(working_dir).absolute(), address, insecure, follow))


@main.command("jobs", short_help="List what was submitted.")
@JOBS_ADDRESS
@INSECURE
def jobs(address: str | None, insecure: bool) -> None:
    """List the runs and sweeps that were submitted to a cluster, the newest first.

    \b
    Example:
      swamp jobs --address http://127.0.0.1:8265
    """
    from swamp_ray.commands.submit import print_jobs

    print_jobs(address, insecure)


@main.command("logs", short_help="Show what a job printed.")
@JOB
@JOBS_ADDRESS
@click.option("--follow", is_flag=True, help="Go on until it ends, and end with its exit code.")
@INSECURE
def logs(job: str, address: str | None, follow: bool, insecure: bool) -> None:
    """Show what JOB printed: its id, or the name of its run or sweep.

    \b
    Example:
      swamp logs quickstart --follow
    """
    from swamp_ray.commands.submit import print_logs

    sys.exit(print_logs(job, address, insecure, follow))


@main.command("stop", short_help="Stop a job in good order.")
@JOB
@JOBS_ADDRESS
@INSECURE
def stop(job: str, address: str | None, insecure: bool) -> None:
    """Stop JOB, once its particles have written checkpoints. Submit it again to go on.

    \b
    Example:
      swamp stop quickstart
    """
    from swamp_ray.commands.submit import stop_job

    stop_job(job, address, insecure)


@main.command()
@click.argument("name", metavar="NAME")
@STORAGE
@click.option("--watch", is_flag=True, help="Refresh until it is over.")
def status(name: str, storage: str | None, watch: bool) -> None:
    """Show what is done of the run or the sweep NAME (or the path of its folder).

    \b
    Examples:
      swamp status quickstart
      swamp status sparsity_x_particles --watch
    """
    from swamp_ray.storage.find import find_either
    from swamp_ray.storage.sweep_folder import SweepDir

    found = find_either(name, storage)
    if isinstance(found, SweepDir):
        from swamp_ray.commands.sweep_status import show_sweep_status

        show_sweep_status(found, watch=watch)
    else:
        from swamp_ray.commands.status import show_status

        show_status(name, storage, watch)


@main.command(short_help="Evaluate tickets, and ensembles of several runs.")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@STORAGE
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def evaluate(runs: tuple[str, ...], storage: str | None, as_json: bool) -> None:
    """Evaluate the tickets of each RUN, and of several the ensemble at equal sparsity.

    An ensemble is the mean of its members' softmax outputs: with two IMP runs it is the yardstick "two IMP solutions".

    \b
    Example:
      swamp evaluate imp-seed0 imp-seed1
    """
    if len(set(runs)) < len(runs):
        raise UserError("a run must be named once", got=" ".join(runs), where="RUN...",
                        do="An ensemble of a network with itself is that network.")
    from swamp_ray.commands.evaluate import print_evaluation

    print_evaluation(runs, storage, as_json)


@main.command(short_help="Look at a run's networks: connectivity, curvature, masks, ...")
@click.argument("what", metavar="WHAT",
                type=click.Choice(["connectivity", "landscape", "curvature", "particles", "calibration", "masks",
                                 "lottery-pools"]))
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option("--round", "rounds", type=int, multiple=True, help="Only this round; may be given several times.")
@STORAGE
@click.option("--executor", type=click.Choice(["ray", "inline"]), help="ray: on all cores, GPUs or nodes, as particles "
              "are trained; default: inline, in this process.")
@click.option("--address", metavar="ADDR", help="A running Ray cluster, e.g. auto or 10.0.0.1:6379; means --executor "
              "ray.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def analyze(what: str, runs: tuple[str, ...], rounds: tuple[int, ...], storage: str | None, executor: str | None,
            address: str | None, as_json: bool) -> None:
    """Measure what the networks of each RUN are like, from what is stored; nothing is trained.

    What is measured is kept as it comes: the same command goes on where it stopped, with either executor.

    \b
    connectivity  error and loss on lines between particles, and between rounds
    landscape     loss in the plane through three particles
    curvature     trace and largest eigenvalue of the Hessian
    particles     average and ensemble against how many particles enter
    calibration   whether predicted probabilities can be believed
    masks         overlap of rounds, and of runs at equal sparsity
    lottery-pools tickets of neighbouring rounds, interpolated; the results are tickets

    \b
    Examples:
      swamp analyze connectivity quickstart
      swamp analyze masks imp-seed0 swamp-seed0
      swamp analyze curvature quickstart --executor ray
    """
    from swamp_ray.run.signals import Stopping

    stopping = Stopping()
    stopping.install()
    from swamp_ray.commands.analyze import analyze as run_analysis

    run_analysis(what, runs, storage, sorted(set(rounds)), as_json, executor, address, stopping)


@main.command(short_help="Swap the masks of two runs, and train each in both ways.")
@click.argument("first", metavar="FIRST")
@click.argument("second", metavar="SECOND")
@click.option("--round", "rounds", type=int, multiple=True, help="This round of FIRST; may be given several times. "
              "Default: the sparsest one whose sparsity SECOND has too.")
@STORAGE
@click.option("--address", metavar="ADDR", help="A running Ray cluster, e.g. auto or 10.0.0.1:6379; default: the "
              "runs' own.")
@click.option("--executor", type=click.Choice(["ray", "inline"]), help="inline: in this process, without Ray; default: "
              "the runs' own.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def swap(first: str, second: str, rounds: tuple[int, ...], storage: str | None, address: str | None,
         executor: str | None, quiet: bool, as_json: bool) -> None:
    """Train the masks of FIRST and SECOND in the way of either run, from their common rewind point.

    Is one mask better than the other, whoever trains it? Both runs need the same data, network and seed. Beside the
    masks stand shuffled ones, which keep each layer's density. What is stored is not trained again; the same command
    goes on where it stopped.

    \b
    Example:
      swamp swap imp-seed0 swamp-seed0
    """
    from swamp_ray.run.signals import Stopping

    stopping = Stopping()
    stopping.install()
    from swamp_ray.commands.swap import swap_and_print

    swap_and_print((first, second), storage, sorted(set(rounds)), {"address": address, "executor": executor}, quiet,
                   as_json, stopping)


@main.command("report", short_help="Write one HTML page about runs.")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@STORAGE
@click.option("--output", metavar="FILE.html", callback=_expanded, help="Default: report.html in the folder of a "
              "single RUN, or in the current one. Figures go into a folder beside it.")
@click.option("--no-measure", is_flag=True, help="Do not measure the calibration of runs that lack it.")
@click.option("--page-only", is_flag=True, help="Write no files of figures beside the page.")
def report(runs: tuple[str, ...], storage: str | None, output: str | None, no_measure: bool, page_only: bool) -> None:
    """Write one HTML page about all RUNs: accuracy, cost, comparison of arms, figures. Nothing is trained.

    RUN is a name, a pattern of names in quotes, or the path of a run's folder. A sweep has a page of its own, with its
    arms beside each other at each sparsity: name it alone.

    Runs that differ in their seed alone are one arm; the arm that is named first is the baseline of comparisons.

    \b
    Examples:
      swamp report quickstart
      swamp report 'imp-*' 'swamp-*' --output imp_and_swamp.html
      swamp report method_comparison
    """
    from swamp_ray.report.page.writing import report as write

    write(runs, storage, output, not no_measure, page_only)


@main.command(short_help="Check this machine.")
@STORAGE
def doctor(storage: str | None) -> None:
    """Check this machine: versions, devices, memory, storage, data, and that Ray starts.

    \b
    Example:
      swamp doctor
    """
    from swamp_ray.commands.doctor import examine

    if not examine(storage):
        sys.exit(EXIT_FAILED)


@main.command("prune-storage", short_help="Remove what no run needs.")
@STORAGE
@click.option("--delete", is_flag=True, help="Remove it; without this nothing is changed.")
@click.option("--older-than", metavar="AGE", default="24h", show_default=True, help="Leave alone what was written "
              "within this time, e.g. 90m, 24h, 7d.")
def prune_storage(storage: str | None, delete: bool, older_than: str) -> None:
    """Show what the storage root's runs take up, and what in it no run needs: with --delete, remove that.

    Removable are artifacts that no run names, checkpoints of finished results, and leftovers of interrupted writers.
    To give up a run, delete its folder STORAGE/runs/NAME first.

    \b
    Examples:
      swamp prune-storage
      swamp prune-storage --storage results --older-than 7d --delete
    """
    from swamp_ray.commands.prune_storage import prune_storage as prune
    from swamp_ray.storage.find import DEFAULT_STORAGE

    prune(storage or DEFAULT_STORAGE, delete, older_than)


def _refuse_sweep(file: ConfigFile) -> None:
    from swamp_ray.config.sweep_reading import is_sweep

    if is_sweep(file):
        raise UserError("this is the config of a sweep", where=file.source,
                        do=f"Run it with: swamp sweep {file.source}")


def _resolve(file: ConfigFile, overrides: tuple[str, ...], name: str | None, storage: str | None,
             values: dict[str, Any]) -> SwampConfig:
    loaded = load_config(file, overrides)
    values["name"] = name
    values["storage"] = storage and absolute(storage, "--storage")
    return with_values(loaded, {key: value for key, value in values.items() if value is not None})
