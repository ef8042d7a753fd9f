"""Which looks a cascade has: read from words, or chosen for a budget."""

import re

from .resolution import choose_resolution, largest_size, nearest_of, nearest_size, sizes_for, within


# Of a cascade's budget: with a second look for one image in five the two make the whole.
FIRST_LOOK, SECOND_LOOK = 2 / 3, 5 / 3
# Above this budget a cascade keeps the looks of this budget, and more images get the second one: dearer looks would have the
# same size twice, and two looks that see the same know little more than one.
MOST_SPLIT = 0.5
LEFT_IN_FIRST = 0.45  # what gates leave of the first look's size


def read_looks(words, config=None, budget=None, gated=True):
    """["160@0.2", "224@0.5"], the side that images are resized to and the mean cost of each look -> looks as in
    `DynViTConfig`; None for no words.

    Args:
        config, budget, gated: of `looks_for`, which chooses them for ["auto"].

    Raises:
        ValueError: words of another form.
    """
    if words == ["auto"]:
        return None if config is None else looks_for(config, budget, gated)
    looks = []
    for word in words:
        found = re.fullmatch(r"(\d+)@(\d*\.?\d+)", word)
        if found is None:
            raise ValueError(
                f"cascade must be auto or looks such as 160@0.2 224@0.5, side of images @ mean cost, got {word!r}"
            )
        looks.append({"resolution": int(found[1]), "budget": float(found[2])})
    return looks or None


def words_of(cascade):
    """What `read_looks` reads as a cascade whose looks all have a resolution; none of None."""
    return [f"{look['resolution']}@{look['budget']:.4f}" for look in cascade or []]


def looks_for(config, budget, gated):
    """Two looks of a cascade (`DynViTConfig`) for a mean cost: a first one for all images, a second one for some.

    For one in five, and above a budget of `MOST_SPLIT` for more: there the looks are those of `MOST_SPLIT`.

    Args:
        config: of a ViT with square images. budget: mean cost of the cascade.
        gated: whether gates meet the budget of a look; else the size of images alone does.
    """
    side, split = largest_size(config), min(budget, MOST_SPLIT)
    first, second = round(FIRST_LOOK * split, 4), round(SECOND_LOOK * split, 4)
    sizes = (nearest_size(config, min(1.0, first / LEFT_IN_FIRST)), None) if gated else ()
    sizes = sizes or (nearest_size(config, first), nearest_size(config, second))
    return [{"resolution": size or side, "budget": cost} for size, cost in zip(sizes, (first, second), strict=True)]


def choose_looks(dense, build, config, budget, batches):
    """As `looks_for`, at the sizes of images at which each look is nearest to the dense model's predictions.

    Args:
        dense, batches: as in `choose_resolution`. build: (resolution, mean cost) -> a model that meets that cost.
        config, budget: as in `looks_for`.
    """
    looks = looks_for(config, budget, True)
    for look in looks:
        cost = look["budget"]
        _, trials = choose_resolution(
            dense, lambda size, cost=cost: build(size, cost), sizes_for(config, cost), batches
        )
        look["resolution"] = nearest_of(within(trials, cost)).resolution or largest_size(config)
    return looks
