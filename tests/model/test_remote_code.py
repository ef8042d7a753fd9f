"""A saved or pushed model carries its code: it loads where hf_dynvit is not installed, with the same logits."""

import json
import os
import subprocess
import sys

import pytest
import torch
from fake_hub import FakeHub
from models import GATE_SETS, gated, images
from places import FROZEN
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForImageClassification, ViTImageProcessor

from hf_dynvit import DynViTConfig, DynViTModel


ABSENT = "import sys; sys.modules['hf_dynvit'] = None\n"  # importing the package fails from here on

LOAD = """
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline

source, out = sys.argv[1:]
try:
    AutoModelForImageClassification.from_pretrained(source, trust_remote_code=False)
    raise SystemExit("loaded code that nobody trusted")
except ValueError as error:
    assert "trust_remote_code=True" in str(error), error
pixel_values = torch.load(f"{out}/pixel_values.pt", weights_only=True)
config = AutoConfig.from_pretrained(source, trust_remote_code=True)
classifier = AutoModelForImageClassification.from_pretrained(source, trust_remote_code=True)
features = AutoModel.from_pretrained(source, trust_remote_code=True)
classify = pipeline("image-classification", model=source, trust_remote_code=True, device="cpu")
image = Image.new("RGB", (40, 50), "red")
with torch.no_grad():
    out_of_classifier = classifier(pixel_values)
    results = {
        "logits": out_of_classifier.logits,
        "cost": out_of_classifier.cost,
        "features": features(pixel_values).last_hidden_state,
        "image_logits": classifier(**AutoImageProcessor.from_pretrained(source)(image, return_tensors="pt")).logits,
        "scores": {answer["label"]: answer["score"] for answer in classify(image, top_k=5)},
        "answers": len(classify([image] * 14, batch_size=13)),  # more images than layers
        "classes": [type(one).__name__ for one in (config, classifier, features, classify.model)],
        "gates": config.gates,
        "budget": config.budget,
        "dialled": classifier(pixel_values, budget=torch.tensor([0.6, 0.45, 0.4])).logits,
    }
classifier.save_pretrained(f"{out}/saved_again")
features.save_pretrained(f"{out}/features_again")
torch.save(results, f"{out}/results.pt")
"""


def python(code, env, *arguments):
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def fresh_env(home):
    """This process's environment with empty caches, and without a Hub."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    return env | {"HF_HOME": str(home), "HF_MODULES_CACHE": str(home / "modules"), "HF_HUB_OFFLINE": "1"}


def processor():
    return ViTImageProcessor(size={"height": 32, "width": 32})


@pytest.fixture
def model(tiny_vit):
    model = gated(tiny_vit(), GATE_SETS["all official"], budget=0.5)
    model.config.budget_shifts = [[0.4, -1.0], [0.6, 1.0]]
    return model


def assert_loads(source, model, folder, env):
    """Loads `source` in a process without the package, in every way but untrusted, and compares with `model`."""
    pixel_values = images(3)
    torch.save(pixel_values, folder / "pixel_values.pt")
    python(ABSENT + LOAD, env, source, folder)
    results = torch.load(folder / "results.pt", weights_only=True)
    features = DynViTModel(model.config).eval()
    features.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        expected = model(pixel_values)
        dialled = torch.cat([model(pixel_values[[i]], budget=b).logits for i, b in enumerate((0.6, 0.45, 0.4))])
        assert_close(results["dialled"], dialled, rtol=0, atol=1e-5)
        assert_close(results["features"], features(pixel_values).last_hidden_state, rtol=0, atol=1e-5)
    assert_close(results["logits"], expected.logits, rtol=0, atol=1e-5)
    assert_close(results["cost"], expected.cost)
    assert results["answers"] == 14
    scores = [results["scores"][name] for name in model.config.id2label.values()]
    assert_close(torch.tensor(scores), results["image_logits"][0].softmax(-1), rtol=0, atol=1e-5)
    classifier = "DynViTForImageClassification"
    assert results["classes"] == ["DynViTConfig", classifier, "DynViTModel", classifier]
    assert (results["gates"], results["budget"]) == (model.config.gates, model.config.budget)


def code_in(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.py")}


@pytest.mark.slow
def test_a_folder_loads_without_the_package_and_saves_its_code_again(model, tmp_path):
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    processor().save_pretrained(folder)
    assert_loads(folder, model, tmp_path, fresh_env(tmp_path / "home"))
    assert code_in(tmp_path / "saved_again") == code_in(tmp_path / "features_again") == code_in(folder)
    for again in ("saved_again", "features_again"):
        config, first = (json.loads((path / "config.json").read_text()) for path in (tmp_path / again, folder))
        assert config["auto_map"] == first["auto_map"] and config["gates"] == first["gates"]


@pytest.mark.slow
def test_a_pushed_model_loads_without_the_package(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    processor().save_pretrained(tmp_path / "model")
    push = (
        "import sys; from transformers import AutoImageProcessor; from hf_dynvit import DynViTForImageClassification\n"
        "DynViTForImageClassification.from_pretrained(sys.argv[1]).push_to_hub('me/tiny')\n"
        "AutoImageProcessor.from_pretrained(sys.argv[1]).push_to_hub('me/tiny')"
    )
    with FakeHub() as hub:
        python(push, hub.env(tmp_path / "home"), tmp_path / "model")
        pushed = hub.files("me/tiny")
        assert {name: data for name, data in pushed.items() if name.endswith(".py")} == code_in(tmp_path / "model")
        assert_loads("me/tiny", model, tmp_path, hub.env(tmp_path / "other_home"))
        assert not hub.unhandled


@pytest.mark.parametrize("save", ["classifier", "features", "config"])
def test_every_saved_class_names_all_three_entry_points(model, tmp_path, save):
    saved = {"classifier": model, "features": DynViTModel(model.config), "config": DynViTConfig()}[save]
    saved.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_dynvit.DynViTConfig",
        "AutoModel": "modeling_dynvit.DynViTModel",
        "AutoModelForImageClassification": "modeling_dynvit.DynViTForImageClassification",
    }


def test_where_the_package_is_installed_no_trust_is_needed(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert type(AutoModel.from_pretrained(tmp_path)) is DynViTModel


FROZEN_MODELS = FROZEN / "models"
FROZEN_LOAD = """
import torch
from transformers import AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained(sys.argv[1], trust_remote_code=True)
pixel_values = torch.linspace(-1, 1, 4 * 3 * 32 * 32).mul(37).sin().reshape(4, 3, 32, 32)
with torch.no_grad():
    outputs = model(pixel_values)
print(json.dumps({"logits": outputs.logits.tolist(), "cost": outputs.cost.tolist()}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in FROZEN_MODELS.iterdir()))
def test_a_model_of_an_earlier_day_loads_with_todays_code_and_without_the_package(name, tmp_path):
    folder = tmp_path / "model"
    AutoModelForImageClassification.from_pretrained(FROZEN_MODELS / name).save_pretrained(folder)
    for file in ("config.json", "model.safetensors"):
        (folder / file).write_bytes((FROZEN_MODELS / name / file).read_bytes())
    code = f"import json; {ABSENT}{FROZEN_LOAD}"
    found = json.loads(python(code, fresh_env(tmp_path / "home"), folder).splitlines()[-1])
    expected = json.loads((FROZEN_MODELS / name / "expected.json").read_text())
    for key in ("logits", "cost"):
        assert_close(torch.tensor(found[key]), torch.tensor(expected[key]), rtol=0, atol=2e-5)
