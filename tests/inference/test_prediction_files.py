"""Prediction files against a slow writer."""

import csv
import io

import numpy as np
import pyarrow as pa
import pytest

from lib.inference.prediction_files import COLUMNS, write_predictions

CLASSES = ['milk', 'a,b', 'quote "x"', '', 'жук\nline']


def slow_text(names, predicted, probabilities, columns):
    """Return the CSV text, cell by cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(columns)
    for name, label, value in zip(names, predicted, probabilities, strict=True):
        cells = {'id': name, 'predicted': label}
        cells['name'] = CLASSES[label] if label >= 0 else ''
        cells['probability'] = f'{value:.6f}' if label >= 0 else ''
        writer.writerow([cells[column] for column in columns])
    return text.getvalue()


@pytest.mark.parametrize('columns', [tuple(COLUMNS), ('id', 'predicted'), ('probability', 'id'), ('name',)])
@pytest.mark.parametrize('num_images', [0, 10_001])
def test_rows(tmp_path, columns, num_images):
    rng = np.random.default_rng(0)
    names = [f'photo {row}, "x".jpg' for row in range(num_images)]
    predicted = rng.integers(-1, len(CLASSES), num_images).astype(np.int32)
    probabilities = rng.random(num_images).astype(np.float32)
    path = tmp_path / 'p.csv'
    write_predictions(path, pa.array(names, pa.large_string()), predicted, probabilities, CLASSES, columns)
    assert path.read_text(encoding='utf-8') == slow_text(names, predicted.tolist(), probabilities.tolist(), columns)
