"""``python -m app.api_reference`` writes docs/API.md; ``--check`` only says if it is stale.

Run from the repository's root. The exit code of a check is 1 where the page is stale.
"""

import sys
from pathlib import Path

from app.api_reference.page import render
from app.main import create_app
from app.openapi import describe
from app.settings import AppSettings

PAGE = Path("docs/API.md")
PROSE = Path("docs/api")


def main(arguments: list[str]) -> int:
    """Write or check the page."""
    page = render(describe(create_app(AppSettings())), PROSE)
    if arguments == ["--check"]:
        fresh = PAGE.read_text(encoding="utf-8") == page
        if not fresh:
            sys.stderr.write(f"{PAGE} is stale: run make docs\n")
        return 0 if fresh else 1
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
