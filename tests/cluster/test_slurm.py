"""A comparison on a real SLURM of one machine: cancelled, killed and drained jobs end with the bits
of a local run."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taet.experiments.compare import Comparison, compare
from taet.experiments.slurm import queue
from taet.run.folder import RunFolder
from taet.settings import Slurm
from tests.calls import PATIENCE
from tests.experiments.conftest import SMALL

CONFIG = """
ClusterName=trial
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd.log
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
SlurmctldPort=16821
SlurmdPort=16822
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MailProg=/bin/true
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=4000 State=UNKNOWN
PartitionName=cpu Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""

pytestmark = [pytest.mark.cluster, pytest.mark.full]


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "the cluster took too long"
        time.sleep(0.5)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start the daemons of SLURM as root on the loopback address, and stop them afterwards; yield
    the node's name."""
    pytest.importorskip("submitit")
    if shutil.which("slurmctld") is None or shutil.which("munged") is None or os.geteuid() != 0:
        pytest.skip("needs the packages slurm-wlm and munge, and root")
    place, name = tmp_path_factory.mktemp("slurm"), os.uname().nodename.partition(".")[0]
    for folder in ("state", "spool"):
        (place / folder).mkdir()
    config = place / "slurm.conf"
    config.write_text(CONFIG.format(host=name, place=place, cpus=os.cpu_count()))
    started = (
        subprocess.run(["pgrep", "-x", "munged"], check=False, stdout=subprocess.DEVNULL).returncode
        == 0
    )
    if not started:
        Path("/run/munge").mkdir(exist_ok=True)
        shutil.chown("/run/munge", "munge", "munge")
        subprocess.run(["runuser", "-u", "munge", "--", "munged"], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(config))
        for daemon in ("slurmctld", "slurmd"):
            subprocess.run([daemon, "-f", str(config)], check=True)
        try:
            wait_until(
                lambda: (
                    "idle"
                    in subprocess.run(
                        ["sinfo", "-h"], check=False, capture_output=True, text=True
                    ).stdout
                )
            )
            yield name
        finally:
            for daemon in ("slurmd", "slurmctld"):
                os.kill(int((place / f"{daemon}.pid").read_text()), signal.SIGTERM)
            if not started:
                subprocess.run(["pkill", "-x", "munged"], check=False)


def test_every_cell_ends_with_the_bits_of_a_local_run(host: str, tmp_path: Path) -> None:
    grid: dict[str, Any] = {**SMALL, "methods": ["at", "taet"], "seeds": [0, 1, 2, 3]}

    def call() -> Comparison:
        return compare(grid, tmp_path / "far", slurm=Slurm(cpus=1))

    def jobs_of(state: str) -> list[str]:
        return [number for number, its in queue().items() if its == state]

    assert call().counts == {"submitted": 8}
    subprocess.run(
        ["scontrol", "update", f"nodename={host}", "state=drain", "reason=trial"], check=True
    )
    wait_until(lambda: not jobs_of("running"))
    assert jobs_of("pending")
    subprocess.run(["scancel", jobs_of("pending")[-1]], check=True)
    subprocess.run(["scontrol", "update", f"nodename={host}", "state=resume"], check=True)
    killed = ["pkill", "-KILL", "-n", "-f", f"taet train .*{tmp_path}"]
    wait_until(lambda: subprocess.run(killed, check=False).returncode == 0)
    wait_until(lambda: not queue())
    assert call().counts == {"done": 6, "submitted": 2}
    wait_until(lambda: not queue())
    there = call()
    assert there.counts == {"done": 8}
    assert there.report is not None
    here = compare(grid, tmp_path / "here")
    for one, other in zip(there.outcomes, here.outcomes, strict=True):
        far, near = (
            RunFolder(outcome.cell.folder).weights_about().weights_sha256
            for outcome in (one, other)
        )
        assert far == near, one.cell.name
