"""A small ASGI application on uvicorn, which with ``--mail`` sends a message in each request.

Run as a process. It prints its port and serves until its standard input ends.
"""

import argparse
import asyncio
import socket
import sys

import uvicorn
from content import Content
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from openviper.core.email import EmailMiddleware, send_email

HOST = "127.0.0.1"


def application(content: Content, mail_port: int | None) -> ASGIApp:
    """Make the application; with ``mail_port`` it confirms each order by mail."""

    async def order(request: Request) -> JSONResponse:
        number = int(request.path_params["number"])
        if mail_port is not None:
            subject, text, html = content.filled(number)
            await send_email("customer@example.com", subject, text, html)
        return JSONResponse({"order": number})

    app = Starlette(routes=[Route("/orders/{number:int}", order)])
    if mail_port is None:
        return app
    return EmailMiddleware(app, {"host": HOST, "port": mail_port, "default_sender": content.sender})


async def serve(app: ASGIApp) -> None:
    """Serve on an ephemeral port until standard input ends."""
    # If the protocol is given, asyncio disables Nagle's algorithm, as it does for its own sockets.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind((HOST, 0))
    listening.listen(100)  # requests before the start of the application wait
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_keep_alive=600)
    server = uvicorn.Server(config)
    print(listening.getsockname()[1], flush=True)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.should_exit = True
    await serving


def main() -> None:
    """Run the command line of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--content", required=True)
    parser.add_argument("--mail", type=int, metavar="PORT")
    options = parser.parse_args()
    app = application(Content.read(options.content), options.mail)
    asyncio.run(serve(app))


if __name__ == "__main__":
    main()
