"""The pages as a browser shows them, where there is Chromium: formulas are typeset, without a network."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SETTINGS = ("markdown_extensions", "extra_css", "extra_javascript")
"""Parts of `mkdocs.yml` that decide what becomes of a formula."""

PAGES = ("data.md", "theory.md")

OFFLINE = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=8000", "--host-resolver-rules=MAP * 0")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_formulas_are_typeset_without_a_network(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    # The text of pages alone: lists and the reference are made from the whole package, which takes a minute.
    config = (ROOT / "mkdocs.yml").read_text().replace("!relative $config_dir", str(ROOT))
    parts = re.findall(r"^\w+:.*\n(?:(?: .*)?\n)*", config, re.MULTILINE)
    kept = "".join(part for part in parts if part.startswith(SETTINGS))
    (tmp_path / "mkdocs.yml").write_text(f"site_name: x\ntheme: {{name: material, font: false}}\nplugins: []\n{kept}")
    for folder in ("javascripts", "stylesheets"):
        shutil.copytree(ROOT / "docs" / folder, tmp_path / "docs" / folder)
    for page in PAGES:
        shutil.copy(ROOT / "docs" / page, tmp_path / "docs" / page)
    build = [sys.executable, "-m", "mkdocs", "build", "-q", "--no-directory-urls"]
    built = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    for page in PAGES:
        html = (tmp_path / "site" / page).with_suffix(".html")
        command = [str(CHROMIUM), *OFFLINE, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", html.as_uri()]
        seen = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout
        formulas = html.read_text().count('class="arithmatex"')
        assert formulas > 0
        assert seen.count("<mjx-container") == formulas
        assert "<mjx-merror" not in seen
        text = re.sub(r"<(script|style|pre|code|mjx-container)\b.*?</\1>", "", seen, flags=re.DOTALL)
        assert re.findall(r"\\[(\[]|\$\$|\\[a-z]+\{", text) == []
