"""A backbone whose parameters are sharded over the ranks: memory, checkpoints, and evaluation."""

import numpy as np
import pytest
import torch

from lib.distributed.fully_sharded import whole_tensor
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.trainer.checkpointing.async_save import snapshot
from lib.trainer.checkpointing.io import read_checkpoint, write_checkpoint
from lib.trainer.checkpointing.state import TrainingSet
from lib.trainer.run_folder import RunFolder
from lib.trainer.train_state import RunInfo
from tests.ranks import run_ranks
from tests.trainer.steps import NUM_CLASSES, STEPS, Setup, step_of, take_steps, train

SETUPS = {
    'clip, micro-batches': Setup(backbone_sharded=True, batch_size=18, max_images=4, clip=0.05),
    'AdamW, EMA': Setup(backbone_sharded=True, adamw=True, decay=0.9),
    'embedding, tuned biases': Setup(backbone_sharded=True, tune='bias', embedding=True, adamw=True),
}
STOP = 8
INFO = RunInfo('', {}, TrainingSet('', np.ones(NUM_CLASSES, dtype=np.int64)))


def checkpoint_of(step, folder):
    return snapshot(step.state.to_checkpoint(INFO, RunFolder(folder), step.group))


def num_bytes(tensors):
    """Return the memory of tensors on this rank."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor.ndim)


def state_bytes(step):
    """Return the bytes of the backbone's parameters, gradients and optimizer state, and those of its EMA."""
    state = step.state
    rows = state.sharded.rows if state.sharded else dict(state.model.named_parameters())
    rows = [rows[name] for name in rows if name.startswith('backbone.')]
    tensors = [*rows, *(row.grad for row in rows if row.grad is not None)]
    tensors += [value for row in rows for value in state.optimizer.state.get(row, {}).values()]
    ema = {} if state.ema is None else state.ema.state_dict()
    names = {name for name, _ in state.model.named_parameters()}
    return num_bytes(tensors), num_bytes(ema[name] for name in ema if name in names and name.startswith('backbone.'))


def on_rank(rank, count, names, folder):
    """Stop, save, and resume on as many ranks."""
    group, results = ProcessGroup(rank, count), {}
    for name in names:
        step, path = step_of(SETUPS[name], group), folder / f'{name}.pth'
        take_steps(step, SETUPS[name], range(STOP))
        checkpoint = checkpoint_of(step, folder)
        if group.is_main:
            write_checkpoint(path, checkpoint)
        group.barrier()
        resumed = step_of(SETUPS[name], group)
        resumed.state.restore(read_checkpoint(path))
        results[name] = {
            'bytes': list(state_bytes(step)),
            'losses': take_steps(resumed, SETUPS[name], range(STOP, STEPS)),
            'uninterrupted': take_steps(step, SETUPS[name], range(STOP, STEPS)),
        }
    return results


@pytest.mark.process
@pytest.mark.long
@pytest.mark.parametrize('count', [2, pytest.param(3, marks=pytest.mark.slow)])
def test_any_ranks_resume_from_the_checkpoint_of_a_sharded_backbone(tmp_path, count):
    found = run_ranks(on_rank, count, tmp_path, tuple(SETUPS), tmp_path)
    for name, setup in SETUPS.items():
        expected, alone = train(setup), step_of(setup)
        take_steps(alone, setup, range(STOP))
        saved, usual = read_checkpoint(tmp_path / f'{name}.pth'), checkpoint_of(alone, tmp_path)
        for part in ('state_dict', 'training_state', 'optimizer'):
            torch.testing.assert_close(getattr(saved, part), getattr(usual, part), rtol=0, atol=1e-10)
        resumed = step_of(setup)
        resumed.state.restore(saved)
        losses = take_steps(resumed, setup, range(STOP, STEPS))
        torch.testing.assert_close(losses, expected['losses'][STOP:], rtol=0, atol=1e-10)
        for results in found:
            torch.testing.assert_close(results[name]['losses'], losses, rtol=0, atol=1e-10)
            assert torch.equal(results[name]['losses'], results[name]['uninterrupted'])
        # The fewest rows that a rank could hold, and the odd row of a few small parameters.
        of_ranks = zip(*(results[name]['bytes'] for results in found), strict=True)
        for whole, per_rank in zip(state_bytes(alone), of_ranks, strict=True):
            assert sum(per_rank) == whole
            assert max(per_rank) <= 1.2 * whole / count


def evaluated(rank, count):
    """Return features by the EMA before each of three steps, and the weights after them."""
    setup, group = Setup(backbone_sharded=True, decay=0.5), ProcessGroup(rank, count)
    step, images = step_of(setup, group), torch.ones(1 + rank, 3, 2, 2, dtype=torch.float64)
    results = []
    for number in range(3):
        with step.state.ema.swapped(), step.state.unsharded(), torch.inference_mode():
            model = step.state.model.eval()
            results += [model.features(images)[0].clone() for _ in range(1 + rank)]  # fewer passes on rank 0
        step.state.model.train()
        take_steps(step, setup, range(number, number + 1))
    weights = {name: whole_tensor(value) for name, value in step.state.model.state_dict().items()}
    return {'features': torch.stack(results[:: 1 + rank]), **weights}


@pytest.mark.process
@pytest.mark.long
def test_ranks_evaluate_different_numbers_of_batches(tmp_path):
    setup, expected = Setup(decay=0.5), []
    step, images = step_of(setup, SINGLE_PROCESS), torch.ones(1, 3, 2, 2, dtype=torch.float64)
    for number in range(3):
        with step.state.ema.swapped(), torch.inference_mode():
            expected.append(step.state.model.eval().features(images)[0].clone())
        step.state.model.train()
        take_steps(step, setup, range(number, number + 1))
    for results in run_ranks(evaluated, 2, tmp_path):
        torch.testing.assert_close(results.pop('features'), torch.stack(expected), rtol=0, atol=1e-10)
        torch.testing.assert_close(results, dict(step.state.model.state_dict()), rtol=0, atol=1e-10)
