"""Fingerprints of what scores depend on besides the mask: the model, by content, and the images."""

import hashlib
import json

import torch


NOT_OF_MODEL = ("_name_or_path", "transformers_version", "architectures", "auto_map", "dtype", "layer_mask")


def model_fingerprint(model):
    """A hash of every weight and buffer of `model`, and of its configuration without names and versions."""
    found = hashlib.sha256()
    config = {name: value for name, value in model.config.to_dict().items() if name not in NOT_OF_MODEL}
    found.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        _add(found, tensor)
    return found.hexdigest()[:16]


def images_fingerprint(batches):
    """A hash of the pixels and labels of a list of (pixel_values, labels), as the model sees them."""
    found = hashlib.sha256()
    for pixel_values, labels in batches:
        _add(found, pixel_values)
        _add(found, labels)
    return found.hexdigest()[:16]


def differences(stored, wanted):
    """The entries in which two identities differ, in words; those within an entry that is a dict by their own names."""
    if not isinstance(stored, dict) or not isinstance(wanted, dict):
        return [f"{stored!r} there, {wanted!r} now"]
    words = []
    for name in sorted(stored.keys() | wanted.keys()):
        there, here = stored.get(name), wanted.get(name)
        if isinstance(there, dict) and isinstance(here, dict):
            words += [f"{name}.{text}" for text in differences(there, here)]
        elif there != here:
            words.append(f"{name} {there!r} there, {here!r} now")
    return words


def _add(found, tensor):
    tensor = tensor.detach().cpu().contiguous()
    found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    found.update(tensor.flatten().view(torch.uint8).numpy())
