"""JSON schemas in words: the type of a member, its limits, and a table of an object's members."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]
PREFIX = "#/components/schemas/"

_FORMATS = {"binary": "file", "date-time": "ISO 8601 time", "event-stream": "events"}
# Name of the lower limit, of the upper, what they count, and whether the value itself is allowed.
_RANGES = (
    ("minimum", "maximum", ""),
    ("minLength", "maxLength", " characters"),
    ("minItems", "maxItems", " of them"),
)


def type_of(schema: Schema) -> str:
    """Return the type in words: ``integer``, ``list of text``, a link to a schema's own table."""
    if "$ref" in schema:
        name = title(str(schema["$ref"]))
        return f"[{name}](#{name.lower()})"
    if "const" in schema:
        return written(schema["const"])
    if "enum" in schema:
        return ", ".join(written(value) for value in schema["enum"])
    options = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
    if options:
        return " or ".join(dict.fromkeys(type_of(option) for option in options))
    kind = schema.get("type")
    if kind == "array":
        return _array(schema)
    if kind == "object":
        values = schema.get("additionalProperties")
        return (
            f"object of {type_of(values)}" if isinstance(values, Mapping) and values else "object"
        )
    if kind == "string":
        return _FORMATS.get(str(schema.get("format")), "text")
    return str(kind or "anything")


def _array(schema: Schema) -> str:
    if "prefixItems" in schema:
        return f"{len(schema['prefixItems'])} of {type_of(schema['prefixItems'][0])}"
    return f"list of {type_of(schema.get('items', {}))}"


def limits_of(schema: Schema) -> str:
    """Return the limits of a value in words, none as an empty text."""
    found = list(_ranges(schema))
    for option in schema.get("anyOf", ()):
        found += _ranges(option)
    items = schema.get("items")
    if isinstance(items, Mapping) and (of_items := limits_of(items)):
        found.append(f"each {of_items}")
    return ", ".join(dict.fromkeys(found))


def _ranges(schema: Schema) -> Iterator[str]:
    for lower, upper, unit in _RANGES:
        if lower == "minItems" and "prefixItems" in schema:
            continue
        if lower in schema and upper in schema:
            yield f"{_plain(schema[lower])} to {_plain(schema[upper])}{unit}"
        elif lower in schema:
            yield f"at least {_plain(schema[lower])}{unit}"
        elif upper in schema:
            yield f"at most {_plain(schema[upper])}{unit}"
    if "exclusiveMinimum" in schema:
        yield f"above {_plain(schema['exclusiveMinimum'])}"
    if "exclusiveMaximum" in schema:
        yield f"below {_plain(schema['exclusiveMaximum'])}"
    if "pattern" in schema:
        yield f"matches `{schema['pattern'].removeprefix('^').removesuffix('$')}`"


def default_of(schema: Schema, *, required: bool) -> str:
    """Return the default as JSON, ``required``, or nothing where it is simply absent."""
    if required:
        return "required"
    default = schema.get("default")
    if default is None:
        return ""
    if isinstance(default, list):
        return ", ".join(written(value) for value in default)
    return written(default)


def member_table(schema: Schema, *, answer: bool = False) -> Iterator[str]:
    """Yield the lines of a table of an object's members; of an answer, without defaults."""
    required = set(schema.get("required", ()))
    yield "| member | type | |" if answer else "| member | type | default | |"
    yield "|---|---|---|" if answer else "|---|---|---|---|"
    for name, member in schema.get("properties", {}).items():
        about = sentence(member.get("description", ""), limits_of(member))
        default = "" if answer else f"{default_of(member, required=name in required)} | "
        yield f"| `{name}` | {cell(type_of(member))} | {default}{cell(about)} |".replace(
            "|  |", "| |"
        )


def sentence(description: str, limits: str) -> str:
    """Return what a description and the limits say together."""
    text = prose(description)
    if not limits:
        return text
    limits = limits[0].upper() + limits[1:] + "."
    return f"{text} {limits}" if text else limits


def prose(text: str) -> str:
    """Return text of a docstring as it stands on a page."""
    return " ".join(text.split()).replace("``", "`")


def title(reference: str) -> str:
    """Return the name of the schema that a reference leads to."""
    return reference.removeprefix(PREFIX)


def references(node: Any) -> Iterator[str]:
    """Yield the names of the schemas that a part of the document refers to, in its order."""
    if isinstance(node, Mapping):
        if "$ref" in node:
            yield title(str(node["$ref"]))
        for value in node.values():
            yield from references(value)
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for value in node:
            yield from references(value)


def written(value: object) -> str:
    """Return a value as JSON writes it; numbers plain, everything else as code."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return _plain(value)
    return f"`{value}`"


def cell(text: str) -> str:
    """Return text as it stands in a table's cell."""
    return text.replace("|", "\\|").replace("\n", " ")


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:g}"
    return str(value)
