"""How the tuned cells of a leaderboard were trained, which tells boards of one checkpoint apart."""

# What decides how much a training can teach, of the parts of a board's settings. What methods or seeds say is not among it.
DECIDES = {
    "training": (
        "max_steps",
        "num_train_epochs",
        "per_device_train_batch_size",
        "learning_rate",
        "gradient_accumulation_steps",
        "weight_decay",
        "warmup_steps",
        "lr_scheduler_type",
        "label_smoothing_factor",
        "freeze_gates_at",
        "distillation_weight",
    ),
    "model": ("teacher", "last_layer"),
    "data": ("min_crop_area", "crop_pct", "horizontal_flip", "max_train_samples", "validation_fraction"),
}
LENGTHS = ("max_steps", "num_train_epochs")
WITHOUT = {"crop_pct": "whole images"}  # what is said of None
WORDS = {
    "per_device_train_batch_size": "batch",
    "min_crop_area": "crops from",
    "max_train_samples": "images",
}


def recipe(board):
    """Name -> value of what decides, of a `Leaderboard`; {} without tuned cells."""
    if not any(cell.tuned for cell in board.cells):
        return {}
    found = {name: board.settings.get(part, {}).get(name) for part, names in DECIDES.items() for name in names}
    if (found["max_steps"] or 0) > 0:
        found["num_train_epochs"] = None
    if found["teacher"] in (None, "none"):
        del found["distillation_weight"]
    return found


def length(board):
    """ "150 steps" or "3 epochs" of the tuned cells; "" without any."""
    taught = recipe(board)
    if not taught:
        return ""
    return (
        f"{taught['max_steps']} steps" if (taught["max_steps"] or 0) > 0 else f"{taught['num_train_epochs']:g} epochs"
    )


def differs(board, others):
    """In words what its recipe has otherwise than those of other boards, beside the length; [] of the same recipe."""
    taught, rest = recipe(board), [one for one in map(recipe, others) if one]
    names = [name for name in taught if any(one.get(name, taught[name]) != taught[name] for one in rest)]
    said = [name for name in names if (taught[name] is not None or name in WITHOUT) and name not in LENGTHS]
    return [_said(name, taught[name]) for name in said]


def _said(name, value):
    if name in WITHOUT:
        return WITHOUT[name] if value is None else f"the middle {value:g} of images"
    if name == "teacher":
        return "no teacher" if value == "none" else f"teacher {value}"
    return f"{WORDS.get(name, name.replace('_', ' '))} {value}"
