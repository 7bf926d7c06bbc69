"""Check template names, and load them from the allowed folders only."""

import os
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

from jinja2 import BaseLoader, Environment, TemplateNotFound

from openviper.core.email.errors import TemplateFailed
from openviper.text import control_character

__all__ = ["FolderLoader", "check_name"]

_ENCODED = re.compile(r"%[0-9a-f]{2}", re.IGNORECASE)
_LONGEST = 500
_EXAMPLE = "emails/hi.txt"


def check_name(name: object) -> str:
    """Return ``name`` if it is a relative path of plain segments, such as ``emails/welcome.txt``.

    Raises:
        TemplateFailed: it could lead out of the folders, or be read in two ways.
    """
    if not isinstance(name, str):
        raise TemplateFailed(
            str(name)[:_LONGEST], f"the name must be a str, not {type(name).__name__}; write '{_EXAMPLE}'"
        )
    reason = _fault(name)
    if reason is not None:
        raise TemplateFailed(name[:_LONGEST], f"{reason}; name a file below the template folders, such as '{_EXAMPLE}'")
    return name


def _fault(name: str) -> str | None:
    if not name.strip():
        return "the name is empty"
    if len(name) > _LONGEST:
        return f"the name is longer than {_LONGEST} characters"
    if control_character(name) or any(unicodedata.category(character) == "Cf" for character in name):
        return "the name has a control character or an invisible one"
    # Full-width dots and slashes, and the like, become plain ones when a file system or a reader folds them.
    plain = unicodedata.normalize("NFKC", name)
    if "\\" in plain or ":" in plain or plain.startswith(("/", "~")):
        return "the name must be relative, with '/' between folders"
    if _ENCODED.search(plain):
        return "the name is percent-encoded"
    if any(segment.strip(" ") in {"", ".", ".."} or segment != segment.strip(" ") for segment in plain.split("/")):
        return "the name has an empty segment, '.' or '..', or spaces around one"
    return None


class FolderLoader(BaseLoader):
    """Load UTF-8 templates from one or several folders; the first that has the name wins.

    A name is checked here as well as at the call, because ``include`` and ``extends`` may get theirs from a value.
    Symbolic links are followed as far as they stay inside the folders.
    """

    def __init__(self, dirs: Sequence[Path]) -> None:
        self.dirs = tuple(Path(folder) for folder in dirs)

    def get_source(self, _environment: Environment, template: str) -> tuple[str, str, Callable[[], bool]]:
        path = self._find(check_name(template))
        if path is None:
            raise TemplateNotFound(template)
        modified = path.stat().st_mtime_ns
        try:
            source = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise TemplateFailed(template, f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error
        except OSError as error:
            raise TemplateFailed(template, f"{path} cannot be read: {error.strerror}") from error

        def unchanged() -> bool:
            try:
                return path.stat().st_mtime_ns == modified
            except OSError:
                return False

        return source, str(path), unchanged

    def list_templates(self) -> list[str]:
        """Return the files below the folders whose names pass the check."""
        found: set[str] = set()
        for folder in self.dirs:
            for parent, folders, files in os.walk(folder):
                folders[:] = [name for name in folders if not name.startswith(".")]
                found.update((Path(parent, name).relative_to(folder)).as_posix() for name in files)
        return sorted(name for name in found if _fault(name) is None)

    def _find(self, name: str) -> Path | None:
        roots = [folder.resolve() for folder in self.dirs]
        for root in roots:
            try:
                path = (root / name).resolve(strict=True)
            except (OSError, RuntimeError):  # absent, not a folder on the way, a name too long, a loop of links
                continue
            if not any(path.is_relative_to(allowed) for allowed in roots):
                raise TemplateFailed(name, f"{root / name} is a link to {path}, outside the template folders")
            if path.is_file():
                return path
        return None
