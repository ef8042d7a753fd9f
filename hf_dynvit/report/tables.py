"""Tables of results in Markdown, each with the distinct commands that its numbers came from, numbered, below it."""

import shlex
from pathlib import PurePosixPath


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


def numbered(rows):
    """Rows whose "command" is a command line or a list of them -> a table that refers to them, and their list."""
    commands = Commands()
    rows = [{**row, "command": commands.refer(row["command"])} for row in rows]
    return [table(rows), commands.listing()]


def table(rows):
    """dicts with the same keys -> a Markdown table."""
    cells = [list(rows[0])] + [["---"] * len(rows[0])] + [[str(value) for value in row.values()] for row in rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)


def command(line):
    """The command line with the folders of this machine cut to their last names."""
    return shlex.join(["=".join(short(part) for part in word.split("=", 1)) for word in shlex.split(line)])


def short(path):
    """An absolute or upward path by its last two names; everything else as it is."""
    if not path.startswith(("/", "../")):
        return path
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
    return "/".join(parts[-2:])
