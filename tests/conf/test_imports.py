from pathlib import Path

import pytest

from openviper.conf import import_string, require
from openviper.exceptions import ImproperlyConfigured, MissingDependency

SETTING = 'EMAIL["backend"]'


@pytest.mark.parametrize("dotted_path", ["pathlib.Path", "pathlib:Path"])
def test_a_dotted_path_gives_the_object(dotted_path: str) -> None:
    assert import_string(dotted_path, setting=SETTING) is Path


@pytest.mark.parametrize(
    "dotted_path",
    ["", "Path", "pathlib.", ".Path", "..Path", ".pathlib.Path", "pathlib..Path", "path lib.Path", "a/b.C"],
)
def test_what_is_no_dotted_path_is_refused(dotted_path: str) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        import_string(dotted_path, setting=SETTING)
    assert str(caught.value) == f"{SETTING}: {dotted_path!r} is not a dotted path such as 'package.module.Name'"


@pytest.mark.parametrize(
    ("dotted_path", "missing"),
    [("no_such_package.module.Name", "no_such_package"), ("email.no_such_module.Name", "email.no_such_module")],
)
def test_a_missing_module_is_named(dotted_path: str, missing: str) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        import_string(dotted_path, setting=SETTING)
    assert str(caught.value) == f"{SETTING}: there is no module {missing!r} (from {dotted_path!r}); correct the path"


def test_a_missing_name_is_named() -> None:
    with pytest.raises(ImproperlyConfigured, match="module 'pathlib' has no 'Pfad'"):
        import_string("pathlib.Pfad", setting=SETTING)


def test_a_missing_import_of_the_module_itself_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "module_with_a_missing_import.py").write_text("import a_library_that_is_missing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="a_library_that_is_missing"):
        import_string("module_with_a_missing_import.Name", setting=SETTING)


def test_require_gives_the_module() -> None:
    assert require("json", extra="x", purpose="this").__name__ == "json"


def test_require_says_how_to_install_what_is_missing() -> None:
    with pytest.raises(MissingDependency) as caught:
        require("a_library_that_is_missing", extra="markdown", purpose="a .md template")
    assert str(caught.value) == (
        "a .md template needs 'a_library_that_is_missing', which is not installed: "
        "pip install 'openviper-email[markdown]'"
    )
    assert caught.value.name == "a_library_that_is_missing"
    assert isinstance(caught.value, ImportError)


def test_require_does_not_hide_what_an_installed_library_misses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "library_with_a_missing_import.py").write_text("import a_library_that_is_missing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError) as caught:
        require("library_with_a_missing_import", extra="x", purpose="this")
    assert not isinstance(caught.value, MissingDependency)
