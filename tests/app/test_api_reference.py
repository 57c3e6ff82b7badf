"""How the interface's page is made from the OpenAPI document and prose."""

from pathlib import Path
from typing import Any

import pytest

from app.api_reference.page import SUFFIX, Stale, render
from app.api_reference.schemas import default_of, limits_of, member_table, type_of
from app.errors import reasons
from app.main import create_app
from app.openapi import describe
from app.problem_types import JOB_ENDS, PROBLEM_TYPES, status_by_code
from store.errors import error_kinds

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_interface_and_the_prose_make() -> None:
    page = render(describe(create_app()), ROOT / "docs/api")
    assert (ROOT / "docs/API.md").read_text() == page, "docs/API.md is stale: run make docs"


def test_every_member_of_a_request_has_a_description() -> None:
    document = describe(create_app())
    schemas = document["components"]["schemas"]
    for name in ("CompressSpec", "InputShape", "BwnhParameters", "FineTuning", "PredictionRequest"):
        for member, schema in schemas[name]["properties"].items():
            # A method's name says itself what it is.
            assert "description" in schema or "const" in schema, f"{name}.{member}"


def test_every_parameter_has_a_description() -> None:
    for path, item in describe(create_app())["paths"].items():
        for method, operation in item.items():
            for parameter in operation.get("parameters", ()):
                described = {**parameter.get("schema", {}), **parameter}
                assert described.get("description"), f"{method} {path}: {parameter['name']}"


def test_every_type_of_problem_is_explained_and_there() -> None:
    assert set(PROBLEM_TYPES) == reasons() | {kind.code for kind in error_kinds()} - {"error"}
    statuses = status_by_code()
    assert {code for code, status in statuses.items() if status is None} == JOB_ENDS
    assert statuses["not-found"] == 404
    assert statuses["idempotency-key-reused"] == 422


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "string"}, "text"),
        ({"type": "string", "format": "binary"}, "file"),
        ({"type": "array", "items": {"type": "number"}}, "list of number"),
        ({"type": "array", "prefixItems": [{"type": "number"}] * 2}, "2 of number"),
        ({"$ref": "#/components/schemas/Job"}, "[Job](#job)"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "integer or null"),
        ({"enum": ["a", 1]}, "`a`, 1"),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, "object of integer"),
        ({"type": "object", "additionalProperties": True}, "object"),
        ({}, "anything"),
    ],
)
def test_a_type_is_written_in_words(schema: dict[str, Any], words: str) -> None:
    assert type_of(schema) == words


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"minimum": 1, "maximum": 200}, "1 to 200"),
        ({"exclusiveMinimum": 0, "maximum": 1.5}, "at most 1.5, above 0"),
        ({"minLength": 1}, "at least 1 characters"),
        ({"pattern": "^a|b$"}, "matches `a|b`"),
        ({"anyOf": [{"minimum": 0.0, "maximum": 1.0}, {"type": "null"}]}, "0 to 1"),
        ({"maxItems": 3, "items": {"minimum": 1}}, "at most 3 of them, each at least 1"),
        ({}, ""),
    ],
)
def test_limits_are_written_in_words(schema: dict[str, Any], words: str) -> None:
    assert limits_of(schema) == words


@pytest.mark.parametrize(
    ("schema", "required", "written"),
    [
        ({"default": True}, False, "true"),
        ({"default": [0.5, 1.0]}, False, "0.5, 1"),
        ({"default": "mse"}, False, "`mse`"),
        ({"default": None}, False, ""),
        ({}, True, "required"),
        ({}, False, ""),
    ],
)
def test_a_default_is_written_as_json(schema: dict[str, Any], required: bool, written: str) -> None:
    assert default_of(schema, required=required) == written


def test_a_table_of_members_escapes_what_would_end_a_cell() -> None:
    schema = {
        "required": ["a"],
        "properties": {"a": {"type": "integer", "description": "One |w| over\nanother."}},
    }
    assert list(member_table(schema))[2:] == [
        "| `a` | integer | required | One \\|w\\| over another. |"
    ]
    assert list(member_table(schema, answer=True))[2:] == [
        "| `a` | integer | One \\|w\\| over another. |"
    ]


DOCUMENT: dict[str, Any] = {
    "paths": {
        "/things/{id}": {
            "get": {
                "description": "Return a ``thing``. It may be old.\n\nOr new.",
                "parameters": [
                    {
                        "name": "id",
                        "in": "path",
                        "required": True,
                        "schema": {"type": "string"},
                        "description": "Which.",
                    }
                ],
                "responses": {
                    "200": {
                        "description": "Successful Response",
                        "content": {
                            "application/json": {"schema": {"$ref": "#/components/schemas/Thing"}}
                        },
                        "headers": {"ETag": {"description": "Its digest."}},
                    },
                    "404": {"description": "None."},
                },
            }
        }
    },
    "components": {
        "schemas": {
            "Thing": {"properties": {"part": {"$ref": "#/components/schemas/Part"}}},
            "Part": {"description": "A part.", "properties": {"size": {"type": "integer"}}},
            "Unused": {"properties": {}},
        }
    },
}


def test_a_section_has_everything_that_the_document_says(tmp_path: Path) -> None:
    (tmp_path / f"head{SUFFIX}").write_text("# Things\n\n<!-- operations -->\n")
    (tmp_path / f"get-things-id{SUFFIX}").write_text("Prose.\n\n### Parts\n\n<!-- members Part -->")
    page = render(DOCUMENT, tmp_path)
    assert "| [`GET /things/{id}`](#get-thingsid) | 200 | Return a `thing` |" in page
    assert "## GET /things/{id}\n\nReturn a `thing`. It may be old.\n\nOr new.\n" in page
    assert "| `id` | path | text | required | Which. |" in page
    assert "| 200 | [Thing](#thing) (`application/json`) | Headers: `ETag`: Its digest. |" in page
    assert "| 404 | [problem](#errors) | |" in page
    # The prose shows the parts: they are not shown again, and what refers to them leads there.
    assert page.count("| `size` | integer |") == 1
    assert "| `part` | [Part](#parts) | |" in page
    assert "Unused" not in page


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("get-nothing", "Prose of what is gone."),
        ("head", "<!-- members Nothing -->"),
        ("head", "<!-- figures -->"),
    ],
)
def test_prose_about_what_is_not_there_is_told(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / f"{name}{SUFFIX}").write_text(text)
    with pytest.raises(Stale):
        render(DOCUMENT, tmp_path)
