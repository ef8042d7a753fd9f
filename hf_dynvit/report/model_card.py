"""The model card: what a model is, how to load it, and the numbers that were measured, none of them typed by hand."""

import math
import re
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..measure.provenance import PACKAGE
from ..model.gates import GATES
from ..training.presets import gate_facts
from .markdown import without_folders
from .names import decides, seen


TEMPLATE = "model_card_template.md"
METRICS = (
    ("accuracy", "accuracy", "Top-1 accuracy"),
    ("accuracy_top5", "accuracy", "Top-5 accuracy"),
    ("cost", "cost", "Mean cost (MACs / MACs of the dense model)"),
)
ALL_RIGHT = {"accuracy": "Share of images of which all labels are right"}  # where each label is a decision of its own


def write_model_card(
    model,
    results,
    folder,
    model_id=None,
    base_model=None,
    datasets=None,
    license=None,
    license_name=None,
    license_link=None,
    dataset_terms=None,
    pictures=None,
    training=None,
    plain=False,
):
    """Write `README.md` beside a saved model.

    Args:
        model: the `DynViTForImageClassification` that was saved.
        results: fields of `results.Training` or another kind as a dict, {} if nothing was measured. What is missing or None
            is left out of the card.
        folder: where to write; its name is the model's name unless `model_id` is given.
        model_id: the Hub id, or what else `from_pretrained` is to be called with.
        base_model: the Hub id of the ViT that the model was made from, or several; None: the id that the configuration
            remembers, if there is one.
        datasets: Hub ids of the training data.
        license, license_name, license_link, dataset_terms: as you state them; the first three as the Hub has them.
        pictures: file in `folder` -> caption.
        training: name -> value, the settings to list.
        plain: the folder holds a native ViT, which needs no code of ours.

    Returns:
        The `ModelCard`.

    Raises:
        ValueError: a share outside [0, 1], a number that is not finite, or a picture that is not there.
    """
    folder, config, pictures = Path(folder), model.config, pictures or {}
    check_results(results)
    for file in pictures:
        if not (folder / file).is_file():
            raise ValueError(f"there is no picture {file!r} in {folder}")
    model_id = model_id or folder.resolve().name
    remembered = config._name_or_path or ""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", remembered) and not Path(remembered).exists():  # a Hub id
        base_model = base_model or remembered
    data = ModelCardData(
        model_name=model_id.rpartition("/")[2],
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["dynvit", "vision", "adaptive-computation"],
        base_model=base_model,
        datasets=datasets,
        license=license,
        license_name=license_name,
        license_link=license_link,
        metrics=["accuracy"] if results.get("accuracy") is not None else None,
        eval_results=_eval_results(results, config),
    )
    card = ModelCard.from_template(
        data,
        template_path=template_path(),
        title=data.model_name,
        model_id=model_id,
        config=config,
        plain=plain,
        gates=[_gate(entry, config.num_hidden_layers) for entry in config.gates or []],
        decides=decides(gate_facts(model)) + seen(config),
        thresholds=any(getattr(gate, "merged", None) is None for gate in model.learned_gates()),
        results=results,
        dense=results.get("dense"),
        dense_model=Path(results["dense_model"]).name if results.get("dense_model") else None,
        throughput=[{"name": row["batch_size"], **row} for row in results.get("throughput") or []],
        usage=_usage_rows(results.get("usage") or {}),
        command=without_folders(results["command"]) if results.get("command") else None,
        training={name: value for name, value in (training or {}).items() if value is not None},
        pictures=pictures,
        base_models=[base_model] if isinstance(base_model, str) else base_model,
        license=license_name or license,
        dataset_terms=dataset_terms,
    )
    card.text = re.sub(r"\n{3,}", "\n\n", card.text).rstrip() + "\n"  # what absent sections leave behind
    card.save(folder / "README.md")
    return card


def template_path():
    """The template: inside an installed package, at the top level of a source tree."""
    places = [PACKAGE / TEMPLATE, PACKAGE.parent / TEMPLATE]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f"{TEMPLATE} is missing; it was looked for at {' and '.join(map(str, places))}")


def check_results(results):
    """Refuse numbers that cannot be what their name says."""
    for where, measured in (("", results), ("dense ", results.get("dense") or {})):
        given = {name: value for name, value in measured.items() if value is not None}
        for name in given.keys() & {"accuracy", "accuracy_top5"}:
            if not 0 <= given[name] <= 1:
                raise ValueError(f"{where}{name} must be a share in [0, 1], got {given[name]}")
        for name in given.keys() & {"cost", "gmacs"}:
            if not 0 < given[name] < math.inf:
                raise ValueError(f"{where}{name} must be positive and finite, got {given[name]}")


def _eval_results(results, config):
    """The measured metrics as the Hub lists them; None without a data set."""
    names = ALL_RIGHT if config.problem_type == "multi_label_classification" else {}
    found = [
        EvalResult(
            task_type="image-classification",
            task_name="Image classification",
            dataset_type=results["dataset"],
            dataset_name=results["dataset"],
            dataset_split=results.get("split"),
            dataset_args={"images": results["images"]} if results.get("images") else None,
            metric_type=kind,
            metric_name=names.get(key, name),
            metric_value=results[key],
        )
        for key, kind, name in METRICS
        if results.get("dataset") and results.get(key) is not None
    ]
    return found or None


def _gate(entry, depth):
    options = [f"`{key}`: {value}" for key, value in entry.items() if key not in ("gate", "layers")]
    return {
        "name": entry["gate"],
        "layers": layer_ranges(entry.get("layers", range(depth))),
        "options": ", ".join(options),
        "meaning": (GATES[entry["gate"]].__doc__ or "").strip().split("\n\n")[0],
    }


def layer_ranges(layers):
    """[0, 1, 2, 5] -> "layers 0–2, 5"."""
    runs = []
    for layer in sorted(layers):
        if runs and runs[-1][1] == layer - 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return "layers " + ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs)


def _usage_rows(usage):
    """kind -> {layer: share} as a dict for each layer; layers are strings after a trip through JSON."""
    layers = sorted({int(layer) for shares in usage.values() for layer in shares})
    shares = {kind: {int(layer): share for layer, share in found.items()} for kind, found in usage.items()}
    return [{"name": layer} | {kind: found.get(layer) for kind, found in shares.items()} for layer in layers]
