"""How pictures look: colours, a grid of images with captions below, a bar for the cost."""

from textwrap import shorten


INK, MUTED, TRACK, PAGE = "#1f1f1d", "#8a8983", "#e3e2dd", "#ffffff"


def new_figure(width, height, **options):
    """An empty matplotlib figure, in inches; ImportError with advice where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure  # no pyplot: no window, no state shared with the caller
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install hf_dynvit[demo]") from error
    return Figure(figsize=(width, height), **options)


def image_grid(rows, columns, aspect):
    """A figure with `rows` x `columns` axes for images of that height / width, and the key above them; in inches."""
    side, gap, text, key, margin = 1.65, 0.14, 0.66, 0.68, 0.12
    total_width = columns * side + (columns - 1) * gap + 2 * margin
    total_height = rows * (side * aspect + text) + key
    figure = new_figure(total_width, total_height)
    axes = []
    for row in range(rows):
        bottom = total_height - key - row * (side * aspect + text) - side * aspect
        lefts = [margin + column * (side + gap) for column in range(columns)]
        boxes = [(left / total_width, bottom / total_height) for left in lefts]
        size = (side / total_width, side * aspect / total_height)
        axes.append([figure.add_axes((*box, *size)) for box in boxes])
    figure.text(
        margin / total_width,
        1 - 0.06 / total_height,
        "a dense ViT transforms all patches in all layers: cost 1\n"
        "patches here: in full = attention and MLP transform them, half = one of the two, faded = neither",
        va="top",
        fontsize=8,
        color=MUTED,
    )
    return figure, axes


def frame(axis, image, title):
    """image (height, width, 3) fills the axis; a title too long for its column is cut."""
    axis.imshow(image, interpolation="nearest", aspect="auto")
    axis.set_xticks([])
    axis.set_yticks([])
    for side in axis.spines.values():
        side.set(color=TRACK, linewidth=0.8)
    if title:
        axis.set_title(shorten(title, 26, placeholder=" …"), fontsize=9, color=INK, pad=4, loc="left")


def cost_bar(axis, cost):
    """The cost of an image below its picture, as a number and as a part of the dense model's."""
    _below(axis, 0, 1, f"cost {cost:.2f}", INK)
    points = axis.bbox.transformed(axis.figure.dpi_scale_trans.inverted())
    low, high = -0.15 / points.height, -0.09 / points.height  # inches below the picture -> fraction of it
    for share, color in ((1.0, TRACK), (min(cost, 1.0), INK)):
        axis.fill(
            [0.42, 0.42 + 0.58 * share, 0.42 + 0.58 * share, 0.42],
            [low, low, high, high],
            transform=axis.transAxes,
            color=color,
            linewidth=0,
            clip_on=False,
        )


def _below(axis, x, line, text, color):
    """Text below a picture, at its left (x = 0) or right (x = 1) edge, in line 1 or 2."""
    axis.annotate(
        text,
        (x, 0),
        (0, -3 - 12 * (line - 1)),
        xycoords="axes fraction",
        textcoords="offset points",
        va="top",
        ha="right" if x else "left",
        fontsize=8,
        color=color,
    )


def chip(axis, x, name, color, text):
    """A sub-layer and what it runs on; grey where it is off."""
    _below(axis, x, 1, name, MUTED if text == "off" else color)
    _below(axis, x, 2, text, MUTED if text == "off" else INK)
