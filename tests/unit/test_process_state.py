"""Nothing that the caller of a process has set changes numbers, and all of it is there afterwards."""

from __future__ import annotations

import contextlib
import random
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from swamp_ray import SwampTrainer
from swamp_ray.commands.evaluate import evaluate_runs
from swamp_ray.config.reading import build_config
from swamp_ray.config.sections import ModelConfig
from swamp_ray.errors import UserError
from swamp_ray.launch import OTHER_RUN, run
from swamp_ray.process_state import computing, flushes_denormals, plain_state
from swamp_ray.run.reporter import Reporter
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.storage.tickets import load_ticket
from swamp_ray.training.models import build_model

numpy_random: Any = np.random
products: Any = torch.backends.mkldnn


class Forbidding(TorchFunctionMode):
    """A mode that lets nothing be computed."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(func)


class ForbiddingDispatch(TorchDispatchMode):
    """The same, one layer below."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(func)


def _fail(value: Any) -> Any:
    raise AssertionError(value)


@contextlib.contextmanager
def setting(read: Callable[[], Any], write: Callable[[Any], Any], value: Any) -> Iterator[None]:
    """A choice of the caller's, taken back after the test."""
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)


def flag(owner: Any, name: str, value: Any) -> AbstractContextManager[None]:
    return setting(lambda: getattr(owner, name), lambda new: setattr(owner, name, new), value)


@contextlib.contextmanager
def matmul_precision(value: str) -> Iterator[None]:
    """The older of two settings; to write it leaves another spelling of the usual value in the newer one."""
    with flag(products.matmul, "fp32_precision", "none"), flag(
            torch.backends.cuda.matmul, "fp32_precision", "none"), setting(
            torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, value):
        yield


@contextlib.contextmanager
def doubling_hook() -> Iterator[None]:
    handle = module_hooks.register_module_forward_hook(lambda module, inputs, output: output * 2)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def other_bit_generator() -> Iterator[None]:
    before = numpy_random.get_bit_generator()
    numpy_random.set_bit_generator(np.random.PCG64(5))
    try:
        yield
    finally:
        numpy_random.set_bit_generator(before)


CALLERS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu"),
    "autocast to float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "float64": lambda: setting(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "bfloat16": lambda: setting(torch.get_default_dtype, torch.set_default_dtype, torch.bfloat16),
    "a device context": lambda: torch.device("meta"),
    "a default device": lambda: setting(lambda: None, torch.set_default_device, "meta"),
    "deterministic": lambda: setting(
        torch.are_deterministic_algorithms_enabled, torch._C._set_deterministic_algorithms, True),
    "matmul precision": lambda: matmul_precision("medium"),
    "bfloat16 products": lambda: flag(products.matmul, "fp32_precision", "bf16"),
    "no oneDNN": lambda: flag(torch.backends.mkldnn, "enabled", False),
    "no cuDNN": lambda: flag(torch.backends.cudnn, "enabled", False),
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
    "anomaly detection of NaN": torch.autograd.detect_anomaly,
    "saved tensors elsewhere": lambda: torch.autograd.graph.saved_tensors_hooks(_fail, _fail),
    "a function mode": Forbidding,
    "a dispatch mode": ForbiddingDispatch,
    "a hook on all modules": doubling_hook,
    "errors of NumPy": lambda: np.errstate(all="raise"),
    "a generator of another kind": other_bit_generator,
    "denormals": lambda: setting(flushes_denormals, torch.set_flush_denormal, True),
    "threads": lambda: setting(torch.get_num_threads, torch.set_num_threads, 3),
}
ignores_warnings = pytest.mark.filterwarnings("ignore:(Anomaly|.*CPU Autocast).*")


def observed() -> list[Any]:
    """What a caller can see of the process."""
    numpy_state: Any = numpy_random.get_bit_generator().state
    return [
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"), torch.get_default_dtype(), torch.get_default_device(),
        torch.are_deterministic_algorithms_enabled(), products.matmul.fp32_precision,
        torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled, torch.is_anomaly_enabled(), np.geterr(),
        flushes_denormals(), len(module_hooks._global_forward_hooks), torch._C._len_torch_function_stack(),
        torch._C._len_torch_dispatch_stack(), torch.get_num_threads(), repr(numpy_state), random.getstate(),
        bytes(torch.default_generator.get_state().numpy())]


def trained() -> Tensor:
    """A weight after a step of a small network under dropout."""
    torch.default_generator.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    linear = nn.Linear(5, 5)
    layer = nn.Sequential(linear, nn.Dropout(0.5))
    loss = layer(torch.rand(3, 5) + np.random.rand() + random.random() + torch.tensor(1e-39)).square().sum()
    loss.backward()
    assert linear.weight.grad is not None
    return linear.weight.grad


@ignores_warnings
@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("fails", [False, True])
def test_a_callers_choices_are_put_aside_and_put_back(caller: str, fails: bool) -> None:
    with plain_state():
        expected = trained()
    outside = observed()
    with CALLERS[caller]():
        forbids = "mode" in caller and "inference" not in caller
        before = None if forbids else observed()
        with contextlib.suppress(KeyError), plain_state():
            found = trained()
            assert torch.equal(found, expected)
            assert not found.is_inference()
            torch.set_default_dtype(torch.float64)
            torch.set_default_device("meta")
            torch.set_grad_enabled(False)
            random.seed(1)
            np.seterr(all="ignore")
            if fails:
                raise KeyError
        assert forbids or observed() == before
    assert observed() == outside


NETWORK = '''
import warnings
import torch
from torch import nn
import numpy as np

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)
        nn.init.orthogonal_(self.first.weight)
        self.shift = nn.Parameter(torch.tensor([float(np.random.rand())]))
    def forward(self, x):
        if self.training:
            torch.manual_seed(3)
        return self.second(nn.functional.dropout(torch.relu(self.first(x) + self.shift), 0.3, self.training))

class Broken(Net):
    def forward(self, x):
        raise ValueError("broken")

class Warns(Net):
    def forward(self, x):
        warnings.warn("somewhat odd")
        return super().forward(x)

def points():
    draw = np.random.default_rng(1)
    centres = draw.normal(0, 1.5, (3, 6))
    def split(num):
        y = np.arange(num) % 3
        return (centres[y] + draw.normal(0, 0.4, (num, 6)), y)
    return {"train": split(96), "test": split(30)}
'''


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_net.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path)


def config_of(folder: Path, name: str, **changes: Any) -> Any:
    return build_config({
        "name": name, "storage": str(folder / "results" / name), "data": {"name": "their_net:points"},
        "model": {"name": "their_net:Net"}, "training": {"batch_size": 16, "lr": 0.1}, "dense": {"length": 1},
        "round": {"length": 2}, "averaging": {"start": 0.5}, "particles": {"count": 2},
        "pruning": {"target": 0.5, "rate": 0.5}, "execution": {"executor": "inline", "device": "cpu"}, **changes})


def losses(folder: Path, name: str, **changes: Any) -> list[float]:
    result = SwampTrainer(config_of(folder, name, **changes), quiet=True).fit()
    return result.summary["average/validation/loss"].tolist()


@ignores_warnings
def test_a_run_of_a_caller_with_every_choice_gives_its_numbers(tmp_path: Path) -> None:
    expected = losses(tmp_path, "alone")
    outside = observed()
    with ExitStack() as stack:
        for name, caller in CALLERS.items():
            if name not in ("a function mode", "a dispatch mode", "a default device", "bfloat16 products"):
                stack.enter_context(caller())
        before = observed(), list(warnings.filters)
        assert losses(tmp_path, "within") == expected
        with pytest.raises(UserError, match="broken"):
            losses(tmp_path, "broken", model={"name": "their_net:Broken"})
        assert (observed(), list(warnings.filters)) == before
    assert observed() == outside


FILTERS: dict[str, Callable[[], Any]] = {
    "all": lambda: warnings.simplefilter("error"),
    "a category": lambda: warnings.filterwarnings("error", category=UserWarning),
    "a message": lambda: warnings.filterwarnings("error", message="somewhat"),
    "a module": lambda: warnings.filterwarnings("error", module="their_net|tests"),
    "appended": lambda: (warnings.resetwarnings(), warnings.simplefilter("error", append=True)),
}


@pytest.mark.parametrize("name", FILTERS)
def test_a_caller_whose_warnings_are_errors_gets_the_same_outcome(name: str) -> None:
    with warnings.catch_warnings():
        FILTERS[name]()
        before = list(warnings.filters)
        for _ in range(2):
            with computing(), computing():
                warnings.warn("somewhat odd", UserWarning, stacklevel=1)
            assert list(warnings.filters) == before
        with pytest.raises(UserWarning, match="somewhat odd"):
            warnings.warn("somewhat odd", UserWarning, stacklevel=1)


def test_a_network_that_warns_trains_where_warnings_are_errors(tmp_path: Path) -> None:
    expected = losses(tmp_path, "alone")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert losses(tmp_path, "within", model={"name": "their_net:Warns"}) == expected


@pytest.mark.parametrize("caller", [
    "a default device", "inference mode",
    *(pytest.param(caller, marks=pytest.mark.nightly) for caller in ("a function mode", "a device context"))])
def test_tickets_are_read_loaded_and_evaluated_whatever_the_caller_does(tmp_path: Path, caller: str) -> None:
    result = SwampTrainer(config_of(tmp_path, "run"), quiet=True).fit()
    rundir = RunDir(tmp_path / "results" / "run", "run")
    expected, _ = evaluate_runs([rundir])
    theirs = ModelConfig.model_validate({"name": "their_net:Net"})
    network = build_model(theirs, num_classes=3, input_shape=(6,), seed=0)
    with CALLERS[caller]():
        load_ticket(result.ticket_paths[-1]).load_into(network)
        found, _ = evaluate_runs([rundir])
    assert found == expected
    assert torch.equal(network.state_dict()["first.weight"], result.ticket().state["first.weight"])


def test_two_runs_in_threads_give_each_runs_own_numbers(tmp_path: Path) -> None:
    found: dict[str, list[float]] = {}

    def fit(seed: int) -> None:
        found[f"thread{seed}"] = losses(tmp_path, f"thread{seed}", seed=seed)

    threads = [threading.Thread(target=fit, args=(seed,)) for seed in (0, 1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (0, 1, 2):
        assert found[f"thread{seed}"] == losses(tmp_path, f"alone{seed}", seed=seed)


def test_a_run_says_that_it_waits_for_another(tmp_path: Path) -> None:
    class Notes(Reporter):
        def __init__(self) -> None:
            self.notices: list[str] = []
            self.told = threading.Event()

        def notice(self, text: str) -> None:
            self.notices.append(text)
            self.told.set()

    notes = Notes()
    thread = threading.Thread(target=run, args=(config_of(tmp_path, "second"), notes))
    with computing():
        thread.start()
        assert notes.told.wait(30)
        assert not (tmp_path / "results" / "second" / "runs").exists()
    thread.join()
    assert notes.notices[0] == OTHER_RUN
    assert (tmp_path / "results" / "second" / "runs" / "second" / "run.json").is_file()


def test_a_run_within_a_run_of_one_thread_does_not_wait_for_itself() -> None:
    with computing(), computing(lambda: pytest.fail("it waits")):
        pass
