"""transformers' pipeline takes batches apart into images, of any size, whatever the gates; who asks gets the decisions."""

import copy
import pickle

import pytest
import torch
from accelerate.utils import convert_outputs_to_fp32
from models import GATE_SETS, gated, images
from PIL import Image
from torch.testing import assert_close
from transformers import ViTImageProcessor, pipeline

from hf_dynvit import LayerDecisions


LAYERS = 2


def pictures(count):
    """Pictures of noise, which the gates decide on differently."""
    pixels = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return [Image.fromarray(one.numpy()) for one in pixels]


def scores(model, batch_size, count=14):
    """What the pipeline says of each picture: (count, C)."""
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    classify = pipeline("image-classification", model=model, image_processor=processor, device="cpu")
    found = classify(pictures(count), batch_size=batch_size, top_k=5)
    names = model.config.id2label.values()
    return torch.tensor([[{one["label"]: one["score"] for one in image}[name] for name in names] for image in found])


@pytest.mark.parametrize("name, hidden_states", [(name, False) for name in (None, *GATE_SETS)] + [("all", True)])
def test_batches_larger_than_the_number_of_layers_are_taken_apart(tiny_vit, name, hidden_states):
    vit = tiny_vit(LAYERS, output_hidden_states=hidden_states)
    model = gated(vit, GATE_SETS[name] if name else None)
    one_by_one = scores(model, 1)
    for batch_size in (2, 13):
        several = scores(model, batch_size)
        assert several.shape == one_by_one.shape == (14, 5)
        if name is None or "random" not in name:  # draws of a batch are other ones
            assert_close(several, one_by_one, rtol=0, atol=1e-4)


def test_attentions_are_taken_apart_too(tiny_vit):
    model = gated(tiny_vit(LAYERS, output_attentions=True, attn_implementation="eager"), GATE_SETS["all"])
    assert_close(scores(model, 13), scores(model, 1), rtol=0, atol=1e-4)


def is_of_layers(decisions, batch):
    return (
        isinstance(decisions, tuple)
        and len(decisions) == LAYERS
        and all(isinstance(one, LayerDecisions) and len(one.mlp_tokens) == batch for one in decisions)
    )


def test_every_way_to_ask_for_decisions_gives_those_of_the_layers(tiny_vit):
    model = gated(tiny_vit(LAYERS), GATE_SETS["all"])
    with torch.no_grad():
        out = model(images(3))
        as_tuple = model(images(3), return_dict=False)
    assert list(out) == list(out.keys()) == ["logits", "cost", "decisions"]
    for decisions in (out.decisions, out["decisions"], out[2], out.to_tuple()[2], dict(out)["decisions"], as_tuple[2]):
        assert is_of_layers(decisions, 3)
    assert is_of_layers([*out.values()][2], 3)
    with pytest.raises(KeyError):
        out["loss"]


@pytest.mark.parametrize(
    "again",
    [copy.copy, copy.deepcopy, lambda out: pickle.loads(pickle.dumps(out)), lambda out: type(out)(dict(out.items()))],
)
def test_an_output_that_is_rebuilt_keeps_its_decisions(tiny_vit, again):
    model = gated(tiny_vit(LAYERS), GATE_SETS["all"])
    with torch.no_grad():
        out = model(images(3))
    rebuilt = again(out)
    assert type(rebuilt) is type(out) and is_of_layers(rebuilt.decisions, 3) and is_of_layers(rebuilt["decisions"], 3)
    assert torch.equal(rebuilt.logits, out.logits) and torch.equal(rebuilt.cost, out.cost)


def test_mixed_precision_of_accelerate_keeps_the_decisions(tiny_vit):
    model = gated(tiny_vit(LAYERS), GATE_SETS["all"]).bfloat16()
    with torch.no_grad():
        out = convert_outputs_to_fp32(model)(images(3))
    assert out.logits.dtype == torch.float32 and is_of_layers(out.decisions, 3)
