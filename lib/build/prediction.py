"""test.py's work: predict a split, write the files, say the figures."""

from dataclasses import dataclass
from pathlib import Path

from lib.build.data import open_test_split
from lib.build.trained import Trained
from lib.evaluation.predictions import Extras, write_predictions
from lib.runtime.files import write_json
from lib.runtime.log import LOGGER
from lib.trainer.run_folder import write_bad_images


@dataclass(frozen=True)
class Predicted:
    """Metrics (empty without labels) and the files written, the CSV first."""

    metrics: dict[str, float]
    files: list[Path]


def predict(trained: Trained) -> Predicted:
    """Predict TEST_JSON (or the folder TEST_ROOT); the main rank writes STEM.csv and what the options ask for.

    Raises:
        UserError: no test images, or faults in their list.
    """
    test = trained.cfg.TEST
    with trained.ranks.main_first():
        split = open_test_split(trained.cfg, trained.class_names)
    extras = Extras(test.TOP_K, test.EMBEDDINGS)
    found = trained.evaluate(split, label='test', look_at=extras.look_at, flip=test.FLIP)
    extras.join(trained.ranks)
    if not trained.ranks.is_main:
        return Predicted(found.metrics, [])
    names = split.names.to_pylist()
    stem = trained.stem
    files = [stem.with_name(f'{stem.name}.csv')]
    write_predictions(files[0], names, found.predicted)
    files += extras.write(stem, names, trained.class_names)
    if found.metrics:
        files.append(stem.with_name(f'{stem.name}_metrics.json'))
        write_json(files[-1], {'split': split.source, 'num_images': len(split), **found.metrics})
    write_bad_images(trained.folder, 'test', {names[row]: reason for row, reason in found.bad})
    if found.bad:
        LOGGER.warning(
            '%d of %d images could not be decoded: predicted -1, listed in %s',
            len(found.bad), len(split), trained.folder / 'bad_images.csv',
        )  # fmt: skip
    return Predicted(found.metrics, files)
