"""Files of torch.save and safetensors, from this and other programs, damaged and hostile."""

import argparse
import collections
import enum
import pathlib
import pickle
import struct
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from lib.backbone.pretrained import load_pretrained
from lib.errors import UserError
from tests.backbone.small import Small, equal, other, prefixed, random_weights


@pytest.fixture(scope='module')
def weights():
    return random_weights()


class AttributeDict(dict):
    """Like Lightning's: a subclass of dict, in a file with items."""


class Callback:
    """Like Lightning's old files, which hold classes and instances of anything."""

    def __init__(self):
        self.best = {'score': np.float32(0.5)}

    def __setstate__(self, state):
        raise AssertionError('executed')


class Slotted:
    __slots__ = ('x',)

    def __init__(self):
        self.x = 1


class Tokens(list):
    """A subclass of list."""


class Mode(enum.Enum):
    MAX = 'max'


def timm_train(state):
    """Return the content of a file of timm's train.py."""
    return {
        'epoch': 3, 'arch': 'resnet32', 'state_dict': other(state), 'state_dict_ema': state,
        'optimizer': {'state': {0: {'momentum_buffer': torch.ones(3)}}, 'param_groups': [{'lr': np.float64(0.1)}]},
        'version': 2, 'metric': np.float64(81.5), 'args': argparse.Namespace(lr=0.1, size=np.int64(3), crop=None),
        'amp_scaler': {'scale': 65536.0}, 'dtype': torch.bfloat16, 'device': torch.device('cpu'),
    }  # fmt: skip


def lightning(state):
    """Return the content of a file of PyTorch Lightning."""
    parameters = AttributeDict(lr=0.1, path=pathlib.PurePosixPath('/data'), tokens=Tokens([1, 2]), mode=Mode.MAX)
    return {
        'epoch': 3, 'global_step': 100, 'pytorch-lightning_version': '1.4.0', 'state_dict': prefixed(state, 'net.'),
        'callbacks': {Callback: {'best': np.float32(0.5)}, Mode.MAX: Callback()}, 'loops': [Slotted()],
        'hparams_name': 'kwargs', 'hyper_parameters': parameters, 'counts': collections.defaultdict(list, {1: [2]}),
        'optimizer_states': [], 'sizes': torch.Size([1, 2]), 'names': {'a', 'b'}, 'more': np.arange(3),
    }  # fmt: skip


@pytest.mark.parametrize('content', [timm_train, lightning])
@pytest.mark.parametrize(('zipped', 'protocol'), [(True, 2), (True, 5), (False, 2), (False, 4)])
def test_files_of_other_programs(tmp_path, weights, content, zipped, protocol):
    torch.save(content(weights), tmp_path / 'w.pth', _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    backbone = Small()
    assert load_pretrained(backbone, tmp_path / 'w.pth').is_exact
    assert equal(backbone, weights)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_other_precisions(tmp_path, weights, dtype):
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in weights.items()}
    torch.save(state, tmp_path / 'w.pth')
    backbone = Small()
    load_pretrained(backbone, tmp_path / 'w.pth')
    assert equal(backbone, {key: value.to(weights[key].dtype) for key, value in state.items()})


def test_views_parameters_and_shared_storage(tmp_path, weights):
    """The values of a tensor may be a strided part of a storage that others share."""
    state = dict(weights)
    base = torch.rand(3, 3, 3, 40)
    state['conv1.weight'] = base[..., 8:24].permute(3, 0, 1, 2)
    state['bn1.weight'] = nn.Parameter(base.flatten()[5:37:2])
    torch.save(state, tmp_path / 'w.pth')
    backbone = Small()
    load_pretrained(backbone, tmp_path / 'w.pth')
    assert torch.equal(backbone.conv1.weight, state['conv1.weight'])
    assert torch.equal(backbone.bn1.weight, state['bn1.weight'])


@pytest.mark.parametrize('name', ['w.safetensors', 'w.bin'])
def test_safetensors_by_content(tmp_path, weights, name):
    safetensors.torch.save_file(prefixed(weights, 'model.'), tmp_path / name)
    backbone = Small()
    assert load_pretrained(backbone, tmp_path / name).is_exact
    assert equal(backbone, weights)


class Malicious:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


class MaliciousState(nn.Module):
    """Creates a file when its state is set."""

    def __init__(self, path):
        super().__init__()
        self.path = str(path)

    def __setstate__(self, state):
        pathlib.Path(state['path']).touch()


def write_malicious(folder, path):
    torch.save({'state_dict': Malicious(folder / 'executed')}, path)


def write_malicious_pickle(folder, path):
    path.write_bytes(pickle.dumps(Malicious(folder / 'executed')))


def write_module(folder, path):
    torch.save({'model': MaliciousState(folder / 'executed')}, path)


@pytest.mark.parametrize(
    ('write', 'message'),
    [
        (write_malicious, r'objects of \w+.open, whose code is never executed'),
        (write_malicious_pickle, r'objects of \w+.open, whose code is never executed'),
        (write_module, r'objects of .*MaliciousState.*, whose code is never executed; .*state_dict'),
        (lambda _, path: path.write_bytes(b''), 'is empty; download'),
        (lambda _, path: path.write_bytes(b'\n<html>not found</html>'), 'is a web page'),
        (lambda _, path: path.write_bytes(b'version https://git-lfs.github.com/spec/v1\noid x'), 'git lfs pull'),
        (lambda _, path: path.write_bytes(b'Entry not found'), "is text, no weights: 'Entry not found'"),
        (lambda _, path: path.write_bytes(b'\x1f\x8b\x08\0\0\0'), 'is compressed by gzip'),
        (lambda _, path: path.write_bytes(bytes(1000)), 'of neither torch.save nor safetensors'),
        (lambda _, path: torch.save(torch.ones(3), path), 'contains no named tensors'),
        (lambda _, path: path.write_bytes(b'PK\x03\x04 cut short'), 'is cut short or damaged'),
        (lambda _, path: path.write_bytes(b'\x10\0\0\0\0\0\0\0{"a": 1}'), 'cannot be read'),
        (lambda _, path: np.savez(path.open('wb'), a=np.ones(3)), 'a zip archive, but not one of torch.save'),
        (lambda _, path: torch.jit.script(nn.Linear(2, 2)).save(path), 'a TorchScript program'),
        (lambda _, path: torch.save([1, 2], path), 'contains no named tensors'),
        (lambda _, path: torch.save({'epoch': 1}, path), 'contains no named tensors'),
        (lambda _, path: path.mkdir(), 'is a folder'),
        (lambda _, path: None, 'no such file'),
    ],
    ids=['code', 'bare pickle', 'module', 'empty', 'html', 'Git LFS', 'text', 'gzip', 'zeros', 'one tensor', 'cut zip',
         'cut safetensors', 'npz', 'TorchScript', 'list', 'no tensors', 'folder', 'missing'],
)  # fmt: skip
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_bad_file_is_one_error_line_and_not_executed(tmp_path, write, message, suffix):
    path = tmp_path / f'weights{suffix}'
    write(tmp_path, path)
    with pytest.raises(UserError, match=message) as caught:
        load_pretrained(Small(), path)
    assert str(caught.value).startswith(f'MODEL.PRETRAINED {path}')
    assert '\n' not in str(caught.value)
    assert not (tmp_path / 'executed').exists()


class Opcodes:
    """Pickles as a sequence of opcodes that Python's own unpickler would execute."""

    CALLS = (
        b"cos\nsystem\n(S'touch executed'\ntR.",
        b"(S'touch executed'\nios\nsystem\n.",
        b"(cos\nsystem\nS'touch executed'\no.",
        b'\x80\x02cos\nsystem\nX\x0e\0\0\0touch executed\x85\x81.',
        b'\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0etouch executed\x85R.',
        b'\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0etouch executed\x85}\x92.',
        b'cbuiltins\nexec\n(S\'open("executed", "w")\'\ntR.',
        b"ctorch.serialization\nload\n(S'executed'\ntR.",
        b"cbuiltins\ngetattr\n(ctorch._utils\n_rebuild_tensor_v2\nS'__globals__'\ntR.",
        # A state set on a function that rebuilds tensors, or on a class.
        b"ctorch._utils\n_rebuild_tensor_v2\n}S'func'\ncos\nsystem\nsb(S'touch executed'\ntR.",
        b'\x80\x02\x82\x01.',
        b"\x80\x02S'x'\nQ.",
    )


@pytest.mark.parametrize('code', Opcodes.CALLS)
def test_no_opcode_executes_anything(tmp_path, monkeypatch, code):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'w.pth'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('w/data.pkl', code)
        archive.writestr('w/version', '3\n')
    for content in (path.read_bytes(), code):
        path.write_bytes(content)
        with pytest.raises(UserError):
            load_pretrained(Small(), path)
    assert not (tmp_path / 'executed').exists()


def tensor_pickle(shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, num_values: int = 4) -> bytes:
    """Return {'conv1.weight': tensor} as torch.save pickles it, with any claim about the size."""
    storage = f"((S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI{num_values}\ntQ"
    sizes, steps = ('(' + ''.join(f'I{number}\n' for number in numbers) + 't' for numbers in (shape, strides))
    text = f"(dS'conv1.weight'\nctorch._utils\n_rebuild_tensor_v2\n{storage}I{offset}\n{sizes}{steps}I00\n(dtRs."
    return text.encode()


@pytest.mark.parametrize(
    ('shape', 'strides', 'offset'),
    [
        ((10**12,), (1,), 0),  # more than the file has
        ((10**12,), (0,), 0),  # one value, repeated
        ((10**9, 10**9, 10**9), (0, 0, 0), 0),
        ((4,), (1,), 1),
        ((4,), (1,), 10**15),
        ((2,), (10**15,), 0),
        ((-4,), (1,), 0),
        ((4,), (-1,), 3),
    ],
)
def test_sizes_in_a_file_are_not_believed(tmp_path, shape, strides, offset):
    path = tmp_path / 'w.pth'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('w/data.pkl', tensor_pickle(shape, strides, offset))
        archive.writestr('w/data/0', struct.pack('<4f', 1, 2, 3, 4))
    with pytest.raises(UserError, match='cannot be read'):
        load_pretrained(Small(), path)


def test_archive_that_unpacks_to_more_than_its_size(tmp_path):
    path = tmp_path / 'w.pth'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('w/data.pkl', tensor_pickle((16, 3, 3, 3), (27, 9, 3, 1), num_values=432))
        archive.writestr('w/data/0', bytes(10**7))
    with pytest.raises(UserError, match='unpacks to more than its size'):
        load_pretrained(Small(), path)


@pytest.mark.parametrize(
    'claim',
    [
        b'\x80\x02]r\xff\xff\xff\xff.',  # an index of 4 billion
        b'\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.',  # a bytearray of 8 exabytes
        b'\x80\x04\x8d\xff\xff\xff\xff\xff\x00\x00\x00.',  # a text of a terabyte
        b'\x80\x04\x95\xff\xff\xff\xff\xff\xff\x00\x00.',  # a frame
        b'\x80\x02\x8b\xff\xff\xff\x7f.',  # an integer of 2 GB
    ],
)
def test_lengths_in_a_pickle_are_not_believed(tmp_path, claim):
    path = tmp_path / 'w.pth'
    path.write_bytes(claim)
    with pytest.raises(UserError):
        load_pretrained(Small(), path)


def test_nested_dicts_are_visited_once(tmp_path):
    """Ten thousand references in each of eight levels are no more work than eight dicts."""
    tree = {'x': 1}
    for _ in range(8):
        tree = dict.fromkeys(range(10_000), tree)
    torch.save(tree, tmp_path / 'w.pth')
    with pytest.raises(UserError, match='no named tensors'):
        load_pretrained(Small(), tmp_path / 'w.pth')


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'old format'])
def test_damaged_file_is_read_or_raises_user_error(tmp_path, zipped, seed):
    """After random changes of bytes, every exception becomes a UserError."""
    random = np.random.default_rng(seed)
    path = tmp_path / 'w.pth'
    torch.save({'state_dict': {'x.weight': torch.zeros(2)}}, path, _use_new_zipfile_serialization=zipped)
    backbone = Small()
    good = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    for _ in range(60):
        bad = good.copy()
        bad[random.integers(min(len(bad), 400), size=2)] = random.integers(256, size=2)
        path.write_bytes(bad.tobytes())
        with pytest.raises(UserError):  # even if it is readable, no key fits
            load_pretrained(backbone, path)
