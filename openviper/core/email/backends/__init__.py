"""Choose the backend that delivers messages, by name or by the dotted path of your own class."""

import inspect
from typing import TYPE_CHECKING

from openviper.conf.imports import import_string
from openviper.core.email.backends.base import DeliveryReport, EmailBackend
from openviper.core.email.settings import EmailSettings
from openviper.exceptions import ImproperlyConfigured, OpenViperError
from openviper.lazy import lazy_names
from openviper.text import shown, suggestion

if TYPE_CHECKING:
    from openviper.core.email.backends.console import ConsoleBackend
    from openviper.core.email.backends.file import FileBackend
    from openviper.core.email.backends.memory import MemoryBackend
    from openviper.core.email.backends.null import NullBackend
    from openviper.core.email.backends.smtp import SMTPBackend

__all__ = [
    "ConsoleBackend",
    "DeliveryReport",
    "EmailBackend",
    "EmailSettings",
    "FileBackend",
    "MemoryBackend",
    "NullBackend",
    "SMTPBackend",
    "get_backend",
]

_PATHS = {
    "SMTPBackend": f"{__name__}.smtp.SMTPBackend",
    "ConsoleBackend": f"{__name__}.console.ConsoleBackend",
    "FileBackend": f"{__name__}.file.FileBackend",
    "MemoryBackend": f"{__name__}.memory.MemoryBackend",
    "NullBackend": f"{__name__}.null.NullBackend",
}

_OF_DJANGO = {
    "smtp": "SMTPBackend",
    "console": "ConsoleBackend",
    "filebased": "FileBackend",
    "locmem": "MemoryBackend",
    "dummy": "NullBackend",
}

if not TYPE_CHECKING:
    # A backend's module may need a library that the others do not.
    __getattr__, __dir__ = lazy_names(__name__, {name: path.rpartition(".")[0] for name, path in _PATHS.items()})


def get_backend(name: str | None = None, settings: EmailSettings | None = None) -> EmailBackend:
    """Create a backend, which the caller opens and closes (``async with get_backend() as backend``).

    ``name`` is ``"SMTPBackend"``, ``"ConsoleBackend"``, ``"FileBackend"``, ``"MemoryBackend"``, ``"NullBackend"``, one
    of these after ``openviper.core.email.backends.``, or the dotted path of your own subclass of :class:`EmailBackend`;
    None means ``EMAIL["backend"]``. ``settings`` None means the project's. Only that backend's module is imported, so
    other backends need no SMTP client.

    Raises:
        ImproperlyConfigured: the backend does not exist, or is not a complete subclass of :class:`EmailBackend`.
    """
    if settings is None:
        settings = EmailSettings.from_settings()
    setting = settings.path("backend") if name is None else "get_backend(name)"
    backend_class = _backend_class(settings.backend if name is None else name, setting)
    try:
        return backend_class(settings)
    except OpenViperError as error:
        settings.name_paths_in(error)
        raise


def _backend_class(name: str, setting: str) -> type[EmailBackend]:
    known = name.removeprefix(f"{__name__}.")
    if known not in _PATHS and "." not in name and ":" not in name:
        raise ImproperlyConfigured(
            f"{setting}: there is no backend {shown(name)}; "
            f"give {', '.join(_PATHS)} or the dotted path of your own class{suggestion(name, _PATHS)}"
        )
    if name.startswith("django.") and (own := _OF_DJANGO.get(name.split(".")[-2])):
        raise ImproperlyConfigured(f"{setting}: {shown(name)} is for Django only; give {own}")
    found = import_string(_PATHS.get(known, name), setting=setting)
    if not (isinstance(found, type) and issubclass(found, EmailBackend)):
        raise ImproperlyConfigured(
            f"{setting}: {shown(name)} is not a subclass of openviper.core.email.backends.EmailBackend; "
            "derive it from that class"
        )
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise ImproperlyConfigured(f"{setting}: {shown(name)} does not define {missing}")
    return found
