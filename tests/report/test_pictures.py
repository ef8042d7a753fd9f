"""Claims about the pictures: they show the decisions that the model really took."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from places import FROZEN, RECIPES
from recipe_place import merge

from hf_dynvit import DynViTForImageClassification, LayerDecisions
from hf_dynvit.measure.usage import UsageMeter
from hf_dynvit.report import read
from hf_dynvit.report.pictures import default_layers, fade, show_decisions, unnormalise, used_patches
from hf_dynvit.report.plots import plot_usage
from hf_dynvit.report.search_results import write_front


GATES = [{"gate": "patch"}, {"gate": "head"}, {"gate": "sublayer", "layers": [1, 3]}]


@pytest.fixture
def model(tiny_vit):
    model = DynViTForImageClassification.from_vit(tiny_vit(num_hidden_layers=4), gates=GATES)
    for name, parameter in model.gates.named_parameters():
        torch.nn.init.normal_(parameter, std=0.5) if name.endswith("weight") else torch.nn.init.zeros_(parameter)
    return model


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def colors(path):
    return len(Image.open(path).convert("RGB").getcolors(1 << 24))


def test_the_picture_grows_with_the_images_and_the_layers(model, tmp_path):
    images = torch.randn(3, 3, 32, 32)
    show_decisions(model, images[:1], tmp_path / "small.png", layers=[0])
    show_decisions(model, images, tmp_path / "large.png", layers=[0, 1, 3], titles=["a", "b", "c"])
    small, large = pixels(tmp_path / "small.png"), pixels(tmp_path / "large.png")
    assert large.shape[0] > 2 * small.shape[0] and large.shape[1] > 1.8 * small.shape[1]
    assert colors(tmp_path / "large.png") > 100


def test_the_picture_depends_on_the_decisions(model, tmp_path):
    images = torch.randn(1, 3, 32, 32)
    show_decisions(model, images, tmp_path / "some.png")
    with torch.no_grad():
        for gates in model.gates:
            gates["attention_tokens"].score.bias.fill_(100.0)
    show_decisions(model, images, tmp_path / "all.png")
    assert (pixels(tmp_path / "some.png") != pixels(tmp_path / "all.png")).any()


def test_it_returns_the_cost_and_leaves_the_model_as_it_was(model, tmp_path):
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(images).cost
    model.train()
    cost = show_decisions(model, images, tmp_path / "a.png")
    assert model.training
    torch.testing.assert_close(cost, expected)


def test_the_maps_are_the_decisions_on_the_grid_of_patches(model):
    tokens = torch.zeros(2, 17, dtype=torch.bool)
    tokens[1, [0, 1, 8]] = True  # [CLS], the first patch, and the last of the second row
    on = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    attention, mlp = used_patches(LayerDecisions(tokens, None, None, on), 1, model.config, (32, 32))
    assert attention.nonzero().tolist() == [[0, 0], [1, 3]]
    assert mlp.sum() == 0  # every token would be kept, but the sub-layer is off
    assert used_patches(LayerDecisions(), 0, model.config, (32, 16))[0].tolist() == [[1.0] * 2] * 4


def test_the_patches_of_a_model_that_resizes_images_are_larger(tiny_vit, tmp_path):
    model = DynViTForImageClassification.from_vit(tiny_vit(), gates=[{"gate": "patch"}], resolution=24)
    assert show_decisions(model, torch.randn(2, 3, 32, 32), tmp_path / "shown.png").shape == (2,)
    tokens = torch.ones(1, 10, dtype=torch.bool)
    assert used_patches(LayerDecisions(tokens), 0, model.config, (32, 32))[0].shape == (3, 3)


def test_used_patches_keep_their_pixels_and_unused_ones_nearly_vanish():
    image = torch.rand(8, 8, 3)
    shown = fade(image, torch.tensor([[1.0, 0.0], [0.5, 1.0]]))
    torch.testing.assert_close(shown[:4, :4], image[:4, :4])
    torch.testing.assert_close(shown[4:, 4:], image[4:, 4:])
    assert shown[:4, 4:].std() < 0.2 * image[:4, 4:].std()


def test_images_are_shown_as_they_were_before_normalising():
    images = torch.rand(2, 3, 4, 4)
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.25]
    normalised = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(unnormalise(normalised, mean, std), images.permute(0, 2, 3, 1))
    assert unnormalise(torch.zeros(1, 1, 4, 4)).shape == (1, 4, 4, 3)


def test_layers_are_spread_over_the_depth():
    assert default_layers(12) == [2, 5, 8, 11]
    assert default_layers(2) == [0, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [4]}, r"0..3, got \[4\]"),
        ({"layers": []}, "got"),
        ({"titles": ["one"]}, "2 images but 1 titles"),
    ],
)
def test_bad_requests_are_refused(model, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        show_decisions(model, torch.randn(2, 3, 32, 32), tmp_path / "a.png", **options)


def test_usage_is_plotted_from_decisions_a_meter_or_its_json(model, tmp_path):
    decisions = model(torch.randn(4, 3, 32, 32)).decisions
    meter = UsageMeter()
    meter.update(decisions)
    for name, usage in {
        "decisions": decisions,
        "meter": meter.per_layer(),
        "json": json.loads(json.dumps(meter.per_layer())),
    }.items():
        plot_usage(usage, tmp_path / f"{name}.png")
    first, *others = (pixels(path) for path in sorted(tmp_path.iterdir()))
    assert all((first == other).all() for other in others)
    assert colors(tmp_path / "json.png") > 10


def test_no_usage_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no layer decides anything"):
        plot_usage([LayerDecisions(), LayerDecisions()], tmp_path / "a.png")


def test_without_matplotlib_the_error_says_what_to_install(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install hf_dynvit\[demo\]"):
        plot_usage(model(torch.randn(1, 3, 32, 32)).decisions, tmp_path / "a.png")


def test_what_was_measured_is_kept_where_no_picture_can_be_drawn(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    board = RECIPES / "results" / "board_tiny_labels.json"
    merge.main(["--parts", str(board), "--output", str(tmp_path)])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["leaderboard.json", "leaderboard.md"]
    write_front(read(FROZEN / "results" / "search.json"), tmp_path)
    assert (tmp_path / "front.csv").exists() and not (tmp_path / "front.png").exists()
