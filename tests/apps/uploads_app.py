"""An endpoint in each framework that mails the file uploaded to it as ``file``, in the mode of a request."""

from typing import Annotated

import fastapi
from litestar import Litestar, post
from litestar.datastructures import UploadFile
from litestar.enums import RequestEncodingType
from litestar.params import Body
from quart import Quart
from quart import request as quart_request
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from openviper.core.email import EmailMiddleware, submit_email


async def mail(upload: object) -> dict[str, str]:
    receipt = await submit_email("a@example.test", "Your file", text="Attached", attachments=upload)  # type: ignore[arg-type]
    return {"mode": receipt.mode}


async def starlette_upload(request: Request) -> Response:
    async with request.form() as form:
        return JSONResponse(await mail(form["file"]))


on_starlette = EmailMiddleware(Starlette(routes=[Route("/upload", starlette_upload, methods=["POST"])]))

fastapi_app = fastapi.FastAPI()


@fastapi_app.post("/upload")
async def fastapi_upload(file: fastapi.UploadFile) -> dict[str, str]:
    return await mail(file)


on_fastapi = EmailMiddleware(fastapi_app)


@post("/upload", status_code=200)
async def litestar_upload(
    data: Annotated[dict[str, UploadFile], Body(media_type=RequestEncodingType.MULTI_PART)],
) -> dict[str, str]:
    return await mail(data["file"])


on_litestar = EmailMiddleware(Litestar([litestar_upload], request_max_body_size=None))

quart_app = Quart(__name__)
quart_app.config["MAX_CONTENT_LENGTH"] = None
quart_app.asgi_app = EmailMiddleware(quart_app.asgi_app)  # type: ignore[method-assign]


@quart_app.post("/upload")
async def quart_upload() -> dict[str, str]:
    return await mail((await quart_request.files)["file"])
