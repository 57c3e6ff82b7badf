"""What the documentation lists is what there is: settings, options, links."""

import re
from pathlib import Path

import pytest
import typer.main
from pydantic.fields import FieldInfo

from app.settings import AppSettings
from client.cli import app as command_line
from store.settings import StoreSettings
from store.specs import METHODS
from worker.settings import WorkerSettings

ROOT = Path(__file__).parents[2]
OPERATIONS = (ROOT / "docs/OPERATIONS.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def section(title: str) -> str:
    """Return what stands below a heading of OPERATIONS.md, up to the next of its level."""
    _, _, rest = OPERATIONS.partition(f"\n## {title}\n")
    assert rest, f"docs/OPERATIONS.md has no section {title}"
    return rest.partition("\n## ")[0]


def setting_row(name: str, field: FieldInfo) -> str:
    """Return the line of the table that describes a setting."""
    default = "all cores" if field.default_factory else f"`{field.default}`"
    if field.default in (None, ""):
        default = ""
    return f"| `BITPRESS_{name.upper()}` | {default} | {field.description} |"


def test_the_tables_of_settings_are_those_of_the_code() -> None:
    fields = {
        **StoreSettings.model_fields,
        **AppSettings.model_fields,
        **WorkerSettings.model_fields,
    }
    expected = {setting_row(name, field) for name, field in fields.items()}
    tables, _, of_the_runtime = section("Settings").partition("The CPU runtime,")
    documented = {line for line in tables.splitlines() if "BITPRESS_" in line}
    assert documented == expected
    # Read where no settings are, and so by every process that runs a network.
    sources = "".join(path.read_text() for path in sorted(ROOT.glob("models/**/*.py")))
    named = set(re.findall(r"^\| `(BITPRESS_[A-Z_]+)`", of_the_runtime, re.MULTILINE))
    assert named >= set(re.findall(r"BITPRESS_[A-Z_]+", sources))


@pytest.mark.parametrize("settings", [AppSettings, WorkerSettings])
def test_app_and_worker_share_no_setting_but_the_stores(settings: type[StoreSettings]) -> None:
    own = set(settings.model_fields) - set(StoreSettings.model_fields)
    other = WorkerSettings if settings is AppSettings else AppSettings
    assert own.isdisjoint(other.model_fields)


def test_only_bwnh_has_parameters_of_its_own() -> None:
    shared = set.intersection(*(set(one.model_fields) for one in METHODS.values()))
    assert shared == {"name", "recalibrate_batch_norm", "mirror_images"}
    for name, method in METHODS.items():
        assert name == "bwnh" or set(method.model_fields) == shared
        assert method.model_fields["mirror_images"].default is (name == "bwnh")


def test_every_method_is_in_the_interfaces_table() -> None:
    _, _, rest = (ROOT / "docs/API.md").read_text().partition("\n### Methods\n")
    table = rest.partition("\n\nAll but")[0]
    assert set(re.findall(r"^\| `([a-z_]+)` \|", table, re.MULTILINE)) == set(METHODS)


def commands() -> dict[str, set[str]]:
    """Return the options of every command of the command line."""
    root = typer.main.get_command(command_line)
    return {
        name: {
            option
            for parameter in command.params
            if parameter.param_type_name == "option"
            for option in parameter.opts
        }
        - {"--help"}
        for name, command in root.commands.items()  # type: ignore[attr-defined]
    }


def test_every_command_and_option_is_documented_and_there() -> None:
    text = section("The command line")
    # Each command's table stands behind the paragraph that begins with the command.
    parts = re.split(r"^`bitpress (\w+)", text, flags=re.MULTILINE)
    tables = dict(zip(parts[1::2], parts[2::2], strict=True))
    documented = {
        name: set(re.findall(r"^\| `(--[a-z-]+)`", table, re.MULTILINE))
        for name, table in tables.items()
    }
    found = commands()
    assert found["up"] == found["serve"] == documented.pop("up")
    assert found["worker"] == {"--data-dir"}
    # Another name for another option, told in that one's row.
    assert "--watch" in tables["compress"]
    found["compress"].remove("--watch")
    assert {name: found[name] for name in set(found) - {"up", "serve", "worker"}} == documented


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as a forge makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    for link in links:
        if link.startswith(("http:", "https:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_pages_that_must_be_there_are_there() -> None:
    assert {"README.md", "CHANGELOG.md", "API.md", "FORMAT.md", "OPERATIONS.md", "RESULTS.md"} <= {
        page.name for page in PAGES
    }
    assert "Apache License" in (ROOT / "LICENSE").read_text()
