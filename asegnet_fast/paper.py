"""The numbers the source paper prints (Budak et al. 2021, Table 1), kept once."""

from __future__ import annotations

# Loss as the program spells it -> model -> (Dice, sensitivity, specificity) in percent, in the paper's order.
TABLE1: dict[str, dict[str, tuple[float, float, float]]] = {
    "dl": {"segnet": (86.06, 86.30, 99.45), "a_segnet": (88.52, 88.90, 99.56)},
    "tl:0.7:0.3": {"segnet": (71.02, 67.54, 99.48), "a_segnet": (74.65, 71.07, 99.44)},
    "tl:0.5:0.5": {"segnet": (68.97, 66.70, 99.49), "a_segnet": (88.52, 88.31, 99.62)},
    "tl:0.3:0.7": {"segnet": (74.85, 86.38, 98.70), "a_segnet": (74.61, 79.03, 99.28)},
    "ftl:0.7:0.3:4/3": {"segnet": (86.58, 82.47, 99.71), "a_segnet": (86.96, 82.22, 99.75)},
    "ftl:0.5:0.5:4/3": {"segnet": (87.44, 88.27, 99.54), "a_segnet": (89.16, 87.99, 99.66)},
    "ftl:0.3:0.7:4/3": {"segnet": (87.56, 92.13, 99.39), "a_segnet": (89.61, 92.73, 99.51)},
}
# The row that Fig. 5 shows.
BEST = ("a_segnet", "ftl:0.3:0.7:4/3")

# What Fig. 5 sets it against: Zhou, Canu and Ruan, "Automatic COVID-19 CT segmentation using U-Net
# integrated spatial and channel attention mechanism" (arXiv 2004.06673), measured on the same 473 slices.
ZHOU = (83.1, 86.7, 99.3)
# The recipe's epochs, pixels a side, and slices.
EPOCHS, SIZE, SLICES = 50, 256, 473
