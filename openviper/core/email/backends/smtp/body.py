"""The content of a message as the server wants it: in chunks (RFC 3030) or dot-stuffed behind DATA."""

import asyncio
import contextlib

from openviper.core.email.backends.smtp.content import YIELD_EVERY, pieces
from openviper.core.email.backends.smtp.dialogue import Dialogue
from openviper.core.email.backends.smtp.dotstuffing import DotStuffer
from openviper.core.email.backends.smtp.exchange import Exchange, WireFailure
from openviper.core.email.backends.smtp.wire import Connection
from openviper.core.email.events import DeliveryReport
from openviper.core.email.message import Chunks

__all__ = ["send_as_data", "send_in_chunks"]

_CHUNK = 1024 * 1024  # bytes of one BDAT


async def send_in_chunks(dialogue: Dialogue, content: Chunks, size: int, *, limit: float) -> DeliveryReport:
    """BDAT after BDAT, each written while the server answers the one before.

    ``size``: bytes of ``content``; ``limit``: seconds for the answer to each chunk, its transport included.
    """
    connection = dialogue.connection
    before: Exchange | None = None
    answer: Exchange | None = None
    try:
        for begin in range(0, size or 1, _CHUNK):
            end = min(begin + _CHUNK, size)
            last = end == size
            command = b"BDAT %d LAST\r\n" if last else b"BDAT %d\r\n"
            answer = connection.request(command % (end - begin), 1, final_limit=limit)
            await _write(connection, content, begin, end)
            dialogue.body_written = last
            if before is not None and not (await before.only_reply()).positive:
                with contextlib.suppress(WireFailure):
                    await answer.only_reply()  # it follows a refused chunk, so it says nothing new
                break
            before = answer
            if not connection.capabilities.pipelining and not (await answer.only_reply()).positive:
                break
        assert before is not None
        reply = await before.only_reply()
    except WireFailure as failure:
        _check_early(dialogue, "BDAT", before, answer)
        raise dialogue.failed(["BDAT"], failure) from failure
    connection.needs_reset = True
    outcome = dialogue.interpret_content("BDAT", reply)
    connection.needs_reset = False
    return outcome


async def send_as_data(dialogue: Dialogue, content: Chunks, size: int, *, limit: float) -> DeliveryReport:
    """What follows 354, to its lone dot; ``limit``: seconds for the answer once everything has left."""
    connection = dialogue.connection
    answer = connection.expect()
    stuffer = DotStuffer()
    written = 0
    try:
        for piece in pieces(content, 0, size):
            connection.write(stuffer.stuff(bytes(piece)))
            written += len(piece)
            if not connection.flushed:
                await connection.drain(answer)
            elif written >= YIELD_EVERY:
                written = 0
                await asyncio.sleep(0)
            if answer.waiter.done():
                break
        else:
            connection.write(stuffer.end())
            dialogue.body_written = True
            await connection.drain(answer)
            connection.set_deadline(answer, limit)
        reply = await answer.only_reply()
    except WireFailure as failure:
        _check_early(dialogue, "DATA", answer)
        raise dialogue.failed(["DATA"], failure) from failure
    if not dialogue.body_written:
        connection.abort()  # an answer to half a message; what follows would be read as commands
    return dialogue.interpret_content("DATA", reply)


def _check_early(dialogue: Dialogue, step: str, *answers: Exchange | None) -> None:
    """Raise a refusal that had come before the server hung up, or before it read no further."""
    for answer in answers:
        if answer is not None and answer.replies and not answer.replies[0].positive:
            dialogue.interpret_content(step, answer.replies[0])


async def _write(connection: Connection, content: Chunks, begin: int, end: int) -> None:
    written = 0
    for piece in pieces(content, begin, end):
        connection.write(piece)
        written += len(piece)
        if not connection.flushed:
            await connection.drain()
        elif written >= YIELD_EVERY:
            written = 0
            await asyncio.sleep(0)
