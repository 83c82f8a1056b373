"""What a run's options amount to, in words."""

from __future__ import annotations

from swamp_ray.config.schema import SwampConfig
from swamp_ray.structure import CHANNELS, Structure, parse_structure
from swamp_ray.text.tables import percent


def method_name(config: SwampConfig) -> str | None:
    """What the method is called in docs/arms.md; None where the options are nobody's arm."""
    name = _name_without_sam(config)
    if name is None or config.training.sam_rho is None:
        return name
    return f"{name} with SAM"


def _name_without_sam(config: SwampConfig) -> str | None:
    particles = config.particles
    within = config.averaging.within
    vary = particles.vary
    if config.pruning.when == "before":
        return _before(config)
    if config.changes_mask:
        return _changing(config)
    if config.start_from is not None or config.pruning.score != "magnitude" or config.pruning.scope != "global":
        return None
    if config.particles.fork_at and (config.particles.count == 1 or config.rewind.weights == "none"):
        return None
    if config.pruning.structure != "none":
        return None
    if config.rewind.weights == "none":
        return _without_rewinding(config)
    varied = bool(vary.weight_decay or vary.lr or vary.length)
    if config.rewind.weights != "t0" or config.round.schedule != "full" or varied:
        return None
    if config.pruning.rate >= config.pruning.target > 0:
        return None
    return _rewinding(config, within)


def _before(config: SwampConfig) -> str | None:
    """The arm's name where it has the score and the scope of its paper, at the initialisation, with one particle."""
    pruning = config.pruning
    alone = config.particles.count == 1 and config.averaging.within == "none" and config.start_from is None
    if not alone or config.rewind.weights != "init":
        return None
    if pruning.scope == "erk":
        return "random pruning with ERK densities, before training" if pruning.score == "random" else None
    if pruning.scope != "global":
        return None
    return BEFORE.get(pruning.score)


BEFORE = {"snip": "SNIP", "grasp": "GraSP", "synflow": "SynFlow", "random": "random pruning before training",
          "magnitude": "magnitude pruning before training"}


def _changing(config: SwampConfig) -> str | None:
    """A method whose mask changes within its one training."""
    updates = config.pruning.updates
    if config.start_from is not None or config.averaging.within != "none":
        return None
    if config.pruning.when == "dynamic":
        name = "RigL" if updates.grow == "gradient" else "SET"
    else:
        name = "one-shot pruning with fine-tuning" if updates.begin == updates.until else "gradual magnitude pruning"
    return name if config.num_replicas == 1 else f"{name}, averaged over {config.num_replicas} replicas"


def _without_rewinding(config: SwampConfig) -> str | None:
    vary = config.particles.vary
    varied = bool(vary.weight_decay or vary.lr or vary.length)
    if config.round.schedule == "retrain" and varied and config.particles.combine != "best":
        return "Sparse Model Soups" + (", greedy" if config.particles.combine == "greedy" else "")
    alone = config.particles.count == 1 and not config.particles.schedule and config.averaging.within == "none"
    return "learning-rate rewinding" if alone and config.round.schedule == "full" else None


def _rewinding(config: SwampConfig, within: str) -> str | None:
    particles = config.particles
    if particles.schedule:
        return "SWAMP+" if within == "swa" and particles.count == 1 and particles.combine == "average" else None
    if particles.count == 1:
        return {"none": "IMP", "swa": "IMP + SWA", "ema": "IMP with EMA"}[within]
    if particles.combine == "best":
        return f"IMP, best of {particles.count}" if within == "none" and not particles.fork_at else None
    if particles.combine == "greedy":
        return None
    if particles.fork_at:
        return {"swa": "SWAMP with a late fork", "none": "SWAMP without SWA, with a late fork"}.get(within)
    return {"swa": "SWAMP", "none": "SWAMP without SWA"}.get(within)


def method_words(config: SwampConfig) -> str:
    """The method in sentences: start, particles, their training, what becomes of them, pruning."""
    name = method_name(config)
    parts = [f"{name[0].upper()}{name[1:]}." if name else "", _start(config), _training(config), _combination(config),
             _statistics(config), _pruning(config)]
    return " ".join(filter(None, parts))


def _start(config: SwampConfig) -> str:
    if config.start_from is not None:
        return "It starts from weights that were given."
    if config.pruning.when == "before":
        after = "initialisation" if config.rewind.weights == "init" else \
            f"weights after {config.dense.length} of dense training (T0)"
        return f"The only round starts from the {after}, under the mask that is chosen there."
    if config.changes_mask and config.rewind.weights == "init":
        return "It starts from the initialisation."
    if config.rewind.weights == "init":
        return "Every round starts from the initialisation, under its mask."
    dense = f"{config.dense.length} of dense training (T0)"
    if config.changes_mask:
        return f"It starts from the weights after {dense}." if config.dense.length.amount else \
            "It starts from the initialisation."
    if config.rewind.weights == "none":
        return f"The first round starts after {dense}; each later one goes on from the average before it, pruned."
    return f"Every round starts, under its mask, from the weights after {dense}."


def _training(config: SwampConfig) -> str:
    particles = config.particles
    round_ = config.round
    if config.changes_mask:
        text = f"There is one training, of {round_.length} (T)."
        if config.num_replicas > 1:
            text = (f"There is one training, of {round_.length} (T), of {config.num_replicas} replicas, whose weights "
                    "are averaged at each change of the mask and at the end.")
        return " ".join([text, _within(config)]).strip()
    count = "1 particle" if particles.count == 1 else f"{particles.count} particles"
    stages = "".join(f", {stage.count} from {percent(stage.sparsity)} sparsity on" for stage in particles.schedule)
    length = f"{round_.length} (T)"
    if round_.schedule == "retrain":
        shorter = round_.retrain_length or "a quarter of it"
        length += f" in the first round and {shorter} in later ones"
    text = f"A round trains {count}{stages}{' for' if count == '1 particle' and not stages else ', each for'} {length}."
    if particles.fork_at:
        text += (f" The first {particles.fork_at * 100:g} % of it is trained once, as a trunk; the particles part from "
                 "its weights and optimiser state.")
    vary = {"weight decay": particles.vary.weight_decay, "learning rate": particles.vary.lr,
            "length": particles.vary.length}
    differing = [what for what, values in vary.items() if values]
    if differing:
        text += f" They differ in {' and '.join(differing)}."
    if config.training.sam_rho is not None:
        text += (f" Each step takes its gradient {config.training.sam_rho:g} up the batch's own gradient (SAM), and so "
                 "two gradients.")
    return " ".join([text, _within(config)]).strip()


def _within(config: SwampConfig) -> str:
    averaging = config.averaging
    if averaging.within == "swa":
        start = config.particles.fork_at or averaging.start
        return (f"Each particle gives the mean of its weights along the way (SWA): from {start * 100:g} % of "
                f"its training on, every {averaging.every}, at the constant learning rate {_swa_rate(config)}.")
    if averaging.within == "ema":
        return (f"Each particle gives the exponential moving average of its weights, with a decay of "
                f"{averaging.ema_decay:g} a step.")
    return ""


def _swa_rate(config: SwampConfig) -> str:
    """The constant rate, or its stages: ``"0.05, 0.01 from 90.0 % sparsity on"``."""
    averaging = config.averaging
    rate = averaging.lr_at(0.0)
    text = f"{config.training.lr / 2 if rate is None else rate:g}"
    if isinstance(averaging.lr, tuple):
        for stage in averaging.lr:
            if stage.sparsity > 0:
                text += f", {stage.lr:g} from {percent(stage.sparsity)} sparsity on"
    return text


def _combination(config: SwampConfig) -> str:
    if config.changes_mask or (config.particles.count == 1 and not config.particles.schedule):
        return ""
    if config.particles.combine == "best":
        return "The best particle on validation is the round's network."
    if config.particles.combine == "greedy":
        return ("The round's network is the average of the best particle on validation and of those that, in the order "
                "of validation, do not make the average worse there (a greedy soup).")
    return "The average of the particles' weights is the round's network."


def _statistics(config: SwampConfig) -> str:
    if config.averaging.statistics == "augmented":
        return ""
    return "Normalisation statistics are those of images without augmentation."


def _pruning(config: SwampConfig) -> str:
    pruning = config.pruning
    if not pruning.target:
        return "Nothing is pruned."
    if config.changes_mask:
        return _updates(config)
    what = {"magnitude": "of smallest magnitude", "movement": "that moved towards zero",
            "random": "chosen at random"}.get(pruning.score, f"of lowest score ({pruning.score})")
    if pruning.when == "before":
        what = {"magnitude": "of largest magnitude", "random": "chosen at random"}.get(
            pruning.score, f"of highest score ({pruning.score})")
    where = _WHERE[pruning.scope]
    structure = parse_structure(pruning.structure)
    if structure is not None:
        where = _structured(structure, where)
    if pruning.when == "before":
        steps = f", in {pruning.before.steps} steps" if pruning.before.steps else ""
        return (f"Before training the weights {what} are kept, {where}{steps}: {pruning.target * 100:g} % sparsity.")
    return (f"Each round prunes {pruning.rate * 100:g} % of the weights that are left, those {what}, {where}, down to "
            f"{pruning.target * 100:g} % sparsity.")


def _structured(structure: Structure, where: str) -> str:
    """Among which weights a mask with structure chooses, in words."""
    if structure.keeps_pattern:
        return (f"among every {structure.second} consecutive inputs of an output, of which {structure.first} are left "
                "in the end")
    units = "whole output channels"
    if structure.kind != CHANNELS:
        units = f"blocks of {structure.first} outputs x {structure.second} inputs"
    return f"in {units} by the sum of their scores, {where}"


_WHERE = {"global": "over all layers at once", "uniform": "with one density for all layers",
          "erk": "with densities by layer (ERK)"}


def _updates(config: SwampConfig) -> str:
    """How the mask changes within the training."""
    pruning = config.pruning
    updates = config.pruning.updates
    where = _WHERE[pruning.scope]
    target = f"{pruning.target * 100:g} %"
    if pruning.when == "dynamic":
        how = "where the gradient is largest" if updates.grow == "gradient" else "at random"
        return (f"The mask is of {target} sparsity from the first step on, {where}. Every {updates.every} until "
                f"{updates.until * 100:g} % of the training each layer drops its smallest weights and grows as many, "
                f"{how}: {updates.drop_share * 100:g} % of its weights at first, ever fewer along a cosine.")
    if updates.begin == updates.until:
        return (f"After {updates.begin * 100:g} % of the training the weights of smallest magnitude are pruned at "
                f"once, {where}, to {target} sparsity.")
    return (f"The weights of smallest magnitude are pruned within the training, {where}: every {updates.every} from "
            f"{updates.begin * 100:g} to {updates.until * 100:g} % of it, along a cubic, down to {target} sparsity.")
