"""The memory that a run needs, compared before its work begins with what the machine or the container has left."""

from pathlib import Path
from typing import NamedTuple

# The peak of a whole run above that of the programs, with some room: 2.2 kB per sample of 7 receivers, 8.4 kB of 30.
# benchmarks/memory.py compares it with runs.
BYTES_PER_SAMPLE, BYTES_PER_RECEIVER = 600, 320

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


class _Cgroup(NamedTuple):
    mount: str
    limit: str
    used: str
    files: str


# By the text between the colons of /proc/self/cgroup: version 2, and version 1.
_VERSIONS = {
    "": _Cgroup("", "memory.max", "memory.current", "inactive_file"),
    "memory": _Cgroup("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def check_memory(num_samples: int, num_sites: int) -> None:
    """Raises ValueError if a run with this many samples and sites needs more memory than is left here."""
    needed, left = needed_bytes(num_samples, num_sites), available_bytes()
    if left is not None and needed > left:
        raise ValueError(
            f"num_samples: {num_samples:,} samples of {num_sites} sites need about {needed / 1e6:,.0f} MB of memory, "
            f"and {left / 1e6:,.0f} MB are left; take at most {int(num_samples * left / needed):,} samples"
        )


def needed_bytes(num_samples: int, num_sites: int) -> int:
    """The peak memory of a run that simulates, trains and evaluates, without the memory of the programs themselves."""
    return num_samples * (BYTES_PER_SAMPLE + BYTES_PER_RECEIVER * num_sites)


def available_bytes(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int | None:
    """The memory that this process can still take without swapping, of the machine and of every control group
    (container) that it is in. None if the system does not tell (all but Linux)."""
    left = [value for value in (_left_of_machine(proc), *_left_of_cgroups(proc, cgroups)) if value is not None]
    return min(left) if left else None


def _left_of_machine(proc: Path) -> int | None:
    try:
        fields = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def _left_of_cgroups(proc: Path, cgroups: Path) -> list[int | None]:
    """Of each control group, from that of this process up to the root of the mount (in a container: its own group)."""
    try:
        lines = [line.split(":", 2) for line in (proc / "self" / "cgroup").read_text().splitlines()]
    except OSError:
        return []
    found = []
    for _, controllers, path in lines:
        version = _VERSIONS.get(controllers)
        if version is not None:
            mount = cgroups / version.mount
            group = mount / path.lstrip("/")
            folders = [folder for folder in (group, *group.parents) if folder.is_relative_to(mount)]
            found += [_left_of_cgroup(folder, version) for folder in folders]
    return found


def _left_of_cgroup(folder: Path, version: _Cgroup) -> int | None:
    try:
        limit = int((folder / version.limit).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        # Memory that caches files can be freed.
        used = int((folder / version.used).read_text()) - int(stat[version.files])
    except (OSError, KeyError, ValueError):  # also if there is no limit: "max"
        return None
    return max(limit - used, 0)
