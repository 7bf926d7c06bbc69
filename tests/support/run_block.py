"""Run one block of the documentation in this process, which is its own; see ``support.documents.run``."""

import ast
import asyncio
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["run_block"]


def run_block(block: str, then: str, report: str) -> None:
    """Run the files ``block`` and ``then`` as one main module; write the mail that it sent to ``report`` as JSON."""
    sys.argv = [block]
    namespace: dict[str, Any] = {"__name__": "__main__", "__file__": block}
    for file in (block, then):
        _run(file, namespace)
    if "EMAIL" in namespace:
        from openviper.core.email.settings import EmailSettings

        EmailSettings.load(email=namespace["EMAIL"])
    if "app" in namespace:
        asyncio.run(_drive(namespace["app"], Path(block).read_text()))
    Path(report).write_text(json.dumps(list(_sent())))


def _run(file: str, namespace: dict[str, Any]) -> None:
    code = compile(Path(file).read_text(), file, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if not code.co_flags & inspect.CO_COROUTINE:
        exec(code, namespace)
        return

    async def awaiting() -> None:
        await eval(code, namespace)

    asyncio.run(awaiting())


async def _drive(app: Any, source: str) -> None:
    import httpx
    from asgi_lifespan import LifespanManager

    routes = re.findall(r'@(?:\w+\.)?(get|post)\("(/[\w/]*)"', source)
    routes += [("get", path) for path in re.findall(r'Route\("(/[\w/]*)"', source)]
    async with LifespanManager(app, startup_timeout=None, shutdown_timeout=None) as started:
        transport = httpx.ASGITransport(started.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            for method, path in routes:
                answer = await client.request(method.upper(), path)
                if answer.status_code >= 400:
                    raise SystemExit(f"{method} {path} answered {answer.status_code}: {answer.text}")


def _sent() -> Iterator[dict[str, Any]]:
    from openviper.core.email.backends.memory import sent

    for message in sent:
        prepared = message.prepared
        yield {
            "recipients": message.envelope.recipients,
            "envelope_sender": message.envelope.sender,
            "from": str(prepared.sender),
            "subject": prepared.subject,
            "text": prepared.text,
            "html": prepared.html,
            "headers": dict(prepared.headers),
            "calendar": None if prepared.calendar is None else prepared.calendar.text,
            "attachments": [[part.filename, part.mimetype, len(part.content)] for part in prepared.attachments],
        }
