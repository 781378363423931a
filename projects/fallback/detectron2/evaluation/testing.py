"""Results in other forms: for a spreadsheet, against expectations, flat."""

import logging
import math
import sys
from collections.abc import Mapping

logger = logging.getLogger(__name__)


def print_csv_format(results: Mapping):
    """Log the main metrics of {task: {metric: score}}, without those per class, for copying."""
    for task, scores in results.items():
        if not isinstance(scores, Mapping):
            logger.info("copypaste: %s=%s", task, scores)
            continue
        main = {metric: score for metric, score in scores.items() if "-" not in metric}
        logger.info("copypaste: Task: %s", task)
        logger.info("copypaste: %s", ",".join(main))
        logger.info("copypaste: %s", ",".join(f"{score:.4f}" for score in main.values()))


def verify_results(cfg, results: Mapping) -> bool:
    """Compare with cfg.TEST.EXPECTED_RESULTS, a list of (task, metric, score, tolerance); exit if wrong."""
    wrong = [
        f"{task}/{metric}: expected {score} +- {tolerance}, found {results[task].get(metric)}"
        for task, metric, score, tolerance in cfg.TEST.EXPECTED_RESULTS
        if not abs(results[task].get(metric, math.nan) - score) <= tolerance
    ]
    if wrong:
        logger.error("Results %s differ from TEST.EXPECTED_RESULTS:\n%s", results, "\n".join(wrong))
        sys.exit(1)
    return True


def flatten_results_dict(results: Mapping) -> dict:
    """{"a": {"b": 1}} becomes {"a/b": 1}."""
    flat = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}/{rest}": v for rest, v in flatten_results_dict(value).items()}
        else:
            flat[key] = value
    return flat
