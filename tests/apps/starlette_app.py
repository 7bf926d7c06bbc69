"""A Starlette application with one sending route of every kind that a request can have; its mail goes to EMAIL_HOST."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from openviper.core.email import Email, EmailMiddleware, send_email, send_email_sync, submit_email

_spawned: set[asyncio.Task[bool]] = set()


async def order(request: Request) -> Response:
    receipt = await submit_email("a@example.test", request.query_params.get("subject", "order"), text="Thank you")
    return JSONResponse({"mode": receipt.mode, "message_id": receipt.message_id})


def threaded(request: Request) -> Response:
    return JSONResponse({"sent": send_email_sync("a@example.test", "threaded", text="From the thread pool")})


async def background(request: Request) -> Response:
    task = BackgroundTask(send_email, "a@example.test", "background", text="After the response")
    return PlainTextResponse("ok", background=task)


async def late() -> bool:
    await asyncio.sleep(0.1)
    return await send_email("a@example.test", "spawned", text="From a task that outlives the request")


async def spawned(request: Request) -> Response:
    task = asyncio.create_task(late())
    _spawned.add(task)
    task.add_done_callback(_spawned.discard)
    return PlainTextResponse("ok")


async def streaming(request: Request) -> Response:
    async def body() -> AsyncIterator[bytes]:
        yield b"first "
        await send_email("a@example.test", "streaming", text="While the response streams")
        yield b"last"

    return StreamingResponse(body())


async def failing(request: Request) -> Response:
    await send_email("a@example.test", "failing", text="Accepted before the failure")
    raise LookupError("on purpose")


async def on_lookup_error(request: Request, error: Exception) -> Response:
    await send_email("admin@example.test", "exception handler", text=str(error))
    return PlainTextResponse("failed", 500)


async def state(request: Request) -> Response:
    await request.state.send_email("a@example.test", "state", text="By request.state")
    return JSONResponse({"backend": type(request.state.email.backend).__name__})


async def socket(websocket: WebSocket) -> None:
    await websocket.accept()
    receipt = await submit_email("a@example.test", "socket", text="From a websocket")
    await websocket.send_text(receipt.mode)
    await websocket.close()


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    await send_email("a@example.test", "startup", text="From the lifespan")
    yield
    await send_email("a@example.test", "shutdown", text="From the lifespan")


routes = [
    Route("/order", order, methods=["GET", "POST"]),
    Route("/threaded", threaded),
    Route("/background", background),
    Route("/spawned", spawned),
    Route("/streaming", streaming),
    Route("/failing", failing),
    Route("/state", state),
    WebSocketRoute("/socket", socket),
]

application = Starlette(
    routes=[*routes, Mount("/mounted", Starlette(routes=routes))],
    exception_handlers={LookupError: on_lookup_error},
)
app = EmailMiddleware(application)
with_lifespan = EmailMiddleware(Starlette(routes=routes, lifespan=lifespan))
mounted_only = Starlette(routes=[Mount("/inner", EmailMiddleware(Starlette(routes=routes)))])
attached = Email().attach(
    Starlette(
        routes=[*routes, Mount("/mounted", Starlette(routes=routes))],
        exception_handlers={LookupError: on_lookup_error, Exception: on_lookup_error},
        lifespan=lifespan,
    )
)
