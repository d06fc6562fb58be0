"""The colours of all pictures, by what they stand for.

Areas over a CT are of Okabe and Ito's set, which colour-blind readers tell apart. Lines and bars are darker kin of it:
each has a contrast of 3 or more against the page's white and against its near-black, so that one drawing serves both.
"""

from __future__ import annotations

SKY, ORANGE, PINK, GREEN, YELLOW = "#56B4E9", "#E69F00", "#CC79A7", "#009E73", "#F0E442"
CLASSES = (SKY, ORANGE, PINK, GREEN, YELLOW)
HIT, FALSE_ALARM, MISSED = SKY, ORANGE, PINK

BLUE, RED, TEAL, OCHRE, MAUVE, STEEL, GREY = (
    "#2076B4",
    "#D0551B",
    "#128A68",
    "#A87000",
    "#B25C91",
    "#4F86AE",
    "#7A7A7A",
)
LINES = (BLUE, RED, TEAL, OCHRE, MAUVE, STEEL, GREY)
STYLES = ("-", "--", "-.", ":")


def class_colour(label: int) -> str:
    """The colour of a label, 1 or more."""
    return CLASSES[(label - 1) % len(CLASSES)]


def rgb(colour: str) -> tuple[int, int, int]:
    """`#rrggbb` as three numbers in 0..255."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
