"""/proc and the control groups in; the cores, memory and file system that this process really has out.

Reads only; no imports of gpumatch and no heavy library. A limit that cannot be read counts as none.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")

# Libraries of the drivers.
_NVIDIA, _AMD = "libcuda.so.1", "libamdhip64.so"
# The least compute capability that a CUDA version has code for.
_LEAST_CAPABILITY = {13: 75}
# Version 1 writes "no limit" as the largest whole number of pages.
_UNLIMITED = 2**62


@dataclass(frozen=True)
class MemoryLimit:
    """A control group's memory, in bytes: its limit, and what is left of it."""

    limit: int
    left: int


def has_gpu_driver() -> bool:
    """Tell whether a driver that torch could compute with is installed: NVIDIA's, or AMD's."""
    return _library(_NVIDIA, _AMD) is not None


def cuda_devices(major: int) -> int:
    """Return how many NVIDIA GPUs the driver shows to this process; nothing is set up on them.

    Args:
        major: of the CUDA version that is to run there; the answer is 0 if driver or first GPU are too old for it.
    """
    driver, count, version = _library(_NVIDIA), ctypes.c_int(), ctypes.c_int()
    if driver is None:
        return 0
    with contextlib.suppress(AttributeError):
        done = driver.cuInit(0), driver.cuDriverGetVersion(ctypes.byref(version))
        if done == (0, 0) and version.value >= 1000 * major and driver.cuDeviceGetCount(ctypes.byref(count)) == 0:
            return count.value if count.value and _capability(driver) >= _LEAST_CAPABILITY.get(major, 0) else 0
    return 0


def _capability(driver: ctypes.CDLL) -> int:
    """Return the compute capability of the first device, the one that is used: 75 for 7.5."""
    parts = ctypes.c_int(), ctypes.c_int()
    for attribute, part in zip((75, 76), parts, strict=True):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
        driver.cuDeviceGetAttribute(ctypes.byref(part), attribute, 0)
    return 10 * parts[0].value + parts[1].value


def _library(*names: str) -> ctypes.CDLL | None:
    """Return the first of some libraries that is there."""
    for name in names:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    return None


def cpu_count(proc: Path = PROC, cgroup: Path = CGROUP) -> int:
    """Return the cores that this process can keep busy: by affinity, and by quota rounded down, at least one."""
    quota = cpu_quota(proc, cgroup)
    return affinity_count() if quota is None else max(1, min(affinity_count(), math.floor(quota)))


def affinity_count() -> int:
    """Return the cores that this process may be scheduled on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota(proc: Path = PROC, cgroup: Path = CGROUP) -> float | None:
    """Return how many cores' time the control groups grant; None if they set no quota."""
    quotas = []
    version, groups = _groups("cpu", proc, cgroup)
    for group in groups:
        if version == 2:
            words = _read(group / "cpu.max").split()
        else:
            words = [_read(group / "cpu.cfs_quota_us").strip(), _read(group / "cpu.cfs_period_us").strip()]
        quota, period = [*map(_number, words), None, None][:2]
        if quota and period and quota > 0:
            quotas.append(quota / period)
    return min(quotas, default=None)


def available_memory(proc: Path = PROC, cgroup: Path = CGROUP) -> int:
    """Return the bytes that are still free: the smaller of what the system and the control groups leave."""
    limit = memory_limit(proc, cgroup)
    return min(system_memory(proc)[1], limit.left) if limit is not None else system_memory(proc)[1]


def system_memory(proc: Path = PROC) -> tuple[int, int]:
    """Return the system's memory and what is available of it, in bytes."""
    found = {name: int(kib) * 1024 for name, kib in re.findall(r"(\w+): +(\d+) kB", _read(proc / "meminfo"))}
    if "MemTotal" in found and "MemAvailable" in found:
        return found["MemTotal"], found["MemAvailable"]
    import psutil  # not on Linux

    memory = psutil.virtual_memory()
    return int(memory.total), int(memory.available)


def memory_limit(proc: Path = PROC, cgroup: Path = CGROUP) -> MemoryLimit | None:
    """Return the tightest control group, of this process's and those around it; None if none has a limit."""
    version, groups = _groups("memory", proc, cgroup)
    limit_file, used_file, cached = (
        ("memory.max", "memory.current", "inactive_file")
        if version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    limits = []
    for group in groups:
        limit, used = _number(_read(group / limit_file)), _number(_read(group / used_file))
        if limit is None or used is None or limit >= _UNLIMITED:
            continue
        # Cached files count as used, but the kernel frees them before it kills.
        kept = re.search(rf"^{cached} (\d+)$", _read(group / "memory.stat"), re.MULTILINE)
        limits.append(MemoryLimit(limit, max(0, limit - used + min(used, int(kept[1]) if kept else 0))))
    return min(limits, key=lambda one: one.left, default=None)


def descendants(proc: Path = PROC, of: str = "self") -> list[int]:
    """Return the children of a process and their descendants; empty if the system keeps no list."""
    found = []
    with contextlib.suppress(OSError):  # it ended meanwhile
        for task in (proc / of / "task").iterdir():
            for child in _read(task / "children").split():
                found += [int(child), *descendants(proc, child)]
    return found


def file_system(path: Path, proc: Path = PROC) -> str | None:
    """Return the type of the file system that holds a path (ext4, nfs4), or None if the system does not tell."""
    place = PurePosixPath(path.resolve())
    best, found = -1, None
    for line in _read(proc / "self" / "mountinfo").splitlines():
        mount, _, rest = line.partition(" - ")
        words = mount.split()
        if len(words) < 5 or not rest:
            continue
        point = PurePosixPath(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), words[4]))
        if place.is_relative_to(point) and len(point.parts) >= best:  # the later of two mounts hides the earlier
            best, found = len(point.parts), rest.split()[0]
    return found


def cpu_flags(proc: Path = PROC) -> frozenset[str]:
    """Return the instruction sets of the first core, as the kernel names them; empty if it does not tell."""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", _read(proc / "cpuinfo"), re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def _groups(controller: str, proc: Path, cgroup: Path) -> tuple[int, list[Path]]:
    """Return the version of a controller's hierarchy, and this process's group in it with all groups around it."""
    paths = {}
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        paths.update({name: path for name in controllers.split(",")})
    if controller in paths:
        version, root, path = 1, cgroup / controller, paths[controller]
    else:
        hybrid = cgroup / "unified"
        version, root, path = 2, hybrid if hybrid.is_dir() else cgroup, paths.get("", "/")
    inner = PurePosixPath(path.lstrip("/"))
    # A container may see the host's path, which is not there, or one above its own root: only the root is left then.
    inside = [] if ".." in inner.parts else [inner, *inner.parents]
    return version, [root, *(root / place for place in inside if place.parts and (root / place).is_dir())]


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def _number(text: str) -> int | None:
    text = text.strip()
    return int(text) if re.fullmatch(r"-?\d+", text) else None
