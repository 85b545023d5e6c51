"""What a run needs of memory, held against what the machine or the container has left before work begins."""

from pathlib import Path
from typing import NamedTuple

# The peak of a whole run over that of the programs: 0.96 kB a sample of 7 receivers, 71 kB of 64, where the pairs of
# receivers count when the locator is fitted and evaluated. With some room; benchmarks/memory.py holds it against runs.
BYTES_A_SAMPLE, BYTES_A_RECEIVER, BYTES_A_PAIR = 200, 70, 18

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


class _Cgroup(NamedTuple):
    mount: str
    limit: str
    used: str
    files: str


# By what stands between the colons of /proc/self/cgroup: version 2, and version 1.
_VERSIONS = {
    "": _Cgroup("", "memory.max", "memory.current", "inactive_file"),
    "memory": _Cgroup("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def check_memory(num_samples: int, num_sites: int) -> None:
    """Raises ValueError where a run on so many samples of so many sites needs more memory than is left here."""
    needed, left = needed_bytes(num_samples, num_sites), available_bytes()
    if left is not None and needed > left:
        raise ValueError(
            f"num_samples: {num_samples:,} samples of {num_sites} sites need about {needed / 1e6:,.0f} MB of memory, "
            f"and {left / 1e6:,.0f} MB are left; take at most {int(num_samples * left / needed):,} samples"
        )


def needed_bytes(num_samples: int, num_sites: int) -> int:
    """The peak of a run that simulates, trains and evaluates, without the programs themselves."""
    return num_samples * (BYTES_A_SAMPLE + BYTES_A_RECEIVER * num_sites + BYTES_A_PAIR * num_sites**2)


def available_bytes(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int | None:
    """What this process can still take without swapping: of the machine, and of every control group (container) that it
    is in. None where the system does not say (other systems than Linux)."""
    left = [value for value in (_left_of_machine(proc), *_left_of_cgroups(proc, cgroups)) if value is not None]
    return min(left) if left else None


def _left_of_machine(proc: Path) -> int | None:
    try:
        fields = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def _left_of_cgroups(proc: Path, cgroups: Path) -> list[int | None]:
    """Of each group from this process's own up to the root of what is mounted, in a container its own group."""
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
        # Files that were read can be dropped again.
        used = int((folder / version.used).read_text()) - int(stat[version.files])
    except (OSError, KeyError, ValueError):  # also where there is no limit: "max"
        return None
    return max(limit - used, 0)
