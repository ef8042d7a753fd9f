"""Parts of a comparison as one: python recipes/merge_comparisons.py --parts A/compare.json B/compare.json --output DIR

The parts come from compare_agents.py with the same settings, other seeds or variants, and an output_dir each. Writes
compare.json, compare.md and compare.png of all their runs.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from hf_dynvit.report import read
from hf_dynvit.report.comparison import merge, publish
from hf_dynvit.settings import parse_settings


@dataclass
class MergeArguments:
    """What to merge."""

    parts: list[str] = field(default_factory=list, metadata={"help": "files that compare_agents.py wrote"})
    output: str | None = field(default=None, metadata={"help": "folder to write to, without a comparison in it"})

    def __post_init__(self):
        if not self.parts or not self.output:
            raise ValueError(f"give --parts FILE ... and --output FOLDER, got {self.parts} and {self.output!r}")
        if (Path(self.output) / "compare.json").exists():
            raise ValueError(f"{self.output} already holds a comparison: give another output")


def main(argv=None):
    """Merge; returns the content of the new compare.json."""
    (args,) = parse_settings(sys.argv[1:] if argv is None else argv, MergeArguments)
    merged = merge({part: read(part) for part in args.parts})
    Path(args.output).mkdir(parents=True, exist_ok=True)
    return publish(merged, args.output)


if __name__ == "__main__":
    main()
