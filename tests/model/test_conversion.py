"""From a trained ViT to a gated one and back from disk: nothing is lost, and what does not fit is refused by name."""

import json

import pytest
import torch
from models import GATE_SETS, gated, images
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import BertConfig, PreTrainedConfig, ViTModel

from hf_dynvit import DynViTConfig, DynViTForImageClassification, DynViTModel
from hf_dynvit.measure.trained_models import dense_vit


def from_vit(source, gates="adavit", **options):
    return DynViTForImageClassification.from_vit(source, gates=gates, **options)


def keys_on_disk(folder):
    with safe_open(folder / "model.safetensors", "pt") as weights:
        return set(weights.keys())


@pytest.mark.parametrize("original_format, key", [(True, "vit.encoder.layer.0."), (False, "vit.layers.0.")])
def test_checkpoints_in_both_key_formats_load_whole(tiny_vit, tmp_path, original_format, key):
    vit = tiny_vit()
    vit.save_pretrained(tmp_path, save_original_format=original_format)
    assert any(name.startswith(key) for name in keys_on_disk(tmp_path))  # the file is of the format it stands for
    model = from_vit(tmp_path)
    for name, tensor in vit.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert all(name.startswith("gates.") for name in model.state_dict().keys() - vit.state_dict().keys())
    pixel_values = images(2)
    with torch.no_grad():
        assert_close(model(pixel_values).logits, vit(pixel_values).logits, rtol=0, atol=1e-5)


def test_heads_of_a_width_of_their_own_go_there_and_back(tiny_vit):
    vit, pixel_values = tiny_vit(2, head_dim=12), images(2)
    model = from_vit(vit, gates=[{"gate": "patch"}])
    with torch.no_grad():
        wanted = vit(pixel_values).logits
        assert_close(model(pixel_values).logits, wanted)
        assert_close(dense_vit(model)(pixel_values).logits, wanted)


@pytest.mark.parametrize("original_format", [True, False])
def test_native_keys_load_with_only_gate_weights_missing(tiny_vit, tmp_path, original_format):
    vit = tiny_vit()
    vit.save_pretrained(tmp_path, save_original_format=original_format)
    config = from_vit(vit).config
    model, info = DynViTForImageClassification.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert info["missing_keys"] == {name for name in model.state_dict() if name.startswith("gates.")}
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    with torch.no_grad():  # gates that were missing are fresh, not uninitialised memory
        decisions = model(images(2)).decisions
    assert all(keep.all() for decision in decisions for keep in decision.keeps().values())


def test_the_configuration_comes_from_where_the_weights_come_from(tiny_vit, tmp_path, monkeypatch):
    tiny_vit().save_pretrained(tmp_path / "inner")
    assert from_vit(tmp_path, subfolder="inner").config.gates
    asked = []

    def watch(source, **where):
        asked.append(where)
        raise OSError("nothing is there")

    monkeypatch.setattr(PreTrainedConfig, "get_config_dict", watch)
    where = {"revision": "v1", "token": "mine", "cache_dir": str(tmp_path)}
    with pytest.raises(OSError, match="nothing is there"):
        from_vit("me/private", **where, num_labels=7)
    assert asked == [where]


@pytest.mark.parametrize("original_format", [True, False])
def test_a_bare_body_loads_with_a_fresh_classifier(tiny_vit, tmp_path, original_format):
    body = ViTModel(tiny_vit().config)
    body.save_pretrained(tmp_path, save_original_format=original_format)
    model = from_vit(tmp_path, num_labels=7)
    for name, tensor in body.state_dict().items():
        if not name.startswith("pooler."):
            assert torch.equal(model.state_dict()[f"vit.{name}"], tensor), name
    assert model.classifier.out_features == model.config.num_labels == 7


def test_number_of_labels_can_change(tiny_vit, tmp_path):
    vit = tiny_vit()
    vit.save_pretrained(tmp_path)
    model = from_vit(tmp_path, num_labels=9, ignore_mismatched_sizes=True)
    assert model(images(2)).logits.shape == (2, 9)
    assert torch.equal(model.vit.layers[0].mlp.fc1.weight, vit.vit.layers[0].mlp.fc1.weight)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        from_vit(tmp_path, num_labels=9)


def test_labels_and_dtype_of_the_checkpoint_are_kept(tiny_vit, tmp_path):
    names = ["ant", "bee", "cat", "dog", "elk"]
    vit = tiny_vit(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})
    vit.save_pretrained(tmp_path)
    model = from_vit(tmp_path, dtype=torch.bfloat16)
    assert model.config.id2label == dict(enumerate(names))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.config.model_type == "dynvit" and model.config._name_or_path == str(tmp_path)


@pytest.mark.parametrize("gates", [None, "adavit"])
def test_the_model_is_where_the_vit_is(tiny_vit, gates):
    vit = tiny_vit().to("meta", torch.bfloat16)  # a device that every machine has
    model = from_vit(vit, gates)
    assert {(weight.device.type, weight.dtype) for weight in model.parameters()} == {("meta", torch.bfloat16)}


def test_a_device_map_is_honoured(tiny_vit, tmp_path):
    tiny_vit().save_pretrained(tmp_path / "vit")
    model = from_vit(tmp_path / "vit", device_map={"": "cpu"})
    assert model.device.type == "cpu" and model(images(2)).logits.shape == (2, 5)
    disk = {"vit.embeddings": "cpu", "vit.layers": "disk", "vit.layernorm": "cpu", "classifier": "cpu"}
    with pytest.raises(ValueError, match=r"leaves \d+ weights off every device, for example vit\.layers"):
        from_vit(tmp_path / "vit", device_map=disk, offload_folder=tmp_path / "disk")


def test_the_given_model_is_not_touched(tiny_vit):
    vit = tiny_vit()
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    config = vit.config.to_dict()
    model = from_vit(vit)
    torch.nn.init.zeros_(model.classifier.weight)
    torch.nn.init.zeros_(model.vit.layers[0].mlp.fc1.weight)
    assert vit.config.to_dict() == config
    assert all(torch.equal(tensor, before[name]) for name, tensor in vit.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("original_format", [True, False])
@pytest.mark.parametrize("gates", ["all", "all official"])
def test_round_trip_keeps_every_tensor(tiny_vit, tmp_path, gates, original_format, dtype):
    model = gated(tiny_vit(), GATE_SETS[gates], budget=0.6).to(dtype)
    model.save_pretrained(tmp_path, save_original_format=original_format)
    assert len(keys_on_disk(tmp_path)) == len(model.state_dict())
    again, info = DynViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True, dtype="auto")
    assert not any(info.values()), info
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor) and tensor.dtype == dtype, name
    assert (again.config.gates, again.config.budget) == (GATE_SETS[gates], 0.6)
    pixel_values = images(2)
    with torch.no_grad():
        assert torch.equal(again(pixel_values).logits, model(pixel_values).logits)


def test_features_load_from_a_classifier_and_the_other_way_round(tiny_vit, tmp_path):
    model = gated(tiny_vit(), GATE_SETS["all"])
    model.save_pretrained(tmp_path / "classifier")
    features = DynViTModel.from_pretrained(tmp_path / "classifier")
    features.save_pretrained(tmp_path / "features")
    back, info = DynViTForImageClassification.from_pretrained(tmp_path / "features", output_loading_info=True)
    assert info["missing_keys"] == {"classifier.weight", "classifier.bias"}
    for name, tensor in features.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor) and torch.equal(back.state_dict()[name], tensor), name


def test_config_json_holds_the_gates_as_given(tiny_vit, tmp_path):
    given = [{"gate": "patch", "layers": [1], "on": "mlp", "tau": 5.0}, {"gate": "random", "unit": "head"}]
    from_vit(tiny_vit(), gates=given, budget=0.5).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["gates"], config["budget"], config["model_type"]) == (given, 0.5, "dynvit")
    assert DynViTConfig.from_pretrained(tmp_path).gates == given


@pytest.mark.parametrize(
    "options, message",
    [
        ({"gates": "ada"}, "unknown preset 'ada'; there are .*'adavit'"),
        ({"gates": [{"gate": "pach"}]}, "unknown gate 'pach'; there are .*'patch'"),
        ({"gates": [{"gate": "patch", "temperature": 1}]}, "'patch' does not take .*'temperature'.*'tau'"),
        ({"gates": [{"gate": "patch", "on": "heads"}]}, "on of a patch gate must be one of .*'mlp'.*, got 'heads'"),
        ({"gates": [{"gate": "head", "deactivation": "full"}]}, "must be one of .*'official'.*, got 'full'"),
        ({"gates": [{"gate": "head", "threshold": 1.0}]}, r"threshold of a gate must be in \(0, 1\), got 1.0"),
        ({"gates": [{"gate": "head", "tau": 0}]}, "tau of a gate must be positive and finite in float32, got 0"),
        (
            {"gates": [{"gate": "random", "unit": "pixel"}]},
            "unit of a random gate must be one of .*'patch'.*, got 'pixel'",
        ),
        ({"gates": [{"gate": "random", "rate": 1.5}]}, r"must be in \[0, 1\], got 1.5"),
        ({"gates": [{"gate": "patch", "layers": [0, 2]}]}, r"in 0\.\.1, got \[0, 2\]"),
        ({"gates": [{"gate": "patch", "layers": [-1]}]}, r"in 0\.\.1, got \[-1\]"),
        ({"gates": [{"gate": "patch", "layers": [1, 1]}]}, r"must be distinct.*got \[1, 1\]"),
        ({"gates": [{"gate": "patch", "layers": "all"}]}, "must be a list of integers, got 'all'"),
        ({"gates": [{"layers": [0]}]}, 'must be a dict with the key "gate"'),
        ({"gates": [{"gate": "patch"}, {"gate": "patch", "on": "mlp"}]}, r"two gates for \['mlp_tokens'\]"),
        ({"gates": [{"gate": "head"}, {"gate": "random", "unit": "head"}]}, r"two gates for \['heads'\]"),
        ({"budget": 0}, r"budget must be in \(0, 1\], got 0"),
        ({"budget": 1.5}, r"budget must be in \(0, 1\], got 1.5"),
        ({"budget": float("nan")}, r"budget must be in \(0, 1\], got nan"),
        ({"num_labels": 3}, "num_labels.* can only be given with a folder or a Hub id"),
    ],
)
def test_bad_options_are_refused_by_name(tiny_vit, options, message):
    with pytest.raises(ValueError, match=message):
        DynViTForImageClassification.from_vit(tiny_vit(), **options)


def test_sources_that_are_no_vit_are_refused(tiny_vit, tmp_path):
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="bert is a 'bert' model, not a 'vit'"):
        from_vit(tmp_path / "bert")
    from_vit(tiny_vit()).save_pretrained(tmp_path / "dynvit")
    with pytest.raises(ValueError, match="'dynvit' model, not a 'vit'; load it with from_pretrained"):
        from_vit(tmp_path / "dynvit")
    with pytest.raises(ValueError, match="source must be .* got Linear"):
        from_vit(torch.nn.Linear(2, 2))
    with pytest.raises(OSError, match="nowhere"):
        from_vit(str(tmp_path / "nowhere"))


def test_a_checkpoint_that_lacks_weights_is_refused(tiny_vit, tmp_path):
    tiny_vit().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    removed = [name for name in weights if "layernorm_after" in name]
    save_file({k: v for k, v in weights.items() if k not in removed}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks {len(removed)} weights of a ViT, for example .*layernorm_after"):
        from_vit(tmp_path)


def test_images_that_do_not_fit_are_refused_with_both_sizes(tiny_vit):
    model = from_vit(tiny_vit())
    with pytest.raises(ValueError, match=r"\(48\*48\).*\(32\*32\)"):
        model(images(2, size=48))
    with pytest.raises(ValueError, match="Expected 3 but got 1"):
        model(images(2, channels=1))
    with pytest.raises(ValueError, match="pixel_values"):
        model()
