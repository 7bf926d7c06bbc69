"""Import by name: dotted paths from settings, and libraries that come with an extra."""

import importlib
from types import ModuleType
from typing import Any

from openviper.exceptions import ImproperlyConfigured, MissingDependency
from openviper.text import shown, suggestion

__all__ = ["import_string", "require"]


def import_string(dotted_path: str, *, setting: str) -> Any:
    """Return the object at ``package.module.Name`` (or ``package.module:Name``).

    ``setting`` is the setting with the path; the error begins with it.

    Raises:
        ImproperlyConfigured: not a dotted path, no such module, or no such name in the module. Errors of the module's
            own code propagate unchanged.
    """
    module_path, separator, name = dotted_path.replace(":", ".").rpartition(".")
    if not separator or not all(part.isidentifier() for part in (*module_path.split("."), name)):
        raise ImproperlyConfigured(
            f"{setting}: {shown(dotted_path)} is not a dotted path such as 'package.module.Name'"
        )
    try:
        module = importlib.import_module(module_path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_path}.".startswith(f"{error.name}."):
            raise
        raise ImproperlyConfigured(
            f"{setting}: there is no module {shown(error.name)} (from {shown(dotted_path)}); correct the path"
        ) from None
    try:
        return getattr(module, name)
    except AttributeError:
        near = suggestion(name, vars(module), otherwise="correct the path")
        raise ImproperlyConfigured(f"{setting}: module {shown(module_path)} has no {shown(name)}{near}") from None


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import ``module``, which the extra ``extra`` of this distribution installs; errors begin with ``purpose``.

    Raises:
        MissingDependency: the library is not installed; the text has the pip command.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name != module.partition(".")[0]:
            raise
        raise MissingDependency(
            f"{purpose} needs {shown(module)}, which is not installed: pip install 'openviper-email[{extra}]'",
            name=module,
        ) from None
