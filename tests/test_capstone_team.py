"""The team: the same steps whoever computes them, and no process left whatever happens."""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT

import capstone_gpt as gpt

linux = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
IDS = np.random.default_rng(0).integers(0, 11, 500).astype(np.uint16)


def make(workers, arch="gpt2", batch_size=5, pieces=1, stopping=lambda: False, dtype=np.float64):
    shape = {"vocab_size": 11, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 8}
    model = gpt.GPT(gpt.GPTConfig(arch, dropout=0.1, **shape), seed=1, dtype=dtype)
    settings = {"workers": workers, "block_size": 8, "batch_size": batch_size, "seed": 3}
    settings["gradient_accumulation_steps"] = pieces
    return gpt.make_team(model, gpt.AdamW(model.params), IDS, settings, stopping)


def run(team, steps=4):
    """What the steps return, then weights, m and v at the end."""
    try:
        found = [team.step(step, 1e-2) for step in range(steps)]
        team.collect()
        return found, team.model.flat.copy(), team.optimizer.m.copy(), team.optimizer.v.copy()
    finally:
        team.close()


def alive(pid):
    """Whether a process runs; one that has ended and was not yet waited for does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for(condition, seconds=20):
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline, "it never came"
        time.sleep(0.01)


# the same steps


def test_batches_of_unequal_size_count_for_what_they_hold(rng):
    model, (idx, targets) = make(1).model, rng.integers(0, 11, (2, 5, 8))
    loss, grads = model.loss_and_grads(idx, targets)
    pieces = [(idx[i:j], targets[i:j], None) for i, j in ((0, 1), (1, 5))]
    found = gpt.training_step(model, gpt.AdamW(model.params), pieces, 0.0)
    assert found == pytest.approx((loss, np.linalg.norm(grads.flat)), rel=1e-12)


def test_gradients_can_be_weighted_and_written_over_old_ones(rng):
    model, (idx, targets) = make(1).model, rng.integers(0, 11, (2, 3, 5))
    loss, grads = model.loss_and_grads(idx, targets)
    old = gpt.ParamDict(model.config, np.full_like(model.flat, np.nan))
    again, twice = model.loss_and_grads(idx, targets, scale=2.0, grads=old)
    assert twice is old and again == loss
    assert np.allclose(twice.flat, 2 * grads.flat, rtol=1e-12, atol=0)


@linux
@pytest.mark.parametrize("arch", ["gpt2", "llama"])
@pytest.mark.parametrize("workers,pieces", [(2, 1), (3, 2), (5, 1)])
def test_any_number_of_workers_takes_the_steps_of_one_process(arch, workers, pieces):
    alone = run(make(1, arch, pieces=pieces))
    team = make(workers, arch, pieces=pieces)
    assert team.size == workers and len(team.pids) == workers - 1
    for one, many in zip(alone, run(team)):
        assert np.allclose(one, many, rtol=1e-9, atol=1e-12)


@linux
def test_a_team_of_one_size_takes_the_same_steps_bit_for_bit():
    first, second = (run(make(3, dtype=np.float32)) for _ in range(2))
    assert first[0] == second[0]
    assert all(np.array_equal(a, b) for a, b in zip(first[1:], second[1:]))


@linux
@pytest.mark.parametrize("workers", [1, 3])
def test_a_step_that_is_not_finite_changes_nothing_in_any_member(workers):
    team = make(workers)
    try:
        team.step(0, 1e-2)
        good, moments = team.model.flat.copy(), team.optimizer.m.copy()
        team.model.flat[0] = np.inf
        with np.errstate(all="ignore"), pytest.raises(FloatingPointError):
            team.step(1, 1e-2)
        assert np.array_equal(team.model.flat[1:], good[1:]) and team.optimizer.t == 1
        assert np.array_equal(team.optimizer.m, moments)
        team.model.flat[0] = good[0]
        again = team.step(1, 1e-2)
    finally:
        team.close()
    assert again == pytest.approx(run(make(1), 2)[0][1], rel=1e-9)


@linux
@pytest.mark.parametrize("workers", [1, 2])
def test_a_step_can_be_stopped_between_its_batches(workers):
    asked = []
    team = make(workers, pieces=3, stopping=lambda: asked.append(0) or len(asked) == 2)
    before = team.model.flat.copy()
    with pytest.raises(KeyboardInterrupt):
        team.step(0, 1e-2)
    team.close()
    assert np.array_equal(team.model.flat, before) and not team.optimizer.m.any()


def test_the_size_of_a_team(monkeypatch):
    monkeypatch.setattr(gpt, "usable_cores", lambda: 4)
    monkeypatch.setattr(sys, "platform", "linux")
    for workers, batch_size, size in ((0, 16, 4), (0, 3, 3), (2, 16, 2), (8, 8, 8)):
        settings = {"workers": workers, "batch_size": batch_size}
        assert gpt.team_size(settings) == settings["workers"] == size
    with pytest.raises(ValueError, match="batch_size of 5 is too small for 6 processes"):
        gpt.team_size({"workers": 6, "batch_size": 5})
    monkeypatch.setattr(sys, "platform", "darwin")
    assert gpt.team_size({"workers": 4, "batch_size": 16}) == 1


# nothing is left


@linux
def test_close_ends_the_workers():
    team = make(3)
    pids = list(team.pids.values())
    assert all(map(alive, pids))
    team.close()
    assert not any(map(alive, pids)) and not team.pids
    team.close()


@linux
def test_workers_leave_signals_to_the_leader():
    team = make(2)
    (pid,) = team.pids.values()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, number)
    assert len(run(team)[0]) == 4
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


@linux
def test_a_killed_worker_ends_the_step_with_a_sentence():
    team = make(3)
    os.kill(team.pids[2], signal.SIGKILL)
    with pytest.raises(ChildProcessError, match="worker 2 of 3 ended: killed"):
        run(team)
    assert not team.pids


@linux
def test_a_workers_exception_reaches_the_leader(monkeypatch):
    def draw(ids, T, n, seed, step, first):
        if first and step == 1:
            raise MemoryError("no room for this")
        return plain_draw(ids, T, n, seed, step, first)

    plain_draw = gpt.draw_batch
    monkeypatch.setattr(gpt, "draw_batch", draw)
    with pytest.raises(OSError, match="worker 1 of 2 ended: MemoryError: no room for this"):
        run(make(2))


@linux
def test_waiting_workers_leave_the_cores_alone():
    team = make(2)
    (pid,) = team.pids.values()
    team.step(0, 1e-2)

    def seconds():
        fields = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    time.sleep(0.2)
    before = seconds()
    time.sleep(0.5)
    assert seconds() - before < 0.15
    team.close()


LEADER = """
import fcntl, os, sys, time
sys.path[:0] = [{root!r}, {tests!r}]
from test_capstone_team import make
lock = open("lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
team = make(3)
print(*team.pids.values(), flush=True)
for step in range({steps}):
    team.step(step, 1e-3)
time.sleep({seconds})
{end}
"""


def lead(tmp_path, steps=0, seconds=0, end=""):
    """A process that leads a team and holds a lock, and its workers' ids."""
    paths = {"root": str(ROOT), "tests": str(ROOT / "tests")}
    code = LEADER.format(steps=steps, seconds=seconds, end=end, **paths)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    leader = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, **pipes)
    return leader, [int(pid) for pid in leader.stdout.readline().split()]


@linux
@pytest.mark.parametrize("steps,seconds", [(10**6, 0), (2, 60)], ids=["at work", "waiting"])
def test_workers_die_with_a_leader_that_is_killed(tmp_path, steps, seconds):
    import fcntl

    leader, pids = lead(tmp_path, steps, seconds)
    time.sleep(0.3)
    assert len(pids) == 2 and all(map(alive, pids))
    for pid in pids:  # they hold no files but the standard ones
        assert all(int(fd) <= 2 for fd in os.listdir(f"/proc/{pid}/fd"))
    leader.kill()
    leader.communicate()
    wait_for(lambda: not any(map(alive, pids)))
    with open(tmp_path / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@linux
@pytest.mark.parametrize("end", ["", "raise ValueError", "sys.exit(3)", "os.abort()"])
def test_workers_end_with_a_leader_that_forgets_them(tmp_path, end):
    leader, pids = lead(tmp_path, steps=1, end=end)
    leader.communicate(timeout=30)
    wait_for(lambda: not any(map(alive, pids)))


# the machine


def quota(tmp_path, cgroup, **files):
    """A file system that says so much about cgroups."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(cgroup)
    for name, content in files.items():
        path = tmp_path / "sys/fs/cgroup" / name.replace("__", "/")
        path = path.with_name(path.name.replace("cpu_", "cpu."))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return gpt.usable_cores(tmp_path)


@linux
@pytest.mark.parametrize(
    "cgroup,files,cores",
    [
        ("0::/\n", {}, 8),
        ("0::/\n", {"cpu_max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu_max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu_max": "250000 100000\n"}, 3),
        ("0::/\n", {"cpu_max": "10000 100000\n"}, 1),
        ("0::/\n", {"cpu_max": "1600000 100000\n"}, 8),
        ("0::/a/b\n", {"a__b__cpu_max": "max 100000\n", "a__cpu_max": "300000 100000\n"}, 3),
        ("0::/a/b\n", {"cpu_max": "200000 100000\n"}, 2),  # the group is mounted as the root
        (
            "5:memory:/x\n4:cpu,cpuacct:/y\n0::/\n",
            {
                "cpu,cpuacct__y__cpu_cfs_quota_us": "150000\n",
                "cpu,cpuacct__y__cpu_cfs_period_us": "50000",
            },
            3,
        ),
        (
            "4:cpu:/y\n",
            {"cpu__cpu_cfs_quota_us": "-1\n", "cpu__cpu_cfs_period_us": "100000\n"},
            8,
        ),
    ],
)
def test_cores_are_those_of_affinity_and_quota(tmp_path, monkeypatch, cgroup, files, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert quota(tmp_path, cgroup, **files) == cores


@linux
def test_the_leader_has_all_threads_again_after_a_step(monkeypatch):
    if gpt.openblas() is None:
        pytest.skip("NumPy has no OpenBLAS that we know here")
    get, put = gpt.openblas()
    before, seen = get(), []
    monkeypatch.setattr(gpt, "usable_cores", lambda: 3)
    team = make(3)
    training_step = gpt.training_step
    monkeypatch.setattr(gpt, "training_step", lambda *a: seen.append(get()) or training_step(*a))
    try:
        put(2)
        team.step(0, 1e-2)
        assert seen == [1] and get() == 2
    finally:
        put(before)
        team.close()


def test_without_a_known_openblas_the_threads_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(gpt, "openblas", lambda: None)
    assert gpt.blas_threads(2) is None


# MPI


RANK = """
import json, sys
sys.path[:0] = [{root!r}, {tests!r}]
import capstone_gpt as gpt
from test_capstone_team import make, run
MPI = gpt.mpi()
{everywhere}
if MPI.COMM_WORLD.rank:
    sys.exit(gpt.follow(MPI))
{leader}
"""


def mpiexec(ranks, leader, everywhere=""):
    """The finished job of `ranks` ranks that run this code."""
    here = os.path.dirname(sys.executable)
    program = shutil.which("mpiexec", path=here) or shutil.which("mpiexec")
    if importlib.util.find_spec("mpi4py") is None or program is None:
        pytest.skip("mpi4py and mpiexec are not installed (pip install mpi4py mpich)")
    paths = {"root": str(ROOT), "tests": str(ROOT / "tests")}
    code = RANK.format(leader=leader, everywhere=everywhere, **paths)
    command = [program, "-n", str(ranks), sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_two_ranks_take_the_steps_of_one_process():
    leader = """
team = make(1, pieces=2)
assert team.size == 2
found, w, m, v = run(team)
gpt.tell_ranks(MPI, gpt.END, 0)
print(json.dumps([found, w.tolist(), m.tolist(), v.tolist()]))
"""
    done = mpiexec(2, leader)
    assert done.returncode == 0 and not done.stderr, done.stderr
    for one, two in zip(run(make(1, pieces=2)), json.loads(done.stdout)):
        assert np.allclose(one, two, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_fails_ends_all_and_says_why(rank):
    fail = f"if MPI.COMM_WORLD.rank == {rank}: gpt.draw_batch = lambda *_: 1 / 0"
    done = mpiexec(2, "make(1).step(0, 1e-2)\nprint('not reached')", fail)
    assert done.returncode != 0 and "not reached" not in done.stdout
    assert f"rank {rank}: ZeroDivisionError" in done.stderr


def test_a_rank_0_without_a_run_sends_the_others_home():
    done = mpiexec(3, "gpt.tell_ranks(MPI, gpt.END, 0)\nsys.exit(5)")
    assert done.returncode == 5 and not done.stdout + done.stderr


@pytest.mark.parametrize("names", ["PMI", "OMPI_COMM_WORLD"])
def test_mpiexec_without_mpi4py_is_one_sentence(monkeypatch, names):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert gpt.mpi() is None
    monkeypatch.setenv(f"{names}_SIZE", "1")
    assert gpt.mpi() is None
    monkeypatch.setenv(f"{names}_SIZE", "2")
    monkeypatch.setenv(f"{names}_RANK", "0")
    with pytest.raises(ValueError, match="pip install mpi4py mpich"):
        gpt.mpi()
    monkeypatch.setenv(f"{names}_RANK", "1")
    with pytest.raises(SystemExit):
        gpt.mpi()


@linux
def test_a_team_works_where_sigchld_is_ignored():
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with contextlib.closing(make(2)) as team:
            assert np.isfinite(team.step(0, 1e-3)).all()
        assert not team.pids
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_size_without_a_rank_is_that_of_rank_0(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.delenv("PMI_RANK", raising=False)
    with pytest.raises(ValueError, match="pip install mpi4py mpich"):
        gpt.mpi()
    monkeypatch.setenv("PMI_SIZE", "")
    assert gpt.mpi() is None
