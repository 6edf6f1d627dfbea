"""The application: routes, the page, and errors in one form, behind the guard."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ..errors import ConsisIDError, one_line, shown
from ..util.cli import installed_version
from .documents import ERRORS
from .guard import Guard
from .refusals import Refusal, body, refusal_of
from .routes import Routes
from .service import Service

LOG = logging.getLogger("consisid.serve")


def create_app(service: Service) -> FastAPI:
    """An ASGI application, which closes the service when it ends."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            service.close()

    app = FastAPI(
        title="consisid-serve", version=installed_version(), lifespan=lifespan, docs_url=None, redoc_url=None,
        description="Videos of the person in a photo, with OpenAI's video API.",
        openapi_url="/openapi.json",
    )  # fmt: skip
    add_errors(app, service)
    app.include_router(Routes(service).router)
    add_own(app, service)
    if service.settings.page:
        from .page import add_page

        add_page(app, service)
    app.add_middleware(Guard, keys=service.keys, limits=service.settings.limits)
    return app


def add_own(app: FastAPI, service: Service) -> None:
    """What is about the server itself."""

    def health() -> Response:
        """Whether videos can be made."""
        well = service.healthy()
        return JSONResponse({"status": "ok" if well else "failing"}, 200 if well else 503)

    def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def model() -> dict[str, Any]:
        made = service.model
        return {
            "id": service.name, "object": "model", "created": 0, "owned_by": "consisid",
            "size": f"{made.width}x{made.height}", "num_frames": made.num_frames, "fps": made.fps,
            "loras": list(made.loras),
        }  # fmt: skip

    def models() -> dict[str, Any]:
        """The one model that is served."""
        return {"object": "list", "data": [model()]}

    def one_model(name: str) -> dict[str, Any]:
        """The model by its name."""
        if name != service.name:
            raise Refusal(404, "model_not_found", f"The model here is called {service.name}.", "model")
        return model()

    def nothing(rest: str) -> None:
        """What is not there is not the page's either."""
        raise HTTPException(404)

    app.get("/health", tags=["server"], responses={503: {"description": "No engine can make videos."}})(health)
    app.get("/metrics", tags=["server"])(metrics)
    app.get("/v1/models", tags=["server"])(models)
    app.get("/v1/models/{name}", tags=["server"], responses={404: ERRORS[404]})(one_model)
    app.api_route("/v1/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)(
        nothing
    )


def add_errors(app: FastAPI, service: Service) -> None:
    """Every error is a JSON object of OpenAI's form."""

    def answer(refusal: Refusal) -> JSONResponse:
        service.metrics.refused.labels(refusal.code).inc()
        return JSONResponse(refusal.body, refusal.status, refusal.headers)

    async def ours(request: Request, error: Exception) -> JSONResponse:
        return answer(refusal_of(error) if isinstance(error, ConsisIDError) else Refusal(500, "server_error", "?"))

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        first = error.errors()[0] if isinstance(error, RequestValidationError) else {"loc": (), "msg": str(error)}
        name = one_line(".".join(str(part) for part in first["loc"][1:]), 100)
        return answer(
            Refusal(400, "invalid_value", f"{name}: {first['msg']}, this is {shown(first.get('input'))}.", name)
        )

    async def http(request: Request, error: Exception) -> JSONResponse:
        status = error.status_code if isinstance(error, HTTPException) else 500
        words = {404: "There is nothing at this address.", 405: "This address does not take this method."}
        detail = words.get(status, getattr(error, "detail", None) or "The request failed.")
        headers = dict(getattr(error, "headers", None) or {})
        return JSONResponse(body(status, f"http_{status}", one_line(detail)), status, headers)

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        LOG.error("a request failed", exc_info=error)
        return JSONResponse(body(500, "server_error", "The server failed at this request; its log says where."), 500)

    app.add_exception_handler(ConsisIDError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unexpected)
