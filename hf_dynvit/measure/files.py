"""Files that are whole or refused: JSON and text, written at once or not at all, weights with a digest and a classifier.

The digest stands in the metadata of model.safetensors, so that it goes wherever the file goes, and a later
`save_pretrained`, which writes another file, takes the old digest away with the old weights.
"""

import hashlib
import json
import os
from pathlib import Path


KEY = "sha256"
READ_AT_ONCE = 1 << 24  # bytes
HEADS = ("classifier", "head")  # modules of which classifiers are
BARE = ("Model", "ForMaskedImageModeling", "ForPreTraining")  # how architectures without one end


def read_json(path):
    """The content of a JSON file.

    Raises:
        FileNotFoundError: there is no such file. ValueError: it is damaged; both name it.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # of the JSON or of its encoding
        raise ValueError(f"{path} is damaged, it holds no JSON: {error}") from error


def write_json(path, content):
    """Write JSON as `write_text` does."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path, text):
    """Write through a file beside it: a killed process leaves the old content, or none."""
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def check_new_folder(folder):
    """Refuse a folder to write that is a file, or holds anything: ValueError."""
    folder = Path(folder)
    if folder.is_file() or (folder.exists() and any(folder.iterdir())):
        raise ValueError(f"output {str(folder)!r} is not empty: give a new folder")


def sign_weights(folder):
    """Write the digest of each safetensors file in `folder` into its metadata."""
    for file in sorted(Path(folder).glob("*.safetensors")):
        with open(file, "rb") as source:
            header = _header(source, file)
            metadata = header.get("__metadata__") or {}
            header["__metadata__"] = {**metadata, KEY: _digest(header, source)}
            text = json.dumps(header, separators=(",", ":")).encode()
            text += b" " * (-len(text) % 8)  # tensors stay aligned
            partial = file.with_name(f"{file.name}.partial")
            with open(partial, "wb") as target:
                target.write(len(text).to_bytes(8, "little") + text)
                source.seek(0)
                _header(source, file)
                while part := source.read(READ_AT_ONCE):
                    target.write(part)
        os.replace(partial, file)


def check_weights(folder):
    """Compare the safetensors files in `folder` with their digests; a file without one, or a Hub id, passes.

    Raises:
        ValueError: weights that are not those that were written, or a file that cannot be read; it is named.
    """
    if not Path(folder).is_dir():
        return
    for file in sorted(Path(folder).glob("*.safetensors")):
        with open(file, "rb") as source:
            header = _header(source, file)
            wanted = (header.get("__metadata__") or {}).get(KEY)
            if wanted is not None and _digest(header, source) != wanted:
                raise ValueError(f"{file} is damaged: its weights are not those that were saved (sha256 differs)")


def check_classifier(source, config):
    """ValueError for a checkpoint that is a backbone alone: each load of it draws another classifier at random.

    Args:
        source: folder, whose weights say it, or Hub id, of which the names of its architectures do.
        config: its configuration, or the fields of it as a dict.
    """
    kinds = (config if isinstance(config, dict) else vars(config)).get("architectures") or []
    files = sorted(Path(source).glob("*.safetensors")) if Path(source).is_dir() else []
    bare = bool(kinds) and all(kind.endswith(BARE) for kind in kinds)
    if files:
        names = [name for file in files for name in _tensors(file)]
        bare = not any(part in name.split(".") for name in names for part in HEADS)
    if bare:
        raise ValueError(
            f"{source} ({', '.join(kinds) or 'of no architecture'}) has no classifier: train one on it first (recipes/train.py with "
            "--new_classifier true)"
        )


def _tensors(file):
    with open(file, "rb") as source:
        return _header(source, file).keys() - {"__metadata__"}


def weights_digest(folder):
    """One sha256 of all safetensors files in `folder`; None for a Hub id, or a folder without any."""
    files = sorted(Path(folder).glob("*.safetensors")) if Path(folder).is_dir() else []
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as source:
            digest.update(_digest(_header(source, file), source).encode())
    return digest.hexdigest() if files else None


def _header(source, file):
    """The header of an open safetensors file, which then stands at the first tensor."""
    size = int.from_bytes(source.read(8), "little")
    try:
        if not 0 < size <= os.path.getsize(file) - 8:
            raise ValueError(f"a header of {size} bytes in a file of {os.path.getsize(file)}")
        header = json.loads(source.read(size))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        if os.path.getsize(file) != 8 + size + max(ends, default=0):
            raise ValueError("it does not end where its tensors do")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{file} is damaged or half written: {error}") from error
    return header


def _digest(header, source):
    """sha256 of the names, shapes, types and places of the tensors, and of all their bytes."""
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    digest = hashlib.sha256(json.dumps(tensors, sort_keys=True).encode())
    while part := source.read(READ_AT_ONCE):
        digest.update(part)
    return digest.hexdigest()
