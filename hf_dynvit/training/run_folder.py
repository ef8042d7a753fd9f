"""The folder of a run: whether one may begin in it, or go on from a checkpoint of it."""

from pathlib import Path

from .checkpoints import check_checkpoint, checkpoints, newest_complete, unusable


def find_checkpoint(args):
    """The checkpoint to resume from, None to start; refuses an output_dir that already holds a run, or what is not of one."""
    folder, resume = Path(args.output_dir), args.resume_from_checkpoint
    check_folder(folder)
    wanted = str(resume).lower()
    if wanted not in ("none", "false", "true"):
        if not Path(resume).is_dir():
            raise FileNotFoundError(f"there is no checkpoint to resume from: {resume}")
        check_checkpoint(resume, args)
        return resume
    found, passed_over = newest_complete(args) if wanted == "true" or checkpoints(folder) else (None, {})
    if wanted == "true" and found:
        return str(found)
    held = what_it_holds(folder, found, passed_over)
    if wanted == "true":
        raise FileNotFoundError(f"there is no checkpoint to resume from in {str(folder)!r}{held and f': it {held}'}")
    if held:
        raise ValueError(f"output_dir {str(folder)!r} {held}; or give another output_dir")
    return None


def check_folder(folder):
    """Refuse an output_dir that is a file, or whose files the model, its code and its card would replace."""
    if folder.is_file():
        raise ValueError(f"output_dir {str(folder)!r} is a file: give a folder")
    of_a_run = checkpoints(folder) or any((folder / name).exists() for name in ("results.json", "model.safetensors"))
    others = [] if of_a_run else sorted(file.name for file in [*folder.glob("*.py"), *folder.glob("README.md")])
    if others:
        raise ValueError(
            f"output_dir {str(folder)!r} holds {', '.join(others)}, and is the folder of no run: its code and card would take their "
            "place; give another output_dir"
        )


def what_it_holds(folder, checkpoint, passed_over):
    """What an output_dir holds of an earlier run, and how to go on with it; "" if nothing."""
    if checkpoint:
        return f"already holds a run ({checkpoint.name}): go on with --resume_from_checkpoint true"
    results, weights = folder / "results.json", folder / "model.safetensors"
    measure = f"measure it with recipes/evaluate.py --model {folder}"
    if results.exists() and weights.exists():
        return f"already holds a run (finished): {measure}"
    if weights.exists():
        return f"already holds a run (its model, without results.json, before which it was ended): {measure}"
    if results.exists():
        return f"already holds a run (its results.json, without a model: read {results})"
    if passed_over:
        wrong = ", ".join(f"{name}: {what}" for name, what in passed_over.items())
        usable = [name for name in passed_over if not unusable(folder / name)]
        how = (
            f"go on from its weights with --resume_from_checkpoint {folder / usable[0]}"
            if usable
            else "delete the folder"
        )
        return f"already holds a run without a complete checkpoint ({wrong}): {how}"
    return ""
