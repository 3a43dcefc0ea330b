"""One description of a table, written as Markdown and as LaTeX; the page's template writes it as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
    "\N{MINUS SIGN}": "$-$",
    "\N{EN DASH}": "--",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{DOWNWARDS ARROW}": r"$\downarrow$",
    "\N{RIGHTWARDS ARROW}": r"$\rightarrow$",
    "\N{GREATER-THAN OR EQUAL TO}": r"$\geq$",
    "\N{GREEK SMALL LETTER RHO}": r"$\rho$",
    "\N{DAGGER}": r"\textdagger{}",
    "\N{HORIZONTAL ELLIPSIS}": r"\ldots{}",
}
MARKDOWN = {sign: f"\\{sign}" for sign in "\\`*_|[]"} | {"<": "&lt;", ">": "&gt;", "\n": " "}
COLUMNS = {"l": "l", "r": "r", "p": r"p{0.3\textwidth}"}
NOTHING = "\N{EN DASH}"


@dataclass(frozen=True)
class Cell:
    """A place in a table.

    Args:
        text: What stands there.
        below: In small print under it, an interval.
        best: Whether it is the best of its kind and set in bold.
    """

    text: str
    below: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        name: Anchor in the page and label in LaTeX; letters, digits and hyphens.
        title: Above the table.
        head: Heads of the columns.
        rows: Rows of as many cells; a plain text is a cell with nothing special.
        align: A letter a column: ``l``, ``r``, or ``p`` for text that is broken into lines.
        notes: Sentences beneath.
        closing: How many of the last rows stand under a rule of their own (mean, floor).

    Raises:
        ValueError: Rows, heads and letters differ in number.
    """

    name: str
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    align: str
    notes: Sequence[str] = ()
    closing: int = 0
    kind: ClassVar[str] = "table"

    def __post_init__(self) -> None:
        widths = {len(self.head), len(self.align), *map(len, self.rows)}
        if len(widths) > 1:
            raise ValueError(f"Table {self.name}: rows, heads and alignment have {sorted(widths)} columns.")

    def cells(self) -> list[list[Cell]]:
        """All rows with every place a :class:`Cell`."""
        return [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in self.rows]


def escape_latex(text: str) -> str:
    r"""``text`` with every character that LaTeX would read as a command set as itself.

    >>> print(escape_latex("a_b & 50%"))
    a\_b \& 50\%
    """
    return text.translate(str.maketrans(LATEX))


def escape_markdown(text: str) -> str:
    r"""``text`` with the signs of Markdown set as themselves.

    >>> print(escape_markdown("val|map_*"))
    val\|map\_\*
    """
    return text.translate(str.maketrans(MARKDOWN))


def to_markdown(table: Table) -> str:
    r"""The table in Markdown (GitHub's form), its title in bold above and its notes beneath.

    Example:
        >>> print(to_markdown(Table("t", "Scores", ["", "mAP"], [["a", Cell("0.5", "[0.4, 0.6]", best=True)]], "lr")))
        **Scores**
        <BLANKLINE>
        |  | mAP |
        | :-- | --: |
        | a | **0.5** \[0.4, 0.6\] |
        <BLANKLINE>
    """
    lines = [f"**{escape_markdown(table.title)}**", "", _markdown_row([escape_markdown(name) for name in table.head])]
    lines.append(_markdown_row(["--:" if letter == "r" else ":--" for letter in table.align]))
    for row in table.cells():
        lines.append(_markdown_row([_markdown_cell(cell) for cell in row]))
    lines.append("")
    for note in table.notes:
        lines += [escape_markdown(note), ""]
    return "\n".join(lines)


def to_latex(table: Table) -> str:
    r"""The table as a LaTeX float with booktabs rules, its notes beneath it in small print.

    Example:
        >>> print(to_latex(Table("t", "50 %", ["", "mAP"], [["a_b", Cell("0.5", best=True)]], "lr")))
        \begin{table}[t]
        \centering
        \small
        \caption{50 \%}
        \label{tab:t}
        \begin{tabular}{@{}lr@{}}
        \toprule
         & mAP \\
        \midrule
        a\_b & \textbf{0.5} \\
        \bottomrule
        \end{tabular}
        \end{table}
        <BLANKLINE>
    """
    columns = "".join(COLUMNS[letter] for letter in table.align)
    many = len(table.head) > 8
    lines = [r"\begin{table}[t]", r"\centering", r"\footnotesize" if many else r"\small"]
    lines += [r"\setlength{\tabcolsep}{3pt}"] if many else []
    lines += [rf"\caption{{{escape_latex(table.title)}}}", rf"\label{{tab:{table.name}}}"]
    lines += [rf"\begin{{tabular}}{{@{{}}{columns}@{{}}}}", r"\toprule"]
    lines += [_latex_row([escape_latex(name) for name in table.head]), r"\midrule"]
    for place, row in enumerate(table.cells()):
        if table.closing and place == len(table.rows) - table.closing and place > 0:
            lines.append(r"\midrule")
        lines.append(_latex_row([_latex_cell(cell) for cell in row]))
    lines += [r"\bottomrule", r"\end{tabular}"]
    if table.notes:
        notes = " ".join(escape_latex(note) for note in table.notes)
        lines += ["", r"\smallskip", rf"\begin{{minipage}}{{\linewidth}}\footnotesize {notes}\end{{minipage}}"]
    return "\n".join([*lines, r"\end{table}", ""])


def number(value: float | None, digits: int = 4, signed: bool = False) -> str:
    """A number for people; a dash where there is none.

    >>> number(0.5), number(None), number(float("nan")), number(-0.25, 2, signed=True) == "\N{MINUS SIGN}0.25"
    ('0.5000', '–', '–', True)
    """
    if value is None or value != value:
        return NOTHING
    return f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "\N{MINUS SIGN}")


def span(values: Iterable[float]) -> str:
    """Whole numbers from the least to the largest.

    >>> span([41, 42, 41]), span([1200.0])
    ('41 to 42', '1,200')
    """
    numbers = sorted(int(value) for value in values)
    low, high = f"{numbers[0]:,}", f"{numbers[-1]:,}"
    return low if low == high else f"{low} to {high}"


def interval(low: float | None, high: float | None, digits: int = 4) -> str:
    """An interval in brackets; nothing where an end is unknown.

    >>> interval(0.25, 0.5, 2), interval(None, 0.5)
    ('[0.25, 0.50]', '')
    """
    known = None not in (low, high) and low == low and high == high
    return f"[{number(low, digits)}, {number(high, digits)}]" if known else ""


def _markdown_row(words: Sequence[str]) -> str:
    return f"| {' | '.join(words)} |"


def _markdown_cell(cell: Cell) -> str:
    text = escape_markdown(cell.text)
    return " ".join(filter(None, [f"**{text}**" if cell.best else text, escape_markdown(cell.below)]))


def _latex_row(words: Sequence[str]) -> str:
    return rf"{' & '.join(words)} \\"


def _latex_cell(cell: Cell) -> str:
    text = escape_latex(cell.text)
    if text.startswith("["):
        text = f"{{{text}}}"  # the end of the row above would take a bracket for its option
    text = rf"\textbf{{{text}}}" if cell.best else text
    return " ".join(filter(None, [text, rf"{{\scriptsize {escape_latex(cell.below)}}}" if cell.below else ""]))
