"""Average forgetting over stages: the paper's equation, and figures as runs record them."""

import json

import numpy as np
import pytest

from jaxvl.config import ConfigError
from jaxvl.evals.forgetting import forgetting, forgetting_by_task, recorded_figures


def test_the_equation_task_by_task():
    a = np.random.default_rng(0).random((5, 5))
    each = [max(a[stage, task] for stage in range(4)) - a[4, task] for task in range(4)]
    np.testing.assert_allclose(forgetting_by_task(a), each)
    np.testing.assert_allclose(forgetting(a), sum(each) / 4)
    assert forgetting(np.array([[0.9, np.nan], [0.4, 1.0]])) == pytest.approx(0.5)
    assert forgetting(np.array([[0.4, 0.0], [0.9, 1.0]])) == pytest.approx(-0.5)


def test_figures_of_three_stages(tmp_path):
    stages = []
    for i, values in enumerate(((0.9, 0.1), (0.8, 0.7), (0.5, 0.6))):
        folder = tmp_path / f"stage_{i}"
        folder.mkdir()
        records = [dict(step=1, kind="train", name="colours", acc=0.0)]
        for step, scale in ((10, 0.5), (20, 1.0)):  # the figure after the last step counts
            records += [
                dict(step=step, kind="eval", name=name, acc=scale * value)
                for name, value in zip(("colours", "shapes"), values)
            ]
        text = "\n".join(map(json.dumps, records))
        (folder / "metrics.jsonl").write_text(text)
        stages.append(folder)
    found = recorded_figures(stages, ("colours/acc", "shapes/acc", "sizes/acc")[:2])
    np.testing.assert_allclose(found, [(0.9, 0.1), (0.8, 0.7), (0.5, 0.6)])
    square = np.concatenate([found, np.full((3, 1), np.nan)], axis=1)
    np.testing.assert_allclose(forgetting_by_task(square), [0.4, 0.1])
    with pytest.raises(ConfigError, match="figures: 'sizes/acc' was recorded by no stage"):
        recorded_figures(stages, ("sizes/acc",))
    with pytest.raises(ConfigError, match="figures: 'colours' must name an evaluator's"):
        recorded_figures(stages, ("colours",))


def test_what_is_refused():
    for figures, why in (
        (np.zeros((2, 3)), r"shape \(2, 3\) is not valid"),
        (np.zeros((1, 1)), r"shape \(1, 1\) is not valid"),
        (np.array([[1.0, 1.0], [np.nan, 1.0]]), "task 0 has none after the last stage"),
        (np.array([[np.nan, 1.0], [1.0, 1.0]]), "task 0 has none before the last"),
    ):
        with pytest.raises(ConfigError, match=f"figures: {why}"):
            forgetting(figures)
