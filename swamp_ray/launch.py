"""Run a config from beginning to end: what ``swamp run`` and :class:`swamp_ray.SwampTrainer` have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from swamp_ray.config.schema import SwampConfig
from swamp_ray.config.sections import ExecutionConfig
from swamp_ray.errors import Interrupted, SwampError, UserError
from swamp_ray.on_ray.choose_packing import (
    measure_here,
    measure_on_ray,
    recorded_packing,
    with_chosen_packing,
    workers_for,
)
from swamp_ray.on_ray.sending import sendable
from swamp_ray.process_state import computing
from swamp_ray.run.capacity import check_address, check_device, unused_settings
from swamp_ray.run.disk_space import estimate
from swamp_ray.run.driver import Driver, ExecutorFactory
from swamp_ray.run.journal import Journal
from swamp_ray.run.messages import Executor, RoundRecord
from swamp_ray.run.name_check import CodeChanged, check_name
from swamp_ray.run.older_runs import knowing_older_runs
from swamp_ray.run.placement import check_labels
from swamp_ray.run.prepare import Prepared, device_kind, prepare
from swamp_ray.run.reporter import Reporter
from swamp_ray.run.shared_code import import_paths, refuse_main_on_ray
from swamp_ray.run.signals import Stopping, handled
from swamp_ray.storage.artifacts import ArtifactStore
from swamp_ray.storage.place import Place
from swamp_ray.storage.places import open_place
from swamp_ray.storage.retrying import PassingError
from swamp_ray.storage.run_folder import RunDir

OTHER_RUN = "another run computes in this process; this one waits until it ends"
MakeExecutor = Callable[[Prepared, str, Stopping], Executor]


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and the records of its rounds."""

    rundir: RunDir
    records: list[RoundRecord]
    prepared: Prepared


def run(
    config: SwampConfig,
    reporter: Reporter | None = None,
    stopping: Stopping | None = None,
    executor: MakeExecutor | None = None,
    code_changed: CodeChanged = "refuse",
) -> Run:
    """Carry a run to its end, from wherever it stands.

    Args:
        config: The run.
        reporter: Who is told; by default nobody.
        stopping: Whose signal handlers are installed; by default they are installed for as long as the run takes.
        executor: Makes another executor than the one that the config names.
        code_changed: ``retrain``: go on under the same name although the user's code is another than before.

    Raises:
        UserError: The config, the data or the cluster has to be changed; nothing has been started.
        RunError: Something failed for good while the run was working.
        Interrupted: The user or the system asked it to stop; the same call goes on.
    """
    if config.name is None:
        raise UserError("a run needs a name", where="name", do="Set name in the config, or give --name.")
    if config.execution.executor == "ray":
        refuse_main_on_ray(import_paths(config))
    place = open_place(config.storage, config.execution.storage_patience_s)
    rundir = RunDir(place, config.name)
    store = ArtifactStore(place)
    check_address(config.execution)
    check_device(config.execution)
    reporter = reporter or Reporter()
    with handled(stopping) as stopping, _joined(config.execution):
        factory = partial(executor or make_executor, stopping=stopping)
        if config.execution.executor != "inline":
            return _run(config, rundir, store, reporter, stopping, factory, code_changed)
        with computing(lambda: reporter.notice(OTHER_RUN)):
            return _run(config, rundir, store, reporter, stopping, factory, code_changed)


def _run(
    config: SwampConfig, rundir: RunDir, store: ArtifactStore, reporter: Reporter, stopping: Stopping,
    executor: ExecutorFactory, code_changed: CodeChanged,
) -> Run:
    device = device_of(config)
    with computing(lambda: reporter.notice(OTHER_RUN)):
        prepared = knowing_older_runs(sendable(prepare(config, device)), rundir.place)
    prepared = _with_chosen_packing(prepared, rundir, reporter)
    complete = _is_complete(rundir)
    if not complete:
        _check_room(prepared, rundir.place)
    store.check_writable()
    journal = Journal(rundir, store)
    check_name(rundir, prepared, code_changed)
    try:
        journal.open(prepared, reporter.warning)
        driver = Driver(prepared, store, journal, reporter, executor, stopping)
        reporter.run_started(prepared, str(rundir.spot()))
        for text in unused_settings(config.execution):
            reporter.warning(text)
        for text in prepared.data.warnings:
            reporter.warning(text)
        for text in [*prepared.notes, *prepared.short_trainings, *prepared.unreached_stages]:
            reporter.warning(text)
        if prepared.caution:
            reporter.warning(prepared.caution)
        if not complete and not (space := estimate(prepared)).fits:
            reporter.warning(space.advice)
        records = driver.run()
    except KeyboardInterrupt:
        journal.close("interrupted")
        reporter.run_finished(complete=False)
        raise Interrupted(f"stopped; what is finished is in {rundir.spot()}. "
                          "Run the same command again to go on.") from None
    except BaseException as error:
        with contextlib.suppress(SwampError, OSError):
            journal.close("failed", str(error) if isinstance(error, SwampError) else f"{type(error).__name__}: {error}")
        reporter.run_finished(complete=False)
        raise
    journal.close("complete")
    reporter.run_finished(complete=True)
    return Run(rundir, records, prepared)


def _with_chosen_packing(prepared: Prepared, rundir: RunDir, reporter: Reporter) -> Prepared:
    """The run with its packing decided: as its earlier attempts were packed, or as a measurement says."""
    inline = prepared.config.execution.executor == "inline"
    return with_chosen_packing(
        prepared, rundir.place, recorded_packing(rundir), lambda: workers_for(prepared, prepared.most_jobs),
        measure_here if inline else measure_on_ray, reporter.notice)


def _is_complete(rundir: RunDir) -> bool:
    """Whether nothing has to be trained; records that cannot be read are looked at, and refused, later."""
    try:
        return (rundir.read_run() or {}).get("status") == "complete"
    except (SwampError, OSError) as error:
        if isinstance(error.__cause__, PassingError):
            raise
        return False


def _check_room(prepared: Prepared, place: Place) -> None:
    """Refuse a plan that can never be scheduled, before anything is written or started."""
    execution = prepared.config.execution
    if execution.executor == "inline":
        return
    from swamp_ray.on_ray.cluster import is_connected, living_nodes
    from swamp_ray.on_ray.nodes import check_shared

    if not is_connected():
        workers_for(prepared, prepared.most_packs)
        return
    nodes = living_nodes()
    check_labels(nodes, execution)
    workers_for(prepared, prepared.most_packs)
    if len(nodes) > 1:
        check_shared(place)


def make_executor(prepared: Prepared, storage: str, stopping: Stopping) -> Executor:
    """The executor that the config names."""
    if prepared.config.execution.executor == "inline":
        from swamp_ray.run.inline_executor import InlineExecutor

        return InlineExecutor(prepared, storage, stopping)
    from swamp_ray.on_ray.executor import RayExecutor

    return RayExecutor(prepared, storage)


@contextlib.contextmanager
def one_cluster(execution: ExecutionConfig) -> Iterator[MakeExecutor]:
    """Join a cluster, or start an embedded one, for several runs that follow each other.

    Yields:
        What `run` makes its executor with, so that a run's workers stay warm for the next one.
    """
    if execution.executor == "inline":
        yield make_executor
        return
    from swamp_ray.on_ray.actors import Spares
    from swamp_ray.on_ray.executor import RayExecutor
    from swamp_ray.on_ray.pool import Pool

    spares = Spares()

    def executor(prepared: Prepared, storage: str, stopping: Stopping) -> Executor:
        return RayExecutor(prepared, storage, Pool([prepared], storage, spares=spares))

    with connected(execution):
        yield executor


@contextlib.contextmanager
def connected(execution: ExecutionConfig) -> Iterator[None]:
    """Join a cluster, or start an embedded one, for as long as the block takes."""
    from swamp_ray.on_ray.cluster import connect

    connection = connect(execution)
    try:
        yield
    finally:
        connection.close()


def _joined(execution: ExecutionConfig) -> contextlib.AbstractContextManager[None]:
    """Join the cluster that the config names, for as long as the run takes; an embedded Ray starts when needed."""
    if execution.executor == "inline" or execution.address is None:
        return contextlib.nullcontext()
    return connected(execution)


def device_of(config: SwampConfig) -> str:
    """The device kind; a cluster is asked, an embedded run looks at this machine."""
    execution = config.execution
    if execution.device != "auto" or execution.executor == "inline" or execution.address is None:
        return device_kind(config)
    from swamp_ray.on_ray.cluster import cluster_gpus

    return device_kind(config, cluster_gpus())
