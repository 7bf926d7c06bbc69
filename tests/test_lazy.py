"""Packages whose names are imported at their first use."""

import importlib
import sys
from types import ModuleType

import pytest

from openviper.lazy import lazy_names

PACKAGES = [
    "openviper",
    "openviper.core.email",
    "openviper.core.email.backends",
    "openviper.db",
    "openviper.tasks",
    "openviper.testing",
]


@pytest.mark.parametrize("name", PACKAGES)
def test_dir_lists_every_public_name_and_each_can_be_had(name: str) -> None:
    package = importlib.import_module(name)
    assert set(package.__all__) <= set(dir(package))
    assert [missing for missing in package.__all__ if not hasattr(package, missing)] == []


@pytest.mark.parametrize("name", PACKAGES)
def test_an_unknown_name_is_named_with_its_package(name: str) -> None:
    with pytest.raises(AttributeError, match=rf"^module '{name}' has no attribute 'send_mial'$"):
        importlib.import_module(name).send_mial  # noqa: B018


def test_a_name_is_imported_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    package = ModuleType("lazy_sample")
    monkeypatch.setitem(sys.modules, "lazy_sample", package)
    get, listed = lazy_names("lazy_sample", {"Fraction": "fractions"}, before=lambda: asked.append("before"))
    package.__getattr__, package.__dir__ = get, listed  # type: ignore[method-assign]
    assert "Fraction" in dir(package)
    assert asked == []
    assert package.Fraction is importlib.import_module("fractions").Fraction
    assert package.Fraction(1, 2) == 0.5
    assert asked == ["before"]
