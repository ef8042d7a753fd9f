"""The model card: what a model is, how to load it, and the numbers that were measured, none of them typed by hand."""

import math
import re
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..measure.provenance import PACKAGE
from ..model.gates import GATES
from ..training.presets import gate_facts
from .card_tables import measured_table, pairs_table, results_table, throughput_table, usage_table
from .names import decides


TEMPLATE = "model_card_template.md"


def write_model_card(
    model,
    results,
    folder,
    model_id=None,
    base_model=None,
    datasets=None,
    license=None,
    dataset_terms=None,
    pictures=None,
    training=None,
    plain=False,
):
    """Write `README.md` beside a saved model.

    Args:
        model: the `DynViTForImageClassification` that was saved.
        results: what an evaluation wrote, {} if there was none. A key that is missing or None is left out of the card:
            "dataset", "split", "split_files", "images"; "accuracy", "accuracy_top5" (shares), "cost", "gmacs" (per image); "dense": the
            last four of the dense model; "throughput": [{"batch_size", "dense_images_per_second",
            "packed_images_per_second", "speedup"}]; "usage": as of `UsageMeter.per_layer`; "batch_size" and what
            `measured_on` gives.
        folder: where to write; its name is the model's name unless `model_id` is given.
        model_id: the Hub id, or what else `from_pretrained` is to be called with.
        base_model: the Hub id of the ViT that the model was made from; None: the id that the configuration
            remembers, if there is one.
        datasets: Hub ids of the training data.
        license, dataset_terms: as you state them.
        pictures: file in `folder` -> caption.
        training: name -> value, the settings to list.
        plain: the folder holds a native ViT, which needs no code of ours.

    Returns:
        The `ModelCard`.

    Raises:
        ValueError: a share outside [0, 1], a number that is not finite, or a picture that is not there.
    """
    folder = Path(folder)
    check_results(results)
    for file in pictures or {}:
        if not (folder / file).is_file():
            raise ValueError(f"there is no picture {file!r} in {folder}")
    model_id = model_id or folder.resolve().name
    config = model.config
    base_model = base_model or _remembered_base(config)
    data = ModelCardData(
        model_name=model_id.rpartition("/")[2],
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["dynvit", "vision", "adaptive-computation"],
        base_model=base_model,
        datasets=datasets,
        license=license,
        metrics=["accuracy"] if results.get("accuracy") is not None else None,
        eval_results=_eval_results(results),
    )
    card = ModelCard.from_template(
        data,
        template_path=template_path(),
        title=data.model_name,
        model_id=model_id,
        summary=_summary(config),
        plain=plain,
        gates=[_gate(entry, config.num_hidden_layers) for entry in config.gates or []],
        decides=decides(gate_facts(model)),
        budget=config.budget,
        measured_sentence=_measured_sentence(results),
        results_table=results_table(results),
        throughput_table=throughput_table(results.get("throughput")),
        throughput_sentence=_throughput_sentence(results),
        usage_table=usage_table(results.get("usage")),
        measured_table=measured_table(results),
        training_table=pairs_table(training),
        pictures=list((pictures or {}).items()),
        base_model=base_model,
        license=license,
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
        for name in ("accuracy", "accuracy_top5"):
            if measured.get(name) is not None and not 0 <= measured[name] <= 1:
                raise ValueError(f"{where}{name} must be a share in [0, 1], got {measured[name]}")
        for name in ("cost", "gmacs"):
            if measured.get(name) is not None and not (math.isfinite(measured[name]) and measured[name] > 0):
                raise ValueError(f"{where}{name} must be positive and finite, got {measured[name]}")


def _remembered_base(config):
    name = config._name_or_path or ""
    is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists()
    return name if is_hub_id else None


def _eval_results(results):
    metrics = {
        "accuracy": ("accuracy", "Top-1 accuracy"),
        "accuracy_top5": ("accuracy", "Top-5 accuracy"),
        "cost": ("cost", "Mean cost (MACs / MACs of the dense model)"),
    }
    if not results.get("dataset"):
        return None
    found = [
        EvalResult(
            task_type="image-classification",
            task_name="Image classification",
            dataset_type=results["dataset"],
            dataset_name=results["dataset"],
            dataset_split=results.get("split"),
            metric_type=kind,
            metric_name=name,
            metric_value=results[key],
        )
        for key, (kind, name) in metrics.items()
        if results.get(key) is not None
    ]
    return found or None


def _summary(config):
    size = config.image_size if isinstance(config.image_size, int) else "×".join(map(str, config.image_size))
    patch = config.patch_size if isinstance(config.patch_size, int) else "×".join(map(str, config.patch_size))
    text = (
        f"A Vision Transformer ({config.num_hidden_layers} layers, {config.hidden_size} channels, patches of {patch} "
        f"pixels, {size} pixel images, {config.num_labels} classes)"
    )
    if not config.gates:
        return f"{text} without gates: it computes everything for every image."
    return f"{text} that decides per image what to compute: what its gates switch off is skipped."


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


def _measured_sentence(results):
    words = []
    if results.get("images"):
        words.append(f"on {results['images']:,} images")
    if results.get("dataset"):
        words.append(f"of {results['dataset']}")
    if results.get("split"):
        files = ", ".join(results.get("split_files") or [])
        words.append(f"({results['split']}{' = ' if files else ''}{files})")
    return f"Measured {' '.join(words)}." if words else ""


def _throughput_sentence(results):
    words = [str(results[key]) for key in ("device", "dtype") if results.get(key)]
    if results.get("threads"):
        words.append(f"CPU threads: {results['threads']}")
    sentence = f"On {', '.join(words)}." if words else ""
    rows = results.get("throughput") or []
    fastest = dict.fromkeys(min(row["dense_ms"], key=row["dense_ms"].get) for row in rows if row.get("dense_ms"))
    if fastest:
        sentence += f" The dense model is the fastest of {len(rows[0]['dense_ms'])}: {', '.join(fastest)}."
    if any(row.get("prepacked") for row in rows):
        sentence += " The packed model ran with prepacked weights (`model.prepack()`)."
    return sentence.strip()
