"""From a trained ViT to the parts of a model with gates: the loaded native classifier, and a configuration with gates."""

import copy

from transformers import PreTrainedConfig

from .configuration_dynvit import DynViTConfig
from .host import host_of
from .preset_gates import preset_gates


# Of the keywords of `from_pretrained` those that say where files come from: the configuration's, too.
FROM_WHERE = ("revision", "subfolder", "token", "cache_dir", "local_files_only", "force_download", "proxies")


def load_vit(source, kind=DynViTConfig, **kwargs):
    """The native classifier at `source` (folder or Hub id), or `source` itself if it is one, of the family of `kind`.

    Raises:
        ValueError: another architecture, a checkpoint that lacks weights of the body, or a `device_map` that leaves some
            on disk.
    """
    native = host_of(kind).native
    if isinstance(source, native):
        if kwargs:
            raise ValueError(f"{sorted(kwargs)} can only be given with a folder or a Hub id")
        return source
    if not isinstance(source, str) and not hasattr(source, "__fspath__"):
        raise ValueError(
            f"source must be a {native.__name__}, or a folder or Hub id of one, got {type(source).__name__}"
        )
    where = {name: kwargs[name] for name in FROM_WHERE if name in kwargs}
    model_type = PreTrainedConfig.get_config_dict(source, **where)[0].get("model_type")
    if model_type != kind.host:
        hint = "; load it with from_pretrained" if model_type == kind.model_type else ""
        raise ValueError(f"{source} is a {model_type!r} model, not a {kind.host!r}{hint}")
    model, info = native.from_pretrained(source, output_loading_info=True, **kwargs)
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("classifier."))
    if missing:
        raise ValueError(f"{source} lacks {len(missing)} weights of a ViT, for example {missing[:3]}")
    elsewhere = [name for name, weight in model.named_parameters() if weight.is_meta]
    if elsewhere:
        raise ValueError(
            f"device_map {kwargs['device_map']!r} leaves {len(elsewhere)} weights off every device, for example "
            f"{elsewhere[0]}: give one device that holds them all"
        )
    return model


def dynvit_config(config, gates, budget, kind=DynViTConfig, resolution=None, cascade=None, last_layer=None):
    """A native configuration, and those fields of `DynViTConfig` that are new to it -> one of class `kind`."""
    fields = config.to_dict()
    for name in ("model_type", "architectures", "transformers_version", "auto_map", "_name_or_path"):
        fields.pop(name, None)
    if isinstance(gates, str):
        gates = preset_gates(gates, config)
    # Copies: what is calibrated later is the model's own, not the caller's list.
    own = copy.deepcopy({"gates": gates, "cascade": cascade})
    built = kind(**fields, **own, budget=budget, resolution=resolution, last_layer=last_layer)
    built._name_or_path = config._name_or_path  # the base model, for the card
    return built
