"""The REST endpoints in short, read from the OpenAPI document, so that the page cannot tell another story than the code."""

from dataclasses import dataclass
from functools import lru_cache

from drf_spectacular.generators import SchemaGenerator

METHODS = ("get", "post", "put", "patch", "delete")


@dataclass(frozen=True)
class Endpoint:
    method: str
    path: str
    summary: str


@lru_cache(maxsize=1)  # the code does not change while the process runs; making it takes most of a second
def endpoints() -> list[tuple[str, list[Endpoint]]]:
    """Resource → its calls, in the order of the paths."""
    paths = SchemaGenerator().get_schema(request=None, public=True)["paths"]
    groups: dict[str, list[Endpoint]] = {}
    for path, operations in sorted(paths.items()):
        parts = path.strip("/").split("/")
        resource = parts[2] if parts[:2] == ["api", "v1"] and len(parts) > 2 else parts[0] if parts[0] != "v1" else "openai"
        for method in METHODS:
            if operation := operations.get(method):
                said = operation.get("summary") or (operation.get("description") or "").strip().split("\n", 1)[0]
                groups.setdefault(resource, []).append(Endpoint(method.upper(), path, said[:160]))
    return list(groups.items())
