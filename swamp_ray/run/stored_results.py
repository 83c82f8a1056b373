"""Looks results up in the storage before anything is computed: by all their names, verified, measured as asked for."""

from __future__ import annotations

from dataclasses import replace

from swamp_ray.errors import CorruptArtifactError
from swamp_ray.method.events import Job
from swamp_ray.run.journal import Journal
from swamp_ray.run.lookup import evaluation_of, is_measured_alike, measured_anew, outcome_of
from swamp_ray.run.messages import JobSpec, Outcome
from swamp_ray.run.reporter import Reporter
from swamp_ray.storage.artifacts import RESULT, ArtifactStore, Manifest, without_advice
from swamp_ray.storage.own_masks import own_mask_files
from swamp_ray.storage.recipes import Named
from swamp_ray.storage.states import lacks_state


class StoredResults:
    """What of a run's results is there already.

    Args:
        store: Artifacts of the storage root.
        journal: The run's own records, which note what is used.
        reporter: Who is told.

    Attributes:
        deleted: Jobs whose state `keep.particles` had deleted, and which are done again for that reason.
    """

    def __init__(self, store: ArtifactStore, journal: Journal, reporter: Reporter) -> None:
        self._store = store
        self._journal = journal
        self._reporter = reporter
        self._told_of_measuring: set[bool] = set()
        self.deleted: set[Job] = set()

    def outcome(self, spec: JobSpec, verify: bool) -> Outcome | None:
        """The stored outcome of a job, with this run's kind of metrics; None where a worker has to do the job.

        Args:
            spec: The job.
            verify: Whether its payloads are read and compared with their digests.
        """
        found = self.find(spec.job, spec.named, verify)
        if found is None:
            return None
        if spec.job in self.deleted and lacks_state(self._store, found.name):
            return None
        return self._as_measured_here(spec, found)

    def find(self, job: Job, named: Named, verify: bool) -> Manifest | None:
        """A stored result; one whose payloads are found damaged is removed, so that it is computed again.

        Particles' states are verified when they enter an average, which for most of a resumed run they never do.
        """
        for name in named.names:
            try:
                manifest = self._store.find(name)
                if manifest is None:
                    continue
                if name != named.name:
                    self._journal.uses(job, name)
                for file in manifest.files if verify else own_mask_files(manifest):
                    self._store.read(manifest, file)
                return manifest
            except CorruptArtifactError as error:
                self._reporter.warning(f"a stored result is damaged and is computed again: {without_advice(error)}")
                self._store.discard(name, RESULT)
        return None

    def _as_measured_here(self, spec: JobSpec, found: Manifest) -> Outcome | None:
        """A stored result with this run's kind of metrics; None where a worker has to measure them first."""
        outcome = outcome_of(found)
        if is_measured_alike(spec, found.name, found.info):
            return outcome
        named = evaluation_of(spec, outcome.digest)
        evaluation = self.find(replace(spec.job, kind="evaluation"), named, verify=False)
        if evaluation is not None:
            return measured_anew(spec, outcome, evaluation.name, evaluation.info["metrics"])
        lacks = lacks_state(self._store, found.name)
        if lacks:
            self.deleted.add(spec.job)
        if lacks not in self._told_of_measuring:
            self._told_of_measuring.add(lacks)
            self._tell_of_measuring(lacks)
        return None

    def _tell_of_measuring(self, lacks: bool) -> None:
        how = "stored trainings were measured in another way (averaging.statistics, data.limit_test)"
        if lacks:
            self._reporter.warning(f"{how}, and the states of some were not kept (keep.particles): these are trained "
                                   "again")
        else:
            self._reporter.notice(f"{how}: they are measured anew, and not trained again")
