"""The scripts of recipes/ as modules, and a place to run them in: made-up data, a tiny checkpoint, a recipe for them."""

import importlib.util
import sys

import yaml
from image_files import save_checkpoint, write_parquet
from places import RECIPES
from transformers import ViTConfig, ViTForImageClassification


POLICY = "[{gate: block, value_width: 8, layers: [0, 1]}]"


def script(name):
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", RECIPES / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


NAMES_OF_SCRIPTS = (
    "train",
    "evaluate",
    "report",
    "calibrate",
    "search",
    "step_time",
    "compare_agents",
    "merge_comparisons",
    "export",
    "leaderboard",
    "runtimes",
    "points",
)
train, evaluate, report, dial, search, step_time, compare, merge, deploy, leaderboard, runtimes, points = map(
    script, NAMES_OF_SCRIPTS
)
START, END = report.markers("results")


def publish_in(folder, monkeypatch):
    """Both READMEs that report.py writes, with old tables, and its stored results, of which there are none, in a folder."""
    for name, parts in (("README", ["results"]), ("FRONT", report.FRONTS)):
        monkeypatch.setattr(report, name, folder / f"{name}.md")
        old = ["{}\nold\n{}\n".format(*report.markers(part)) for part in parts]
        (folder / f"{name}.md").write_text("before\n" + "".join(old) + "after\n")
    monkeypatch.setattr(report, "STORED", folder / "stored")


def find(place, folder, model, *words):
    """Run search.py on a few images of a place; what it returns."""
    return search.main(
        [
            "--model",
            str(model),
            "--output",
            str(folder),
            "--data_files",
            f"train={place.folder}/train.parquet",
            "--validation_fraction",
            "0.5",
            "--images",
            "6",
            "--always_keep",
            "-1",
            *words,
        ]
    )


class Place:
    """A folder with made-up data, a tiny checkpoint and a recipe for them."""

    def __init__(self, folder):
        self.folder = folder
        self.files = write_parquet(folder, grey=[2])
        config = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "intermediate_size": 64, "num_labels": 3}
        vit = ViTForImageClassification(ViTConfig(num_hidden_layers=2, num_attention_heads=4, **config))
        self.vit = save_checkpoint(folder / "vit", vit)
        deep = ViTForImageClassification(ViTConfig(num_hidden_layers=12, num_attention_heads=4, **config))
        self.deep_vit = save_checkpoint(folder / "deep_vit", deep)
        self.recipe = folder / "recipe.yaml"
        settings = {
            "model_name_or_path": self.vit,
            "data_files": self.files,
            "budget": 0.7,
            "max_steps": 4,
            "per_device_train_batch_size": 6,
            "per_device_eval_batch_size": 6,
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "no",
            "report_to": "none",
            "calibration_images": 6,
            "seed": 1,
        }
        self.recipe.write_text(yaml.safe_dump(settings))

    def train(self, name, *words):
        return train.main([str(self.recipe), "--output_dir", str(self.folder / name), *words])


def run_board(place, name, *words):
    """Run leaderboard.py in a folder of a place, with one step of training; the content of its file."""
    given = [str(place.recipe), "--model_name_or_path", place.deep_vit, "--output_dir", str(place.folder / name)]
    few = ["--gates", "none", "--images", "12", "--save_strategy", "no", "--max_steps", "1"]
    return leaderboard.main([*given, *few, *words])
