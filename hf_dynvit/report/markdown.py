"""Tables in Markdown by pandas, each with the distinct commands that its numbers came from, numbered, below it."""

import re
import shlex
from pathlib import Path, PurePosixPath

from pandas import DataFrame, isna
from tabulate import DataRow, TableFormat

from .names import short


ABSENT = "–"
ROW = DataRow("| ", " | ", " |")


def _rule(widths, aligns):
    return "| " + " | ".join("---" for _ in widths) + " |"


# No padding to the widest cell: commands and sentences stand in cells.
COMPACT = TableFormat(None, _rule, None, None, headerrow=ROW, datarow=ROW, padding=0, with_header_hide=None)


def rows(columns, items):
    """A dict for each item.

    Args:
        columns: heading -> function of what an item holds. items: tuples.
    """
    return [{heading: write(*item) for heading, write in columns.items()} for item in items]


def table(rows):
    """Dicts, heading -> cell, as a Markdown table; a cell that is None or not there is "–"."""
    cells = DataFrame(rows, dtype=object).map(_cell)
    cells.columns = [_cell(heading) for heading in cells.columns]
    return cells.to_markdown(index=False, tablefmt=COMPACT, stralign=None, numalign=None, disable_numparse=True)


def _cell(value):
    return ABSENT if isna(value) else str(value).replace("|", "\\|")


def numbered(rows):
    """Rows whose "command" is a command line or a list of them -> a table that refers to them, and their list."""
    commands = Commands()
    rows = [{**row, "command": commands.refer(row["command"])} for row in rows]
    return [table(rows), commands.listing()]


class Commands:
    """Distinct command lines, numbered as they come."""

    def __init__(self):
        self.numbers = {}

    def refer(self, lines):
        """One line or several -> "[1], [3]"."""
        lines = [lines] if isinstance(lines, str) else lines
        found = dict.fromkeys(self.numbers.setdefault(command(line), len(self.numbers) + 1) for line in lines)
        return ", ".join(f"[{number}]" for number in found)

    def listing(self):
        """A Markdown list of them all."""
        return "\n".join(f"{number}. `{line}`" for line, number in self.numbers.items())


def command(line):
    """The command line with the folders of this machine cut to their last names."""
    return shlex.join(["=".join(short(part) for part in word.split("=", 1)) for word in shlex.split(line)])


def without_folders(line):
    """The command line with the last name alone of each path, for what others will read; ids of the Hub stay as they are."""
    return shlex.join(["=".join(_last_name(part) for part in word.split("=")) for word in shlex.split(line)])


def _last_name(part):
    is_id = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", part) and not Path(part).exists()
    return part if "/" not in part or is_id else PurePosixPath(part).name
