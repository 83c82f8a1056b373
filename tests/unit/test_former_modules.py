"""Scripts of earlier versions import some modules by names that have changed."""

from __future__ import annotations

import importlib
import sys

import pytest

from swamp_ray.former_modules import FORMER


@pytest.mark.parametrize(("former", "name"), [
    ("swamp_ray.config_reading", "parse_config"), ("swamp_ray.sweep_reading", "parse_sweep"),
    ("swamp_ray.orchestration.upload", "select_files")])
def test_a_former_name_gives_what_the_module_of_today_has(former: str, name: str) -> None:
    for module in FORMER:
        sys.modules.pop(module, None)
    with pytest.warns(DeprecationWarning, match=f"has moved to {FORMER[former]}"):
        found = importlib.import_module(former)
    assert getattr(found, name) is getattr(importlib.import_module(FORMER[former]), name)


def test_names_that_never_were_are_not_found() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("swamp_ray.config_writing")
