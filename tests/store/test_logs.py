"""Logs as one JSON object a line."""

import json
import logging
import sys
from typing import Any

from store.logs import JsonFormatter


def failed(*, tracebacks: bool) -> dict[str, Any]:
    try:
        raise ZeroDivisionError("/secret/path")
    except ZeroDivisionError:
        record = logging.LogRecord("a.b", logging.ERROR, "", 1, "it %s", ("broke",), sys.exc_info())
    line = JsonFormatter(tracebacks=tracebacks).format(record)
    assert "\n" not in line
    told: dict[str, Any] = json.loads(line)
    assert (told["level"], told["logger"], told["event"]) == ("error", "a.b", "it broke")
    assert told["time"].endswith("Z")
    assert told["error"] == "ZeroDivisionError"
    return told


def test_of_an_exception_only_the_kind_is_told() -> None:
    assert set(failed(tracebacks=False)) == {"time", "level", "logger", "event", "error"}


def test_a_traceback_is_told_where_it_is_wanted() -> None:
    assert "/secret/path" in failed(tracebacks=True)["traceback"]


def test_what_came_as_extra_is_told_and_nothing_of_the_library() -> None:
    record = logging.makeLogRecord({"msg": "x", "job": "j", "steps": [1], "color_message": "red"})
    told = json.loads(JsonFormatter().format(record))
    assert set(told) == {"time", "level", "logger", "event", "job", "steps"}
    assert (told["job"], told["steps"]) == ("j", [1])
