"""The page of a report: whole, readable by machines, and harmless whatever the names in it are."""

import copy
import re
import shutil
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from app import report_page
from store.errors import Unavailable
from worker.report import answer_figures, layers_by_loss

HOSTILE = (
    "<script>alert(1)</script>",
    "\"onmouseover='alert(1)' x=\"",
    "</title></style></svg><img src=x onerror=alert(1)>",
    "&lt;b&gt; {{ 7 * 7 }} {% raw %}",
    "right\u202eto left\u0000\u001b[31m\ud800",
    "-->]]><!--",
    "https://example.org/" + "a" * 200,
)
VOID = frozenset({"meta", "br"})


def report(classes: tuple[str, ...] = ("cat", "dog", "owl"), images: int = 300) -> dict[str, Any]:
    """Return a report as a job leaves it, its figures by the worker's own code."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, len(classes), images)
    logits = {
        form: (3 * np.eye(len(classes))[labels] + rng.normal(scale=spread, size=(1, 1)))
        + rng.normal(scale=spread, size=(images, len(classes)))
        for form, spread in (("full_precision", 1.0), ("calibrated", 1.6), ("packed", 1.6))
    }
    float_logits = {form: found.astype(np.float32) for form, found in logits.items()}
    layers = [
        {"name": "conv", "kind": "conv2d", "shape": [8, 3, 3, 3], "weights": 216, "binary": True}
        | {"losses": [0.4, 0.2, 0.1], "seconds": 1.25},
        {"name": "kept", "kind": "conv2d", "shape": [8, 8, 1, 1], "weights": 64, "binary": False}
        | {"losses": [], "seconds": 0.0},
        {"name": "fc", "kind": "linear", "shape": [3, 8], "weights": 24, "binary": True}
        | {"losses": [0.5, 0.3], "seconds": 0.5},
    ]
    return {
        "schema": 2,
        "job": "01a1f96a",
        "model": {"name": "small", "version": 3},
        "spec": {"name": "small", "architecture": "vgg9", "dataset": "animals", "seed": 0}
        | {"method": {"name": "bwnh", "sweeps": 20}},
        "accuracy": {"full_precision": 0.9, "calibrated": 0.85, "packed": 0.845},
        "test_images": images,
        "calibration": "200 of 1,000 training images",
        "layers": layers,
        "layers_by_loss": layers_by_loss(layers),
        "bytes": {"float": 19_000_000, "packed": 620_000},
        "compression_ratio": 30.645,
        **answer_figures(float_logits, labels, classes),
        "parity": {"top1_agreement": 1.0, "largest_logit_difference": 1e-6, "largest_logit": 9.0},
        "runtime": "cpu",
        "kernels": "avx512",
        "seed": 0,
        "digests": {"dataset": "sha256:" + "ab" * 32},
        "versions": {"torch": "2.13.0"},
        "stage_seconds": {"prepare": 1.5, "calibrate": 8.25},
        "created_at": "2026-11-20T14:45:24.407Z",
    }


def fine_tuned(epochs: int = 4) -> dict[str, Any]:
    accuracy = {"full_precision": 0.9, "calibrated": 0.85, "fine_tuned": 0.91, "packed": 0.91}
    course = [{"loss": 2 / (i + 1), "train_accuracy": 0.7 + 0.05 * i} for i in range(epochs)]
    return {**report(), "accuracy": accuracy, "fine_tuning": {"epochs": course}}


LATENCY = {"threads": 2, "batch": 1, "repeats": 150, "packed_ms": 0.5, "float_ms": 2.0} | {
    "speedup": 4.0
}


def gated(drop: float) -> dict[str, Any]:
    """Return the report of a job that may lose 0.02 and lost ``drop`` on validation images."""
    gate = {"max_accuracy_drop": 0.02, "images": 1200, "full_precision": 0.9, "packed": 0.9 - drop}
    gate |= {"drop": drop, "standard_error": 0.004, "passed": drop <= 0.02}
    content = {**report(), "schema": 3, "gate": gate, "latency": LATENCY}
    return content if gate["passed"] else {**content, "model": None}


class Page(HTMLParser):
    """The elements of a page, each with its attributes, its text and its ancestors' names."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[dict[str, Any]] = []
        self.elements: list[dict[str, Any]] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len(dict(attrs)), "an attribute given twice"
        within = [element["tag"] for element in self.open]
        element = {"tag": tag, "attributes": dict(attrs), "text": "", "within": within}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element["text"] += data

    def all(self, tag: str, within: str | None = None) -> list[dict[str, Any]]:
        return [
            element
            for element in self.elements
            if element["tag"] == tag and (within is None or within in element["within"])
        ]

    def text(self, tag: str) -> list[str]:
        return [" ".join(element["text"].split()) for element in self.all(tag)]


def page(content: dict[str, Any]) -> Page:
    return Page(report_page.render(content))


def drawings(html: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", html, re.DOTALL)


@pytest.mark.parametrize(
    "content", [report(), fine_tuned(), fine_tuned(1), gated(0.01), gated(0.05)]
)
def test_the_page_is_accessible(content: dict[str, Any]) -> None:
    shown = page(content)
    (root,) = shown.all("html")
    assert root["attributes"]["lang"] == "en"
    assert len(shown.all("main")) == len(shown.all("h1")) == 1
    identifiers = [
        element["attributes"]["id"] for element in shown.elements if "id" in element["attributes"]
    ]
    assert len(set(identifiers)) == len(identifiers)
    for section in shown.all("section"):
        assert section["attributes"]["aria-labelledby"] in identifiers
    assert len(shown.all("caption")) == len(shown.all("table")) >= 7
    assert all(shown.text("caption"))
    for heading in shown.all("th"):
        expected = "col" if "thead" in heading["within"] else "row"
        assert heading["attributes"]["scope"] == expected
    for drawing in shown.all("svg"):
        assert drawing["attributes"]["role"] == "img"
        assert drawing["attributes"]["aria-label"]


def test_every_row_of_a_table_is_as_wide_as_its_head() -> None:
    html = report_page.render(fine_tuned())
    for table in re.findall(r"<table.*?</table>", html, re.DOTALL):
        widths = {
            len(re.findall(r"<t[hd]\b", row))
            for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)
            if "colspan" not in row
        }
        assert len(widths) == 1


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing() -> None:
    shown = page(fine_tuned())
    tags = {element["tag"] for element in shown.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "form", "image", "use"}
    for element in shown.elements:
        for name in element["attributes"]:
            assert name not in {"src", "href", "style", "srcset", "xlink:href", "action"}
            assert not name.startswith("on")
    (style,) = shown.all("style")
    assert "url(" not in style["text"]
    assert "@import" not in style["text"]


def test_the_policy_allows_this_very_style_and_nothing_else() -> None:
    shown = page(report())
    (style,) = shown.all("style")
    digest = b64encode(sha256(style["text"].encode()).digest()).decode()
    policy = report_page.HEADERS["Content-Security-Policy"]
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives == {
        "default-src": "'none'",
        "style-src": f"'sha256-{digest}'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    (stated,) = [
        element["attributes"]["content"]
        for element in shown.all("meta")
        if element["attributes"].get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith(stated)


@pytest.mark.parametrize("content", [report(), fine_tuned(), report(HOSTILE)])
def test_every_plot_is_well_formed_xml_of_finite_numbers(content: dict[str, Any]) -> None:
    found = drawings(report_page.render(content))
    assert len(found) >= 6
    for text in found:
        root = ElementTree.fromstring(text)
        _, _, width, height = (float(number) for number in root.attrib["viewBox"].split())
        assert width > 0
        assert height > 0
        for mark in root:
            assert mark.tag in {"text", "rect", "circle", "polyline"}
            for name in {"x", "y", "cx", "cy", "r", "width", "height"} & set(mark.attrib):
                assert 0 <= float(mark.attrib[name]) <= max(width, height)
            for point in mark.attrib.get("points", "").split():
                assert all(0 <= float(number) <= 2000 for number in point.split(","))


def test_hostile_names_are_text_and_nothing_else() -> None:
    content = report(HOSTILE)
    content["model"]["name"] = content["job"] = content["calibration"] = HOSTILE[0]
    content["spec"] |= {"architecture": HOSTILE[1], "dataset": HOSTILE[2]}
    content["spec"]["method"]["name"] = HOSTILE[3]
    content["layers"][0] |= {"name": HOSTILE[2], "kind": HOSTILE[0]}
    content["created_at"] = content["runtime"] = content["kernels"] = HOSTILE[1]
    for member in ("digests", "versions"):
        content[member] = dict.fromkeys(HOSTILE, HOSTILE[0])
    content["stage_seconds"] = dict.fromkeys(HOSTILE, 1.0)
    content["accuracy"] |= dict.fromkeys(HOSTILE, 0.5)
    shown, harmless = page(content), page(report(tuple("abcdefg")))
    tags = {element["tag"] for element in shown.elements}
    assert tags <= {element["tag"] for element in harmless.elements}
    known = {name for element in harmless.elements for name in element["attributes"]}
    assert {name for element in shown.elements for name in element["attributes"]} <= known
    assert HOSTILE[0] in shown.text("h1")[0]
    names = shown.text("bdi")
    for name in (*HOSTILE[:4], *HOSTILE[5:]):
        assert name in names


def test_a_hostile_name_of_a_rejected_model_is_text() -> None:
    content = gated(0.05)
    content["spec"]["name"] = HOSTILE[0]
    shown = page(content)
    assert shown.text("h1") == [f"{HOSTILE[0]}, not published"]
    assert not shown.all("script")


def test_what_does_not_print_is_replaced() -> None:
    html = report_page.render(report(HOSTILE))
    html.encode()
    assert not set(html) & set("\u202e\u0000\u001b")
    assert "right\ufffdto left\ufffd\ufffd[31m\ufffd" in html


def test_the_figures_are_those_of_the_report() -> None:
    content = report()
    shown = page(content)
    cards = shown.text("dd")
    assert cards[0] == "90.00 % → 84.50 %"
    assert cards[1].startswith("\N{MINUS SIGN}5.50 points, ± ")
    assert cards[2:4] == ["30.6", "19.00 MB → 0.62 MB"]
    agreement = content["agreement"]
    assert cards[4] == f"{100 * agreement['top1']:.2f} %"
    rows = ["".join(row.split()) for row in shown.text("tr")]
    for one in content["classes"]:
        accuracy = "".join(f"{100 * share:.2f}%" for share in one["accuracy"].values())
        assert any(row.startswith(f"{one['name']}{one['images']}{accuracy}") for row in rows)
    cells = [element["text"] for element in shown.all("td", within="tbody")]
    for value in (value for row in content["confusion"]["matrix"] for value in row):
        assert (f"{value:+}".replace("-", "\N{MINUS SIGN}") if value else "0") in cells
    assert "200 of 1,000 training images" in report_page.render(content)


def test_a_rejected_model_is_said_to_be_one_first_of_all() -> None:
    shown = page(gated(0.05))
    assert shown.text("h1") == ["small, not published"]
    assert shown.text("title")[:1] == ["small, not published: report of compression"]
    (notice,) = [one for one in shown.all("p") if one["attributes"].get("role") == "alert"]
    assert notice is shown.all("p", within="main")[0]
    words = " ".join(notice["text"].split())
    assert words.startswith("Rejected by the accuracy gate. On 1,200 validation images")
    assert "85.00 % of the time and full precision 90.00 %" in words
    assert "5.00 points lost, where 2.00 are allowed" in words
    assert "max_accuracy_drop" in words


def test_the_gate_and_the_latency_are_shown() -> None:
    shown = page(gated(0.01))
    assert shown.text("h1") == ["small, version 3"]
    assert not any(one["attributes"].get("role") == "alert" for one in shown.elements)
    rows = shown.text("tr")
    assert "90.00 %89.00 %1.000.40 2.00passed" in rows
    cards = shown.text("dd")
    assert cards[cards.index("4.0") + 1] == "2 ms → 0.5 ms, 2 threads"
    assert any("medians of 150 runs or more" in row for row in rows)
    ungated = page(report())
    assert "The accuracy gate" not in ungated.text("h3")
    assert "Times faster, one image" not in ungated.text("dt")


def test_a_latency_of_a_busy_machine_claims_nothing() -> None:
    spreads = {"packed_spread": 0.02, "float_spread": 0.9, "speedup": None}
    shown = page({**gated(0.01), "latency": LATENCY | spreads})
    cards = shown.text("dd")
    assert cards[cards.index("not known") + 1] == "2 ms → 0.5 ms, 2 threads"
    (row,) = (row for row in shown.text("tr") if "lower quartiles of 150 runs or more" in row)
    assert "the machine was busy" in row


def test_shades_tell_worse_from_better() -> None:
    content = report(("a", "b"))
    content["confusion"] |= {"matrix": [[-8, 8], [1, -1]], "grown": [], "shrunk": []}
    heat = [
        (element["text"], element["attributes"]["class"].split())
        for element in page(content).all("td")
        if "class" in element["attributes"] and "words" not in element["attributes"]["class"]
    ]
    assert [shade[0] for _, shade in heat] == ["worse-4", "worse-4", "worse-1", "worse-1"]
    content["confusion"] |= {"matrix": [[5, -5], [0, 0]]}
    shades = re.findall(r'<td class="([a-z]+)', report_page.render(content))
    assert [shade for shade in shades if shade != "words"] == ["better", "better", "same", "same"]


def test_a_thousand_classes_make_a_page_of_bounded_size() -> None:
    html = report_page.render(report(tuple(f"n{i:08}" for i in range(1000)), images=5000))
    assert len(html) < 500_000
    assert 'class="heat"' not in html
    assert "40 of 1,000 classes" in html
    assert all(f"n{i:08}" in html for i in range(1000))


def test_a_report_of_the_first_schema_is_shown_without_what_it_lacks() -> None:
    content = report()
    for member in ("classes", "confusion", "agreement", "confidence", "layers_by_loss"):
        del content[member]
    shown = page({**content, "schema": 1})
    assert shown.text("h2") == ["Accuracy", "Layers", "Where it comes from"]


def test_a_method_without_losses_leaves_no_empty_plot() -> None:
    content = report()
    for layer in content["layers"]:
        layer["losses"] = []
    shown = page(content)
    assert "The layers that lose most" not in shown.text("h3")


def without(member: str) -> dict[str, Any]:
    content = report()
    del content[member]
    return content


def changed(*path: Any, to: Any) -> dict[str, Any]:
    content: Any = copy.deepcopy(report())
    inner = content
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = to
    assert isinstance(content, dict)
    return content


@pytest.mark.parametrize(
    "content",
    [
        {},
        without("accuracy"),
        without("layers"),
        changed("accuracy", to={"packed": 0.5}),
        changed("accuracy", "packed", to=float("nan")),
        changed("accuracy", "packed", to=1.5),
        changed("layers", 0, "losses", to=[float("inf")]),
        changed("confusion", "matrix", to=[[1, 2], [3]]),
        changed("confusion", "matrix", to=[]),
        changed("bytes", to=None),
        changed("spec", "method", to="bwnh"),
        changed("latency", to={"packed_ms": 0}),
        changed("gate", to={"passed": True}),
    ],
    ids=repr,
)
def test_a_report_that_is_none_is_a_problem(content: dict[str, Any]) -> None:
    with pytest.raises(Unavailable) as caught:
        report_page.render(content)
    assert caught.value.remedy


# In a browser


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Opens a page in a headless browser; returns what the browser made of it, and its console."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    folder = tmp_path_factory.mktemp("browser")

    def open_page(html: str) -> tuple[str, str]:
        (folder / "page.html").write_text(html)
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        command += ["--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}"]
        ran = subprocess.run(
            [*command, (folder / "page.html").as_uri()],
            capture_output=True,
            text=True,
            timeout=600,
            check=True,
        )
        return ran.stdout, "\n".join(line for line in ran.stderr.splitlines() if "CONSOLE" in line)

    yield open_page
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.browser
@pytest.mark.slow
def test_a_browser_applies_the_style_and_runs_nothing(opened: Any) -> None:
    html = report_page.render(report(HOSTILE))
    made, console = opened(html)
    assert console == ""
    assert "<svg" in made
    # The browser's own word that the policy holds: a changed style, and a script, are refused.
    tampered = html.replace("</style>", "p { color: red }</style>")
    tampered = tampered.replace("</main>", "<script>document.title = 'run'</script></main>")
    made, console = opened(tampered)
    assert "<title>run" not in made
    assert console.count("violates the following Content Security Policy directive") == 2
