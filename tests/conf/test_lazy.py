import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from openviper.conf import SETTINGS_VARIABLE, Settings, override, settings
from openviper.exceptions import ImproperlyConfigured


@pytest.fixture
def settings_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[str]:
    """An importable settings module with a name of its own; its text is the parameter."""
    name = f"settings_for_{abs(hash(request.node.nodeid))}"
    (tmp_path / f"{name}.py").write_text(request.param)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(SETTINGS_VARIABLE, name)
    yield name
    sys.modules.pop(name, None)


@pytest.fixture
def no_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SETTINGS_VARIABLE, raising=False)


def test_every_setting_has_a_default_without_a_settings_module(no_module: None) -> None:
    fresh = Settings()
    assert fresh.DEBUG is False
    assert fresh.EMAIL == {}
    assert fresh.TASKS == {}
    assert fresh.TEMPLATES_DIR == "templates"
    assert fresh.DATABASE_URL.startswith("sqlite+aiosqlite:")


@pytest.mark.parametrize(
    "settings_module", ["import os\nDEBUG = True\nSITE = 'shop'\nlower = 1\n_HIDDEN = 2\n"], indirect=True
)
def test_settings_are_the_upper_case_names_of_the_module(settings_module: str) -> None:
    fresh = Settings()
    assert (fresh.DEBUG, fresh.SITE, fresh.EMAIL) == (True, "shop", {})
    for name in ("lower", "os", "_HIDDEN", "HIDDEN"):
        with pytest.raises(AttributeError):
            getattr(fresh, name)


@pytest.mark.parametrize("settings_module", ["DEBUG = True"], indirect=True)
def test_the_module_is_loaded_by_the_first_read_only(settings_module: str) -> None:
    fresh = Settings()
    assert settings_module not in sys.modules
    assert "not loaded" in repr(fresh)
    assert fresh.DEBUG
    assert settings_module in sys.modules


def test_a_missing_setting_says_where_to_add_it(no_module: None) -> None:
    with pytest.raises(AttributeError, match="'SITE_NAME': add it to your settings module"):
        _ = Settings().SITE_NAME


@pytest.mark.parametrize("name", ["no_such_module_here", "no_such_package.settings"])
def test_a_settings_module_that_does_not_exist_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SETTINGS_VARIABLE, name)
    with pytest.raises(ImproperlyConfigured, match=f"^{SETTINGS_VARIABLE}: there is no module '{name}'"):
        _ = Settings().DEBUG


@pytest.mark.parametrize("name", ["shop/settings.py", ".settings", "shop..settings", "shop.settings "])
def test_a_settings_module_that_is_no_module_name_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SETTINGS_VARIABLE, name)
    with pytest.raises(ImproperlyConfigured, match=r"is not the dotted name of a module such as 'shop\.settings'"):
        _ = Settings().DEBUG


@pytest.mark.parametrize("settings_module", ["import a_library_that_is_missing"], indirect=True)
def test_a_failing_import_inside_the_settings_module_is_not_hidden(settings_module: str) -> None:
    with pytest.raises(ModuleNotFoundError, match="a_library_that_is_missing"):
        _ = Settings().DEBUG


def test_configure_sets_values_and_keeps_the_other_defaults() -> None:
    fresh = Settings()
    fresh.configure(DEBUG=True, SITE="shop")
    assert (fresh.DEBUG, fresh.SITE, fresh.TASKS) == (True, "shop", {})


def test_configure_after_the_first_read_is_refused(no_module: None) -> None:
    fresh = Settings()
    assert fresh.DEBUG is False
    with pytest.raises(ImproperlyConfigured, match="already in use"):
        fresh.configure(DEBUG=True)
    assert fresh.DEBUG is False


def test_configure_refuses_names_that_are_not_upper_case() -> None:
    fresh = Settings()
    with pytest.raises(ImproperlyConfigured, match="'email' is not an upper-case name"):
        fresh.configure(email={})
    fresh.configure(EMAIL={})


def test_a_setting_cannot_be_assigned() -> None:
    fresh = Settings()
    with pytest.raises(AttributeError, match=r"settings\.EMAIL cannot be assigned"):
        fresh.EMAIL = {"host": "mail.example.com"}
    fresh.configure(EMAIL={"host": "localhost"})
    assert fresh.EMAIL == {"host": "localhost"}


def test_defaults_are_not_shared_between_two_settings() -> None:
    one, other = Settings(), Settings()
    one.configure()
    other.configure()
    one.EMAIL["host"] = "mail.example.com"
    assert other.EMAIL == {}


def test_repr_shows_names_but_no_values() -> None:
    fresh = Settings()
    fresh.configure(EMAIL={"password": "hunter2"})
    assert "EMAIL" in repr(fresh)
    assert "hunter2" not in repr(fresh)


def test_override_holds_for_the_block_and_nests() -> None:
    outside = settings.TEMPLATES_DIR
    with override(TEMPLATES_DIR="one", DEBUG=True):
        with override(TEMPLATES_DIR="two"):
            assert (settings.TEMPLATES_DIR, settings.DEBUG) == ("two", True)
        assert settings.TEMPLATES_DIR == "one"
    assert outside == settings.TEMPLATES_DIR


def test_override_is_undone_after_an_error() -> None:
    before = settings.DEBUG
    with pytest.raises(RuntimeError), override(DEBUG=not before):
        raise RuntimeError
    assert settings.DEBUG is before


def test_an_override_before_the_first_read_leaves_the_settings_unloaded() -> None:
    with override(DEBUG=True):
        assert settings.DEBUG
    assert "not loaded" in repr(settings)


def test_the_version_changes_with_the_settings() -> None:
    seen = [settings.version]
    with override(DEBUG=True):
        seen.append(settings.version)
    seen.append(settings.version)
    assert len(set(seen)) == 3


def test_override_refuses_names_that_are_not_upper_case() -> None:
    with pytest.raises(ImproperlyConfigured, match="'debug'"), override(debug=True):
        pass


def test_importing_the_package_reads_no_settings() -> None:
    """A fresh interpreter with a settings module that does not exist imports mail all the same."""
    environment = {**os.environ, SETTINGS_VARIABLE: "no_such_module_here"}
    code = "import openviper.conf, openviper.core.email.settings, openviper.core.email.backends"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
