"""Running a part of a test in a forked child of its process."""

import os
import warnings
from collections.abc import Callable

__all__ = ["in_child"]


def in_child(say: Callable[[], str]) -> str:
    """What ``say`` returns in a child that is forked from here, at most 64 kB; the child ends with it."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a test's threads hold nothing that the child uses
        child = os.fork()
    if child == 0:
        try:
            os.write(writing, say().encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writing)
    try:
        with os.fdopen(reading, encoding="utf-8") as answer:
            said = answer.read()
    finally:
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return said
