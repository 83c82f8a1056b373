"""How workers pack particles where the config leaves it open: measured once in a storage root, and kept there.

A choice decides the last bits of results, so a run that goes on, and other runs of the same network in the same
storage, follow it wherever they are.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from swamp_ray.data.samples import ArraySamples
from swamp_ray.data.trees import leaves
from swamp_ray.errors import CorruptArtifactError, RunError, SwampError, first_line
from swamp_ray.run.capacity import pool_size, this_machine
from swamp_ray.run.placement import eligible
from swamp_ray.run.prepare import Prepared
from swamp_ray.storage.names import canonical_json, digest_bytes
from swamp_ray.storage.place import Place
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.training.arithmetic import SINGLE, applied, form_and_width
from swamp_ray.training.packs.timing import PackingTime, time_packings

FOLDER = "packing"
WORTH = 0.95
"""A packed form has to take less than this share of the time that particles alone take."""
Measure = Callable[[Prepared, Sequence[str]], list[PackingTime]]


def with_chosen_packing(
    prepared: Prepared, place: Place, recorded: str | None, num_workers: Callable[[], int], measure: Measure,
    say: Callable[[str], None] = lambda _: None,
) -> Prepared:
    """The run with its packing decided; as it is where the config decides it.

    Args:
        prepared: The run.
        place: The storage root.
        recorded: What an earlier attempt at the run was packed like.
        num_workers: How many workers there would be if each trained one particle.
        measure: Tries forms of packing where particles will train.
        say: Told what was chosen, and why.
    """
    if prepared.unpackable:
        say(f"{'particles train one by one' if not prepared.open_packings else 'not every way of packing is tried'}: "
            f"{prepared.unpackable}")
    if not prepared.open_packings:
        return prepared
    if recorded in prepared.open_packings:
        return prepared.packed(recorded)
    key = f"{FOLDER}/{_digest(prepared)}"
    own = f"{key}/{prepared.most_jobs}.json"
    choice = _read(prepared, place, own)
    if choice is None:
        if place.size(own) is not None:
            say(f"how particles were packed cannot be read in {place.locate(own)}; it is measured anew")
        known = _known(place, key)
        missing = [packing for packing in prepared.open_packings if packing not in known]
        if missing:
            say(f"measuring {len(missing)} ways of packing particles, once for this network in this storage ...")
            try:
                known |= {one.packing: one for one in measure(prepared, missing)}
            except (SwampError, RuntimeError, MemoryError) as error:
                # What keeps a single particle from training is found again, and told in full, when the run begins.
                say(f"nothing could be measured ({first_line(error)}): particles train one by one")
                return prepared.packed(SINGLE if SINGLE in prepared.open_packings else prepared.open_packings[0])
        choice = choose(known, prepared.open_packings, prepared.most_jobs, num_workers())
        record = {"packing": choice, "num_jobs": prepared.most_jobs, "workers": num_workers(), "facts": prepared.facts,
                  "measured": [known[packing].as_dict() for packing in sorted(known)]}
        damaged = place.size(own) is not None and _read(prepared, place, own) is None
        place.write(own, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode(), keep_existing=not damaged)
        choice = _read(prepared, place, own) or choice  # another run may have been faster
        say(describe(choice, known))
    return prepared.packed(choice)


def recorded_choice(prepared: Prepared, place: Place) -> str | None:
    """What was chosen before for such a run in this storage root; ``""`` if that cannot be read."""
    key = f"{FOLDER}/{_digest(prepared)}/{prepared.most_jobs}.json"
    return _read(prepared, place, key) or (None if place.size(key) is None else "")


def choose(known: dict[str, PackingTime], packings: Sequence[str], num_jobs: int, num_workers: int) -> str:
    """The form in which a round of so many particles takes the least time; alone, unless another is clearly faster.

    Args:
        known: What was measured.
        packings: What comes into question.
        num_jobs: Particles of a round.
        num_workers: Workers if each trains one particle. Packs that leave some of them idle have to make up for it.
    """
    def seconds(packing: str) -> float:
        step_s = known[packing].step_s if packing in known else None
        width = form_and_width(packing)[1]
        waves = math.ceil(math.ceil(num_jobs / width) / num_workers)
        return math.inf if step_s is None else waves * width * step_s

    best = min(packings, key=seconds)
    return best if seconds(best) < WORTH * seconds(SINGLE) or SINGLE not in packings else SINGLE


def describe(choice: str, known: dict[str, PackingTime]) -> str:
    """A sentence on what was chosen and what was found of it."""
    alone = known.get(SINGLE)
    chosen = known.get(choice)
    form, width = form_and_width(choice)
    if choice == SINGLE:
        return "particles train one by one: no way of packing them was clearly faster"
    gain = ""
    if alone is not None and chosen is not None and alone.step_s and chosen.step_s:
        gain = f", {alone.step_s / chosen.step_s:.1f} times as fast as one by one"
    return f"particles train {width} at a time, {WORDS[form]}{gain}"


WORDS = {"single": "one by one", "stacked": "as one stacked computation", "graphs": "as CUDA graphs side by side"}


def measure_here(prepared: Prepared, packings: Sequence[str]) -> list[PackingTime]:
    """Measure in this process."""
    with applied(prepared.arithmetic):
        return time_packings(prepared.config, prepared.data, prepared.arithmetic, packings)


def measure_on_ray(prepared: Prepared, packings: Sequence[str]) -> list[PackingTime]:
    """Measure in an actor such as those that will train.

    Raises:
        RunError: It failed, or died.
    """
    import ray
    from ray.exceptions import RayError

    from swamp_ray.on_ray.actors import ParticleActor, worker_environment
    from swamp_ray.on_ray.cluster import answers, check_alive, connect
    from swamp_ray.run.capacity import worker_resources
    from swamp_ray.run.placement import worker_labels

    execution = prepared.config.execution
    connection = connect(execution)
    try:
        resources = worker_resources(execution, prepared.arithmetic.device)
        labels = worker_labels(execution)
        kind: Any = ray.remote(ParticleActor)
        actor = kind.options(
            num_cpus=resources["CPU"], num_gpus=resources["GPU"], max_restarts=0, label_selector=labels or None,
            runtime_env={"env_vars": worker_environment(execution)},
        ).remote([prepared.config], [ray.put(prepared.data)], prepared.arithmetic, prepared.config.storage,
                 prepared.code)
        try:
            measured = actor.measure.remote(list(packings))
            while not ray.wait([measured], timeout=1.0)[0]:
                check_alive()
            return ray.get(measured)
        except RayError as error:
            raise RunError(first_line(error)) from error
        finally:
            if answers():
                ray.kill(actor)
    finally:
        connection.close()


def workers_for(prepared: Prepared, num_jobs: int) -> int:
    """How many workers a run with so many jobs gets, here or on the cluster that is joined.

    Raises:
        UserError: Not one fits, or fewer than were asked for.
    """
    execution = prepared.config.execution
    arithmetic = prepared.arithmetic
    if execution.executor == "inline":
        return 1
    import ray

    from swamp_ray.on_ray.cluster import living_nodes

    nodes = [this_machine()] if not ray.is_initialized() else eligible(living_nodes(), execution)
    return pool_size(execution, arithmetic.device, num_jobs, nodes, arithmetic.ranks)


def recorded_packing(rundir: RunDir) -> str | None:
    """How earlier attempts at a run were packed; records that cannot be read are looked at, and refused, later."""
    try:
        packing = (rundir.read_run() or {}).get("arithmetic", {}).get("packing")
    except (SwampError, OSError, AttributeError):
        return None
    return packing if isinstance(packing, str) else None


def _digest(prepared: Prepared) -> str:
    """What the measurement depends on, but for the machine: a run may go on elsewhere."""
    config = prepared.config
    train = prepared.data.train
    shapes = [[str(np.asarray(leaf).dtype), list(np.asarray(leaf).shape[1:])] for leaf in leaves(train.arrays)] \
        if isinstance(train, ArraySamples) else []
    sam = {} if config.training.sam_rho is None else {"gradients_per_step": config.training.gradients_per_step}
    return digest_bytes(canonical_json(sam | {
        "model": config.model.model_dump(mode="json"), "task": config.task.model_dump(mode="json"), "samples": shapes,
        "image_size": config.data.image_size, "batch_size": config.training.batch_size,
        "micro_batch": config.training.micro_batch, "arithmetic": prepared.arithmetic.alone.as_dict(),
        "optimizer": config.training.optimizer,
        "forms": sorted({form_and_width(packing)[0] for packing in prepared.open_packings}),
    }))[:16]


def _read(prepared: Prepared, place: Place, key: str) -> str | None:
    """A recorded choice; a damaged record, or one of what does not come into question, is as good as none."""
    record = _record(place, key)
    choice = None if record is None else str(record["packing"])
    return choice if choice in prepared.open_packings else None


def _known(place: Place, folder: str) -> dict[str, PackingTime]:
    """What runs with other numbers of particles have measured."""
    found: dict[str, PackingTime] = {}
    for entry in place.entries(folder):
        record = _record(place, f"{folder}/{entry.name}")
        found |= {one["packing"]: PackingTime(**one) for one in (record or {}).get("measured", [])}
    return found


def _record(place: Place, key: str) -> dict[str, Any] | None:
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError, CorruptArtifactError):
        record = json.loads(place.read(key))
        measured = [asdict(PackingTime(**one)) for one in record["measured"]]
        return {"packing": str(record["packing"]), "measured": measured}
    return None
