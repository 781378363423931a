"""Drawing predictions, ground truth and each method's internals."""

from .draw import draw_ground_truth, draw_prediction  # noqa: F401
from .panels import heat_map, label_colors, panel_row  # noqa: F401
