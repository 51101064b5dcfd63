"""Time that a browser takes to open the report of 50,030 classes, and to sort and search its table.

python benchmarks/report.py [--classes N] [--images N] [--rounds N] [--json FILE]

Needs Chromium and playwright. Names of 30 letters, two parents per class, random predictions, no images.
`report_open_seconds` is the time from the start of the navigation to the end of the load event, when the script has
rendered the table; `report_sort_seconds` is for the slowest column and `report_search_seconds` for the first search,
both until the rows are replaced. Medians of the rounds, each with a new page. `report_write_seconds` is measured once.
"""

import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.harness import finish, parse_arguments, require
from benchmarks.metrics import make_predictions
from lib.commands.cli import cli_main
from lib.errors import UserError
from lib.report.report_metrics import ReportData
from lib.report.run_page import write_report

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')
# Seconds until a click or a search has changed the rows: the event handlers return after that.
SORT = """() => Math.max(...[...document.querySelectorAll('#class-headings button')].map(button => {
  const started = performance.now(); button.click(); return performance.now() - started; })) / 1000"""
SEARCH = """() => {
  const field = document.getElementById('class-search'), started = performance.now();
  field.value = 'product 4711'; field.dispatchEvent(new Event('input'));
  return (performance.now() - started) / 1000; }"""
OPEN = "() => performance.getEntriesByType('navigation')[0].loadEventEnd / 1000"


def example(classes: int, images: int) -> ReportData:
    """Return the data of a long-tailed run."""
    random = np.random.default_rng(0)
    labels = np.concatenate([np.arange(classes), random.integers(0, classes, max(0, images - classes))])[:images]
    return ReportData(
        'benchmark',
        class_names=[f'Brand {c % 400:03} product {c:05}, 330 ml' for c in range(classes)],
        class_parents=[[f'aisle {c % 40}', f'shelf {c % 800}'] for c in range(classes)],
        train_counts=np.geomspace(8000, 5, classes).astype(np.int64),
        predictions=make_predictions(labels, classes, seed=1),
    )


def main() -> None:
    arguments = parse_arguments(
        __doc__.splitlines()[0],
        classes=(50_030, 'classes'),
        images=(150_000, 'valid images'),
        rounds=(5, 'rounds, a new page each'),
    )
    require('playwright')
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise UserError(f'this benchmark needs a browser: none of {", ".join(BROWSERS)} is installed')
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as running:
        started = time.perf_counter()
        path = write_report(Path(folder, 'report.html'), example(arguments.classes, arguments.images))
        results = {'report_write_seconds': time.perf_counter() - started, 'report_megabytes': path.stat().st_size / 1e6}
        chromium = running.chromium.launch(executable_path=browser, args=['--no-sandbox'])
        rounds = []
        for _ in range(arguments.rounds):
            page = chromium.new_page()
            page.goto(path.as_uri())
            rounds.append([page.evaluate(script) for script in (OPEN, SORT, SEARCH)])
            page.close()
        chromium.close()
    for name, values in zip(('open', 'sort', 'search'), zip(*rounds, strict=True), strict=True):
        results[f'report_{name}_seconds'] = statistics.median(values)
    finish(results, arguments.json)


if __name__ == '__main__':
    cli_main(main)
