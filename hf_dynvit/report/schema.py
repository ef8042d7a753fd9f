"""How results are written and read: a dataclass for each kind, checked once, so that all after it can rely on it.

Fields are the keys of the file, beside "schema" and "kind". Those that follow from others (`init=False`) are written for
readers of the file and computed anew when it is read.
"""

import dataclasses
from dataclasses import dataclass
from types import UnionType
from typing import ClassVar, get_args, get_origin, get_type_hints

from ..measure.dense import AHEAD, FROZEN, KERNELS, OURS, TUNED
from ..measure.files import read_json, write_json


SCHEMA = 2  # rises when files of before cannot be read any more
KINDS = {}  # name -> class, filled by the classes themselves


@dataclass(kw_only=True)
class Results:
    """Where and how numbers were measured (`provenance.measured_on`); a subclass with a `kind` is known to `read` by it."""

    kind: ClassVar[str]
    device: str
    instructions: str | None
    dtype: str
    threads: int
    seed: int | None
    versions: dict
    commit: str | None
    command: str

    def __init_subclass__(cls):
        if "kind" in cls.__dict__:
            KINDS[cls.kind] = cls

    def speeds(self):
        """The `Speed` objects in it, which are published only against all dense models."""
        return []

    def to_json(self):
        """The content of the file; equal to what `json.loads` gives back but for keys that are numbers."""
        return {"schema": SCHEMA, "kind": self.kind, **dataclasses.asdict(self)}


def write(path, results):
    """Write a file at once or not at all; returns its content."""
    content = results.to_json()
    write_json(path, content)
    return content


def read(path, published=False):
    """The results in a JSON file, as an object of their kind.

    Args:
        published: whether its speed is to be published, which takes all dense models.

    Raises:
        ValueError: a damaged file, an unknown kind, another schema, a field that is missing, unknown or of another type, or
            a speed against too few dense models; the error names file and field.
    """
    return parse(read_json(path), path, published)


def parse(content, where, published=False):
    """The results in the content of a JSON file; as `read`, errors name `where`."""
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind not in KINDS:
        raise ValueError(f"{where} was written by no recipe and not by the benchmark: its kind is {kind!r}")
    schema = content.get("schema")
    if schema != SCHEMA:
        raise ValueError(f"{where} was written by another version (schema {schema}, not {SCHEMA}): run it again")
    fields = {name: value for name, value in content.items() if name not in ("schema", "kind")}
    results = fill(KINDS[kind], fields, where)
    if published:
        check_published(results.speeds(), where)
    return results


def fill(kind, content, where):
    """A dataclass from the content of JSON; ValueError names what does not fit."""
    known, hints = {entry.name: entry for entry in dataclasses.fields(kind)}, get_type_hints(kind)
    missing = [name for name, entry in known.items() if entry.init and name not in content and _needed(entry)]
    unknown = [name for name in content if name not in known]
    if missing or unknown:
        words = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(unknown)}"] * bool(unknown)
        raise ValueError(f"{where} {' and '.join(words)}: it does not hold what {kind.__name__} is")
    given = {name: value for name, value in content.items() if known[name].init}
    return kind(**{name: _checked(hints[name], value, f"{where}: {name}") for name, value in given.items()})


def _needed(entry):
    return entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING


def _checked(hint, value, where):
    """The value as the type hint wants it, dataclasses filled."""
    for option in get_args(hint) if isinstance(hint, UnionType) else (hint,):
        kind, inner = get_origin(option) or option, get_args(option)
        if dataclasses.is_dataclass(kind) and isinstance(value, dict):
            return fill(kind, value, where)
        if kind is list and inner and isinstance(value, list):
            return [_checked(inner[0], entry, f"{where}[{index}]") for index, entry in enumerate(value)]
        if kind is dict and inner and isinstance(value, dict):
            return {name: _checked(inner[1], entry, f"{where}.{name}") for name, entry in value.items()}
        if isinstance(value, (float, int) if kind is float else kind):
            return value
    raise ValueError(f"{where} must be {getattr(hint, '__name__', hint)}, got {value!r}")


def check_published(speeds, source):
    """Refuse `Speed` objects that were not measured against all of the dense ways; ValueError names the source."""
    for speed in speeds:
        timed = set(speed.dense_ms)
        missing = [name for name in (*KERNELS, OURS) if name not in timed]
        missing += [] if timed & {AHEAD, FROZEN, TUNED} else [AHEAD]
        if missing:
            raise ValueError(
                f"the speed in {source} is against {sorted(timed)} alone and lacks {missing}: "
                "measure anew, without --no-compile"
            )
