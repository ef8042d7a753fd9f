"""What all tests share: no network, seeded generators, quiet logs, and a tiny ViT."""

import os


# Read by the libraries when they are imported, so they come first.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    MPLBACKEND="agg",
    TOKENIZERS_PARALLELISM="false",
)
os.environ.pop("HF_TOKEN", None)

import logging

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification, set_seed
from transformers.utils import logging as transformers_logging


class NoLoadReport(logging.Filter):
    """Loading a bare ViT leaves the classifier fresh, which is meant, and reported on every load."""

    def filter(self, record):
        return "LOAD REPORT" not in record.getMessage()


for handler in transformers_logging.get_logger("transformers").handlers:
    handler.addFilter(NoLoadReport())
transformers_logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def seeded():
    set_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def autocast_ends():
    """What a training or a forward switches on, it switches off: all that follows in the process would run in 16 bits."""
    yield
    left_on = torch.is_autocast_enabled("cpu")
    torch.set_autocast_enabled("cpu", False)
    assert not left_on


def build_tiny_vit(num_hidden_layers=2, **fields):
    """A `ViTForImageClassification` in evaluation mode: 16 patches of 8 pixels, 4 heads, 2 layers.

    Any field of `ViTConfig` can be given. The weights are large enough for a dropped unit to show in the logits.
    """
    fields = {
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_labels": 5,
        "initializer_range": 0.2,
        **fields,
    }
    return ViTForImageClassification(ViTConfig(num_hidden_layers=num_hidden_layers, **fields)).eval()


@pytest.fixture
def tiny_vit():
    """`build_tiny_vit`."""
    return build_tiny_vit


@pytest.fixture
def counted_attention(monkeypatch):
    """torch's counter does not see the fused attention of CPUs: here its two products are written out."""

    def plain(query, key, value, attn_mask=None, dropout_p=0.0):
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        return (scores if attn_mask is None else scores + attn_mask).softmax(-1) @ value

    from hf_dynvit.model import packed_attention as attention

    monkeypatch.setattr(attention, "scaled_dot_product_attention", plain)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which recipes run (`recipe_place.Place`)."""
    import datasets
    from recipe_place import Place

    set_seed(0)
    datasets.disable_progress_bars()
    folder = tmp_path_factory.mktemp("recipes")
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    yield Place(folder)
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture(scope="module")
def trained(place):
    """Results of a training of AdaViT's gates in `place`, in its folder "trained"."""
    return place.train("trained", "--gate_learning_rate=0.02")


@pytest.fixture(scope="module")
def skipping(place):
    """Results and folder of a training of a policy that skips blocks."""
    from recipe_place import POLICY

    words = ["--gates", POLICY, "--objective", "reinforce", "--budget", "0.8"]
    return place.train("skipping", *words), place.folder / "skipping"
