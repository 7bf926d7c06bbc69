"""Erase an address from the inbox page's folder."""

import json
from contextlib import suppress
from pathlib import Path

from openviper.core.email.inbox.folder import Folder

__all__ = ["erase_from_folder"]


def erase_from_folder(path: Path, address: str) -> int:
    """Remove the messages in ``path`` that name ``address``, also in their text; return how many. Blocks.

    They are copies, so that those for several recipients go as a whole.
    """
    folder = Folder(path)
    named = [key for key in folder.all_keys() if _names(path / key, address)]
    for key in named:
        folder.remove(key)
    return len(named)


def _names(message: Path, address: str) -> bool:
    stored = json.dumps(address)[1:-1]
    for name in ("message.json", "steps"):
        with suppress(OSError):  # another process has removed it
            text = (message / name).read_text(encoding="utf-8", errors="replace").lower()
            if address in text or stored in text:
                return True
    return False
