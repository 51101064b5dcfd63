"""The record of a run in one experiment tracker: MLflow, or Weights & Biases."""

import importlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol

import msgspec

# Name -> value of each key of the config.
Parameters = Mapping[str, bool | float | str]
ENDED, STOPPED, FAILED = 'FINISHED', 'KILLED', 'FAILED'


class RecordPlace(msgspec.Struct):
    """Identity of a record in its tracker, and the last epoch that was sent; -1: none."""

    id: Annotated[str, msgspec.Meta(pattern=r'^[\w.-]{1,128}$')]
    epoch: int = -1


class Record(Protocol):
    """The record of a run in one tracker. Every method may raise any exception of the tracker's package.

    Attributes:
        id: identifies the record when the run is resumed.
    """

    id: str

    def last_epoch(self) -> int:
        """Return the last epoch whose metrics are recorded; -1: none."""

    def add(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of an epoch."""

    def add_result(self, epoch: int, metrics: Mapping[str, float], files: Sequence[Path]) -> None:
        """Record the metrics of the best model after the last epoch, and upload files and folders."""

    def end(self, status: str) -> None:
        """Set the state of the run: FINISHED, KILLED (it may be resumed) or FAILED."""


# An unreachable server must not delay a run for long; by default, MLflow repeats a request for minutes.
_MLFLOW_DEFAULTS = {
    'MLFLOW_HTTP_REQUEST_TIMEOUT': '30',
    'MLFLOW_HTTP_REQUEST_MAX_RETRIES': '1',
    'MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT': 'true',
    'MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR': 'false',
}


class MLflowRecord:
    """A run of MLflow; server, experiment and credentials are those of its environment variables, MLFLOW_...

    Args:
        known: the record to continue; None, or one that the server does not have: a new one.
        name: name of the run.
        parameters: parameters of the run. MLflow never changes one; another value of a resumed run becomes a tag.
        tags: commit and versions.
    """

    _MAX_LENGTH, _MAX_BATCH = 500, 100  # characters of a value, and parameters of a request: limits of servers

    def __init__(
        self, known: RecordPlace | None, name: str, parameters: Parameters, tags: Mapping[str, str], _: Path
    ) -> None:
        for variable, value in _MLFLOW_DEFAULTS.items():
            os.environ.setdefault(variable, value)
        self._mlflow: Any = importlib.import_module('mlflow')
        for package in ('mlflow', 'urllib3'):  # a failure is one line here
            logging.getLogger(package).setLevel(logging.ERROR)
        self._client = self._mlflow.MlflowClient()
        known_id = known.id if known is not None and self._has(known.id) else None
        shortened = {key: value[: self._MAX_LENGTH] for key, value in tags.items()}
        self.id: str = self._mlflow.start_run(run_id=known_id, run_name=name, tags=shortened).info.run_id
        self._add_parameters({key: self._shortened(str(value)) for key, value in parameters.items()})

    def _has(self, run_id: str) -> bool:
        try:
            run = self._client.get_run(run_id)
        except self._mlflow.MlflowException as error:
            if error.error_code == 'RESOURCE_DOES_NOT_EXIST':
                return False
            raise
        return bool(run.info.lifecycle_stage == 'active')

    def _shortened(self, value: str) -> str:
        return value if len(value) <= self._MAX_LENGTH else value[: self._MAX_LENGTH - 3] + '...'

    def _add_parameters(self, parameters: Mapping[str, str]) -> None:
        before = self._client.get_run(self.id).data.params
        entities = self._mlflow.entities
        new = [entities.Param(key, value) for key, value in parameters.items() if key not in before]
        changed = [entities.RunTag(key, value) for key, value in parameters.items() if before.get(key, value) != value]
        for start in range(0, len(new), self._MAX_BATCH):
            self._client.log_batch(self.id, params=new[start : start + self._MAX_BATCH])
        for start in range(0, len(changed), self._MAX_BATCH):
            self._client.log_batch(self.id, tags=changed[start : start + self._MAX_BATCH])

    def last_epoch(self) -> int:
        """Return the last epoch that the server has: a request whose answer was lost may have arrived."""
        return int(self._client.get_run(self.id).data.metrics.get('epoch', -1))

    def add(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of an epoch in one request, so that the server has all of them or none."""
        self._mlflow.log_metrics({'epoch': epoch, **metrics}, step=epoch, run_id=self.id)

    def add_result(self, epoch: int, metrics: Mapping[str, float], files: Sequence[Path]) -> None:
        """Record the metrics of the best model, and upload files and folders as artifacts."""
        if metrics:
            self._mlflow.log_metrics(dict(metrics), step=epoch, run_id=self.id)
        for path in files:
            if path.is_dir():
                self._client.log_artifacts(self.id, str(path), path.name)
            else:
                self._client.log_artifact(self.id, str(path))

    def end(self, status: str) -> None:
        """Set the state of the run."""
        if self._mlflow.active_run() is not None:
            self._mlflow.end_run(status)


class WandbRecord:
    """A run of Weights & Biases; project, mode and credentials are those of its environment variables, WANDB_...

    Its package sends in the background, and waits for a server that is away. Args: as for MLflowRecord, and the run
    folder, which gets its files unless WANDB_DIR is set.
    """

    _FINISH_SECONDS = 300.0

    def __init__(
        self, known: RecordPlace | None, name: str, parameters: Parameters, tags: Mapping[str, str], folder: Path
    ) -> None:
        self._wandb: Any = importlib.import_module('wandb')
        self._last_epoch = -1 if known is None else known.epoch
        settings = {'console': 'off', 'silent': True, 'finish_timeout': self._FINISH_SECONDS}
        self._run = self._wandb.init(
            id=None if known is None else known.id,
            resume='allow',
            name=name,
            config={**parameters, **{f'environment.{key}': value for key, value in tags.items()}},
            dir=os.environ.get('WANDB_DIR', str(folder)),
            settings=self._wandb.Settings(**settings),
        )
        self.id: str = self._run.id

    def last_epoch(self) -> int:
        """Return the last epoch that was given to the package, in this process or, by trackers.json, before it."""
        return self._last_epoch

    def add(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Give the metrics of an epoch to the package."""
        self._run.log({'epoch': epoch, **metrics}, step=epoch)
        self._last_epoch = epoch

    def add_result(self, _: int, metrics: Mapping[str, float], files: Sequence[Path]) -> None:
        """Put the metrics of the best model into the summary, and upload files and folders as one artifact."""
        self._run.summary.update(dict(metrics))
        artifact = self._wandb.Artifact(f'run-{self.id}', type='model')
        for path in files:
            if path.is_dir():
                artifact.add_dir(str(path), name=path.name, policy='immutable')
            else:
                artifact.add_file(str(path), policy='immutable')  # without a copy of a large file
        self._run.log_artifact(artifact)

    def end(self, status: str) -> None:
        """Finish the run, with exit code 0 if it was not stopped by an error."""
        self._run.finish(exit_code=int(status == FAILED))


RECORDS: dict[str, type[MLflowRecord] | type[WandbRecord]] = {'mlflow': MLflowRecord, 'wandb': WandbRecord}
