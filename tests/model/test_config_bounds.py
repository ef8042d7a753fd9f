"""A configuration that no machine could hold is refused when it is read, before anything is built from it."""

import json

import pytest
from transformers import AutoConfig

import hf_dynvit.model.configuration_dynvit as configuration
from hf_dynvit import DynViTConfig, DynViTForImageClassification


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"num_hidden_layers": 10**9}, r"num_hidden_layers must be in 1\.\.1000, got 1000000000"),
        ({"num_hidden_layers": 10**9, "gates": [{"gate": "patch"}]}, "num_hidden_layers must be in .*got 1000000000"),
        ({"num_hidden_layers": 0}, r"num_hidden_layers must be in 1\.\.1000, got 0"),
        ({"num_hidden_layers": -2}, "num_hidden_layers must be in .*, got -2"),
        ({"hidden_size": 10**8}, r"hidden_size must be in 1\.\.32768, got 100000000"),
        ({"intermediate_size": 10**10}, "intermediate_size must be in .*, got 10000000000"),
        ({"num_attention_heads": 0}, "num_attention_heads must be in .*, got 0"),
        ({"num_channels": 10**9}, "num_channels must be in .*, got 1000000000"),
        ({"num_labels": 10**12}, "num_labels must be in .*, got 1000000000000"),
        ({"image_size": 10**9}, "image_size must be .*, got 1000000000"),
        ({"image_size": [224, 0]}, r"image_size must be .*, got \[224, 0\]"),
        ({"image_size": [224, 224, 224]}, "image_size must be one number or two"),
        ({"patch_size": 0}, "patch_size must be .*, got 0"),
        ({"image_size": 60_000, "patch_size": 1}, "image_size 60000 and patch_size 1 must give 1 to .*3600000000"),
        ({"image_size": 8, "patch_size": 16}, "image_size 8 and patch_size 16 must give 1 to .* they give 0"),
        ({"head_dim": 10**9}, r"head_dim must be in 1\.\.32768, got 1000000000"),
        ({"head_dim": -1}, "head_dim must be in .*, got -1"),
        (
            {
                "num_hidden_layers": 1000,
                "hidden_size": 32_768,
                "num_attention_heads": 32,
                "intermediate_size": 262_144,
            },
            "must have at most 1,000,000,000,000 weights, these sizes give them 21,",
        ),
        ({"gates": [{"gate": "patch"}] * 49}, "gates must have at most 4 entries for each of 12 layers, got 49"),
        ({"gates": [{"gate": "head", "layers": list(range(13))}]}, r'"layers" of gate .* in 0\.\.11, got 13 of them'),
    ],
)
def test_sizes_beyond_any_vit_are_refused_by_name(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        DynViTConfig(**fields)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dynvit", **fields}))
    with pytest.raises(ValueError, match=message):
        AutoConfig.from_pretrained(tmp_path)


def test_what_is_refused_lists_no_layers_of_it(monkeypatch):
    """Nothing as long as the number of layers is made for a gate that names none."""

    def refuse(*arguments):
        raise AssertionError(f"range{arguments}")

    monkeypatch.setattr(configuration, "range", refuse, raising=False)
    assert DynViTConfig(gates=[{"gate": "patch"}, {"gate": "head", "layers": [0, 11]}]).num_hidden_layers == 12


@pytest.mark.parametrize(
    "fields",
    [
        {"hidden_size": 6144, "num_hidden_layers": 48, "num_attention_heads": 48, "intermediate_size": 24_576},  # 22B
        {"num_hidden_layers": 1000, "gates": [{"gate": "patch"}, {"gate": "sublayer"}]},
        {"image_size": [2048, 4096], "patch_size": [8, 16], "num_channels": 12},
        {"num_labels": 21_843},
        {"num_labels": 0},
    ],
)
def test_the_largest_vits_fit(fields):
    DynViTConfig(**fields)


def test_what_is_given_beside_a_saved_model_is_checked_as_what_it_holds(tiny_vit, tmp_path):
    DynViTForImageClassification.from_vit(tiny_vit(), gates=[{"gate": "patch"}]).save_pretrained(tmp_path)
    for given, message in (
        ({"budget": 7.0}, r"budget must be in \(0, 1\], got 7.0"),
        ({"resolution": 20}, "multiples of patch_size 8 .*, got 20"),
        ({"layer_mask": [[True, True]]}, "layer_mask"),
    ):
        with pytest.raises(ValueError, match=message):
            DynViTForImageClassification.from_pretrained(tmp_path, **given)
    assert DynViTForImageClassification.from_pretrained(tmp_path, budget=0.4).config.budget == 0.4


@pytest.mark.parametrize(
    "option", [{"init_bias": 10**400}, {"init_bias": 1e300}, {"tau": 10**400}, {"tau": float("nan")}]
)
def test_numbers_that_no_weight_can_hold_are_refused_by_name(tiny_vit, option):
    with pytest.raises(ValueError, match=f"{[*option][0]} of a gate must be .* float32, got"):
        DynViTForImageClassification.from_vit(tiny_vit(), gates=[{"gate": "patch", **option}])
    with pytest.raises(ValueError, match=r"top of a token gate must be an integer in 1\.\.1048576, got 1000"):
        DynViTForImageClassification.from_vit(tiny_vit(), gates=[{"gate": "token", "top": 10**30, "layers": [1]}])
