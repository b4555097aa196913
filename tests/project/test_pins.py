"""The same pins everywhere: pyproject, requirements.lock and environment.yml."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def locked():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {normal(name.split("[")[0]): version for name, version in pairs}


def declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    return {normal(re.split(r"[\[=]", pin)[0]): pin.split("==")[1] for pin in wanted}


def test_every_dependency_is_pinned_and_locked_to_the_same_version():
    lock = locked()
    assert {name: lock.get(name) for name in declared()} == declared()


def test_environment_yml_holds_exactly_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    assert {normal(n): v for n, v in (pin.split("==") for pin in pip)} == locked()


@pytest.mark.parametrize("broken", ["numpy==1.0.0", ""])
def test_a_drifted_pin_is_seen(broken, monkeypatch):
    lock = locked() | ({"numpy": "1.0.0"} if broken else {})
    if not broken:
        del lock["numpy"]
    assert {name: lock.get(name) for name in declared()} != declared()


def test_installed_versions_are_the_locked_ones():
    from importlib.metadata import version

    for name, pin in declared().items():
        assert version(name).partition("+")[0] == pin, name
