from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import customers
import newsletter
import orders
from database import Base, engine
from fastapi import FastAPI
from openviper.core.email import Email


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)
for module in (customers, orders, newsletter):
    app.include_router(module.router)
Email().attach(app)
