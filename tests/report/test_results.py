"""Claims about the schema of results: what is written is read back, what does not fit is named, and a kind or a column is one step."""

import json
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
from made_results import (
    BLOCK,
    MEASURED,
    agent,
    comparison,
    evaluation,
    given,
    per_image,
    policy,
    run,
    search,
    step_time,
    training,
    written,
)
from places import FROZEN
from recipe_place import report

from hf_dynvit.report import schema
from hf_dynvit.report.markdown import rows, table
from hf_dynvit.report.results import AgentRun, Evaluation
from hf_dynvit.report.schema import KINDS, SCHEMA, Results, read, write
from hf_dynvit.report.tables import EVALUATED


MADE = [
    training(agent=agent(epsilon=0.9), chosen=given()),
    policy(checkpoint=given()),
    evaluation(runtimes={"OpenVINO int8": {"skipped": "no nncf"}}, per_image=per_image(correlation=None)),
    search(),
    step_time(),
    comparison(run("none", 0), run("random", 0)),
]


@pytest.mark.parametrize("results", MADE, ids=lambda results: results.kind)
def test_what_is_written_is_read_back(results, tmp_path):
    content = write(tmp_path / "made.json", results)
    assert read(tmp_path / "made.json") == results
    assert json.loads((tmp_path / "made.json").read_text()) == content
    assert content["schema"] == SCHEMA and content["kind"] == results.kind


@pytest.mark.parametrize("path", sorted((FROZEN / "results").glob("*.json")), ids=lambda path: path.stem)
def test_kept_files_hold_what_the_schema_would_write_today_but_for_later_fields(path):
    kept, today = json.loads(path.read_text()), json.loads(json.dumps(read(path, published=True).to_json()))
    assert kept == without_later_fields(today, kept)


def without_later_fields(today, kept):
    """Of what is written today what `kept` has as well."""
    if isinstance(kept, dict):
        return {name: without_later_fields(today[name], value) for name, value in kept.items()}
    if isinstance(kept, list) and len(kept) == len(today):
        return [without_later_fields(*pair) for pair in zip(today, kept, strict=True)]
    return today


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learned": ..., "split_files": ...}, "made.json lacks learned, split_files: .* what Training is"),
        ({"humidity": 0.3}, "made.json has unknown humidity: .* what Training is"),
        ({"steps": "many"}, "made.json: steps must be int, got 'many'"),
        ({"dense": {"accuracy": 0.5}}, "made.json: dense lacks accuracy_top5, cost, gmacs: .* what Scores is"),
        ({"agent": {"name": "random"}}, "made.json: agent lacks n_patch_desired"),
        ({"kind": "weather"}, "made.json was written by no recipe and not by the benchmark: its kind is 'weather'"),
        ({"schema": ...}, rf"made.json was written by another version \(schema None, not {SCHEMA}\): run it again"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_its_name_and_the_field(changes, message, tmp_path):
    path = written(tmp_path, training(), "made.json", **changes)
    with pytest.raises(ValueError, match=message):
        report.main([str(path)])


def test_a_field_inside_a_list_is_named_with_its_place(tmp_path):
    content = evaluation().to_json()
    del content["throughput"][1]["packed_ms"]
    (tmp_path / "made.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"made.json: throughput\[1\] lacks packed_ms: .* what Speed is"):
        read(tmp_path / "made.json")


def test_no_results_at_all_and_other_json_are_refused(tmp_path):
    for content in ("{}", "[]", "3"):
        (tmp_path / "other.json").write_text(content)
        with pytest.raises(ValueError, match="other.json was written by no recipe"):
            read(tmp_path / "other.json")


def test_what_follows_from_others_is_computed_anew(tmp_path):
    content = evaluation().to_json()
    content["throughput"][0]["speedup"] = 99.0
    (tmp_path / "made.json").write_text(json.dumps(content))
    assert read(tmp_path / "made.json").throughput[0].speedup == 1.5


def test_an_agent_may_say_more_of_itself_than_the_schema_knows():
    told = {"name": "mine", "n_patch_desired": 8, "patches": 16, "kept": 8.0, "seconds": 1.0, "options": {}}
    found = AgentRun.of(told | {"epsilon": 0.5, "mood": "good"})
    assert found.epsilon == 0.5 and found.details == {"mood": "good"}


def test_a_kind_is_a_dataclass_and_a_column_a_field_and_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(schema, "KINDS", dict(KINDS))

    @dataclass(kw_only=True)
    class Weather(Results):
        kind: ClassVar[str] = "weather"
        humidity: float
        winds: list = field(default_factory=list)

    write(tmp_path / "weather.json", Weather(humidity=0.3, command="python weather.py", **MEASURED))
    found = read(tmp_path / "weather.json")
    assert isinstance(found, Weather) and found.humidity == 0.3
    assert "| A CPU | 30% |" in table(
        rows({"device": lambda one: one.device, "humidity": lambda one: f"{one.humidity:.0%}"}, [(found,)])
    )

    @dataclass(kw_only=True)
    class Watched(Evaluation):
        kind: ClassVar[str] = "watched evaluation"
        watts: float

    watched = Watched(watts=65.0, **vars(evaluation(BLOCK)))
    write(tmp_path / "watched.json", watched)
    columns = EVALUATED | {"watts": lambda runs: runs[0].watts}
    text = table(rows(columns, [([read(tmp_path / "watched.json")],)]))
    assert text.splitlines()[0].endswith(" | watts |") and text.splitlines()[2].endswith(" | 65.0 |")
