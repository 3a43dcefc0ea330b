"""Prints a table of measurements and keeps it in RESULTS.md, with the machine that it was measured on."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("RESULTS.md")
HEADER = "# Measurements\n\nEach section is written by the command that it names, on the machine that it names.\n"


def machine() -> str:
    """The processor, its cores, the threads in use, and the GPU where there is one."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        found = re.search(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.MULTILINE)
        model = found.group(1) if found else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    import torch

    parts = [f"{model}, {cores} cores, {torch.get_num_threads()} threads used"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return "; ".join(parts)


def print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as a table.

    Args:
        title: What was measured.
        rows: Column name -> value, the same columns in each row.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for number, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(*(_text(value) for value in row.values()))
    Console().print(table)


def write_section(title: str, command: str, rows: Sequence[Mapping[str, Any]], path: Path = RESULTS) -> None:
    """Print rows as a table, and write or replace their section of the results file.

    Args:
        title: Name of the section; the same title replaces it.
        command: What to type to measure again.
        rows: Column name -> value, the same columns in each row.
        path: Markdown file.
    """
    print_table(title, rows)
    names = list(rows[0])
    lines = [f"## {title}", "", f"`{command}` on {machine()}", ""]
    lines += [_line(names), _line(["---", *["---:"] * (len(names) - 1)])]
    lines += [_line([_text(value).replace("|", "\\|") for value in row.values()]) for row in rows]
    section = "\n".join(lines) + "\n"
    sections = re.split(r"^(?=## )", path.read_text(), flags=re.MULTILINE) if path.is_file() else [HEADER]
    names_of = [text.partition("\n")[0] for text in sections]
    if lines[0] in names_of:
        sections[names_of.index(lines[0])] = section
    else:
        sections.append(section)
    path.write_text("\n".join(text.rstrip("\n") + "\n" for text in sections))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
