"""What several middlewares read from a request's scope."""

from starlette.types import Scope


def headers_of(scope: Scope) -> dict[bytes, list[bytes]]:
    """All values of each header, by its name in lower case: a header given twice is seen to be."""
    found: dict[bytes, list[bytes]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name.lower(), []).append(value)
    return found


def route_path(scope: Scope) -> str:
    """The path below the application's mount point, decoded once, as routes see it."""
    path, root = scope["path"], scope.get("root_path", "").rstrip("/")
    return path.removeprefix(root) if root and path.startswith(root + "/") else path
