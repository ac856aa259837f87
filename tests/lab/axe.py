"""Checks of a page's accessibility with axe-core, an npm package that runs in the page."""

import subprocess
from pathlib import Path
from typing import Any, Final

from playwright.async_api import Page

from agent.cli.demo.images import MissingDependencyError, build_directory_once, cache_directory
from tests.lab.machine import require

_VERSION: Final = "4.14.1"
_SECONDS: Final = 120.0
_RULES: Final = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")


def axe_source() -> str:
    """Return the source of axe-core. The first call downloads it. Blocks.

    Raises:
        MissingDependencyError: npm is missing, or it cannot fetch the package.
    """
    home = build_directory_once(cache_directory() / f"axe-core-{_VERSION}", _fetch)
    return (home / "node_modules" / "axe-core" / "axe.min.js").read_text()


def _fetch(scratch: Path) -> None:
    require("npm", "npm")
    (scratch / "built").mkdir()
    options = ["--no-audit", "--no-fund", "--no-package-lock", "--no-save", "--ignore-scripts"]
    command = ["npm", "install", *options, f"axe-core@{_VERSION}"]
    done = subprocess.run(command, check=False, cwd=scratch / "built", capture_output=True, text=True, timeout=_SECONDS)
    if done.returncode:
        raise MissingDependencyError(f"npm cannot fetch axe-core: {done.stderr[-500:]}")


async def violations(page: Page, source: str) -> list[str]:
    """Return a text for each element that violates a rule. The page's context has to bypass the content security policy.

    Args:
        page: the page.
        source: the source of axe-core.
    """
    if not await page.evaluate("Boolean(window.axe)"):
        await page.evaluate(source)
    options = {"runOnly": list(_RULES), "resultTypes": ["violations"]}
    result: dict[str, Any] = await page.evaluate("options => axe.run(document, options)", options)
    return [
        f"{rule['id']}: {' '.join(map(str, node['target']))}: {node.get('failureSummary', '')}"
        for rule in result["violations"]
        for node in rule["nodes"]
    ]
