import io

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image
from scipy import stats

from lib.metrics.accuracy import shot_groups
from lib.metrics.confidence import reliability
from lib.metrics.intervals import binomial_interval, class_errors
from lib.metrics.predictions import Predictions
from lib.report.chart_style import new_panel, styled
from lib.report.charts import curve_panels, draw_tau, mistakes_png, plot_curves, plot_error_by_count, plot_tau
from lib.report.class_charts import MAX_SPOTS, draw_class_sizes, draw_error_by_count, draw_reliability
from tests.report.report_data import full_data, history, tau_curve


@pytest.mark.long
def test_charts_are_images_with_reproducible_bytes(tmp_path):
    data = full_data()
    for name in 'ab':
        plot_curves(tmp_path / f'{name}1.png', data.history, best_epoch=3)
        plot_error_by_count(
            tmp_path / f'{name}2.png', data.train_counts, data.predictions.labels, data.predictions.predicted
        )
        plot_tau(tmp_path / f'{name}3.png', data.tau)
    for number in '123':
        first, second = tmp_path / f'a{number}.png', tmp_path / f'b{number}.png'
        assert first.read_bytes() == second.read_bytes()
        with Image.open(first) as image:
            assert min(image.size) > 400
            assert 'Software' not in image.info


def test_no_data_write_no_file(tmp_path):
    none = np.zeros(0, np.int64)
    assert plot_curves(tmp_path / 'a.png', history(1)) is None
    assert plot_error_by_count(tmp_path / 'b.png', np.array([3, 4]), none, none) is None
    assert list(tmp_path.iterdir()) == []


def test_dots_are_visible_in_the_png(tmp_path):
    labels = np.arange(4)
    path = plot_error_by_count(tmp_path / 'a.png', np.array([150, 60, 12, 4]), labels, np.array([1, 1, 2, 3]))
    with Image.open(path) as image:
        pixels = np.asarray(image.convert('RGB')).astype(int).reshape(-1, 3)
    red, green, blue = pixels.T
    assert ((red - blue > 60) & (red - green > 20)).sum() > 100  # dots of the few classes, on white


def test_only_the_last_entry_of_an_epoch_is_drawn():
    entries = [*history(3), {'epoch': 2, 'split': 'valid', 'loss': 9.0}]
    loss = curve_panels(entries)[0].series[1]
    assert loss.label == 'valid'
    assert loss.epochs.tolist() == [0, 1, 2]
    assert loss.values[-1] == 9.0


def test_accuracies_are_drawn_as_errors():
    panels = {panel.title: panel for panel in curve_panels(history())}
    error = {series.label: series.values[0] for series in panels['Error'].series}
    assert error == pytest.approx({'train top-1': 0.9, 'valid top-1': 0.9, 'valid mean class': 0.9})
    groups = {series.label: series.values[0] for series in panels['Valid error by class size'].series}
    assert groups == pytest.approx({'many': 0.45, 'medium': 0.9, 'few': 0.9})


@pytest.mark.long
@pytest.mark.parametrize(
    'train_counts',
    [[5, 5, 5], [0, 1, 2], [1, 50, 10**7], [0, 0, 0]],
    ids=lambda counts: '-'.join(map(str, counts)),
)
def test_extreme_training_counts_can_be_drawn(tmp_path, train_counts):
    labels = np.repeat(np.arange(3), 2)
    path = plot_error_by_count(tmp_path / 'a.png', np.array(train_counts), labels, np.array([0, 1, 1, 1, -1, -1]))
    assert path.stat().st_size > 1000


def test_number_of_dots_is_limited():
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(20_000), 7)
    predicted = np.where(rng.random(len(labels)) < 0.5, labels, -1)
    with styled():
        _, axes = new_panel()
        num_classes, num_dots = draw_error_by_count(axes, rng.integers(1, 9000, 20_000), labels, predicted)
    assert num_classes == 20_000
    assert num_dots <= MAX_SPOTS


@pytest.mark.parametrize('metric', ['mean_class_error', 'top1'])
def test_tau_curve_is_drawn_as_the_error_between_its_steps(metric):
    tau = tau_curve(metric)
    with styled():
        _, axes = new_panel()
        draw_tau(axes, tau)
    step = next(line for line in axes.get_lines() if line.get_label() == 'tau')
    x, y = step.get_data(orig=True)
    for middle, error in zip([0.1, 0.3, 0.7, 1.0, 1.8], [0.4, 0.3, 0.2, 0.25, 0.5], strict=True):
        assert y[np.searchsorted(x, middle) - 1] == pytest.approx(error)
    chosen = next(line for line in axes.get_lines() if line.get_label().startswith('chosen'))
    assert chosen.get_xydata()[0] == pytest.approx([0.75, 0.2])


def test_a_long_tau_curve_is_sampled_and_a_flat_one_is_a_line():
    rng = np.random.default_rng(2)
    taus = np.sort(rng.uniform(0, 2, 100_000))
    for curve in ({'tau': taus, 'value': rng.random(100_001)}, {'tau': [], 'value': [0.3]}):
        with styled():
            _, axes = new_panel()
            draw_tau(axes, tau_curve() | {'curve': curve})
        step = next(line for line in axes.get_lines() if line.get_label() == 'tau')
        assert 2 <= len(step.get_xdata()) <= 1501


def test_class_errors_equal_a_loop():
    rng = np.random.default_rng(4)
    labels, predicted = rng.integers(0, 5, 60), rng.integers(-1, 5, 60)
    num_images, num_wrong = class_errors(labels, predicted, 6)
    for c in range(6):
        assert num_images[c] == sum(label == c for label in labels)
        assert num_wrong[c] == sum(a == c and a != b for a, b in zip(labels, predicted, strict=True))


@pytest.mark.parametrize(('hits', 'total'), [(0, 1), (1, 1), (0, 5), (2, 5), (5, 5), (40, 8000)])
def test_binomial_interval_is_wilsons(hits, total):
    expected = stats.binomtest(hits, total).proportion_ci(method='wilson')
    low, high = binomial_interval(hits, total)
    assert (low, high) == (pytest.approx(expected.low, abs=1e-12), pytest.approx(expected.high, abs=1e-12))


def test_interval_of_no_images_is_0_to_1():
    low, high = binomial_interval([0, 1], [0, 2])
    assert (low[0], high[0]) == (0, 1)
    assert 0 < low[1] < 0.5 < high[1] < 1


@pytest.mark.parametrize('counts', [[1], [7, 7], [0, 3, 19, 20, 100, 101, 8000], [20, 21], list(range(1, 300))])
def test_histogram_of_sizes_counts_every_class_in_its_group(counts):
    counts = np.array(counts)
    with styled():
        _, axes = new_panel()
        draw_class_sizes(axes, counts)
    drawn = {container.get_label(): sum(bar.get_height() for bar in container) for container in axes.containers}
    groups = {name: int((members & (counts > 0)).sum()) for name, members in shot_groups(counts).items()}
    assert drawn == {name: number for name, number in groups.items() if number}


def test_reliability_dots_are_at_the_bins():
    calibration = {'few': reliability(np.array([0.15, 0.95, 0.97]), np.array([True, True, False]))}
    with styled():
        _, axes = new_panel()
        draw_reliability(axes, calibration, ('few',))
    dots = axes.collections[-1].get_offsets().data
    np.testing.assert_allclose(dots, [[0.15, 1.0], [0.96, 0.5]])


def mistakes(num_images=30):
    """Return predictions of solid images, image k in the color (8 k, 255 - 8 k, 0); images 0 mod 3 are correct."""
    labels = np.arange(num_images) % 5
    predicted = np.where(np.arange(num_images) % 3 == 0, labels, (labels + 1) % 5)
    predicted[4], labels[7] = -1, -1  # unreadable; of unknown class
    confidence = np.linspace(0.2, 0.9, num_images).astype(np.float32)
    return Predictions(labels, predicted[:, None], confidence[:, None], np.ones(num_images, np.float32))


def solid(row):
    return Image.new('RGB', (40, 30), (8 * row, 255 - 8 * row, 0))


def rows_in(png):
    """Return the rows whose color fills a thumbnail in the picture."""
    colors = Image.open(io.BytesIO(png)).convert('RGB').getcolors(1 << 20)
    return {red // 8 for count, (red, green, blue) in colors if count > 500 and (blue, green) == (0, 255 - red)}


@pytest.mark.long
def test_mistakes_are_shown_with_both_names(monkeypatch):
    titles = []
    monkeypatch.setattr(Axes, 'set_title', lambda axes, title, **_: titles.append(title))
    names = ['a\nb', 'x' * 40, '茶', '$c', 'd']
    predictions = mistakes()
    expected = [row for row in range(29, -1, -1) if row % 3 and row not in (4, 7)][:12]
    assert rows_in(mistakes_png(predictions, names, solid)) == set(expected)
    assert len(titles) == 12
    short = ['a b', 'x' * 23 + '...', '茶', '$c', 'd']
    for row, title in zip(expected, titles, strict=True):
        label, predicted = predictions.labels[row], predictions.predicted[row]
        assert title.splitlines()[:2] == [f'true: {short[label]}', f'predicted: {short[predicted]}']


@pytest.mark.long
def test_mistakes_that_cannot_be_opened_are_left_out(recwarn):
    def load(row):
        if row % 2:
            raise OSError
        return solid(row).convert('L') if row == 28 else solid(row)

    names = ['茶', '$\\x$', '', '\t', 'd']
    assert rows_in(mistakes_png(mistakes(), names, load)) == {2, 8, 10, 14, 16, 20, 22, 26}
    assert mistakes_png(mistakes().at(np.array([0, 3, 4, 7])), names, solid) is None
    assert mistakes_png(mistakes(), names, lambda row: 1 / 0) is None
    assert [str(warning.message) for warning in recwarn] == []
