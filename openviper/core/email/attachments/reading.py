"""Read uploads, files, async iterators and messages, off the event loop, once and within the limit."""

import asyncio
import inspect
from collections.abc import AsyncIterable, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from openviper.core.email.attachments.bytelimit import ByteLimit
from openviper.core.email.attachments.temporary import ContentWriter, FileContent
from openviper.core.email.errors import AttachmentRefused
from openviper.loops import is_async

if TYPE_CHECKING:
    from email.message import Message

__all__ = ["call", "read_message", "read_pieces", "read_stream"]

_CHUNK = 1024 * 1024
# Uploads and files that are being read, by event loop and object: two messages may share one.
_turns: WeakValueDictionary[tuple[int, int], asyncio.Lock] = WeakValueDictionary()


async def read_stream(file: Any, limit: ByteLimit, *, close: bool) -> bytes | FileContent:
    """Read all of ``file``, from its beginning if it can seek; ``read(size)`` may be plain or async.

    Afterwards it is where it was (an upload whose ``tell`` is unknown: at its beginning), or closed if ``close``.

    Raises:
        AttachmentRefused: it is closed, gives text, cannot be read or is too large.
    """
    key = id(asyncio.get_running_loop()), id(file)
    turn = _turns.get(key)
    if turn is None:
        turn = _turns[key] = asyncio.Lock()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(turn)
        if close:
            stack.push_async_callback(_close, file)
        try:
            if inspect.iscoroutinefunction(file.read):
                return await _read_async(file, limit)
            return await asyncio.to_thread(_read, file, limit)
        except AttachmentRefused:
            raise
        except Exception as error:
            if _is_closed(file):
                raise _failed(error, limit, closed=True) from None  # the text says all
            raise _failed(error, limit) from error


async def read_pieces(pieces: AsyncIterable[Any], limit: ByteLimit) -> bytes | FileContent:
    """Read an async iterable to its end; a generator is closed, also after an error.

    Raises:
        AttachmentRefused: it raised an exception, gives something else than bytes, or is too large.
    """
    writer = ContentWriter(limit.filename)
    try:
        async with AsyncExitStack() as stack:
            iterator = aiter(pieces)
            if (close := getattr(iterator, "aclose", None)) is not None:
                stack.push_async_callback(close)
            async for piece in iterator:
                await _add(writer, _checked(piece, limit))
        return await _finish(writer)
    except AttachmentRefused:
        raise
    except Exception as error:
        raise _failed(error, limit) from error


async def call(function: Callable[[], Any], filename: str) -> Any:
    """Call ``function`` once and return its result: a plain one in a thread, an async one on the loop.

    Raises:
        AttachmentRefused: it raised an exception, which is chained.
    """
    try:
        if is_async(function):
            result = function()
        else:
            result = await asyncio.to_thread(_call_plain, function, filename)
        return await result if isinstance(result, Awaitable) else result
    except AttachmentRefused:
        raise
    except Exception as error:
        raise AttachmentRefused(filename, f"its function raised {type(error).__name__}") from error


def _call_plain(function: Callable[[], Any], filename: str) -> Any:
    try:
        return function()
    except StopIteration as error:  # of next(): up to Python 3.11 it would never reach who waits for the thread
        raise AttachmentRefused(filename, "its function raised StopIteration") from error


def read_message(message: "Message", limit: ByteLimit) -> bytes:
    """Return a message as bytes with CRLF line ends, ASCII only where possible; blocks for long.

    Raises:
        AttachmentRefused: it cannot be written, or is too large.
    """
    import io
    from email.generator import BytesGenerator

    # RFC 2046 section 5.2.1 forbids to encode an attached message, so its 8-bit parts are encoded here.
    policy = message.policy.clone(linesep="\r\n", cte_type="7bit", mangle_from_=False)
    written = io.BytesIO()
    try:
        BytesGenerator(written, policy=policy).flatten(message)
    except Exception as error:
        raise AttachmentRefused(
            limit.filename, f"the message cannot be written as bytes ({type(error).__name__})"
        ) from error
    limit.spend(written.tell())
    return written.getvalue()


async def _read_async(file: Any, limit: ByteLimit) -> bytes | FileContent:
    position = await _rewind(file)
    writer = ContentWriter(limit.filename)
    try:
        while piece := _read_piece(await file.read(min(_CHUNK, limit.room + 1)), limit):
            await _add(writer, piece)
    finally:
        if position is not None:
            with suppress(Exception):  # what the reading raised says more
                await file.seek(position)
    return await _finish(writer)


async def _rewind(file: Any) -> int | None:
    """Go to the beginning; return the position before, None for a file that cannot seek."""
    if not inspect.iscoroutinefunction(getattr(file, "seek", None)):
        return None
    position = 0
    try:
        if inspect.iscoroutinefunction(getattr(file, "tell", None)):
            position = await file.tell()
        await file.seek(0)
    except OSError:  # a pipe
        return None
    return position


def _read(file: Any, limit: ByteLimit) -> bytes | FileContent:
    position = None
    with suppress(AttributeError, OSError):  # a pipe, or no more than a reader
        position = file.tell()
        file.seek(0)
    writer = ContentWriter(limit.filename)
    try:
        while piece := _read_piece(file.read(min(_CHUNK, limit.room + 1)), limit):
            if writer.add(piece):
                writer.flush()
    finally:
        if position is not None:
            with suppress(Exception):  # what the reading raised says more
                file.seek(position)
    return writer.finish()


def _read_piece(piece: Any, limit: ByteLimit) -> bytes:
    """Return what ``read`` has returned as bytes, charged to ``limit``; empty at the end."""
    if piece is None:
        raise AttachmentRefused(limit.filename, "has no data yet: it is in non-blocking mode")
    return _checked(piece, limit)


def _checked(piece: Any, limit: ByteLimit) -> bytes:
    """Return ``piece`` as bytes, charged to ``limit``."""
    if isinstance(piece, str):
        raise AttachmentRefused(
            limit.filename, 'gives text: open it in binary mode ("rb"), or give text as {"content": "..."}'
        )
    if not isinstance(piece, bytes | bytearray | memoryview):
        raise AttachmentRefused(limit.filename, f"gives {type(piece).__name__} instead of bytes")
    content = bytes(piece)
    limit.spend(len(content))
    return content


async def _add(writer: ContentWriter, piece: bytes) -> None:
    if writer.add(piece):
        await asyncio.to_thread(writer.flush)


async def _finish(writer: ContentWriter) -> bytes | FileContent:
    return await asyncio.to_thread(writer.finish) if writer.in_file else writer.finish()


def _failed(error: Exception, limit: ByteLimit, *, closed: bool = False) -> AttachmentRefused:
    if closed:
        return AttachmentRefused(
            limit.filename,
            "is closed; send while it is open (frameworks close uploads with the response, before background tasks)",
        )
    # Not the error's text: it may come from anywhere and show anything.
    reason = f": {error.strerror}" if isinstance(error, OSError) and error.strerror else f" ({type(error).__name__})"
    return AttachmentRefused(limit.filename, f"cannot be read{reason}")


def _is_closed(file: Any) -> bool:
    return any(getattr(each, "closed", False) is True for each in (file, getattr(file, "file", None)))


async def _close(file: Any) -> None:
    close = getattr(file, "close", None)
    if close is None:
        return
    with suppress(Exception):  # all of it has been read
        if inspect.iscoroutinefunction(close):
            await close()
        else:
            await asyncio.to_thread(close)
