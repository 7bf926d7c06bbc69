"""Check a backend that is not ours, by its own ``check()``."""

import asyncio

from openviper.core.email.backends import EmailBackend
from openviper.core.email.delivery.checks.result import CheckResult
from openviper.core.email.errors import EmailError
from openviper.exceptions import OpenViperError

__all__ = ["check_backend", "has_check"]


def has_check(backend: EmailBackend) -> bool:
    """Return True if the backend's class, or one it derives from, defines ``check()``."""
    return type(backend).check is not EmailBackend.check


async def check_backend(backend: EmailBackend, deadline: float) -> CheckResult:
    """Open ``backend``, run its ``check()`` and close it, by ``deadline`` (loop time)."""
    name = backend.describe()
    if not has_check(backend):
        remedy = "define check() in it, or send a message with viperctl email send"
        return CheckResult.skipped("backend", f"{name} has no check() of its own", remedy)
    try:
        async with asyncio.timeout_at(deadline), backend:
            found = await backend.check()
    except TimeoutError as error:
        text = str(error) or "check() did not end in time"
        return CheckResult.failed(
            "backend", f"{name}: {text}", "allow more time with --timeout, or look at what it calls"
        )
    except EmailError as error:
        return CheckResult.failed("backend", f"{name}: {error}", "look at the service that it sends through")
    except OpenViperError as error:
        return CheckResult.failed("backend", f"{name}: {error}", "correct that setting")
    except Exception as error:  # noqa: BLE001 - code of the project, whose mistake is a finding like any other
        text = f"{name}: check() raised {type(error).__name__}: {error}"
        return CheckResult.failed("backend", text, "correct the backend")
    return CheckResult.ok("backend", found or f"{name} reports no problem")
