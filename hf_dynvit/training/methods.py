"""The methods that are compared: what each puts on a ViT, and in which way it is brought to a mean cost.

A method whose gates have thresholds is calibrated; one that keeps fixed numbers has an amount (method_models.py). What two
methods share, the place of their gates and what becomes of the tokens that leave, is the literature's own.
"""

from collections.abc import Callable
from typing import NamedTuple

from ..model.configuration_dynvit import pair
from ..model.preset_gates import preset_gates, quarters
from .sharing import SHARES


# What heads and sub-layers save at least where a method has them: with no share it would be another method.
WORKING = SHARES[1:]


class Method(NamedTuple):
    """How a method spends an amount; the more of it, the more is computed.

    Attributes:
        gates: (configuration of the ViT, amount) -> gates as `from_vit` takes them.
        least: of the amount, whose most is 1; None: thresholds meet the budget, and there is no amount.
        learns: whether it is nothing without training.
        importance: whether its scores learn the importance of tokens in closed form first.
        resizes: whether images may be smaller: "chosen", as it is best, or "alone", in place of gates.
        looks: of a cascade, of gates if there are any and of sizes: 2 for the budget, or 3 for every budget; 0: no cascade.
        twin: the method whose looks it takes, for both to see the same images; None: its own.
        together: whether all looks learn in each step (`looks_together`), not in turn.
        as_many: whether its merges are fixed then: as many in every image, of a cascade in every one that takes the look, as
            there were on average (`fix_merges`).
        fitted: whether gates of heads and sub-layers are among them, which are fitted in closed form (`fit_gates`).
        placed: whether its gates stand before the three layers where they harm the prediction least (`places`), not where the
            literature has them. What they cost must not depend on the image.
    """

    gates: Callable
    least: float | None = None
    learns: bool = False
    importance: bool = False
    resizes: str = "never"
    looks: int = 0
    twin: str | None = None
    together: bool = False
    as_many: bool = False
    fitted: bool = False
    placed: bool = False

    def untrained(self):
        """Whether it is something of its own without training."""
        return not (self.learns or self.together)

    def by_thresholds(self):
        """Whether thresholds bring it to a budget; else it costs what its numbers say."""
        return self.least is None and not self.as_many


def _patches(config):
    (height, width), (patch_height, patch_width) = pair(config.image_size), pair(config.patch_size)
    return (height // patch_height) * (width // patch_width)


def _spread(layers, total):
    """For each of so many layers how many of `total` tokens leave: as many as in the others, or one more in the first."""
    return [total // layers + (layer < total % layers) for layer in range(layers)]


def _merging(preset):
    """A preset of fixed merges, with fewer of them the more is computed."""

    def gates(config, amount):
        counts = _spread(config.num_hidden_layers, round((1 - amount) * 2 * _patches(config)))
        entries = preset_gates(preset, config)
        by_layer = [
            entry for layer in range(config.num_hidden_layers) for entry in entries if layer in entry["layers"]
        ]
        return [
            {**entry, "merged": count, "layers": [layer]}
            for layer, (entry, count) in enumerate(zip(by_layer, counts, strict=True))
        ]

    return gates


def _keeping(preset, **changes):
    """A preset that keeps a rate of the tokens at a few depths."""
    return lambda config, rate: [{**entry, **changes, "keep": rate} for entry in preset_gates(preset, config)]


def _cropping(config, amount):
    """The preset `cropr`, with fewer patches leaving before each layer the more is computed."""
    left, entries = _patches(config), preset_gates("cropr", config)
    counts, made = _spread(len(entries), round((1 - amount) * 2 * left)), []
    for entry, count in zip(entries, counts, strict=True):
        left = max(1, left - count)
        made.append({**entry, "top": left})
    return made


def _sampling(config, amount):
    points = max(1, round(amount * 5 * _patches(config)))
    return [{**entry, "samples": points} for entry in preset_gates("ats", config)]


def _twin(config, amount):
    """The preset `merge`, as it is before its scores have learned."""
    return preset_gates("merge", config)


def _kinds(*kinds):
    """Of the preset `adavit-plus` the gates of these kinds."""
    return lambda config, amount: [entry for entry in preset_gates("adavit-plus", config) if entry["gate"] in kinds]


def places(depth):
    """Layers, of `depth`, that gates may stand before: the quarters, or three that are earlier or nearer to each other."""
    quarter = max(1, depth // 4)
    tried = [quarters(range(depth))]
    tried += [
        [first + step * gap for step in range(3)] for gap in range(quarter, 0, -1) for first in range(quarter, 0, -1)
    ]
    return [place for index, place in enumerate(tried) if place[-1] < depth and place not in tried[:index]]


def _nothing(config, amount):
    """The plain ViT."""


def _preset(name):
    """A preset as it is, whose thresholds meet the budget."""
    return lambda config, amount: preset_gates(name, config)


def _novelty(config, amount):
    """The patch gates of the preset `adavit` alone."""
    return [entry for entry in preset_gates("adavit", config) if entry["gate"] == "patch"]


DENSE = "dense"  # what all are held against: the plain ViT, tuned alike
METHODS = {
    DENSE: Method(_nothing),
    "merge": Method(_twin, importance=True),
    "merge-fixed": Method(_twin, importance=True, as_many=True),
    "merge-resized": Method(_twin, importance=True, resizes="chosen"),
    "merge-resized-unlearned": Method(_twin, resizes="chosen"),
    "merge-resized-fixed": Method(_twin, importance=True, resizes="chosen", as_many=True),
    "resized": Method(_nothing, resizes="alone"),
    "cascade": Method(_twin, importance=True, looks=2),
    "cascade-together": Method(_twin, importance=True, looks=2, twin="cascade", together=True),
    "cascade-every": Method(_twin, importance=True, looks=3, together=True),
    "cascade-every-unlearned": Method(_twin, looks=3, twin="cascade-every", together=True),
    "cascade-together-unlearned": Method(_twin, looks=2, twin="cascade", together=True),
    "cascade-fixed": Method(_twin, importance=True, looks=2, twin="cascade", as_many=True),
    "cascade-together-fixed": Method(_twin, importance=True, looks=2, twin="cascade", together=True, as_many=True),
    "cascade-every-fixed": Method(_twin, importance=True, looks=3, twin="cascade-every", together=True, as_many=True),
    "cascade-unlearned": Method(_twin, looks=2, twin="cascade"),
    "cascade-resized": Method(_nothing, looks=2),
    "cascade-together-resized": Method(_nothing, looks=2, together=True),
    "cascade-every-resized": Method(_nothing, looks=3, together=True),
    "merge-unlearned": Method(_twin),
    "merge-heads": Method(_kinds("merge", "head"), importance=True, fitted=True),
    "merge-sublayers": Method(_kinds("merge", "sublayer"), importance=True, fitted=True),
    "sublayers": Method(_kinds("sublayer"), fitted=True),
    "adavit-plus": Method(_kinds("merge", "head", "sublayer"), importance=True, fitted=True),
    "tome": Method(_merging("tome"), 0.0),
    "pitome": Method(_merging("pitome"), 0.0),
    "novelty": Method(_novelty),
    "evit": Method(_keeping("evit"), 0.02),
    "topk": Method(_keeping("topk"), 0.02),
    "topk-merge": Method(_keeping("topk", rest="merge"), 0.02),
    "evit-placed": Method(_keeping("evit"), 0.02, placed=True),
    "topk-merge-placed": Method(_keeping("topk", rest="merge"), 0.02, placed=True),
    "random-merge-placed": Method(_keeping("random-tokens", rest="merge"), 0.02, placed=True),
    "ats": Method(_sampling, 0.002),
    "dynamicvit": Method(_keeping("dynamicvit"), 0.02, learns=True),
    "cropr": Method(_cropping, 0.0, learns=True),
    "contrast": Method(_keeping("topk", score="contrast"), 0.02),
    "random-tokens": Method(_keeping("random-tokens"), 0.02),
    "random-merge": Method(_keeping("random-tokens", rest="merge"), 0.02),
    "adavit": Method(_preset("adavit"), learns=True),
    "avit": Method(_preset("avit"), learns=True),
    "diffrate": Method(_preset("diffrate"), learns=True),
}


def register_method(name, method):
    """Put a method of your own beside the others; ValueError for a name that another one has, or what is no `Method`."""
    if not isinstance(method, Method) or METHODS.get(name, method) is not method:
        raise ValueError(
            f"{name!r} must be a Method under a name of its own, got {method!r}; there are {sorted(METHODS)}"
        )
    if method.placed and method != Method(method.gates, method.least or 0.0, placed=True):
        raise ValueError(f"{name!r} is placed, which goes with an amount (least) and nothing else, got {method!r}")
    METHODS[name] = method


def check_methods(names, tuned):
    """The names to compare: those given, or for "all" those that save something, without training where there is none.

    Raises:
        ValueError: a name that is not on the shelf, or one that is nothing without training, where there is none.
    """
    every = [name for name in METHODS if name != DENSE and (tuned or METHODS[name].untrained())]
    names = every if names == ["all"] else names
    wrong = [name for name in names if name not in METHODS]
    if wrong or not names:
        raise ValueError(f"methods must be 'all' alone or of {sorted(METHODS)}, got {wrong or names}")
    fresh = [name for name in names if not (tuned or METHODS[name].untrained())]
    if fresh:
        raise ValueError(f"{fresh} are nothing of their own before they are trained: give --tune true, and a recipe")
    return list(dict.fromkeys(names))
