"""A particle worker: does jobs one after the other and stores what they give.

It stays warm between rounds: data, network and compiled kernels are kept. The class knows no Ray; the pool
wraps it into an actor.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from swamp_ray.config.schema import SwampConfig
from swamp_ray.credentials import Concealer, concealed_tree
from swamp_ray.data.batches import Batches
from swamp_ray.data.samples import Data
from swamp_ray.errors import CorruptArtifactError, DivergedError, MissingPayloadError, RunError, SwampError
from swamp_ray.run.averager import MASK_FILE, described_mask
from swamp_ray.run.failures import recall_divergence, remember_divergence
from swamp_ray.run.lookup import discard_named, evaluation_of, every_named, is_measured_alike, measured_anew, outcome_of
from swamp_ray.run.messages import BlockedByLease, JobSpec, Outcome
from swamp_ray.run.shard import num_shards
from swamp_ray.run.state import State
from swamp_ray.sparsity.averaging import OrderedMean
from swamp_ray.sparsity.bits import layer_counts
from swamp_ray.sparsity.compact import CompactState, compact_state, spans
from swamp_ray.sparsity.masks import from_bits, layer_densities, to_bits
from swamp_ray.storage.arrays import arrays_to_bytes
from swamp_ray.storage.artifacts import CHECKPOINT, ArtifactStore, Manifest
from swamp_ray.storage.forks import put_fork
from swamp_ray.storage.holders import this_process
from swamp_ray.storage.job_log import JobLog
from swamp_ray.storage.leases import HeldLease, Lease, Leases, artifact_lease, is_free
from swamp_ray.storage.own_masks import own_mask_payload, read_own_mask
from swamp_ray.storage.place import Place
from swamp_ray.storage.places import open_place
from swamp_ray.storage.states import put_state, read_state
from swamp_ray.training.arithmetic import Arithmetic, applied
from swamp_ray.training.fork import ForkPoint
from swamp_ray.training.mask_before import choose_mask
from swamp_ray.training.peak_memory import PeakMemory
from swamp_ray.training.program import Program, TrainingSpec
from swamp_ray.training.ranks import Ranks
from swamp_ray.training.replicas import AnyRun, ReplicatedRun, begin_run
from swamp_ray.training.results import Progress, TrainedParticle
from swamp_ray.training.trainer import ParticleTrainer
from swamp_ray.training.training_run import GradientRequest, TrainingRun, never

BUFFERS_FILE = "buffers.safetensors"
RUN_FILE = "run.pt"

Message = Progress | Outcome | CompactState | BlockedByLease
"""What a worker says while it does a job."""
Steps = Generator[Message | GradientRequest, Any]
"""A training job that asks for the gradients of its batches."""


@dataclass(frozen=True)
class _Training:
    """A training job, its inputs at hand."""

    spec: JobSpec
    start: State
    mask: np.ndarray
    values: CompactState | ForkPoint | None
    seat: ParticleTrainer | None


class Worker:
    """Trains particles, evaluates averages, and chooses the mask before training, of one run.

    Args:
        config: The run.
        data: Its decoded data; arrays may be read-only and shared.
        arithmetic: As resolved when the run started.
        storage: Storage root.
        batches: Batches of the same data that another worker in this process has made.
        ranks: The processes that train each particle together, of which this is the first.
        member: Index of the run, where they work for several.
    """

    def __init__(self, config: SwampConfig, data: Data, arithmetic: Arithmetic, storage: str,
                 batches: dict[str, Batches] | None = None, ranks: Ranks | None = None, member: int = 0) -> None:
        self.config = config
        self.arithmetic = arithmetic
        self.store = ArtifactStore(open_place(storage, config.execution.storage_patience_s))
        self.store.place.pin()
        self.leases = Leases(self.store.place, config.execution.lease_expiry_s)
        self._holder = this_process(config.name or "")
        self._conceal = Concealer(config.model_dump(mode="json"))
        with applied(arithmetic):
            self.trainer = ParticleTrainer(config, data, arithmetic.alone, batches, ranks, member)
        self._num_shards = num_shards(config, self.trainer.layout)

    def run(
        self, spec: JobSpec, start: State, mask_bits: np.ndarray, values: CompactState | ForkPoint | None,
        stop: Callable[[], bool] = never,
    ) -> Generator[Message]:
        """Do one job: progress after each epoch, then the outcome, then (for training) the state in its pieces.

        A training that somebody else is busy with is not done, and not waited for: who it is comes instead. One that is
        asked to stop writes a checkpoint and ends without an outcome.

        Args:
            spec: What to do.
            start: The rewind weights (or the initialisation) and the buffers.
            mask_bits: The round's mask, one bit a prunable weight.
            values: Surviving weights to start from instead of ``start``'s, or where the round's trunk has stopped.
            stop: Asked after every training step.
        """
        with applied(self.arithmetic):
            if spec.mask is not None:
                with _log(spec, self.store.place, self._conceal) as log:
                    yield from self._choose_mask(spec, start, self._mask(mask_bits), log, stop)
                return
            if spec.program is None:
                with _log(spec, self.store.place, self._conceal) as log:
                    yield self._evaluate(spec, start, self._mask(mask_bits), log)
                return
            for message in self.train(spec, start, mask_bits, values, stop):
                assert not isinstance(message, GradientRequest)
                yield message

    def train(
        self, spec: JobSpec, start: State, mask_bits: np.ndarray, values: CompactState | ForkPoint | None,
        stop: Callable[[], bool] = never, seat: ParticleTrainer | None = None,
    ) -> Steps:
        """Train a particle. The caller applies the arithmetic.

        Args:
            spec, start, mask_bits, values, stop: As for :meth:`run`.
            seat: Of a pack, whose owner is asked for gradients; None: this worker's own trainer computes them.
        """
        mask = self._mask(mask_bits)
        with _log(spec, self.store.place, self._conceal) as log:
            found = self._stored(spec, mask, start, log)
            if found is not None:
                yield from found
                return
            lease = self._lease(spec, log)
            if isinstance(lease, HeldLease):
                log(f"{spec.job}: is being trained by {lease.who}")
                yield BlockedByLease(lease)
                return
            with lease or contextlib.nullcontext():
                # Whoever had the lease before may have finished since the look above.
                training = _Training(spec, start, mask, values, seat)
                result = self._stored(spec, mask, start, log) or (yield from self._train_anew(training, log, stop))
            yield from result or ()

    def _with_pieces(self, outcome: Outcome, compact: CompactState) -> list[Outcome | CompactState]:
        """The outcome, and the state in a piece for each averaging shard."""
        pieces = [compact.part(*span) for span in spans(compact.size, self._num_shards)]
        return [replace(outcome, num_pieces=len(pieces)), *pieces]

    def _stored(self, spec: JobSpec, mask: np.ndarray, start: State, log: Any) -> list[Outcome | CompactState] | None:
        """A result that an earlier attempt, or another run, has left behind, with the metrics that are asked for."""
        for manifest in every_named(self.store, spec.named):
            try:
                compact = read_state(self.store, manifest)
                own_mask = read_own_mask(self.store, manifest, mask.size)
            except MissingPayloadError:
                continue  # deleted to save space, and needed once more
            log(f"{spec.job}: found {manifest.name[:12]} in storage")
            outcome = outcome_of(manifest)
            if spec.job.kind == "trunk":
                return [outcome]
            if not is_measured_alike(spec, manifest.name, manifest.info):
                outcome = self._measure(spec, outcome, compact, mask if own_mask is None else own_mask, start, log)
            return self._with_pieces(outcome, compact)
        return None

    def _measure(self, spec: JobSpec, outcome: Outcome, compact: CompactState, mask: np.ndarray, start: State, log: Any
                 ) -> Outcome:
        """Measure a stored network as this run measures; what is measured lies under a name of its own."""
        named = evaluation_of(spec, outcome.digest)
        found = self.store.find(named.name)
        if found is None:
            found = self._store_evaluation(spec, named.name, compact, mask, start)
            log(f"{spec.job}: measured anew, {_metrics_text(found.info['metrics'])}")
        return measured_anew(spec, outcome, named.name, found.info["metrics"])

    def _lease(self, spec: JobSpec, log: Any) -> Lease | HeldLease | None:
        """The right to train, or who has it; None where the storage fails, since leases only save work."""
        holder = replace(self._holder, session=spec.session)
        try:
            # An earlier version may be at work on the same under the name that it gives to it.
            for former in spec.named.former:
                held = self.leases.look(artifact_lease(former.name))
                if held is not None and not is_free(held, holder, spec.stale):
                    return held
            return self.leases.acquire(artifact_lease(spec.named.name), holder, spec.stale)
        except (RunError, OSError) as error:
            log(f"{spec.job}: goes on without a lease: {error}")
            return None

    def _mask(self, mask_bits: np.ndarray) -> np.ndarray:
        return from_bits(mask_bits, self.trainer.layout.num_prunable)

    def _train_anew(
        self, training: _Training, log: Any, stop: Callable[[], bool]
    ) -> Generator[Progress | GradientRequest, Any, list[Outcome | CompactState] | None]:
        """Train, unless it is known that this diverges; what diverges is noted."""
        error = recall_divergence(self.store, training.spec)
        if error is not None:
            raise error
        try:
            return (yield from self._train(training, log, stop))
        except DivergedError as error:
            self._note_divergence(training.spec, error, log)
            raise

    def _train(
        self, training: _Training, log: Any, stop: Callable[[], bool]
    ) -> Generator[Progress | GradientRequest, Any, list[Outcome | CompactState] | None]:
        began = time.perf_counter()
        spec = training.spec
        memory = PeakMemory(self.trainer.device)
        run = self._begin(training, log)
        first_epoch = len(run.history)
        every = int(self.config.execution.checkpoint_every.amount)
        written = time.monotonic()
        while not run.done:
            try:
                if training.seat is None or isinstance(run, ReplicatedRun):  # which is never packed
                    progress = run.epoch(stop)
                else:
                    progress = yield from run.epoch_steps(stop)
                if progress is not None:
                    log(_epoch_line(progress))
                    yield progress
            except GeneratorExit:  # nobody reads on: a cancelled job ends here if it is not asked before
                self._stopped(spec, run, log)
                raise
            if run.done:
                break
            if progress is None or stop():
                self._stopped(spec, run, log)
                return None
            late = time.monotonic() - written >= self.config.execution.checkpoint_interval_s
            if every and late and progress.epoch % every == 0:
                self._checkpoint(spec, run)
                written = time.monotonic()
        if spec.job.kind == "trunk":
            manifest = self._keep_fork(spec, run, time.perf_counter() - began, memory.read_bytes())
            discard_named(self.store, spec.named, CHECKPOINT)
            log(f"{spec.job}: finished")
            return [outcome_of(manifest, len(run.history) - first_epoch)]
        result = run.finish()
        manifest = self._keep(spec, result, time.perf_counter() - began, memory.read_bytes())
        discard_named(self.store, spec.named, CHECKPOINT)
        log(f"{spec.job}: finished, {_metrics_text(result.evaluation.metrics)}")
        epochs = (len(run.history) - first_epoch) * run.job.program.num_replicas
        return self._with_pieces(outcome_of(manifest, epochs), result.compact)

    def _note_divergence(self, spec: JobSpec, error: DivergedError, log: Any) -> None:
        """Its checkpoint leads nowhere. A storage that takes no files must not hide what happened."""
        try:
            remember_divergence(self.store, spec, error)
            discard_named(self.store, spec.named, CHECKPOINT)
        except RunError as failure:
            log(f"{spec.job}: {failure}")

    def _begin(self, training: _Training, log: Any) -> AnyRun:
        spec = training.spec
        start = training.start
        mask = training.mask
        values = training.values
        assert spec.program is not None
        trainer = training.seat or self.trainer
        fork = values if isinstance(values, ForkPoint) else None
        if isinstance(values, ForkPoint):
            values = values.weights
        if values is None:
            values = compact_state(start.parameters, trainer.layout, mask, drop_outside=True)
        order = TrainingSpec(str(spec.job), spec.seed, spec.program)
        checkpoint = self._find_checkpoint(spec, log)
        try:
            run = begin_run(trainer, order, values, mask, start.buffers, checkpoint, fork)
        except CorruptArtifactError as error:
            log(f"{spec.job}: {error}; starting afresh")
            discard_named(self.store, spec.named, CHECKPOINT)
            run = begin_run(trainer, order, values, mask, start.buffers, fork=fork)
        origin = f"step {run.step}" if run.step else "the start" if fork is None else "the trunk"
        seed = f", seed {spec.reseed}" if spec.reseed else ""
        form = f"{spec.packing}, " if spec.is_packed else ""
        form += _replicas_text(spec.program)
        log(f"{spec.job}: attempt {spec.attempt}{seed}, from {origin}, {spec.program.num_steps} steps, {form}"
            f"density {mask.mean():.4f}, result {spec.named.name[:12]}")
        return run

    def _stopped(self, spec: JobSpec, run: AnyRun, log: Any) -> None:
        self._checkpoint(spec, run)
        log(f"{spec.job}: asked to stop; a checkpoint was written after step {run.step}")

    def _checkpoint(self, spec: JobSpec, run: AnyRun) -> None:
        info = {"step": run.step, "epoch": len(run.history)}
        self.store.put(spec.named.name, {RUN_FILE: run.checkpoint()}, info, CHECKPOINT)

    def _find_checkpoint(self, spec: JobSpec, log: Any) -> bytes | None:
        """What an earlier attempt left; a damaged checkpoint only costs its epochs."""
        for name in spec.named.names:
            try:
                manifest = self.store.find(name, CHECKPOINT)
                if manifest is not None:
                    return self.store.read(manifest, RUN_FILE)
            except CorruptArtifactError as error:
                log(f"{spec.job}: {error}")
                self.store.discard(name, CHECKPOINT)
        return None

    def _keep_fork(self, spec: JobSpec, run: AnyRun, seconds: float, peak_bytes: int | None) -> Manifest:
        """Store where particles part. A trunk is no result of the method, and is not evaluated."""
        assert isinstance(run, TrainingRun)
        info: dict[str, Any] = {"history": run.history, "seconds": seconds, "work": str(spec.job),
                                "run": self.config.name}
        if peak_bytes is not None:
            info["peak_bytes"] = peak_bytes
        return put_fork(self.store, spec.named.name, run.fork(), concealed_tree(spec.named.recipe), info)

    def _keep(self, spec: JobSpec, result: TrainedParticle, seconds: float, peak_bytes: int | None) -> Manifest:
        info: dict[str, Any] = {"metrics": result.evaluation.metrics, "history": result.history, "seconds": seconds,
                                "work": str(spec.job), "run": self.config.name}
        if result.as_trained is not None:
            info["as_trained"] = result.as_trained
        if peak_bytes is not None:
            info["peak_bytes"] = peak_bytes
        if spec.measurement is not None:
            info["measured"] = spec.measurement.measured
        others: dict[str, bytes] = {}
        if result.mask is not None:
            others, info["mask"] = own_mask_payload(result.mask)
        # Who reads the file need not know the tokens of the options.
        recipe = concealed_tree(spec.named.recipe)
        return put_state(self.store, spec.named.name, result.compact, recipe, info, others)

    def _choose_mask(self, spec: JobSpec, start: State, mask: np.ndarray, log: JobLog, stop: Callable[[], bool]
                     ) -> Iterator[Outcome]:
        """Choose the mask before training, and store it; nothing follows if the job was stopped."""
        assert spec.mask is not None
        began = time.perf_counter()
        layout = self.trainer.layout
        log(f"{spec.job}: attempt {spec.attempt}, score {spec.mask.score}, {spec.mask.steps} steps, result "
            f"{spec.named.name[:12]}")
        bits = choose_mask(self.trainer, spec.mask, start.parameters, start.buffers, mask, stop, log)
        if bits is None:
            log(f"{spec.job}: asked to stop")
            return
        info = described_mask(self.config, layout, bits, layer_counts(layout, to_bits(mask)))
        info |= {"layer_densities": layer_densities(layout, from_bits(bits, layout.num_prunable)),
                 "recipe": concealed_tree(spec.named.recipe), "seconds": time.perf_counter() - began,
                 "work": str(spec.job), "run": self.config.name}
        manifest = self.store.put(spec.named.name, {MASK_FILE: arrays_to_bytes({"bits": bits})}, info)
        log(f"{spec.job}: finished")
        yield outcome_of(manifest)

    def _evaluate(self, spec: JobSpec, start: State, mask: np.ndarray, log: Any) -> Outcome:
        if spec.members:
            manifest = self._store_soup(spec, mask, start)
        else:
            assert spec.average is not None
            compact = self._read_stored(spec, spec.average, "average")
            manifest = self._store_evaluation(spec, spec.named.name, compact, mask, start)
        log(f"{spec.job}: {_metrics_text(manifest.info['metrics'])}")
        return outcome_of(manifest)

    def _read_stored(self, spec: JobSpec, name: str, what: str) -> CompactState:
        manifest = self.store.find(name)
        if manifest is None:
            raise CorruptArtifactError(f"the {what} {name} of {spec.job} is not in the storage")
        return read_state(self.store, manifest)

    def _store_soup(self, spec: JobSpec, mask: np.ndarray, start: State) -> Manifest:
        """Evaluate the average of particles, and store its metrics alone: the weights follow from the particles'."""
        began = time.perf_counter()
        mean = OrderedMean()
        for name in spec.members:
            mean.add(self._read_stored(spec, name, "particle"))
        evaluation = self.trainer.evaluate(mean.mean(), mask, start.buffers)
        info = {"metrics": evaluation.metrics, "seconds": time.perf_counter() - began, "work": str(spec.job)}
        return self.store.put(spec.named.name, {}, info)

    def _store_evaluation(self, spec: JobSpec, name: str, compact: CompactState, mask: np.ndarray,
                          start: State) -> Manifest:
        """Evaluate a network and store its metrics and statistics under a name."""
        began = time.perf_counter()
        evaluation = self.trainer.evaluate(compact, mask, start.buffers)
        files = {BUFFERS_FILE: arrays_to_bytes(evaluation.buffers)}
        info = {"metrics": evaluation.metrics, "seconds": time.perf_counter() - began, "work": str(spec.job)}
        return self.store.put(name, files, info)


@contextlib.contextmanager
def _log(spec: JobSpec, place: Place, conceal: Concealer) -> Iterator[JobLog]:
    """The job's own log file."""
    log = JobLog(place, spec.log_path, conceal)
    try:
        yield log
    except GeneratorExit:
        raise
    except BaseException as error:
        known = isinstance(error, SwampError)
        log(f"ended by {type(error).__name__}: {error}" if known else f"ended by\n{traceback.format_exc().strip()}")
        if known and error.__cause__ is not None:
            log("".join(traceback.format_exception(error.__cause__)).strip())
        raise
    finally:
        log.close()


def _replicas_text(program: Program) -> str:
    return "" if program.num_replicas == 1 else f"{program.num_replicas} replicas in turn, "


def _epoch_line(progress: Progress) -> str:
    extra = "".join(f", {name} {value:.4f}" for name, value in progress.metrics.items())
    return (f"epoch {progress.epoch}/{progress.num_epochs}: loss {progress.loss:.4f}{extra}, "
            f"lr {progress.lr:.4g}, {progress.samples_per_s:.0f} samples/s")


def _metrics_text(metrics: dict[str, dict[str, float]]) -> str:
    return "; ".join(f"{split} " + ", ".join(f"{name} {value:.4f}" for name, value in values.items())
                     for split, values in metrics.items())
