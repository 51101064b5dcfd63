"""The kernel's counters of processes that it ended because memory ran out."""

import sys
from pathlib import Path

import pytest

from lib.runtime import memory_kills
from lib.runtime.memory_kills import num_killed, read_counters, reason_of_kill, remember_counters


def machine(folder, cgroup, vmstat=0, **events):
    """Write the files of a machine; `events`: {'path with __ for /': content}."""
    files = {'proc/vmstat': f'nr_free_pages 3\noom_kill {vmstat}\npgfault 7\n', 'proc/self/cgroup': cgroup}
    for path, content in [*files.items(), *((name.replace('__', '/'), text) for name, text in events.items())]:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)
    return folder / 'proc', folder / 'cgroups'


@pytest.fixture
def faked(tmp_path, monkeypatch):
    """A machine whose counter can be raised."""
    proc, cgroups = machine(tmp_path, '0::/job\n', 4)
    read = memory_kills.read_counters
    monkeypatch.setattr(memory_kills, 'read_counters', lambda: read(proc, cgroups))
    monkeypatch.setattr(memory_kills, '_at_start', {})
    return lambda count: (proc / 'vmstat').write_text(f'oom_kill {count}\n')


@pytest.mark.skipif(sys.platform != 'linux', reason='the counters are those of Linux')
def test_this_machine():
    counters = read_counters()
    lines = Path('/proc/vmstat').read_text().splitlines()
    (expected,) = (int(line.split()[1]) for line in lines if line.startswith('oom_kill '))
    assert counters['/proc/vmstat'] == expected
    assert all(count >= 0 for count in counters.values())


def test_version_2(tmp_path):
    events = {'cgroups__job__memory.events': 'low 0\noom 9\noom_kill 2\noom_group_kill 5\n'}
    proc, cgroups = machine(tmp_path, '0::/job\n', 3, **events)
    assert read_counters(proc, cgroups) == {str(proc / 'vmstat'): 3, str(cgroups / 'job' / 'memory.events'): 2}


def test_version_1(tmp_path):
    text = '7:cpu,cpuacct:/a\n4:memory:/job\n0::/\n'
    events = {'cgroups__memory__job__memory.oom_control': 'oom_kill_disable 0\nunder_oom 0\noom_kill 6\n'}
    proc, cgroups = machine(tmp_path, text, **events)
    path = str(cgroups / 'memory' / 'job' / 'memory.oom_control')
    assert read_counters(proc, cgroups) == {str(proc / 'vmstat'): 0, path: 6}


def test_a_container_that_sees_its_own_cgroup_only(tmp_path):
    proc, cgroups = machine(tmp_path, '0::/machine/docker/1\n', cgroups__memory__events='', **{
        'cgroups__memory.events': 'oom_kill 1\n'})  # fmt: skip
    assert read_counters(proc, cgroups)[str(cgroups / 'memory.events')] == 1


@pytest.mark.parametrize('text', ['', '0', '::::\n', '0::/job\nx', '4:memory\n'])
def test_files_of_another_form(tmp_path, text):
    proc, cgroups = machine(tmp_path, text)
    (proc / 'vmstat').write_bytes(b'oom_kill\noom_kill x\n\xff\noom_kill -3\n')
    assert read_counters(proc, cgroups) == {}
    assert read_counters(tmp_path / 'none', tmp_path / 'none') == {}


def test_what_the_kernel_has_ended_since_the_start(faked):
    assert num_killed() is None
    remember_counters()
    assert num_killed() == 0
    assert reason_of_kill() == 'most likely because memory ran out'
    faked(5)
    assert reason_of_kill() == 'because memory ran out: the kernel has ended 1 process (oom_kill)'
    faked(7)
    assert reason_of_kill() == 'because memory ran out: the kernel has ended 3 processes (oom_kill)'
