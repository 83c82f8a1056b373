"""A Tuner of your own: Optuna looks for learning rates on the digits. A minute or two on two cores.

    pip install optuna
    python examples/optuna_sweep.py
"""

from pathlib import Path

from ray import tune
from ray.tune.search.optuna import OptunaSearch

from swamp_ray import tune_trainable

METRIC = "average/validation/loss"
BASE = {
    "name": "optuna-digits",
    "storage": "results",
    "data": {"name": "digits"},
    "model": {"name": "digits_cnn"},
    "training": {"batch_size": 64},
    "dense": {"length": "1 epoch"},
    "round": {"length": "4 epochs"},
    "particles": {"count": 2},
    "pruning": {"target": 0.9, "rate": 0.5},
    "execution": {"executor": "inline"},  # the network is tiny: a trial trains in its own process
}


def main(num_samples: int = 6) -> None:
    """Search, and print the settings, best first; every trial's run is in results/runs."""
    trainable, resources = tune_trainable(BASE, seeds=(0, 1), at_sparsity=(0.5, 0.9))
    results = tune.Tuner(
        tune.with_resources(trainable, resources),
        param_space={"training.lr": tune.loguniform(0.01, 0.5), "averaging.lr": tune.loguniform(0.003, 0.1)},
        tune_config=tune.TuneConfig(metric=METRIC, mode="min", num_samples=num_samples, max_concurrent_trials=2,
                                    search_alg=OptunaSearch(seed=0)),
        run_config=tune.RunConfig(
            storage_path=str(Path("results/tune").absolute()), verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False)),  # the storage root holds everything
    ).fit()
    columns = ["config/training.lr", "config/averaging.lr", "sparsity", METRIC, f"{METRIC}_se",
               "average/test/accuracy"]
    print(results.get_dataframe().sort_values(METRIC)[columns].to_string(index=False))


if __name__ == "__main__":
    main()
