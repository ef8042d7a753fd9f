"""Claims about patches that merge before the first layer: nothing is lost of patches that are alike, and it is paid for."""

import pytest
import torch
from agent_models import agent_trainer
from models import images, run
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.model.cost import dense_macs
from hf_dynvit.model.tokens import merge_patches, take_patches


FIRST_OF_EACH = torch.arange(4)


def repeated(vit):
    """A model without positions, and images of which each row of patches is the first one again."""
    torch.nn.init.zeros_(vit.vit.embeddings.position_embeddings)
    return DynViTForImageClassification.from_vit(vit), images(3)[:, :, :8].repeat(1, 1, 4, 1)


@pytest.mark.parametrize("layout", ["masked", "packed"])
@pytest.mark.parametrize("patches", [FIRST_OF_EACH, torch.tensor([[0, 1, 2, 3], [4, 9, 14, 7], [15, 12, 13, 2]])])
def test_of_patches_that_are_alike_one_stands_for_all(tiny_vit, layout, patches):
    model, pixel_values = repeated(tiny_vit(3))
    dense = run(model, layout, pixel_values).logits
    merged = run(model, layout, pixel_values, patches=patches, merge_patches=True)
    assert_close(merged.logits, dense, rtol=0, atol=1e-5)
    removed = run(model, layout, pixel_values[:1], patches=torch.arange(3), merge_patches=False).logits
    assert (removed - dense[:1]).abs().max() > 1e-3  # [CLS] counts once: the claim is about the merging


def test_what_merges_by_hand():
    x = torch.tensor([[[9.0, 9.0], [1.0, 0.0], [0.0, 2.0], [3.0, 1.0], [0.0, 4.0], [1.0, 5.0]]])
    kept, size = merge_patches(x, torch.tensor([0, 1]))
    assert_close(kept, torch.tensor([[[9.0, 9.0], [2.0, 0.5], [1 / 3, 11 / 3]]]))
    assert size.tolist() == [[1.0, 2.0, 3.0]]
    kept, size = merge_patches(x, torch.tensor([[1, 0]]))  # in the order given
    assert_close(kept[:, 1], torch.tensor([[1 / 3, 11 / 3]]))


def test_every_patch_is_somewhere(tiny_vit):
    x = torch.randn(5, 17, 32)
    patches = torch.rand(5, 16).argsort(1)[:, :6]
    kept, size = merge_patches(x, patches)
    assert_close((kept * size.unsqueeze(-1)).sum(1), x.sum(1), rtol=1e-4, atol=1e-4)
    assert size.sum(1).tolist() == [17.0] * 5 and (size[:, 0] == 1).all()
    assert_close(kept[:, 0], x[:, 0])  # nothing merges into [CLS]


def test_all_patches_have_nothing_to_merge(tiny_vit):
    x = torch.randn(2, 17, 32)
    kept, size = merge_patches(x, torch.arange(16))
    assert torch.equal(kept, x) and (size == 1).all()
    model, pixel_values = DynViTForImageClassification.from_vit(tiny_vit()), images(2)
    assert torch.equal(run(model, "masked", pixel_values, merge_patches=True).logits, model(pixel_values).logits)


def test_patches_that_make_no_sense_are_refused():
    with pytest.raises(IndexError, match="patches must be"):
        merge_patches(torch.randn(2, 17, 32), torch.tensor([16]))


@pytest.mark.usefixtures("counted_attention")
def test_the_cost_contains_the_search(tiny_vit):
    model = DynViTForImageClassification.from_vit(tiny_vit(3))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        out = model(images(2), patches=torch.arange(5), merge_patches=True)
    assert counter.get_total_flops() / 2 == round(out.cost.sum().item() * dense_macs(model.config, 17, 5))


def test_what_left_still_learns(tiny_vit):
    model, pixel_values, gradients = DynViTForImageClassification.from_vit(tiny_vit()), images(2), []
    for model.layout in ("masked", "packed"):
        loss = model(pixel_values, labels=torch.tensor([0, 1]), patches=torch.arange(6), merge_patches=True).loss
        gradients.append(torch.autograd.grad(loss, model.vit.embeddings.position_embeddings)[0])
    assert_close(*gradients, rtol=1e-4, atol=1e-6)
    assert gradients[0].any(-1).all()


@pytest.mark.parametrize("agent", ["agentvit-plus", "random", "fixed", "center"])
def test_agents_merge_on_request_in_training_learning_and_evaluation(tiny_vit, tmp_path, monkeypatch, agent):
    from hf_dynvit.model import encoder

    merged = []
    monkeypatch.setattr(encoder, "merge_patches", lambda *args: merged.append(1) or merge_patches(*args))
    monkeypatch.setattr(encoder, "take_patches", lambda *args: pytest.fail("patches were removed"))
    options = {"merge": True, "return_fraction": 0.0} | ({"learn_every": 1} if agent == "agentvit-plus" else {})
    trainer = agent_trainer(tiny_vit, tmp_path, agent, agent_options=options, max_steps=2, agent_evaluation="chosen")
    trainer.train()
    trained = len(merged)
    assert trained == (4 if agent == "agentvit-plus" else 2)
    trainer.evaluate()
    assert len(merged) == trained + 2


def test_unless_asked_agents_remove(tiny_vit, tmp_path, monkeypatch):
    from hf_dynvit.model import encoder

    removed = []
    monkeypatch.setattr(encoder, "take_patches", lambda *args: removed.append(1) or take_patches(*args))
    agent_trainer(tiny_vit, tmp_path, "random", max_steps=2).train()
    assert len(removed) == 2
