"""A picture of the viewer's page of one group, for the README. Needs Chromium.

PYTHONPATH=. .venv/bin/python tests/benchmarks/viewer_picture.py RUN configs/results/viewer.png [QUERY], where QUERY is
what stands behind "groups?" in the page's address; the first group of the list is taken.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.support.browser import open_browser
from tests.support.viewer import served


def main(run: str, out: str, query: str = "mixed=true&measured=true&order=moved") -> None:
    """Write ``out``."""
    with tempfile.TemporaryDirectory() as profile, served(Path(run)) as url, open_browser(Path(profile)) as browser:
        browser.call("Emulation.setScrollbarsHidden", hidden=True)
        browser.call("Emulation.setDeviceMetricsOverride", width=1200, height=1000, deviceScaleFactor=1, mobile=False)
        browser.open(f"{url}#/./groups?{query}")
        browser.click("tbody a")
        browser.wait("[0, 1, 2, 3].every(n => document.querySelector(`#response-${n} .token[title]`))")
        browser.screenshot(Path(out), 1200, 1000)


main(*sys.argv[1:])
