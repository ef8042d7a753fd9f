"""The recipe search.py in milliseconds: by one table of latencies, measured or given; another one is refused."""

from dataclasses import replace

import pytest
from models import latency_table
from recipe_place import find

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.measure import LatencyTable
from hf_dynvit.measure.layer_times import circumstances
from hf_dynvit.model import can_prepack
from hf_dynvit.search import latencies


def measured(monkeypatch):
    """What the searches measure from here on, a list of tables that takes the place of the clock."""
    tables = []

    def measure(model, pixel_values):
        tables.append(latency_table(model, rest=float(len(tables)), batch_size=len(pixel_values)))
        facts = circumstances(model, len(pixel_values))
        tables[-1] = replace(tables[-1], **facts)
        return tables[-1]

    monkeypatch.setattr(latencies, "measure_latencies", measure)
    return tables


def test_one_search_has_one_table_of_latencies(place, tmp_path, monkeypatch, capsys):
    tables, words = measured(monkeypatch), ["--objectives", "error+milliseconds"]
    first = find(place, tmp_path, place.vit, *words)
    again = find(place, tmp_path, place.vit, *words)
    assert len(tables) == 1 and again["front"] == first["front"] and again["unmasked"] == first["unmasked"]
    assert LatencyTable.load(tmp_path / "latency.json") == tables[0] == LatencyTable(**first["latencies"])
    assert tables[0].batch_size == 1 and tables[0].prepacked == can_prepack()
    for point in first["front"]:
        wanted = 5.1 * point["bits"].count("1")
        assert point["milliseconds"] == point["reported"]["milliseconds"] == pytest.approx(wanted)
    assert "milliseconds" in (tmp_path / "front.csv").read_text().splitlines()[0]
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    assert "ms per image in batches of 1 (unmasked 10.200), by the table" in capsys.readouterr().out
    with pytest.raises(ValueError, match="other circumstances \\(batch_size 1 there, 2 now\\): give another output"):
        find(place, tmp_path, place.vit, *words, "--latency_batch_size", "2")
    (tmp_path / "latency.json").unlink()
    with pytest.raises(ValueError, match="another search .*latency.rest 0.0 there, 1.0 now"):
        find(place, tmp_path, place.vit, *words)  # measured anew
    other = find(place, tmp_path / "old", place.vit, "--objectives", "error+latency", "--latency_batch_size", "2")
    assert other["objectives"] == "error+milliseconds" and tables[-1].batch_size == 2


def test_a_table_can_be_given_and_another_one_is_refused(place, skipping, tmp_path, monkeypatch):
    tables = measured(monkeypatch)
    model = DynViTForImageClassification.from_pretrained(skipping[1])
    latency_table(model, device="a phone").save(tmp_path / "phone.json")
    words = ["--objectives", "reward+milliseconds", "--latency", str(tmp_path / "phone.json")]
    found = find(place, tmp_path / "out", skipping[1], *words)
    assert not tables and found["latencies"]["device"] == "a phone"
    assert all(2.0 < point["milliseconds"] <= 13.2 for point in found["front"])  # a gate in each of two layers
    assert find(place, tmp_path / "out", skipping[1], *words)["front"] == found["front"]
    latency_table(model, rest=2.5).save(tmp_path / "phone.json")
    with pytest.raises(ValueError, match="another search .*latency.rest 2.0 there, 2.5 now"):
        find(place, tmp_path / "out", skipping[1], *words)
    latency_table(model, gates=[]).save(tmp_path / "phone.json")
    with pytest.raises(ValueError, match="with gates in layers .*; this one runs 17 tokens"):
        find(place, tmp_path / "other", skipping[1], *words)
    with pytest.raises(ValueError, match="phone.json' says how long masks take, which objectives 'error.cost'"):
        find(place, tmp_path / "other", skipping[1], *words[2:])
