"""How Sphinx makes the site: from the Markdown as it is, and from the docstrings.

`make docs` runs it with the repository's root as the source directory, so that README.md,
ARCHITECTURE.md and deploy/README.md are pages too, and their links are checked. Every page must
read well in the repository itself; what only the site needs is added here.
"""

from __future__ import annotations

import re
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound
from sphinx.addnodes import pending_xref

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import bot_ratelimit  # noqa: E402 - found by the path above

project = "bot_ratelimit"
version = release = bot_ratelimit.__version__
author = "The bot_ratelimit contributors"
copyright = author  # noqa: A001 - the name that Sphinx wants

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
root_doc = "README"
include_patterns = [
    "*.md",
    "docs/*.md",
    "docs/ru/*.md",
    "docs/project/*.md",
    "docs/site/reference/*.rst",
    "deploy/README.md",
]
templates_path = ["templates"]

# -- the pages ---------------------------------------------------------------------------------

# The order of the sidebar. What is not listed, or not there, does no harm: see `_sidebar`.
SIDEBAR = {
    "Start": ["docs/start", "docs/migration"],
    "Use": [
        *("docs/limits", "docs/refused", "docs/counted", "docs/paying", "docs/bans"),
        *("docs/outgoing", "docs/recipes"),
    ],
    "Operate": [
        *("docs/operate", "docs/admin-api", "docs/monitoring", "docs/storages", "deploy/README"),
        "docs/troubleshooting",
    ],
    "Understand": ["docs/algorithms", "ARCHITECTURE", "docs/project/*"],
    "Reference": [
        f"docs/site/reference/{name}"
        for name in (
            "incoming",
            "limiter",
            "values",
            "storage",
            "outgoing",
            "observing",
            "admin",
            "settings",
            "errors",
            "testing",
        )
    ],
    "На русском": [
        *("README.ru", "docs/ru/start", "docs/ru/migration", "docs/ru/limits", "docs/ru/refused"),
        *("docs/ru/counted", "docs/ru/paying", "docs/ru/bans", "docs/ru/outgoing"),
        *("docs/ru/recipes", "docs/ru/*"),
    ],
    "Project": ["CHANGELOG", "CONTRIBUTING", "SECURITY", "*"],
}

myst_heading_anchors = 4
myst_enable_extensions = ["attrs_inline"]
suppress_warnings = ["myst.header"]  # a page may begin with a picture

# -- the reference -----------------------------------------------------------------------------

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 78
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_use_rtype = False
default_role = "reference_or_code"

# -- the look ----------------------------------------------------------------------------------

html_theme = "furo"
html_title = f"bot_ratelimit {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_additional_pages = {"index": "index.html"}
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {"footer_icons": []}


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.add_role("reference_or_code", _reference_or_code)
    app.connect("source-read", _add_sidebar)
    app.connect("source-read", _say_language)
    app.connect("doctree-read", _mark_long_code)
    app.connect("html-page-context", _say_russian)
    app.connect("autodoc-skip-member", _skip_fields)
    app.connect("autodoc-process-docstring", _describe_settings, priority=400)
    app.connect("autodoc-process-signature", _plain_signature)


def _add_sidebar(app: Sphinx, page: str, source: list[str]) -> None:
    """The table of contents, as the end of the first page."""
    if page == root_doc:
        source[0] += _sidebar(sorted(app.env.found_docs - {root_doc}))


def _sidebar(pages: list[str]) -> str:
    """One list of pages for each caption, with every page that there is in one of them."""
    text = ""
    left = dict.fromkeys(pages)
    for caption, names in SIDEBAR.items():
        found = [page for name in names for page in pages if Path(page).match(name)]
        listed = [page for page in dict.fromkeys(found) if page in left]
        for page in listed:
            del left[page]
        if listed:
            entries = "\n".join(f"/{page}" for page in listed)
            text += f"\n\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{entries}\n```\n"
    return text


def _say_language(app: Sphinx, page: str, source: list[str]) -> None:
    """A block that does not say its language, or one without colours, is text, not Python."""
    if app.env.doc2path(page).suffix == ".md":
        block = re.compile(r"^( *```)([^\n]*)\n(.*?^\1)$", re.MULTILINE | re.DOTALL)
        source[0] = block.sub(lambda it: f"{it[1]}{_language(it[2])}\n{it[3]}", source[0])


def _language(name: str) -> str:
    if name.startswith("{"):  # a directive
        return name
    try:
        return get_lexer_by_name(name).aliases[0]
    except ClassNotFound:
        return "text"


def _mark_long_code(app: Sphinx, page: nodes.document) -> None:
    """Code in a table stays on one line, unless a column would become too wide."""
    for cell in page.findall(nodes.entry):
        for code in cell.findall(nodes.literal):
            if len(code.astext()) > 30:
                code["classes"].append("long")


def _say_russian(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """Browsers and screen readers are told which pages are in Russian."""
    if page == "README.ru" or page.startswith("docs/ru/"):
        context["language"] = "ru"


def _skip_fields(
    app: Sphinx, what: str, name: str, found: Any, skip: bool, options: Any
) -> bool | None:
    """Fields of named tuples are described in the class's docstring already."""
    return True if type(found).__name__ == "_tuplegetter" else None


def _describe_settings(
    app: Sphinx, what: str, name: str, found: Any, options: Any, lines: list[str]
) -> None:
    """Each variable with its description, before napoleon reads the docstring."""
    if found is bot_ratelimit.Settings:
        fields = found.model_fields.items()
        told = (f"    {field}: {info.description}." for field, info in fields)
        lines += ["", "Attributes:", *told, ""]


def _plain_signature(
    app: Sphinx, what: str, name: str, found: Any, options: Any, arguments: str | None, returns: str
) -> tuple[str, str] | None:
    """None for an Enum, which nobody calls; `"bot"` where it reads `DefaultPrefix("bot")`."""
    if isinstance(found, type) and issubclass(found, Enum):
        return "", ""
    if not arguments:
        return None
    return re.sub(r"\bDefault\w+\((.*?)\)", r"\1", arguments), returns


def _reference_or_code(
    role: str, raw: str, text: str, line: int, inliner: Any, *_: Any
) -> tuple[list[nodes.Node], list[nodes.Node]]:
    """What single backticks mean in docstrings: code, with a link if it is a name of ours."""
    text = text.replace("\x00", "\\")
    code = nodes.literal(raw, text, classes=["py"])
    if not re.fullmatch(r"[A-Z]\w+|\w+(\.\w+)+", text):
        return [code], []
    env = inliner.document.settings.env
    link = pending_xref(
        raw,
        code,
        refdoc=env.current_document.docname,
        refdomain="py",
        reftype="obj",
        reftarget=text,
        refspecific=True,
        refexplicit=False,
        refwarn=False,
    )
    link["py:module"] = env.ref_context.get("py:module")
    link["py:class"] = env.ref_context.get("py:class")
    return [link], []
