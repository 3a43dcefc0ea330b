"""A report as a list of sections, written as one page of HTML, as Markdown and as LaTeX tables."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from callbacks.experiments.tables import Table, escape_markdown, to_latex, to_markdown

PAGE_SCALE = 0.62  # pixels on the page to a pixel of a figure
TEX_HEAD = r"""% Tables of a report. In the preamble: \usepackage{booktabs}
% Then: \input{report.tex}, or copy single tables.
"""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Chart:
    """A figure.

    Args:
        png: The picture.
        alt: What it shows, for those who cannot see it.
        caption: Beneath it.
    """

    png: bytes
    alt: str
    caption: str = ""
    kind: ClassVar[str] = "chart"

    @property
    def source(self) -> str:
        """The picture as an address that holds it whole."""
        return png_address(self.png)

    @property
    def width(self) -> int:
        """Width on the page in pixels, so that the letters of all figures look alike."""
        return round(PAGE_SCALE * int.from_bytes(self.png[16:20]))  # a PNG states its width there


@dataclass(frozen=True)
class Item:
    """An item with its picture.

    Args:
        title: Its id and where it comes from.
        score: How well it was ranked.
        truth: Names of its labels.
        predicted: Names and probabilities, most probable first.
        png: The picture, where there is one.
    """

    title: str
    score: str
    truth: Sequence[str]
    predicted: Sequence[tuple[str, float]]
    png: bytes | None = None

    @property
    def source(self) -> str:
        """The picture as an address that holds it whole; empty without a picture."""
        return png_address(self.png) if self.png else ""


@dataclass(frozen=True)
class Gallery:
    """Items with pictures on the page, the same items as a table in Markdown and LaTeX."""

    items: Sequence[Item]
    table: Table
    kind: ClassVar[str] = "gallery"


@dataclass(frozen=True)
class Section:
    """A part of a report; one without parts is left out."""

    title: str
    parts: Sequence[Text | Table | Chart | Gallery]


@dataclass(frozen=True)
class Document:
    """A report.

    Args:
        title: Its heading.
        facts: Short numbers under the heading: (number, what).
        missing: What is not there and how to get it.
        sections: Its parts.
        footer: Lines at the end: versions, commit, where it was made from.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    missing: Sequence[str]
    sections: Sequence[Section]
    footer: Sequence[str] = field(default_factory=list)


def html_page(document: Document) -> str:
    """The report as one page that needs no network and runs no script."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("callbacks"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    sections = [section for section in document.sections if section.parts]
    return environment.get_template("experiment.html").render(document=document, sections=sections)


def markdown_page(document: Document) -> str:
    """The report's text and tables in Markdown; its figures stand in the page."""
    lines = [f"# {escape_markdown(document.title)}", ""]
    lines += [" \N{MIDDLE DOT} ".join(escape_markdown(f"{amount} {what}") for amount, what in document.facts), ""]
    if document.missing:
        lines += ["**Missing**", "", *(f"- {escape_markdown(text)}" for text in document.missing), ""]
    for section in document.sections:
        if section.parts:
            lines += [f"## {escape_markdown(section.title)}", ""]
        for part in section.parts:
            if isinstance(part, Text):
                lines += [escape_markdown(part.text), ""]
            elif isinstance(part, Chart):
                lines += [f"*Figure in report.html: {escape_markdown(part.alt)}.*", ""]
            else:
                lines += [to_markdown(part.table if isinstance(part, Gallery) else part)]
    lines += ["---", "", *(f"{escape_markdown(line)}  " for line in document.footer), ""]
    return "\n".join(lines)


def latex_tables(document: Document) -> str:
    """All tables of the report in LaTeX, in the page's order, a comment before each section."""
    lines = [TEX_HEAD]
    lines += [f"% Missing: {_comment(text)}" for text in document.missing]
    for section in document.sections:
        tables = [part.table if isinstance(part, Gallery) else part for part in section.parts]
        tables = [part for part in tables if isinstance(part, Table)]
        if tables:
            lines += ["", f"% {_comment(section.title)}", *map(to_latex, tables)]
    return "\n".join(lines)


def png_address(png: bytes) -> str:
    """A PNG as an address that holds the whole picture."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _comment(text: str) -> str:
    return " ".join(text.split())
