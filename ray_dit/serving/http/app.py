"""The ASGI application over any mapping of names to backends: middlewares, routes, errors."""

from collections.abc import Mapping

from fastapi import FastAPI
from starlette.middleware import Middleware

from ray_dit import __version__
from ray_dit.config.serve import ApiConfig
from ray_dit.serving.backend import Backend
from ray_dit.serving.http.errors import add_error_handlers
from ray_dit.serving.http.keys import Keys
from ray_dit.serving.http.middleware.answer_errors import AnswerErrors
from ray_dit.serving.http.middleware.body import ReadBody
from ray_dit.serving.http.middleware.client_address import networks
from ray_dit.serving.http.middleware.edits import RefuseEdits
from ray_dit.serving.http.middleware.head import AnswerHead
from ray_dit.serving.http.middleware.headers import CheckHeaders
from ray_dit.serving.http.middleware.host import CheckHost
from ray_dit.serving.http.middleware.key import CheckKey
from ray_dit.serving.http.middleware.log import LogRequests
from ray_dit.serving.http.middleware.only_http import OnlyHttp
from ray_dit.serving.http.middleware.path import CheckPath
from ray_dit.serving.http.middleware.request_id import AnswerRequestId
from ray_dit.serving.http.middleware.security_headers import AddSecurityHeaders
from ray_dit.serving.http.openapi import describe
from ray_dit.serving.http.pages import add_pages
from ray_dit.serving.http.record import Observe
from ray_dit.serving.http.routes import Routes


def create_app(
    backends: Mapping[str, Backend],
    config: ApiConfig,
    *,
    own_request_id: bool = True,
    observe: Observe | None = None,
) -> FastAPI:
    """The application over these models, the first of them the default.

    ``own_request_id``: answer with X-Request-Id; off behind a proxy that does. ``observe`` gets every
    request. UserError for unreadable keys, ValueError for a wrong alias.
    """
    keys = Keys.load(config.keys_file)
    app = FastAPI(
        title="ray-dit",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=_middleware(config, keys, own_request_id, observe),
    )
    add_error_handlers(app)
    Routes(backends, config).add_to(app)
    add_pages(app)
    app.openapi = lambda: describe(app, config)
    return app


def _middleware(
    config: ApiConfig, keys: Keys, own_request_id: bool, observe: Observe | None
) -> list[Middleware]:
    """What a request passes on its way in, in this order, and its answer on the way out.

    The log comes first, so that it sees how everything ended; then what every answer carries, errors among
    them. The checks go from cheap to dear: a body is read only for those who may send one.
    """
    answers = [Middleware(AnswerRequestId)] if own_request_id else []
    open_paths = {"/health"} | ({"/ready"} if config.ready_without_key else set())
    return [
        Middleware(OnlyHttp),
        Middleware(LogRequests, observe=observe, trusted=networks(config.trusted_proxies)),
        *answers,
        Middleware(AddSecurityHeaders),
        Middleware(AnswerHead),
        Middleware(AnswerErrors),
        Middleware(CheckHeaders, most=config.limits.max_header_bytes),
        Middleware(CheckHost, allowed=config.allowed_hosts),
        Middleware(CheckKey, keys=keys, open_paths=open_paths),
        Middleware(CheckPath),
        Middleware(RefuseEdits, seconds=config.limits.body_seconds),
        Middleware(ReadBody, limits=config.limits),
    ]
