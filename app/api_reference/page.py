"""The page: its head, a section for each operation, and the tables of schemas.

Prose and examples are in files of their own, one for each operation. A line ``<!-- ... -->`` in
them stands for a table: ``operations``, ``problems``, ``members NAME`` of a schema.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from app.api_reference.operations import Operation, anchor, operations, section
from app.api_reference.schemas import cell, member_table, prose, references
from app.problem_types import PROBLEM_TYPES, status_by_code

SUFFIX = ".md.part"
HEAD = "head"
_MARK = re.compile(r"^<!-- (\w+)(?: (\w+))? -->$", re.MULTILINE)


class Stale(Exception):
    """Prose about something that the interface does not have."""


def render(document: dict[str, Any], folder: Path) -> str:
    """Return docs/API.md.

    Raises:
        Stale: for a file of prose without an operation, or a mark without a meaning.
    """
    texts = {
        path.name.removesuffix(SUFFIX): path.read_text(encoding="utf-8").strip()
        for path in sorted(folder.glob(f"*{SUFFIX}"))
    }
    found = operations(document)
    unknown = set(texts) - {HEAD, *(one.slug for one in found)}
    if unknown:
        raise Stale(f"no operation for {', '.join(sorted(unknown))}")
    parts = [_filled(texts.get(HEAD, ""), document)]
    for operation in found:
        text = _filled(texts.get(operation.slug, ""), document)
        parts += ["\n".join(section(operation)), *([text] if text else [])]
    shown = _shown(texts.values())
    parts.append("\n".join(_schemas(document, set(shown))))
    page = "\n\n".join(parts).strip() + "\n"
    for name, heading in shown.items():
        page = page.replace(f"](#{name.lower()})", f"](#{heading})")
    return page


def _shown(texts: Iterable[str]) -> dict[str, str]:
    """Return the schemas whose members stand in the prose, and the anchors of their headings."""
    found = {}
    for text in texts:
        heading = ""
        for line in text.splitlines():
            if line.startswith("#"):
                heading = anchor(line.lstrip("# "))
            elif (mark := _MARK.fullmatch(line)) and mark[1] == "members":
                found[mark[2]] = heading
    return found


def _filled(text: str, document: dict[str, Any]) -> str:
    def table(mark: re.Match[str]) -> str:
        kind, name = mark.groups()
        schemas = document["components"]["schemas"]
        if kind == "operations":
            return "\n".join(_operations(operations(document)))
        if kind == "problems":
            return "\n".join(_problems())
        if kind == "members" and name in schemas:
            return "\n".join(member_table(schemas[name]))
        raise Stale(f"nothing to put for {mark.group()}")

    return _MARK.sub(table, text)


def _operations(found: list[Operation]) -> Iterator[str]:
    yield "| request | answer | |"
    yield "|---|---|---|"
    for one in found:
        statuses = ", ".join(one.successes)
        yield f"| [`{one.title}`](#{one.anchor}) | {statuses} | {cell(one.first_sentence)} |"


def _problems() -> Iterator[str]:
    yield "| status | `type` after `urn:bitpress:problem:` | when | what to do |"
    yield "|---|---|---|---|"
    statuses = status_by_code()
    for code in sorted(statuses, key=lambda code: statuses[code] or 1000):
        kind = PROBLEM_TYPES[code]
        status = statuses[code] or "a job's"
        yield f"| {status} | `{code}` | {cell(kind.meaning)} | {cell(kind.remedy)} |"


def _schemas(document: dict[str, Any], shown: set[str]) -> Iterator[str]:
    """Yield the tables of all schemas that operations refer to, but for those ``shown`` already."""
    schemas = document["components"]["schemas"]
    asked = set(references([one.get("requestBody") for one in _specs(document)]))
    yield "## Schemas"
    yield ""
    yield "What requests and answers are made of. A member that is not known is to be ignored in an"
    yield "answer, and is refused in a request."
    for name in _in_order(document):
        if name in shown:
            continue
        schema = schemas[name]
        yield ""
        yield f"### {name}"
        yield ""
        if schema.get("description"):
            yield prose(str(schema["description"]))
            yield ""
        if "properties" in schema:
            yield from member_table(schema, answer=name not in _below(asked, schemas))
        elif "enum" in schema:
            yield ", ".join(f"`{value}`" for value in schema["enum"])


def _specs(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from (one.spec for one in operations(document))


def _in_order(document: dict[str, Any]) -> list[str]:
    """Return the schemas that can be reached from an operation, in the order of first use."""
    schemas = document["components"]["schemas"]
    order: dict[str, None] = {}
    waiting = list(references(list(_specs(document))))
    while waiting:
        name = waiting.pop(0)
        if name not in order:
            order[name] = None
            waiting = [*references(schemas[name]), *waiting]
    return list(order)


def _below(names: set[str], schemas: dict[str, Any]) -> set[str]:
    """Return the schemas named, and those that they are made of."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += references(schemas[name])
    return found
