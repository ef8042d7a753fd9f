"""Checkpoints: the Trainer that writes and resumes them bit-exactly, and checks of those that there are."""

import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.utils import logging

from ..agents.callback import FILE as AGENT_FILE
from ..measure.files import check_weights, read_json, sign_weights


logger = logging.get_logger("hf_dynvit.training.checkpoints")
STATE, PREFIX = "trainer_state.json", "checkpoint-"
HEADS_FILE = "objective.safetensors"  # what learns beside the model


def newest_complete(args):
    """The newest complete checkpoint in `args.output_dir`, and {name of a later one: its faults}, which are logged.

    The checkpoint is a `Path`, or None.
    """
    passed_over = {}
    for folder in checkpoints(args.output_dir):
        wrong = "; ".join(unusable(folder) + unfinished(folder, args))
        if not wrong:
            return folder, passed_over
        passed_over[folder.name] = wrong
        logger.warning(f"{folder.name} of {args.output_dir} is passed over: {wrong}")
    return None, passed_over


def checkpoints(folder):
    """Folders of checkpoints, the newest first."""
    found = {path.name.removeprefix(PREFIX): path for path in Path(folder).glob(f"{PREFIX}*") if path.is_dir()}
    return [found[step] for step in sorted(filter(str.isdigit, found), key=int, reverse=True)]


def unfinished(folder, args):
    """Files missing for a bit-exact resume, as a list of words."""
    folder = Path(folder)
    wanted = ["optimizer.pt", "scheduler.pt"] + (["scaler.pt"] if args.fp16 else [])
    if not (folder / "rng_state.pth").is_file() and args.world_size > 1:
        wanted += [f"rng_state_{rank}.pth" for rank in range(args.world_size)]
    elif not any(folder.glob("rng_state_*.pth")):
        wanted += ["rng_state.pth"]
    wanted += [] if args.agent == "none" else [AGENT_FILE]
    wrong = []
    if args.make_objective().has_heads and not (folder / HEADS_FILE).is_file():
        wrong.append(f"{HEADS_FILE} is missing")
    for name in wanted:  # what torch.save writes ends with a directory, which half a file has not
        if not zipfile.is_zipfile(folder / name):
            wrong.append(f"{name} is {'half written' if (folder / name).is_file() else 'missing'}")
    return wrong


def unusable(folder):
    """Faults that forbid any resume, as a list of words: of the trainer's state, and of the weights."""
    folder, wrong = Path(folder), []
    try:
        if not isinstance(read_json(folder / STATE), dict):
            wrong.append(f"{folder / STATE} holds no state")
    except FileNotFoundError:
        wrong.append(f"{STATE} is missing")
    except ValueError as error:
        wrong.append(str(error))
    if not any(path.name != HEADS_FILE for path in folder.glob("*.safetensors")):
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


class ResumedCallback(TrainerCallback, ExportableState):
    """A callback with a `state_dict`, JSON-ready, that travels in trainer_state.json under the name of its class."""

    def state(self):
        return {"args": {}, "attributes": self.state_dict()}

    def on_train_begin(self, args, state, control, **kwargs):
        saved = state.stateful_callbacks.get(type(self).__name__) if state.global_step else None
        self.load_state_dict(saved["attributes"] if isinstance(saved, dict) else {})


class ObjectiveState(ResumedCallback):
    """Saves and loads the state of an objective; its heads' gradients are clipped and forgotten as those of the model are."""

    def __init__(self, objective):
        self.objective = objective
        self.state_dict, self.load_state_dict = objective.state_dict, objective.load_state_dict

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self._forget()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if self.objective.heads is not None and args.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.objective.heads.parameters(), args.max_grad_norm)

    def on_step_end(self, args, state, control, **kwargs):
        self._forget()

    def _forget(self):
        if self.objective.heads is not None:
            self.objective.heads.zero_grad()


ObjectiveState.__name__ = "PolicyObjective"  # what it is called in the checkpoints that there are


class CheckpointTrainer(Trainer):
    """The part of `DynViTTrainer` that saves and loads.

    Attributes:
        agent: a `PatchAgent` whose state travels in the checkpoints, or None.
        objective: an `Objective`, whose heads do, or None.
    """

    agent = objective = None

    def checkpoint_to_resume(self, resume):
        """The folder that `train` is asked to resume from, checked; None to start."""
        if resume is None or resume is False:
            return None
        if resume is not True:
            check_checkpoint(resume, self.args)
            return resume
        folder, passed_over = newest_complete(self.args)
        if folder is None:
            where = f"{self.args.output_dir!r} to resume from; {passed_over or 'none at all'}"
            raise ValueError(f"there is no complete checkpoint in {where}")
        return str(folder)

    def _run_epoch(self, *args, **kwargs):
        """A run that is resumed where it ended trains no step more."""
        if self.state.global_step >= self.state.max_steps:
            self._load_rng_state(kwargs.get("resume_from_checkpoint"))
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _heads(self):
        return None if self.objective is None else self.objective.heads

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            sign_weights(self.args.output_dir if output_dir is None else output_dir)

    def _save_optimizer_and_scheduler(self, output_dir):
        """And the agent's state: before older checkpoints are deleted."""
        super()._save_optimizer_and_scheduler(output_dir)
        if self.agent is not None and self.args.should_save:
            self.agent.save(output_dir)
        if self._heads() is not None and self.args.should_save:
            save_model(self._heads(), Path(output_dir) / HEADS_FILE)

    def _load_callback_state(self):
        """Ours take their state back when training begins: they cannot be built anew, as the `Trainer` would."""
        saved = self.state.stateful_callbacks
        names = {type(call).__name__ for call in self.callback_handler.callbacks if isinstance(call, ResumedCallback)}
        own = {name: saved.pop(name) for name in names & saved.keys()}
        super()._load_callback_state()
        self.state.stateful_callbacks |= own

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        if self.agent is not None:
            self.agent.load(resume_from_checkpoint)
        if self._heads() is not None:
            file = Path(resume_from_checkpoint) / HEADS_FILE
            if not file.is_file():
                raise ValueError(
                    f"{file} is missing: it is no checkpoint of a training with objective {self.args.objective!r}"
                )
            load_model(self._heads(), file)
        self._reload(resume_from_checkpoint, model)

    def _load_best_model(self):
        self._reload(self.state.best_model_checkpoint)

    def _reload(self, folder, model=None):
        # Checkpoints hold the published key names; only from_pretrained renames them.
        model = self.accelerator.unwrap_model(self.model if model is None else model)
        source = type(model).from_pretrained(folder, dtype=torch.float32)
        model.load_state_dict(source.state_dict(), strict=True)
