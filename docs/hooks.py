"""Hooks that make a site of the pages; mkdocs.yml names this file.

The site has the folders of the repository, so links lead to the same places as on GitHub. It holds
README.md and everything that links reach from there: pages, pictures, the notebook as a page, and
other files in the colours of their syntax.
"""

import json
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, find_lexer_class_for_filename

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\]\(([^)#:\s]+)")
SCRIPT = '<script async src="https://cdn.jsdelivr.net/npm/{}"></script>'
DRAWN_BY = {"arithmatex": "mathjax@4/tex-svg.js", "mermaid": "mermaid@11/dist/mermaid.min.js"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of docs/ by README.md and everything that links reach from there."""
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    names = ["README.md", *map(str, config.extra_css)]
    for name in names:  # It grows on the way.
        file = site_file(name, config)
        files.append(file)
        if file.is_documentation_page():
            for link in LINK.findall(file.content_string):
                target = posixpath.normpath(posixpath.join(posixpath.dirname(name), link))
                if target not in names and (ROOT / target).is_file():
                    names.append(target)
    return files


def site_file(name: str, config: MkDocsConfig) -> File:
    """Return what a file of the repository becomes in the site."""
    path = ROOT / name
    if path.suffix in (".md", ".css", ".png", ".jpg"):
        return File(name, str(ROOT), config.site_dir, config.use_directory_urls)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        return File.generated(config, name.replace(".ipynb", ".md"), content=notebook_page(text))
    lexer = find_lexer_class_for_filename(name) or TextLexer
    page = highlight(text, lexer(), HtmlFormatter(full=True, title=name))
    file = File.generated(config, name, content=page)
    file.dest_uri = f"{name}.html"
    return file


def notebook_page(notebook: str) -> str:
    """Return the cells of a notebook and what they printed and drew, as Markdown."""
    parts = []
    for cell in json.loads(notebook)["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        for output in cell.get("outputs", []):
            if output["output_type"] == "stream":
                parts.append(f"```text\n{''.join(output['text'])}```")
            else:
                picture = output["data"]["image/png"].replace("\n", "")
                parts.append(f"![drawn by this code](data:image/png;base64,{picture})")
    return "\n\n".join(parts)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Let links to notebooks lead to their pages."""
    return markdown.replace(".ipynb)", ".md)")


def on_page_content(text: str, **_: object) -> str:
    """Load the scripts that draw the formulas and figures of a page."""
    scripts = (SCRIPT.format(name) for part, name in DRAWN_BY.items() if f'class="{part}"' in text)
    return text + "".join(scripts)
