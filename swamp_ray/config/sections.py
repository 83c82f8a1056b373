"""The sections of a run's configuration: every option with its type, range, default and description.

Sparsities, densities and rates are fractions in [0, 1].
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from swamp_ray.config.fields import EXPONENT, Labels, Length, LengthField, Options, Section, Share, Sparsity
from swamp_ray.structure import parse_structure


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
        default="auto", description="Linear warm-up from 0. auto: none with SWA; without SWA one epoch, or "
        "half of a training of at most one epoch."
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
    sam_rho: float | None = Field(
        default=None, gt=0.0, description="SAM: each step's gradient is taken so far up the batch's own gradient, in "
        "the norm over all weights. Every step then takes two gradients."
    )
    schedule: ScheduleConfig = ScheduleConfig()

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        if self.micro_batch is not None and self.batch_size % self.micro_batch:
            raise ValueError(f"micro_batch must divide batch_size, but {self.batch_size} % {self.micro_batch} != 0")
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise ValueError("nesterov needs optimizer: sgd with momentum > 0")
        return self

    @property
    def gradients_per_step(self) -> int:
        """How many gradients of a batch one optimiser step takes: two under SAM."""
        return 1 if self.sam_rho is None else 2


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


class RateStage(Section):
    """From a sparsity on, this constant rate of SWA."""

    sparsity: Sparsity = Field(description="Rounds of this sparsity and above belong to the stage.")
    lr: float = Field(gt=0.0, description="The rate in each of its rounds.")


def _are_stages(value: Any) -> bool:
    """Whether a value is a list of stages, given as mappings or as what they were read to, in order."""
    if not isinstance(value, list | tuple) or not value:
        return False
    plain = [stage.model_dump() if isinstance(stage, RateStage) else stage for stage in value]
    if not all(isinstance(stage, dict) and set(stage) == {"sparsity", "lr"} for stage in plain):
        return False
    sparsities = [stage["sparsity"] for stage in plain]
    numbers = [*sparsities, *(stage["lr"] for stage in plain)]
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
        return False
    return sparsities == sorted(set(sparsities))


class AveragingConfig(Section):
    """Averaging along one particle's training, and how the average over particles is computed."""

    within: Literal["swa", "ema", "none"] = Field(
        default="swa", description="swa: mean of snapshots; ema: exponential moving average; none: the last weights."
    )
    start: Share = Field(default=0.75, description="swa: share of the training before the first snapshot (1 - f).")
    lr: Annotated[float, Field(gt=0.0)] | tuple[RateStage, ...] | None = Field(
        default=None, description="swa: constant rate of that part, or stages by increasing sparsity; default (and "
        "below the first stage) half of lr."
    )
    every: LengthField = Field(
        default=Length(1), description="swa: distance of snapshots. With the defaults of both, a training too short "
        "for any has one, of its last weights."
    )
    ema_decay: float = Field(default=0.999, gt=0.0, lt=1.0, description="ema: decay per step.")
    statistics: Literal["unaugmented", "augmented"] = Field(
        default="augmented", description="Training images of which the normalisation statistics of every network are "
        "re-estimated; augmented: as training sees them."
    )
    num_shards: Annotated[int, Field(gt=0)] | Literal["auto"] = Field(
        default="auto", description="Averaging actors that share the weights; auto: one for each 256 million. Any "
        "number gives the same bits."
    )

    @field_validator("lr", mode="before")
    @classmethod
    def _rate_or_stages(cls, value: Any) -> Any:
        """One sentence for the whole option, instead of one for each of its types."""
        is_rate = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
        is_text = isinstance(value, str) and EXPONENT.fullmatch(value) is not None
        if value is None or is_rate or is_text or _are_stages(value):
            return value
        raise ValueError("must be a rate above 0, or list stages by increasing sparsity, such as "
                         "[{sparsity: 0, lr: 0.05}, {sparsity: 0.9, lr: 0.01}]")

    def lr_at(self, sparsity: float, tolerance: float = 1e-12) -> float | None:
        """The constant rate of SWA in a round of this sparsity; None: half of the training's own.

        A stage begins at its sparsity less a tolerance, because a round keeps a whole number of weights.
        """
        if not isinstance(self.lr, tuple):
            return self.lr
        reached = [stage.lr for stage in self.lr if stage.sparsity <= sparsity + tolerance]
        return reached[-1] if reached else None


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
    fork_at: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="Share of a round that is trained once, as a trunk, before its "
        "particles part from it; whole epochs, where a round has several. swa: particles stay at averaging.lr."
    )
    combine: Literal["average", "best", "greedy"] = Field(
        default="average", description="best: the best on validation goes on; greedy: in the order of validation, "
        "each that does not make the average worse there enters it."
    )
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


class BeforeConfig(Section):
    """pruning.when: before: how the mask is computed. It is of the weights that rewind.weights says."""

    steps: int | None = Field(
        default=None, gt=0, le=10_000, description="Steps from the first mask to the last, by an equal factor of "
        "density; default: 100 for synflow, 1 (at once) for others."
    )
    num_batches: int | None = Field(
        default=None, gt=0, description="Training batches that a score sees, the same in each step; default: 10, or as "
        "many as there are. synflow, magnitude and random see none."
    )
    temperature: float | None = Field(
        default=None, gt=0.0, description="grasp: the logits are divided by it; default: 200 (as its authors did) for "
        "classification, 1 for other tasks."
    )


class UpdatesConfig(Section):
    """pruning.when: gradual or dynamic: at which steps of the only training the mask changes, and how."""

    every: LengthField = Field(default=Length(100, "steps"), description="From one change of the mask to the next.")
    begin: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="No change before this share of the training. gradual: where the "
        "schedule of densities begins; the same as until: everything at once there."
    )
    until: Share = Field(
        default=0.75, description="Share of the training after which the mask stays; gradual: the target is reached "
        "there."
    )
    grow: Literal["gradient", "random"] = Field(
        default="gradient", description="dynamic: grow where the dense gradient is largest (RigL), or at random (SET)."
    )
    drop_share: Share = Field(
        default=0.3, description="dynamic: share of each layer's weights that is exchanged, which falls from here to 0 "
        "along a cosine."
    )


class PruningConfig(Section):
    """Which weights go, and how many a round."""

    when: Literal["rounds", "before", "gradual", "dynamic"] = Field(
        default="rounds", description="rounds: after each round; before: all at once before the first training; "
        "gradual: within one training, more and more; dynamic: sparse all the way, the mask moves. All but rounds have "
        "one round, and do not read rate."
    )
    target: Sparsity = Field(default=0.95, description="Sparsity of the last round.")
    rate: Share = Field(default=0.2, description="Share of the surviving weights that each round prunes.")
    score: str = Field(
        default="magnitude", description="magnitude, random, or package.module:function; rounds: movement too; "
        "before: snip, grasp, synflow too."
    )
    before: BeforeConfig = BeforeConfig()
    updates: UpdatesConfig = UpdatesConfig()
    scope: Literal["global", "uniform", "erk"] = Field(
        default="global", description="uniform, erk: every layer gets its own density."
    )
    structure: str = Field(
        default="none", description="none; N:M such as 2:4, of every M consecutive inputs N are kept; channels; "
        "blocks:AxB of outputs x inputs. Units of weights are scored by their sum."
    )
    include: tuple[str, ...] = Field(default=("*",), description="Patterns of parameter names that may be pruned.")
    exclude: tuple[str, ...] = Field(default=(), description="Patterns of parameter names that are never pruned.")
    empty_layers: Literal["warn", "refuse"] = Field(
        default="warn", description="What happens when a mask leaves a layer without a weight."
    )
    version: str | None = Field(default=None, description="Your own version of a score's code.")

    @field_validator("structure")
    @classmethod
    def _known_structure(cls, value: str) -> str:
        parse_structure(value)
        return value


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
    skip: tuple[str, ...] = Field(
        default=(),
        description="Patterns of tensor names that are not taken: the model's own keep their initialisation.",
    )
    zeros: Literal["ask", "keep", "regrow"] = Field(
        default="ask",
        description="Exact zeros of what is no ticket: keep them pruned, or regrow; ask: refused above 5 %.",
    )
    round: int = Field(
        default=0, ge=0, description="The round of an earlier run that the first one repeats, with that one's seeds."
    )
