"""The configuration of a run: one typed tree. :mod:`swamp_ray.config_reading` reads it and writes it back.

Sparsities, densities and rates are fractions in [0, 1].
"""

from __future__ import annotations

import math
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from swamp_ray.importing import is_import_path


@dataclass(frozen=True)
class Length:
    """How long something lasts: a number of epochs or of optimiser steps."""

    amount: float
    unit: Literal["epochs", "steps"] = "epochs"

    def steps(self, steps_per_epoch: int) -> int:
        """The same length in optimiser steps, rounded to the nearest step."""
        return round(self.amount * steps_per_epoch) if self.unit == "epochs" else int(self.amount)

    def __str__(self) -> str:
        # Exact, so that a saved config reads back as the same length.
        amount = int(self.amount) if self.amount == int(self.amount) else repr(self.amount)
        return f"{amount} {self.unit.removesuffix('s') if self.amount == 1 else self.unit}"


_LENGTH = re.compile(r"\s*(\d+(?:\.\d*)?(?:e[+-]?\d+)?)\s*(k?)\s*(epochs?|steps?)?\s*")


def parse_length(value: object) -> Length:
    """A :class:`Length` from ``4``, ``"4 epochs"``, ``"0.5 epochs"``, ``"800 steps"`` or ``"16k steps"``."""
    if isinstance(value, Length):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("must be a length such as '4 epochs' or '800 steps'")
    match = _LENGTH.fullmatch(f"{value}")
    if match is None:
        raise ValueError("must be a length such as '4 epochs' or '800 steps', and not negative")
    amount = float(match[1]) * (1000 if match[2] else 1)
    if not math.isfinite(amount):
        raise ValueError("must be finite")
    unit: Literal["epochs", "steps"] = "steps" if (match[3] or "").startswith("step") else "epochs"
    if unit == "steps" and amount != int(amount):
        raise ValueError("must be a whole number of steps")
    return Length(amount, unit)


_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


def leaf_types(annotation: Any) -> set[Any]:
    """The types that a plain value of a field, or of its list, may have, without their constraints."""
    if get_origin(annotation) is Annotated:
        return leaf_types(get_args(annotation)[0])
    if get_origin(annotation) is tuple:
        return {tuple}.union(*(leaf_types(part) for part in get_args(annotation) if part is not Ellipsis))
    if get_origin(annotation) in (Union, types.UnionType):
        return set().union(*(leaf_types(part) for part in get_args(annotation)))
    return {annotation}


LengthField = Annotated[
    Length,
    BeforeValidator(parse_length),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": ["string", "number"]}),
]
Sparsity = Annotated[float, Field(ge=0.0, lt=1.0)]
Share = Annotated[float, Field(gt=0.0, lt=1.0)]


def _plain_options(options: dict[str, Any]) -> dict[str, Any]:
    """Options enter names as JSON, in which dates, bytes and infinities have no spelling."""
    for path, value in _leaves(options):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{path} must be finite, but is {value}")
        if not (value is None or isinstance(value, bool | int | float | str)):
            raise ValueError(f"{path} must be text, a number, a list or a mapping, but is {type(value).__name__}")
    return options


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"keys must be text, but one is {key!r}")
            yield from _leaves(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}[{index}]")
    else:
        yield path, value


Options = Annotated[dict[str, Any], AfterValidator(_plain_options)]


def _is_selector(labels: dict[str, str]) -> dict[str, str]:
    for key, value in labels.items():
        if not _LABEL_KEY.fullmatch(key):
            raise ValueError(f"must have keys such as ray.io/node-group, but one is {key!r}")
        if not _LABEL_VALUE.fullmatch(value):
            raise ValueError(f"{key} must be a label such as spot, !spot or in(a, b), but is {value!r}")
    return labels


_NAME = r"[a-zA-Z0-9]([a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
_LABEL_KEY = re.compile(rf"([a-zA-Z0-9.-]+/)?{_NAME}")
_LABEL_VALUE = re.compile(rf"!?({_NAME}|in\({_NAME}(, ?{_NAME})*\))")
Labels = Annotated[dict[str, str], AfterValidator(_is_selector)]


class Section(BaseModel):
    """A part of the config: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _plain_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic would take true for 1 and the text '0.9' for the number, where somebody made a mistake."""
        kinds = leaf_types(cls.model_fields[str(info.field_name)].annotation)
        found = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(item, bool) for item in found) and bool not in kinds and kinds & {int, float}:
            raise ValueError("must hold numbers" if found is value else "must be a number")
        # YAML reads 1e-3, without a point, as a text.
        if isinstance(value, str) and kinds <= {int, float, type(None)} and not _EXPONENT.fullmatch(value):
            raise ValueError("must be a number, not a text")
        return value


class DataConfig(Section):
    """What the networks are trained and evaluated on."""

    name: str = Field(
        default="digits",
        description="digits, cifar10, cifar100, image_folder, synthetic, or package.module:function.",
    )
    root: str | None = Field(default=None, description="Folder of the data; default: environment variable SWAMP_DATA.")
    download: bool = Field(default=False, description="May torchvision download the dataset into root?")
    validation: Share = Field(default=0.1, description="Share of the training set that is held out for decisions.")
    split_seed: int = Field(default=0, ge=0, description="Seed of the train/validation split, shared by all run seeds.")
    limit_train: int | None = Field(
        default=None, gt=0, description="Use only so many samples, before the split; see limit_test too."
    )
    limit_test: int | None = Field(default=None, gt=0, description="Use only so many test samples.")
    augment: Literal["auto", "none", "crop_flip", "crop"] = Field(
        default="auto", description="auto: crop_flip for CIFAR and image_folder, none otherwise."
    )
    crop_padding: int = Field(default=4, ge=0, description="Pixels of zero padding before a random crop.")
    image_size: int = Field(default=224, gt=0, description="image_folder: side of the crop, in pixels.")
    resize: int = Field(default=256, gt=0, description="image_folder: shorter side before the centre crop, in pixels.")
    loader_workers: int = Field(default=4, ge=0, description="Processes that decode images not held in memory.")
    options: Options = Field(default_factory=dict, description="Keyword arguments of your own function.")
    version: str | None = Field(default=None, description="Your own version of code or data; default: a digest of it.")


class ModelConfig(Section):
    """The network."""

    name: str = Field(
        default="digits_cnn",
        description="digits_cnn, mlp, lenet_300_100, lenet5, resnet8/20/56, wrn_28_2, wrn_32_4, vgg16_bn, vgg19_bn, "
        "torchvision/NAME, or package.module:callable.",
    )
    options: Options = Field(default_factory=dict, description="Keyword arguments of the model.")
    version: str | None = Field(default=None, description="Your own version of the code; default: its source's digest.")


class TaskConfig(Section):
    """What is learned: the loss and the metrics."""

    name: str = Field(default="classification", description="classification, regression, or package.module:callable.")
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0, description="classification: share for all classes.")
    options: Options = Field(default_factory=dict, description="Keyword arguments of your own task.")
    version: str | None = Field(default=None, description="Your own version of the code; default: a digest of it.")


class ScheduleConfig(Section):
    """The learning rate over one training of full length."""

    name: Literal["cosine", "linear", "multistep", "constant"] = Field(
        default="cosine", description="Course of the rate after the warm-up."
    )
    warmup: Literal["auto"] | LengthField = Field(
        default="auto", description="Linear warm-up from 0. auto: one epoch without SWA, none with SWA."
    )
    milestones: tuple[Share, ...] = Field(default=(0.5, 0.75), description="multistep: shares of the length.")
    gamma: float = Field(default=0.1, gt=0.0, le=1.0, description="multistep: factor at each milestone.")
    final_lr: float = Field(default=0.0, ge=0.0, description="cosine, linear: rate at the end.")


class TrainingConfig(Section):
    """The optimiser and its learning rate."""

    batch_size: int = Field(default=128, gt=0, description="Samples a step; a last partial batch is dropped.")
    micro_batch: int | None = Field(default=None, gt=0, description="Accumulate gradients over batches of this size.")
    optimizer: Literal["sgd", "adamw"] = Field(
        default="sgd", description="Weight decay is coupled in sgd and decoupled in adamw."
    )
    lr: float = Field(default=0.1, gt=0.0, description="The base learning rate.")
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0, description="sgd: momentum.")
    nesterov: bool = Field(default=False, description="sgd: Nesterov's form of momentum.")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=(0.9, 0.999), description="adamw: decay of the running means of gradient and squared gradient."
    )
    eps: float = Field(default=1e-8, gt=0.0, description="adamw: added to the denominator.")
    weight_decay: float = Field(default=5e-4, ge=0.0, description="Coefficient of the weight decay.")
    decay_norm_and_bias: bool = Field(default=True, description="Apply weight decay to biases and normalisation too.")
    clip_norm: float | None = Field(default=None, gt=0.0, description="Largest Euclidean norm of the gradient.")
    schedule: ScheduleConfig = ScheduleConfig()

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        if self.micro_batch is not None and self.batch_size % self.micro_batch:
            raise ValueError(f"micro_batch must divide batch_size, but {self.batch_size} % {self.micro_batch} != 0")
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise ValueError("nesterov needs optimizer: sgd with momentum > 0")
        return self


class DenseConfig(Section):
    """The dense phase, whose end is the rewind point."""

    length: LengthField = Field(default=Length(4), description="T0, in epochs or steps; 0: the initialisation is w0.")
    warmup: LengthField = Field(default=Length(1), description="Linear warm-up, then the constant base rate.")


class RoundConfig(Section):
    """How long a particle trains in each round."""

    length: LengthField = Field(default=Length(24), description="T, in epochs or steps.")
    schedule: Literal["full", "retrain"] = Field(
        default="full", description="retrain: rounds after the first train retrain_length with a linear rate to 0."
    )
    retrain_length: LengthField | None = Field(default=None, description="retrain: its length; default length / 4.")
    retrain_lr: float | None = Field(default=None, gt=0.0, description="retrain: first rate; default training.lr.")


class RewindConfig(Section):
    """Where each round starts."""

    weights: Literal["t0", "init", "none"] = Field(
        default="t0", description="t0: the rewind point; init: the initialisation; none: the pruned average."
    )
    schedule: Literal["restart", "continue"] = Field(
        default="restart", description="continue: take up position T0 of a schedule of length T."
    )


class AveragingConfig(Section):
    """Averaging along one particle's training, and how the average over particles is computed."""

    within: Literal["swa", "ema", "none"] = Field(
        default="swa", description="swa: mean of snapshots; ema: exponential moving average; none: the last weights."
    )
    start: Share = Field(default=0.75, description="swa: share of the training before the first snapshot (1 - f).")
    lr: float | None = Field(default=None, gt=0.0, description="swa: constant rate of that part; default half of lr.")
    every: LengthField = Field(default=Length(1), description="swa: distance of snapshots.")
    ema_decay: float = Field(default=0.999, gt=0.0, lt=1.0, description="ema: decay per step.")
    num_shards: Annotated[int, Field(gt=0)] | Literal["auto"] = Field(
        default="auto", description="Averaging actors that share the weights; auto: one for each 256 million. Any "
        "number gives the same bits."
    )


class ParticleConfig(Section):
    """One particle that trains on several devices."""

    num_workers: int = Field(
        default=1, gt=0, description="Data-parallel ranks, each with a batch_size / num_workers share of every batch."
    )


class ParticleStage(Section):
    """From a sparsity on, this many particles."""

    sparsity: Sparsity = Field(description="Rounds of this sparsity and above belong to the stage.")
    count: int = Field(gt=0, description="Particles of each of its rounds.")


class VaryConfig(Section):
    """What differs between particles besides their batch order: entry n mod length for particle n."""

    weight_decay: tuple[Annotated[float, Field(ge=0.0)], ...] = Field(
        default=(), description="In place of training.weight_decay."
    )
    lr: tuple[Annotated[float, Field(gt=0.0)], ...] = Field(default=(), description="In place of training.lr.")
    length: tuple[LengthField, ...] = Field(
        default=(), description="In place of round.length; in retraining, of round.retrain_length."
    )


class ParticlesConfig(Section):
    """The particles of a round and what becomes of them."""

    count: int = Field(default=4, gt=0, description="N, the particles of a round.")
    schedule: tuple[ParticleStage, ...] = Field(
        default=(), description="SWAMP+: stages by increasing sparsity; count holds below the first."
    )
    combine: Literal["average", "best"] = Field(default="average", description="best: the best on validation goes on.")
    vary: VaryConfig = VaryConfig()
    on_failure: Literal["stop", "retry", "drop"] = Field(
        default="stop", description="A particle diverges: end the run, try another seed, or go on without it."
    )
    max_reseeds: int = Field(default=2, gt=0, description="retry: further seeds a particle, before the run ends.")
    min_count: int = Field(default=1, gt=0, description="The fewest particles that a round may be left with.")
    quorum: int | None = Field(
        default=None, gt=0, description="So many finished particles make a round, once deadline_s has passed."
    )
    deadline_s: float | None = Field(
        default=None, gt=0.0, description="quorum: seconds after a round's first finished particle."
    )

    @model_validator(mode="after")
    def _increasing(self) -> ParticlesConfig:
        stages = [stage.sparsity for stage in self.schedule]
        if stages != sorted(set(stages)):
            raise ValueError(f"schedule must list stages by increasing sparsity, but got {stages}")
        return self

    @model_validator(mode="after")
    def _enough_are_left(self) -> ParticlesConfig:
        counts = [stage.count for stage in self.schedule]
        if not self.schedule or self.schedule[0].sparsity > 0:
            counts.append(self.count)
        if self.min_count > min(counts):
            raise ValueError(f"min_count must be at most the particles of the smallest round, which has {min(counts)}, "
                             f"but got {self.min_count}")
        if (self.quorum is None) != (self.deadline_s is None):
            missing, given = ("deadline_s", "quorum") if self.deadline_s is None else ("quorum", "deadline_s")
            raise ValueError(f"{given} needs {missing}: so many particles make a round, so many seconds after its "
                             "first one has finished")
        if self.quorum is not None and self.quorum > max(counts):
            raise ValueError(f"quorum must be at most the particles of the largest round, which has {max(counts)}, "
                             f"but got {self.quorum}")
        if self.quorum is not None and self.quorum < self.min_count:
            raise ValueError(f"quorum must be at least min_count, which is {self.min_count}, but got {self.quorum}")
        return self

    def at(self, sparsity: float, tolerance: float = 1e-12) -> int:
        """How many particles a round of this sparsity trains.

        A stage begins at its sparsity less a tolerance, because a round keeps a whole number of weights.
        """
        reached = [stage.count for stage in self.schedule if stage.sparsity <= sparsity + tolerance]
        return reached[-1] if reached else self.count


class PruningConfig(Section):
    """Which weights go, and how many a round."""

    target: Sparsity = Field(default=0.95, description="Sparsity of the last round.")
    rate: Share = Field(default=0.2, description="Share of the surviving weights that each round prunes.")
    score: str = Field(default="magnitude", description="magnitude, movement, random, or package.module:function.")
    scope: Literal["global", "uniform", "erk"] = Field(
        default="global", description="uniform, erk: every layer gets its own density."
    )
    include: tuple[str, ...] = Field(default=("*",), description="Patterns of parameter names that may be pruned.")
    exclude: tuple[str, ...] = Field(default=(), description="Patterns of parameter names that are never pruned.")
    empty_layers: Literal["warn", "refuse"] = Field(
        default="warn", description="What happens when a mask leaves a layer without a weight."
    )
    version: str | None = Field(default=None, description="Your own version of a score's code.")


class ExecutionConfig(Section):
    """Where and how the work is done. Nothing here belongs to the recipe."""

    executor: Literal["ray", "inline"] = Field(
        default="ray", description="inline: in this process, one job after the other, without Ray."
    )
    address: str | None = Field(default=None, description="A running Ray cluster; default: embedded and local.")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: cuda where GPUs exist, else cpu.")
    num_workers: int | None = Field(
        default=None, gt=0, description="Default: as many as fit while the run goes on, at most one a particle."
    )
    num_gpus: float | None = Field(default=None, ge=0.0, description="Per worker; default 1 where GPUs exist.")
    num_cpus: float = Field(default=1.0, ge=0.0, description="Per worker.")
    particles_per_worker: Annotated[int, Field(gt=0, le=64)] | Literal["auto"] = Field(
        default=1, description="How many particles a worker trains at a time; auto: as a short measurement says."
    )
    packing: Literal["auto", "stacked", "graphs"] = Field(
        default="auto", description="How they are: stacked weights in one computation, or CUDA graphs side by side."
    )
    placement: Literal["spread", "pack"] = Field(
        default="spread", description="Workers go to the nodes with the fewest of them, or fill one node after another."
    )
    labels: Labels = Field(
        default_factory=dict, description="Labels that a worker's node must have, as in Ray: value, !value, in(a, b)."
    )
    stable_labels: Labels = Field(
        default_factory=dict, description="Labels of nodes for averaging actors, and for a submitted run's driver."
    )
    accelerator_type: str | None = Field(default=None, description="Kind of GPU that a worker needs, e.g. H100.")
    autoscaling: bool = Field(
        default=False, description="Ask for workers that no node can hold yet, so that the cluster starts nodes."
    )
    threads: int = Field(default=1, gt=0, description="torch threads of a particle; part of the arithmetic.")
    precision: Literal["auto", "fp32", "bf16"] = Field(default="auto", description="auto: bf16 on CUDA, else fp32.")
    channels_last: bool | Literal["auto"] = Field(default="auto", description="auto: on where there are convolutions.")
    compile: bool = Field(default=False, description="torch.compile the network.")
    deterministic: bool = Field(default=False, description="CUDA: use deterministic algorithms only.")
    fused: bool | Literal["auto"] = Field(default="auto", description="Fused optimiser; auto: where torch has one.")
    data_on_device: bool | Literal["auto"] = Field(default="auto", description="Data in device memory; auto: on CUDA.")
    checkpoint_every: LengthField = Field(
        default=Length(1), description="Epochs between a particle's checkpoints; 0: none."
    )
    checkpoint_interval_s: float = Field(
        default=1.0, ge=0.0, description="Least seconds between two of these checkpoints, where epochs are short."
    )
    max_retries: int = Field(default=3, ge=0, description="How often a particle is tried again after its worker died.")
    max_waiting_states: int = Field(
        default=8, ge=0, description="Finished states that wait in memory for their turn in the average."
    )
    grace_s: float = Field(
        default=20.0, ge=0.0, description="Seconds that a run that is stopped gives its particles for a checkpoint."
    )
    lease_expiry_s: float = Field(
        default=30.0, gt=0.0, le=3600.0,
        description="After so many seconds without a sign of life another run takes over what a run was training.",
    )
    storage_patience_s: float = Field(
        default=60.0, ge=0.0, description="How long an operation on a storage that fails for a while is tried again."
    )
    log_every_s: float = Field(default=60.0, gt=0.0, description="Plain progress output: seconds between lines.")


    @field_validator("particles_per_worker", mode="before")
    @classmethod
    def _auto_or_a_number(cls, value: Any) -> Any:
        """One sentence for the whole option, instead of one for each of its types."""
        if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 64):
            return value
        raise ValueError("must be auto or a whole number from 1 to 64")


class IdentityConfig(Section):
    """What names a result."""

    strict: bool = Field(default=False, description="Put library versions and hardware models into every name.")


class KeepConfig(Section):
    """What stays in the storage once it has been used. Nothing here belongs to the recipe."""

    particles: Literal["all", "last", "none"] = Field(
        default="all", description="States of particles: last: of the last finished round; none: until it is recorded."
    )


class StartFrom(Section):
    """Replaces the dense phase: a checkpoint of your own, or an earlier ticket, whose mask is kept."""

    path: str = Field(description="A ticket, a safetensors file, or a torch file of plain tensors.")
    prefix: str = Field(default="", description="Key of the state dict inside a checkpoint, e.g. 'state_dict'.")
    take: Literal["all", "mask"] = Field(
        default="all", description="mask: of a ticket its mask alone; the weights come from the run's own rewind point."
    )
    round: int = Field(
        default=0, ge=0, description="The round of an earlier run that the first one repeats, with that one's seeds."
    )


class SwampConfig(Section):
    """One run: its recipe and how it is executed."""

    name: str | None = Field(default=None, description="Name of the run; default: the config file's name.")
    storage: str = Field(
        default="results", description="Root of artifacts and runs: a folder that all nodes share, or s3://, gs:// or az://."
    )
    seed: int = Field(default=0, ge=0, description="Initialisation, batch order, augmentation.")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    training: TrainingConfig = TrainingConfig()
    dense: DenseConfig = DenseConfig()
    round: RoundConfig = RoundConfig()
    rewind: RewindConfig = RewindConfig()
    averaging: AveragingConfig = AveragingConfig()
    particle: ParticleConfig = ParticleConfig()
    particles: ParticlesConfig = ParticlesConfig()
    pruning: PruningConfig = PruningConfig()
    start_from: StartFrom | None = None
    execution: ExecutionConfig = ExecutionConfig()
    identity: IdentityConfig = IdentityConfig()
    keep: KeepConfig = KeepConfig()

    @model_validator(mode="after")
    def _consistent(self) -> SwampConfig:
        for problem in _contradictions(self):
            raise ValueError(problem)
        return self

    @property
    def brings_weights(self) -> bool:
        """Whether ``start_from`` gives the weights, in place of the initialisation and the dense phase."""
        return self.start_from is not None and self.start_from.take == "all"

    @property
    def first_round(self) -> int:
        """What the first round's seeds and schedule take it for."""
        return 0 if self.start_from is None else self.start_from.round

    def recipe(self) -> dict[str, Any]:
        """What decides the numbers: the config without names, places and execution.

        The data's and a checkpoint's content decide as well; they are compared by their digests. So do the decisions
        that failures led to; each is recorded with the run when it is made, and holds whatever the policy is later.
        """
        return self.model_dump(mode="json", exclude={
            "name": True, "storage": True, "execution": True, "identity": True, "keep": True,
            # Ranks are part of the arithmetic.
            "particle": True, "averaging": {"num_shards"}, "data": {"root", "download", "loader_workers"},
            "start_from": {"path"}, "particles": set(FAILURE_KEYS),
        })


FAILURE_KEYS = ("on_failure", "max_reseeds", "min_count", "quorum", "deadline_s")


def _contradictions(config: SwampConfig) -> Iterator[str]:
    """What only shows when several sections are read together."""
    yield from _wrong_schedules(config)
    yield from _wrong_averages(config)
    yield from _wrong_ranks(config)
    yield from _wrong_execution(config)


def _wrong_schedules(config: SwampConfig) -> Iterator[str]:
    dense, length = config.dense.length, config.round.length
    if length.amount <= 0:
        yield "round.length must be greater than 0"
    if config.rewind.schedule == "continue":
        if dense.unit == length.unit and dense.amount >= length.amount:
            yield (
                f"dense.length (T0) must be shorter than round.length (T) under rewind.schedule: continue, but got "
                f"{dense} and {length}. Shorten dense.length or use rewind.schedule: restart"
            )
        if config.averaging.within == "swa":
            yield (
                "rewind.schedule: continue takes up a schedule that SWA replaces. Use averaging.within: none or ema, "
                "or rewind.schedule: restart"
            )
    if config.round.schedule == "retrain" and config.averaging.within == "swa":
        yield (
            "round.schedule: retrain ends at rate 0, where SWA has nothing to average. "
            "Use averaging.within: none or ema"
        )
    if config.round.schedule == "retrain" and config.rewind.schedule == "continue":
        yield "round.schedule: retrain has a schedule of its own. Use rewind.schedule: restart"


def _wrong_averages(config: SwampConfig) -> Iterator[str]:
    every, length = config.averaging.every, config.round.length
    if config.averaging.within == "swa":
        if every.amount <= 0:
            yield "averaging.every must be greater than 0"
        if every.unit == length.unit and (1 - config.averaging.start) * length.amount < every.amount - 1e-9:
            yield (
                f"averaging.start ({config.averaging.start:g}) leaves {(1 - config.averaging.start) * length.amount:g} "
                f"{length.unit} of round.length for snapshots every {every}: none would be taken. "
                "Start earlier, train longer or take snapshots more often"
            )
    if config.averaging.num_shards not in ("auto", 1) and is_import_path(config.pruning.score):
        yield (
            "averaging.num_shards must be auto or 1 with a pruning.score of your own, which sees whole layers, but got "
            f"{config.averaging.num_shards}"
        )


def _wrong_ranks(config: SwampConfig) -> Iterator[str]:
    ranks, execution = config.particle.num_workers, config.execution
    if config.training.batch_size % ranks:
        yield (
            f"particle.num_workers must divide training.batch_size, but {config.training.batch_size} % {ranks} != 0"
        )
    micro = config.training.micro_batch
    if micro is not None and config.training.batch_size // ranks % micro:
        yield (
            f"training.micro_batch must divide a rank's share of the batch, but {config.training.batch_size} / "
            f"{ranks} = {config.training.batch_size // ranks} is no multiple of {micro}"
        )
    if ranks > 1 and (execution.particles_per_worker != 1 or execution.packing != "auto"):
        yield (
            f"execution.particles_per_worker must be 1 with particle.num_workers: {ranks}: a worker trains several "
            "particles on its device, or one on several devices"
        )
    if ranks > 1 and execution.executor == "inline":
        yield "particle.num_workers must be 1 with executor: inline, which trains in one process"
    if ranks > 1 and execution.device != "cpu" and execution.num_gpus is not None and execution.num_gpus < 1:
        yield (
            f"execution.num_gpus must be at least 1 with particle.num_workers: {ranks}, but got "
            f"{execution.num_gpus:g}: two ranks cannot share a GPU"
        )


def _wrong_execution(config: SwampConfig) -> Iterator[str]:
    execution = config.execution
    if execution.packing == "stacked" and execution.particles_per_worker == 1:
        yield "execution.packing: stacked needs execution.particles_per_worker: auto, or more than 1"
    if execution.autoscaling and execution.device == "auto":
        yield (
            "execution.device must be cpu or cuda with execution.autoscaling: before there are nodes it cannot be seen "
            "whether they have GPUs"
        )
    if execution.checkpoint_every.unit != "epochs" or execution.checkpoint_every.amount % 1:
        yield "execution.checkpoint_every must be a whole number of epochs (0: never)"


def exact(value: float) -> Fraction:
    """The rational number that was written, e.g. 1/5 for 0.2."""
    return Fraction(repr(float(value)))


def steps_and_epochs(length: Length, steps_per_epoch: int) -> tuple[int, int]:
    """Steps of a length, and the number of (possibly cut) epochs they span."""
    steps = length.steps(steps_per_epoch)
    return steps, math.ceil(steps / steps_per_epoch)
