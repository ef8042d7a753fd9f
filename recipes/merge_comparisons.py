"""Parts of a comparison as one: python recipes/merge_comparisons.py --parts A/compare.json B/compare.json --output DIR

The parts come from compare_agents.py, with the same settings, other seeds or variants, and an output_dir each; or they are the
leaderboard.json of parts of a leaderboard, by the same recipe. Writes the file, the table and the plot of all of them.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from hf_dynvit.report import Leaderboard, leaderboard, read, write
from hf_dynvit.report.comparison import merge, publish
from hf_dynvit.report.tuning import recipe
from hf_dynvit.settings import parse_settings


PLACES = ("output_dir", "run_name", "logging_dir")  # of the recipe's settings, which parts have of their own


@dataclass
class MergeArguments:
    """What to merge."""

    parts: list[str] = field(default_factory=list, metadata={"help": "compare.json or leaderboard.json of each part"})
    output: str | None = field(default=None, metadata={"help": "folder to write to, without a comparison in it"})

    def __post_init__(self):
        if not self.parts or not self.output:
            raise ValueError(f"give --parts FILE ... and --output FOLDER, got {self.parts} and {self.output!r}")
        if any((Path(self.output) / name).exists() for name in ("compare.json", "leaderboard.json")):
            raise ValueError(f"{self.output} already holds a comparison: give another output")


def main(argv=None):
    """Merge; returns the content of the new file."""
    (args,) = parse_settings(sys.argv[1:] if argv is None else argv, MergeArguments)
    parts, folder = {part: read(part) for part in args.parts}, Path(args.output)
    boards = all(isinstance(part, Leaderboard) for part in parts.values())
    merged = merge_boards(parts) if boards else merge(parts)
    folder.mkdir(parents=True, exist_ok=True)
    if not boards:
        return publish(merged, folder)
    content = write(folder / "leaderboard.json", merged)
    leaderboard.publish([merged], folder)
    return content


def merge_boards(parts):
    """One `Leaderboard` of parts, path -> `Leaderboard`; what several hold counts once, as `joined` says.

    Raises:
        ValueError: parts of other checkpoints or images, or whose tuned cells are by another recipe.
    """
    tuned = {path: _recipe(part) for path, part in parts.items() if any(cell.tuned for cell in part.cells)}
    for path, taught in tuned.items():
        first = next(iter(tuned))
        changed = sorted(key for key in taught if key in tuned[first] and taught[key] != tuned[first][key])
        if changed:
            raise ValueError(f"{path} was tuned by another recipe than {first}: {changed} differ")
    if len(merged := leaderboard.joined(list(parts.values()))) > 1:
        raise ValueError(f"{list(parts)} are of {len(merged)} checkpoints or sets of images: merge those of one alone")
    return merged[0]


def _recipe(part):
    return {name: value for name, value in part.settings["training"].items() if name not in PLACES} | recipe(part)


if __name__ == "__main__":
    main()
