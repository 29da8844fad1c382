"""The site builds without warnings, documents every public name, and loads nothing from the network."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="the site needs the extra `docs`")

ROOT = Path(__file__).parents[1]
PACKAGES = ("objectives", "online", "data", "models", "modules", "callbacks", "metrics")


def test_every_public_name_is_documented_and_pages_load_nothing_from_a_network(tmp_path: Path) -> None:
    """In one test, so that the site is built once however tests are spread over processes."""
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    build = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert build.returncode == 0, build.stdout + build.stderr
    missing = []
    for package in PACKAGES:
        page = (site / "api" / package / "index.html").read_text("utf-8")
        headings = re.findall(r'<h\d id="lit_align\.[\w.]*?(\w+)"', page)
        missing += [
            f"{package}.{name}" for name in import_module(f"lit_align.{package}").__all__ if name not in headings
        ]
    assert missing == []
    loaded = r'<(?:script|img|iframe|source)[^>]+src="(?:https?:)?//[^"]+|<link[^>]+href="(?:https?:)?//[^"]+'
    pages = [page.read_text("utf-8") for page in site.rglob("*.html")]
    assert len(pages) > 20
    assert [request for page in pages for request in re.findall(loaded, page)] == []
    styles = "".join(page.read_text("utf-8") for page in site.rglob("*.css"))
    assert re.findall(r"url\([\"']?(?:https?:)?//[^)]*", styles) == []
