"""Where the tests find the project's files."""

from pathlib import Path


TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
RECIPES = ROOT / "recipes"
FROZEN = TESTS / "frozen"
