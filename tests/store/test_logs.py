"""Logs as one JSON object a line."""

import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from store.errors import InvalidDataset
from store.logs import JsonFormatter, log_context, send_logs, without_places


def line_of(record: logging.LogRecord, **fields: object) -> dict[str, Any]:
    line = JsonFormatter(fields).format(record)
    assert "\n" not in line
    told: dict[str, Any] = json.loads(line)
    return told


def failed(error: Exception) -> dict[str, Any]:
    try:
        raise error
    except Exception:
        record = logging.LogRecord("a.b", logging.ERROR, "", 1, "it %s", ("broke",), sys.exc_info())
    return line_of(record)


def test_of_an_exception_kind_and_place_are_told_but_not_its_message() -> None:
    told = failed(ZeroDivisionError("/secret/path"))
    assert set(told) == {"time", "level", "logger", "event", "error", "trace"}
    assert (told["level"], told["logger"], told["event"]) == ("error", "a.b", "it broke")
    assert told["time"].endswith("Z")
    assert told["error"] == "ZeroDivisionError"
    assert told["trace"][-1].rpartition(":")[0].endswith("test_logs:failed")


def test_what_lies_behind_an_exception_is_told_by_its_kind() -> None:
    error = ValueError("secret")
    error.__cause__ = KeyError("hidden")
    error.__cause__.__context__ = OSError("covered")
    told = failed(error)
    assert told["causes"] == ["KeyError", "OSError"]
    assert not any(word in json.dumps(told) for word in ("secret", "hidden", "covered"))


def test_a_fault_of_the_system_is_named() -> None:
    told = failed(OSError(28, "No space left on device", "/secret/path"))
    assert (told["error"], told["errno"]) == ("OSError", "ENOSPC")
    assert "secret" not in json.dumps(told)


def test_the_database_tells_why_it_cannot_be_reached_but_no_password() -> None:
    engine = sa.create_engine(
        "postgresql+psycopg://somebody:hunter2@127.0.0.1:1/none",
        connect_args={"connect_timeout": 1},
    )
    with pytest.raises(sa.exc.OperationalError) as caught:
        engine.connect()
    told = failed(caught.value)
    assert "refused" in told["fault"]
    assert "hunter2" not in json.dumps(told)


def test_what_came_as_extra_is_told_and_nothing_of_the_library() -> None:
    record = logging.makeLogRecord({"msg": "x", "job": "j", "steps": [1], "color_message": "red"})
    told = line_of(record)
    assert set(told) == {"time", "level", "logger", "event", "job", "steps"}
    assert (told["job"], told["steps"]) == ("j", [1])


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("cannot open /srv/bit press", "cannot open [path] press"),
        ("at '/srv/data/x.png', line 3", "at '[path]', line 3"),
        ("(/a) [/b/c.d]", "([path]) [[path]]"),
        ("url postgresql://me:hunter2@db.example:5432/x?y=z!", "url postgresql://[address]"),
        ("sqlite:////srv/bitpress.sqlite (schema: dbos)", "sqlite://[address] (schema: dbos)"),
        ("3/4 of application/json at 1/2", "3/4 of application/json at 1/2"),
    ],
)
def test_paths_and_addresses_are_taken_out(said: str, left: str) -> None:
    assert without_places(said) == left


def test_a_library_tells_no_path_and_bitpress_what_it_means_to() -> None:
    said = "ready at http://127.0.0.1:1"
    told = {
        name: line_of(logging.makeLogRecord({"name": name, "msg": said}))["event"]
        for name in ("dbos", "bitpress.app", "worker.pipeline")
    }
    assert told == {
        "dbos": "ready at http://[address]",
        "bitpress.app": said,
        "worker.pipeline": said,
    }


def test_of_a_problem_its_kind_is_told_and_not_its_words() -> None:
    problem = InvalidDataset("cat/private.png is damaged.", field="spec.dataset", remedy="Mend it.")
    told = line_of(logging.makeLogRecord({"msg": "x", "problem": problem.problem()}))
    assert told["problem"] == {
        "type": "urn:bitpress:problem:invalid-dataset",
        "title": "The dataset cannot be used",
        "field": "spec.dataset",
    }


def test_what_another_program_printed_loses_its_paths() -> None:
    told = line_of(logging.makeLogRecord({"msg": "x", "output": 'File "/srv/a.py", line 1'}))
    assert told["output"] == 'File "[path]", line 1'


def test_a_line_has_the_fields_of_its_process_and_of_its_context() -> None:
    record = logging.makeLogRecord({"msg": "x", "own": 3})
    with log_context(request_id="r"), log_context(job="inner"):
        told = line_of(record, job="outer", more=1)
        assert (told["request_id"], told["job"], told["more"], told["own"]) == ("r", "inner", 1, 3)
    assert "request_id" not in line_of(record)


def test_a_context_is_that_of_one_thread() -> None:
    seen: list[dict[str, Any]] = []
    record = logging.makeLogRecord({"msg": "x"})
    with log_context(job="here"):
        thread = threading.Thread(target=lambda: seen.append(line_of(record)))
        thread.start()
        thread.join()
    assert "job" not in seen[0]


@pytest.fixture
def sent() -> Iterator[io.StringIO]:
    """What is written by logs that this process sends; its loggers are as before afterwards."""
    names = ("", "dbos")
    before = [
        (logger, logger.handlers, logger.level, logger.propagate)
        for logger in map(logging.getLogger, names)
    ]
    show = warnings.showwarning
    yield io.StringIO()
    warnings.showwarning = show
    for logger, handlers, level, propagate in before:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_dbos_is_heard_when_it_warns_and_not_of_every_migration(sent: io.StringIO) -> None:
    send_logs(sent, "INFO", {"job": "j"})
    logging.getLogger("dbos").info("Applying migration 1")
    logging.getLogger("dbos").warning("Lost the connection")
    logging.getLogger("bitpress.app").info("listening")
    lines = [json.loads(line) for line in sent.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["Lost the connection", "listening"]
    assert {line["job"] for line in lines} == {"j"}


def test_a_warning_of_python_is_a_line_without_its_file(sent: io.StringIO) -> None:
    send_logs(sent, "INFO")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        # catch_warnings puts Python's own way of showing one back.
        send_logs(sent, "INFO")
        warnings.warn("beware of /srv/data", UserWarning, stacklevel=1)
    (line,) = [json.loads(line) for line in sent.getvalue().splitlines()]
    assert (line["event"], line["category"]) == ("beware of [path]", "UserWarning")
    assert "test_logs" not in sent.getvalue()
