"""Checkpoints of a training: which of them are complete, and from which one to go on."""

import zipfile
from pathlib import Path

from transformers.utils import logging

from ..agents.callback import FILE as AGENT_FILE
from ..measure.json_files import read_json
from ..measure.weight_digest import check_weights


logger = logging.get_logger("hf_dynvit.training.checkpoints")
STATE, PREFIX = "trainer_state.json", "checkpoint-"


def newest_complete(args):
    """The newest complete checkpoint in `args.output_dir`, and why later ones were passed over, which is logged.

    Args:
        args: `DynViTTrainingArguments`.

    Returns:
        The folder, a `Path`, or None, and {name of a folder that was passed over: what is wrong with it}.
    """
    passed_over = {}
    for folder in checkpoints(args.output_dir):
        wrong = unusable(folder) + unfinished(folder, args)
        if not wrong:
            break
        passed_over[folder.name] = "; ".join(wrong)
    else:
        folder = None
    for name, wrong in passed_over.items():
        logger.warning(f"{name} of {args.output_dir} is passed over: {wrong}")
    return folder, passed_over


def checkpoints(folder):
    """Folders of checkpoints, the newest first."""
    found = [path for path in Path(folder).glob(f"{PREFIX}*") if path.is_dir() and _step(path) is not None]
    return sorted(found, key=_step, reverse=True)


def unfinished(folder, args):
    """What a checkpoint lacks besides, to go on from it as if nothing had happened, as a list of words."""
    folder = Path(folder)
    wanted = ["optimizer.pt", "scheduler.pt"] + (["scaler.pt"] if args.fp16 else [])
    if not (folder / "rng_state.pth").is_file() and args.world_size > 1:
        wanted += [f"rng_state_{rank}.pth" for rank in range(args.world_size)]
    elif not any(folder.glob("rng_state_*.pth")):
        wanted += ["rng_state.pth"]
    wanted += [] if args.agent == "none" else [AGENT_FILE]
    wrong = []
    for name in wanted:  # what torch.save writes ends with a directory, which half a file has not
        if not zipfile.is_zipfile(folder / name):
            wrong.append(f"{name} is {'half written' if (folder / name).is_file() else 'missing'}")
    return wrong


def unusable(folder):
    """What no training can go on without, as a list of words: where it stood, and its weights."""
    folder, wrong = Path(folder), []
    try:
        if not isinstance(read_json(folder / STATE), dict):
            wrong.append(f"{folder / STATE} holds no state")
    except FileNotFoundError:
        wrong.append(f"{STATE} is missing")
    except ValueError as error:
        wrong.append(str(error))
    if not any(folder.glob("*.safetensors")):
        wrong.append("model.safetensors is missing")
    try:
        check_weights(folder)
    except ValueError as error:
        wrong.append(str(error))
    return wrong


def check_checkpoint(folder, args):
    """Refuse a checkpoint that was named and from which training cannot continue; warn of what will start afresh.

    Raises:
        ValueError: its state or its weights are missing or damaged; the file is named.
    """
    if wrong := unusable(folder):
        raise ValueError(f"{folder} is no checkpoint to resume from: {'; '.join(wrong)}")
    if wrong := unfinished(folder, args):
        logger.warning(f"{folder} is not complete, the training will not go on as it would have: {'; '.join(wrong)}")


def _step(path):
    number = path.name.removeprefix(PREFIX)
    return int(number) if number.isdigit() else None
