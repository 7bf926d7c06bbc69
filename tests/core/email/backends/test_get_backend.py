import subprocess
import sys
from pathlib import Path

import pytest

from openviper.conf import override
from openviper.core.email import backends
from openviper.core.email.backends import ConsoleBackend, EmailBackend, FileBackend, MemoryBackend, get_backend
from openviper.core.email.settings import EmailSettings
from openviper.exceptions import ImproperlyConfigured

KNOWN = "SMTPBackend, ConsoleBackend, FileBackend, MemoryBackend, NullBackend"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("ConsoleBackend", ConsoleBackend), ("FileBackend", FileBackend), ("MemoryBackend", MemoryBackend)],
)
def test_a_name_gives_the_backend(name: str, expected: type[EmailBackend]) -> None:
    settings = EmailSettings(timeout=3)
    for spelling in (
        name,
        f"openviper.core.email.backends.{name}",
        f"{expected.__module__}.{name}",
        f"{expected.__module__}:{name}",
    ):
        backend = get_backend(spelling, settings)
        assert type(backend) is expected
        assert backend.settings is settings


def test_without_a_name_the_setting_decides() -> None:
    assert type(get_backend(settings=EmailSettings(backend="MemoryBackend"))) is MemoryBackend
    with override(EMAIL={"backend": "FileBackend", "file_dir": "there"}):
        backend = get_backend()
    assert type(backend) is FileBackend
    assert backend.folder == Path("there")


def test_each_call_creates_a_backend() -> None:
    settings = EmailSettings(backend="MemoryBackend")
    assert get_backend(settings=settings) is not get_backend(settings=settings)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        get_backend(settings=EmailSettings(backend="SendmailBackend"))
    assert str(caught.value).startswith("EMAIL[\"backend\"]: there is no backend 'SendmailBackend'")
    assert f"; give {KNOWN} or the dotted path of your own class" in str(caught.value)


def test_a_misspelt_name_suggests_the_nearest() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"did you mean 'ConsoleBackend'\?"):
        get_backend(settings=EmailSettings(backend="ConsolBackend"))


def test_an_error_about_the_argument_does_not_name_the_setting() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"^get_backend\(name\): there is no backend 'X'"):
        get_backend("X", EmailSettings())


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("no_such_package.Backend", "there is no module 'no_such_package'"),
        ("openviper.core.email.backends.Nothing", "has no 'Nothing'"),
        ("pathlib.Path", "is not a subclass of openviper.core.email.backends.EmailBackend"),
        ("json.dumps", "is not a subclass of openviper.core.email.backends.EmailBackend"),
        ("openviper.core.email.backends.EmailBackend", "does not define send"),
        ("backends.", "is not a dotted path"),
    ],
)
def test_an_error_about_a_path_says_what_is_wrong(path: str, complaint: str) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        get_backend(settings=EmailSettings(backend=path))
    assert str(caught.value).startswith('EMAIL["backend"]: ')
    assert repr(path) in str(caught.value) or "module" in str(caught.value)
    assert complaint in str(caught.value)


def test_an_unknown_attribute_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'SendmailBackend'"):
        _ = backends.SendmailBackend  # type: ignore[attr-defined]


def test_every_public_name_can_be_imported() -> None:
    assert [name for name in backends.__all__ if not hasattr(backends, name)] == []


@pytest.mark.parametrize("name", ["MemoryBackend", "ConsoleBackend", "FileBackend"])
def test_local_backends_import_no_smtp_client(name: str) -> None:
    code = (
        "import sys; from openviper.core.email.settings import EmailSettings; "
        "from openviper.core.email.backends import get_backend; "
        f"get_backend({name!r}, EmailSettings()); print('aiosmtplib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("False\n", "")
