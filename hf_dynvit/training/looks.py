"""Which looks a cascade has: read from words, or chosen for a budget."""

import re

from .resolution import choose_resolution, largest_size, nearest_of, nearest_size, sizes_for, within


# Of a cascade's budget: with a second look for one image in five the two make the whole.
FIRST_LOOK, SECOND_LOOK = 2 / 3, 5 / 3
# Above this budget a cascade keeps the looks of this budget, and more images get the second one: dearer looks would have the
# same size twice, and two looks that see the same know little more than one.
MOST_SPLIT = 0.5
LEAST_SPLIT = 0.3  # of looks for every budget the first is that of this one
LEFT_IN_FIRST = 0.45  # what gates leave of the size of looks before the last
EVERY = [FIRST_LOOK * LEAST_SPLIT, FIRST_LOOK * MOST_SPLIT, SECOND_LOOK * MOST_SPLIT]
# How much more each look counts than the one before, in the mean of their probabilities: of 1, 2, 4, 16 and the last look alone, on
# images held out from training of ten cascades.
LATER = 4.0
CHOSEN = {"auto": 2, "every": 3}  # words for looks that are chosen, and how many


def read_looks(words, config=None, budget=None, gated=True):
    """["160@0.2", "224@0.5x3"], the side that images are resized to and the mean cost of each look -> looks as in
    `DynViTConfig`; None for no words. What stands after x is how much a look counts; else it is as `weighted` has it.

    Args:
        config, budget, gated: of `looks_for`, which chooses them for ["auto"] or ["every"].

    Raises:
        ValueError: words of another form.
    """
    if chosen(words):
        return None if config is None else looks_for(config, budget, gated, chosen(words))
    looks = []
    for word in words:
        found = re.fullmatch(r"(\d+)@(\d*\.?\d+)(x\d*\.?\d+)?", word)
        if found is None:
            raise ValueError(
                "cascade must be auto, every, or looks such as 160@0.2 224@0.5x4, side of images @ mean cost, and x how much it "
                f"counts, got {word!r}"
            )
        weight = {"weight": float(found[3][1:])} if found[3] else {}
        looks.append({"resolution": int(found[1]), "budget": float(found[2])} | weight)
    return weighted(looks) or None


def weighted(looks):
    """Looks of which each counts `LATER` times as much as the one before, which has seen less, where none says how much."""
    return [{"weight": LATER**index} | look for index, look in enumerate(looks)]


def as_today(looks):
    """The same looks, as `looks_for` would have them count."""
    return weighted([{name: value for name, value in look.items() if name != "weight"} for look in looks])


def chosen(words):
    """How many looks the words of a cascade leave to be chosen; 0 if they name them, or none."""
    return CHOSEN.get(words[0], 0) if len(words) == 1 else 0


def words_of(cascade):
    """What `read_looks` reads as a cascade whose looks all have a resolution; none of None."""
    return [f"{look['resolution']}@{look['budget']:.4f}x{look.get('weight', 1.0):f}" for look in cascade or []]


def looks_for(config, budget, gated, count=2):
    """Looks of a cascade (`DynViTConfig`) for a mean cost: a first one for all images, others for some.

    Two are for this cost: the second one for one image in five, and above `MOST_SPLIT` for more, for there the looks are those of
    `MOST_SPLIT`. Three are for every cost: the first looks of cascades for `LEAST_SPLIT` and for `MOST_SPLIT`, and the second one of
    the latter.

    Args:
        config: of a ViT with square images. budget: mean cost of the cascade.
        gated: whether gates meet the budget of a look; else the size of images alone does.
        count: 2 or 3.
    """
    split = min(budget, MOST_SPLIT)
    costs = [FIRST_LOOK * split, SECOND_LOOK * split] if count == 2 else EVERY
    *earlier, last = [round(cost, 4) for cost in costs]
    shares = [min(1.0, cost / LEFT_IN_FIRST) if gated else cost for cost in earlier]
    sizes = [nearest_size(config, share) for share in shares] + [None if gated else nearest_size(config, last)]
    side = largest_size(config)
    looks = zip(sizes, [*earlier, last], strict=True)
    return weighted([{"resolution": size or side, "budget": cost} for size, cost in looks])


def choose_looks(dense, build, config, budget, batches, count=2):
    """As `looks_for`, at the sizes of images at which each look is nearest to the dense model's predictions.

    Args:
        dense, batches: as in `choose_resolution`. build: (resolution, mean cost) -> a model that meets that cost.
        config, budget, count: as in `looks_for`.
    """
    looks = looks_for(config, budget, True, count)
    for look in looks:
        cost = look["budget"]
        _, trials = choose_resolution(
            dense, lambda size, cost=cost: build(size, cost), sizes_for(config, cost), batches
        )
        look["resolution"] = nearest_of(within(trials, cost)).resolution or largest_size(config)
    return looks
