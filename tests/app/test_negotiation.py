"""Which form of an answer an Accept header gets."""

import pytest

from app.negotiation import preferred

JSON, HTML = "application/json", "text/html"
FIREFOX = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
CHROMIUM = (
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,"
    "*/*;q=0.8,application/signed-exchange;v=b3;q=0.7"
)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        (FIREFOX, HTML),
        (CHROMIUM, HTML),
        ("application/json", JSON),
        ("text/html", HTML),
        ("TEXT/HTML", HTML),
        ("text/*", HTML),
        ("application/*", JSON),
        # Of equals, what is offered first.
        ("text/html, application/json", JSON),
        ("text/html;q=0.5, application/json;q=0.5", JSON),
        ("text/html;q=0.501, application/json;q=0.5", HTML),
        ("text/html; q=0.2, application/json; Q=0.9", JSON),
        ("text/html;q=1.000, application/json;q=0.999", HTML),
        # The most specific range counts, whatever the order.
        ("*/*;q=1, application/json;q=0.1", HTML),
        ("application/json;q=0.1, */*", HTML),
        ("text/*;q=0.9, text/html;q=0.1, application/json;q=0.5", JSON),
        ("text/html;q=0, */*", JSON),
        ("application/json;q=0, */*;q=0.1", HTML),
        # Nothing that there is.
        ("image/png", None),
        ("text/plain, image/*", None),
        ("text/html;q=0", None),
        ("*/*;q=0", None),
        ("text/html;q=0.000, application/json;q=0.0", None),
        # Other parameters are not looked at, and may hold separators in quotes.
        ("text/html;charset=utf-8", HTML),
        ('text/html;x="a, application/json;q=1";q=0.4', HTML),
        ('text/html;x="\\"", application/json;q=0.4', HTML),
        # What is no range, or has no quality, is passed over.
        ("html", JSON),
        ("text/html/x, ;q=1, /, text/", JSON),
        ("text/html;q=2", JSON),
        ("text/html;q=0.1234", JSON),
        ("text/html;q=, text/html;q=nan", JSON),
        ("garbage, text/html", HTML),
        (", ,text/html,", HTML),
    ],
)
def test_the_header_gets_what_it_prefers(accept: str | None, expected: str | None) -> None:
    assert preferred(accept, (JSON, HTML)) == expected


def test_without_a_wish_the_first_offer_is_taken() -> None:
    assert preferred("*/*", (HTML, JSON)) == preferred(None, (HTML, JSON)) == HTML


def test_a_long_header_is_read_in_proportionate_time() -> None:
    assert preferred(";" * 60_000, (JSON, HTML)) == JSON
    assert preferred('"' * 60_001, (JSON, HTML)) == JSON
    assert preferred('"\\' * 30_000, (JSON, HTML)) == JSON
