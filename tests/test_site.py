"""The site of the pages: it builds, and every link of it leads somewhere."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest

from tests.paths import ROOT

DRAWN = ("arithmatex", "mermaid")  # by scripts in the browser
REPOSITORY = "https://github.com/owner/name"


class Html(HTMLParser):
    """The links of a page, its anchors, and its text outside of scripts and code."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors, self.text, self.open = [], {""}, [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.links += [found[name] for name in ("href", "src") if found.get(name)]
        self.anchors.add(found.get("id"))
        if tag in ("script", "style", "pre", "code") or found.get("class") in DRAWN:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data):
        if not self.open:
            self.text.append(data)


@pytest.fixture(scope="module", params=["", REPOSITORY], ids=["local", "on GitHub"])
def site(request, tmp_path_factory):
    """Folder of the site, built without and with the addresses that GitHub's workflow knows."""
    folder = tmp_path_factory.mktemp("site")
    words = ("build", "--strict", "--config-file", "mkdocs.yml", "--site-dir", str(folder))
    built = subprocess.run(
        [sys.executable, "-m", "properdocs", *words],
        cwd=ROOT,
        env=os.environ | {"REPOSITORY_URL": request.param, "SITE_URL": request.param},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    home = Html(folder / "index.html")
    assert (REPOSITORY in home.links) == bool(request.param)
    return folder


@pytest.mark.slow
def test_every_link_of_the_site_leads_to_a_file_and_an_anchor(site):
    pages = {path: Html(path) for path in site.rglob("*.html") if path.name != "404.html"}
    checked = 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = path.parent / unquote(parts.path) if parts.path else path
            target = (target / "index.html" if target.is_dir() else target).resolve()
            assert target.is_file(), (path, link)
            if target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, (path, link)
            checked += 1
    assert checked > 1000


@pytest.mark.slow
def test_the_site_holds_every_page_with_its_formulas_and_figures(site):
    names = {page.stem for page in (ROOT / "docs").iterdir() if page.suffix in (".md", ".ipynb")}
    assert names == {page.parent.name for page in site.glob("docs/*/index.html")}
    method = (ROOT / "docs/method.md").read_text(encoding="utf-8")
    html = (site / "docs/method/index.html").read_text(encoding="utf-8")
    assert html.count('<div class="arithmatex">') == method.count("```math\n")
    for page in site.rglob("index.html"):
        text = "".join(Html(page).text)
        # What Markdown did not understand is left as it was written.
        assert not re.search(r"\\[a-z(\[]|\$|```|\]\(|^- |\|-\|", text, re.MULTILINE), page
    assert '<div class="mermaid">' in (site / "index.html").read_text(encoding="utf-8")
    assert (site / "docs/tour/index.html").read_text(encoding="utf-8").count("data:image/png") == 8


def test_the_site_has_the_order_of_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = re.findall(
        r"\[docs/\w+\.md\]\((docs/\w+\.md)\)", readme.split("## What to read next")[1]
    )
    nav = re.findall(r"- (docs/\w+\.md)", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    nav.remove("docs/tour.md")  # the notebook
    assert nav == [page for place, page in enumerate(table) if page not in table[:place]]
