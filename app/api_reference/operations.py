"""One operation of the OpenAPI document as a section: what it takes, what it answers."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from app.api_reference.schemas import cell, default_of, limits_of, member_table, sentence, type_of
from app.errors import MEDIA_TYPE as PROBLEM

_METHODS = ("get", "post", "put", "patch", "delete")


def anchor(heading: str) -> str:
    """Return the anchor of a heading, as a forge makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@dataclass(frozen=True)
class Operation:
    """A method of a path, and what the document says about it."""

    method: str
    path: str
    spec: dict[str, Any]

    @property
    def title(self) -> str:
        """The heading, such as ``GET /jobs/{job_id}``."""
        return f"{self.method.upper()} {self.path}"

    @property
    def anchor(self) -> str:
        """The heading's anchor, as a forge makes it."""
        return anchor(self.title)

    @property
    def slug(self) -> str:
        """The name of the file with this operation's prose."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")

    @property
    def description(self) -> str:
        """What the operation does."""
        text = str(self.spec.get("description") or self.spec.get("summary") or "")
        return text.strip().replace("``", "`")

    @property
    def first_sentence(self) -> str:
        """The beginning of the description."""
        first = " ".join(self.description.split("\n\n")[0].split())
        return re.split(r"(?<=[.:])\s", first)[0].rstrip(".:")

    @property
    def successes(self) -> dict[str, dict[str, Any]]:
        """The answers that are no problems, by status."""
        return {
            status: answer for status, answer in self.spec["responses"].items() if int(status) < 400
        }

    @property
    def problems(self) -> list[str]:
        """The statuses of the problems that it may answer with."""
        return sorted(set(self.spec["responses"]) - set(self.successes))


def operations(document: dict[str, Any]) -> list[Operation]:
    """Return every operation, in the document's order."""
    return [
        Operation(method, path, item[method])
        for path, item in document["paths"].items()
        for method in _METHODS
        if method in item
    ]


def section(operation: Operation) -> Iterator[str]:
    """Yield the lines that follow from the document alone."""
    yield f"## {operation.title}"
    yield ""
    yield operation.description
    yield ""
    if parameters := operation.spec.get("parameters"):
        yield "| parameter | in | type | default | |"
        yield "|---|---|---|---|---|"
        yield from (_parameter(one) for one in parameters)
        yield ""
    body = operation.spec.get("requestBody")
    for media_type, content in (body or {}).get("content", {}).items():
        yield from _body(media_type, content["schema"])
        yield ""
    yield "| answer | body | |"
    yield "|---|---|---|"
    yield from (_answer(status, one) for status, one in operation.successes.items())
    yield f"| {', '.join(operation.problems)} | [problem](#errors) | |"


def _parameter(parameter: dict[str, Any]) -> str:
    schema = parameter.get("schema", {})
    about = sentence(
        parameter.get("description") or schema.get("description", ""), limits_of(schema)
    )
    default = default_of(schema, required=bool(parameter.get("required")))
    cells = (f"`{parameter['name']}`", parameter["in"], cell(type_of(schema)), default, cell(about))
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def _body(media_type: str, schema: dict[str, Any]) -> Iterator[str]:
    if "properties" not in schema:
        yield f"Body, `{media_type}`: {type_of(schema)}."
        return
    yield f"Body, `{media_type}`:"
    yield ""
    yield from member_table(schema)


def _answer(status: str, answer: dict[str, Any]) -> str:
    bodies = [
        f"{type_of(content.get('schema', {}))} (`{media_type}`)"
        for media_type, content in answer.get("content", {}).items()
        if media_type != PROBLEM
    ]
    about = answer.get("description", "")
    if about in ("Successful Response", HTTPStatus(int(status)).phrase):
        about = ""
    headers = [
        f"`{name}`" + (f": {header['description'].rstrip('.')}" if "description" in header else "")
        for name, header in answer.get("headers", {}).items()
    ]
    if headers:
        about = f"{about} Headers: {'; '.join(headers)}.".strip()
    return f"| {status} | {cell(', '.join(bodies))} | {cell(about)} |".replace("|  |", "| |")
