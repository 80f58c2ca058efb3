"""Which run a process belongs to, from what each launcher leaves behind."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vtscale_jax.parallel.hosts.cluster import Cluster, ClusterError, find_cluster
from vtscale_jax.parallel.hosts.node_lists import NodeListError, expand, expand_counts

OURS = {
    "VTSCALE_COORDINATOR": "node01:6000",
    "VTSCALE_NUM_PROCESSES": "4",
    "VTSCALE_PROCESS_ID": "2",
}
# As srun leaves them for task 5 of 6 on three nodes.
SRUN = {
    "SLURM_JOB_ID": "200505",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "6",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_NUM_NODES": "3",
    "SLURM_STEP_NODELIST": "gpu-[08-09],login1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
    "SLURM_NODELIST": "gpu-[08-09],login1",
}
# As a batch script finds them before any srun.
BATCH = {
    "SLURM_JOB_ID": "200505",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "6",
    "SLURM_NODELIST": "gpu-[08-09],login1",
}
GKE = {"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "w-0.job,w-1.job"}
SLICES = {
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
    "MEGASCALE_COORDINATOR_ADDRESS": "job-0-0.job:8080",
}
NODES = ("gpu-08", "gpu-09", "login1")
SLURM_PORT = 61440 + 200505 % 4096

FOUND = {
    "nothing": ({}, Cluster("single", None, 1, 0)),
    "ours": (OURS, Cluster("environment", "node01:6000", 4, 2)),
    "ours, named": (
        OURS | {"VTSCALE_HOSTS": "a, b,c,d"},
        Cluster("environment", "node01:6000", 4, 2, ("a", "b", "c", "d")),
    ),
    "ours, alone": (
        {"VTSCALE_NUM_PROCESSES": "1"},
        Cluster("environment", None, 1, 0),
    ),
    "ours, IPv6": (
        OURS | {"VTSCALE_COORDINATOR": "[fd00::7]:6000"},
        Cluster("environment", "[fd00::7]:6000", 4, 2),
    ),
    "ours before slurm": (
        OURS | SRUN,
        Cluster("environment", "node01:6000", 4, 2),
    ),
    "indexed job": (
        {
            "VTSCALE_COORDINATOR": "job-0-0.job:6000",
            "VTSCALE_NUM_PROCESSES": "4",
            "JOB_COMPLETION_INDEX": "3",
        },
        Cluster("kubernetes", "job-0-0.job:6000", 4, 3),
    ),
    # A sweep of single pods is an Indexed Job too.
    "indexed job, alone": (
        {"JOB_COMPLETION_INDEX": "3"},
        Cluster("single", None, 1, 0),
    ),
    "srun": (
        SRUN,
        Cluster(
            "slurm", f"gpu-08:{SLURM_PORT}", 6, 5, tuple(n for n in NODES for _ in "ab")
        ),
    ),
    "srun, second step": (
        SRUN | {"SLURM_STEP_ID": "1"},
        Cluster(
            "slurm",
            f"gpu-08:{SLURM_PORT + 61}",
            6,
            5,
            tuple(n for n in NODES for _ in "ab"),
        ),
    ),
    "srun, dealt round": (
        SRUN | {"SLURM_DISTRIBUTION": "cyclic"},
        Cluster("slurm", f"gpu-08:{SLURM_PORT}", 6, 5),
    ),
    "srun, a task a node": (
        SRUN
        | {
            "SLURM_STEP_NUM_TASKS": "3",
            "SLURM_PROCID": "1",
            "SLURM_STEP_TASKS_PER_NODE": "1(x3)",
            "SLURM_DISTRIBUTION": "cyclic",
        },
        Cluster("slurm", f"gpu-08:{SLURM_PORT}", 3, 1, NODES),
    ),
    "srun, other address": (
        SRUN
        | {"SLURM_DISTRIBUTION": "cyclic", "VTSCALE_COORDINATOR": "gpu-08-ib:7000"},
        Cluster("slurm", "gpu-08-ib:7000", 6, 5),
    ),
    "batch script": (BATCH, Cluster("single", None, 1, 0)),
    "salloc shell": (
        BATCH | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},
        Cluster("single", None, 1, 0),
    ),
    "gke": (GKE, Cluster("gke-tpu", "w-0.job:8482", 2, 1, ("w-0.job", "w-1.job"))),
    "gke, addresses": (
        GKE | {"TPU_PROCESS_ADDRESSES": "10.0.0.1:8476,10.0.0.2:8476"},
        Cluster("gke-tpu", "10.0.0.1:8482", 2, 1, ("10.0.0.1", "10.0.0.2")),
    ),
    "gke, one host": (
        {"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"},
        Cluster("single", None, 1, 0),
    ),
    "gke, two slices": (GKE | SLICES, Cluster("gke-tpu", "job-0-0.job:8482", 4, 3)),
    "gke, slices of one host": (
        SLICES | {"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"},
        Cluster("gke-tpu", "job-0-0.job:8482", 2, 1),
    ),
}

# (variables, what the message must name)
REFUSED = {
    "no count": ({"VTSCALE_PROCESS_ID": "1"}, ["VTSCALE_NUM_PROCESSES", "unset"]),
    "only an address": (
        {"VTSCALE_COORDINATOR": "a:1"},
        ["VTSCALE_NUM_PROCESSES", "VTSCALE_PROCESS_ID"],
    ),
    "only names": ({"VTSCALE_HOSTS": "a,b"}, ["VTSCALE_NUM_PROCESSES"]),
    "no address": (
        {"VTSCALE_NUM_PROCESSES": "4", "VTSCALE_PROCESS_ID": "0"},
        ["VTSCALE_COORDINATOR", "host:port"],
    ),
    "no id": (
        {"VTSCALE_NUM_PROCESSES": "4", "VTSCALE_COORDINATOR": "a:1"},
        ["VTSCALE_PROCESS_ID", "0 to 3"],
    ),
    "id too large": (
        OURS | {"VTSCALE_PROCESS_ID": "4"},
        ["VTSCALE_PROCESS_ID is 4", "0 to 3"],
    ),
    "no number": (
        OURS | {"VTSCALE_PROCESS_ID": "one"},
        ["VTSCALE_PROCESS_ID", "'one'", "whole number"],
    ),
    "negative": (OURS | {"VTSCALE_PROCESS_ID": "-1"}, ["VTSCALE_PROCESS_ID", "'-1'"]),
    "none": (OURS | {"VTSCALE_NUM_PROCESSES": "0"}, ["VTSCALE_NUM_PROCESSES", "'0'"]),
    "no port": (
        OURS | {"VTSCALE_COORDINATOR": "node01"},
        ["VTSCALE_COORDINATOR", "'node01'", "host:port"],
    ),
    "port too large": (
        OURS | {"VTSCALE_COORDINATOR": "node01:70000"},
        ["VTSCALE_COORDINATOR", "70000"],
    ),
    "a URL": (
        OURS | {"VTSCALE_COORDINATOR": "http://node01:80"},
        ["VTSCALE_COORDINATOR", "http"],
    ),
    "too few names": (
        OURS | {"VTSCALE_HOSTS": "a,b"},
        ["VTSCALE_HOSTS names 2", "VTSCALE_NUM_PROCESSES is 4"],
    ),
    "misspelt": (
        {"VTSCALE_NUM_PROCESS": "4"},
        ["VTSCALE_NUM_PROCESS is", "VTSCALE_NUM_PROCESSES?"],
    ),
    "indexed job, too large": (
        OURS | {"VTSCALE_PROCESS_ID": "", "JOB_COMPLETION_INDEX": "4"},
        ["JOB_COMPLETION_INDEX is 4", "VTSCALE_NUM_PROCESSES is 4"],
    ),
    "srun, no nodes": (
        {k: v for k, v in SRUN.items() if k != "SLURM_STEP_NODELIST"},
        ["SLURM_STEP_NODELIST is not set", "srun"],
    ),
    "srun, nodes unreadable": (
        SRUN | {"SLURM_STEP_NODELIST": "gpu-[08-"},
        ["SLURM_STEP_NODELIST", "gpu-[08-", "VTSCALE_COORDINATOR"],
    ),
    "srun, mixed steps": (
        SRUN | {"SLURM_PROCID": "6"},
        ["SLURM_PROCID is 6", "SLURM_STEP_NUM_TASKS is 6"],
    ),
    "srun, other tasks": (
        SRUN | {"SLURM_STEP_TASKS_PER_NODE": "2(x2),1"},
        ["SLURM_STEP_TASKS_PER_NODE", "5 tasks", "SLURM_STEP_NUM_TASKS is 6"],
    ),
    "srun, heterogeneous": (
        SRUN | {"SLURM_HET_SIZE": "2"},
        ["SLURM_HET_SIZE", "VTSCALE_PROCESS_ID"],
    ),
    "gke, no id": (
        {"TPU_WORKER_HOSTNAMES": "a,b"},
        ["TPU_WORKER_ID is not set", "google.com/tpu"],
    ),
    "gke, too many": (
        GKE | {"TPU_WORKER_ID": "2"},
        ["TPU_WORKER_ID is 2", "completions"],
    ),
    "slices, no id": (
        GKE | {"MEGASCALE_NUM_SLICES": "2"},
        ["MEGASCALE_SLICE_ID is not set", "MEGASCALE_COORDINATOR_ADDRESS"],
    ),
    "slices, id too large": (
        GKE | SLICES | {"MEGASCALE_SLICE_ID": "2"},
        ["MEGASCALE_SLICE_ID is 2", "0 to 1"],
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_found(name, tmp_path):
    environ, expected = FOUND[name]
    assert find_cluster(environ, pci=tmp_path) == expected


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, tmp_path):
    environ, words = REFUSED[name]
    with pytest.raises(ClusterError) as error:
        find_cluster(environ, pci=tmp_path)
    assert all(word in str(error.value) for word in words), str(error.value)


NODE_LISTS = {
    "a": ("a",),
    "a,b": ("a", "b"),
    "node[001-003,007]": ("node001", "node002", "node003", "node007"),
    "n[8-11]": ("n8", "n9", "n10", "n11"),
    "n[08-10]": ("n08", "n09", "n10"),
    "n[099-101],m": ("n099", "n100", "n101", "m"),
    "r[0-1]n[00-01]-ib": ("r0n00-ib", "r0n01-ib", "r1n00-ib", "r1n01-ib"),
    "a[1,3],b-[5],c.d.org": ("a1", "a3", "b-5", "c.d.org"),
    "[1-2]": ("1", "2"),
}


@pytest.mark.parametrize("text", NODE_LISTS)
def test_node_list(text):
    assert expand(text) == NODE_LISTS[text]


@pytest.mark.parametrize(
    "text",
    [
        *("", "a,", ",a", "a[", "a]", "a[1", "a[1-]", "a[-1]", "a[]", "a[1,]"),
        *("a[2-1]", "a[1-2", "a[[1]]", "a[x]", "a[1-2-3]", "a b", "a;rm", "-a"),
        *("a[0-99999999]", "a[0-999]b[0-999]", "[1-2]]"),
    ],
)
def test_node_list_refused(text):
    with pytest.raises(NodeListError, match="the list"):
        expand(text)


def test_counts():
    assert expand_counts("2(x3),1") == (2, 2, 2, 1)
    assert expand_counts("8") == (8,)
    for text in ("", "2(x", "x2", "2(3)", "1(x999999)", "2,"):
        with pytest.raises(NodeListError):
            expand_counts(text)


def chips(folder: Path, vendor: str = "0x1ae0", kind: str = "0x088000") -> Path:
    """A list of PCI devices with one device in it."""
    device = folder / "0000:00:04.0"
    device.mkdir()
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "class").write_text(f"{kind}\n")
    return folder


@pytest.fixture
def metadata() -> Iterator[dict[str, str]]:
    """A metadata server; its attributes are the dict, which has its address too."""
    attributes: dict[str, str] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.removeprefix("/computeMetadata/v1/instance/attributes/")
            found = self.headers["Metadata-Flavor"] == "Google" and name in attributes
            self.send_response(200 if found else 404)
            self.end_headers()
            if found:
                self.wfile.write(attributes[name].encode())

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        attributes["host"] = f"127.0.0.1:{server.server_port}"
        yield attributes
        server.shutdown()
        thread.join()


def test_tpu_vm(tmp_path, metadata):
    environ = {"GCE_METADATA_HOST": metadata["host"], "http_proxy": "http://[::1]:9"}
    metadata["agent-worker-number"] = "1"
    metadata["worker-network-endpoints"] = "10.0.0.7,10.0.0.8"
    hosts = ("10.0.0.7", "10.0.0.8")
    expected = Cluster("tpu-vm", "10.0.0.7:8482", 2, 1, hosts)
    pci = chips(tmp_path)
    assert find_cluster(environ, pci=pci) == expected
    # As older servers say it.
    metadata["worker-network-endpoints"] = "a:0:10.0.0.7,b:1:10.0.0.8"
    assert find_cluster(environ, pci=pci) == expected
    metadata["tpu-env"] = (
        "ACCELERATOR_TYPE: 'v5litepod-8'\nMEGASCALE_NUM_SLICES: '2'\n"
        "MEGASCALE_SLICE_ID: '1'\nMEGASCALE_COORDINATOR_ADDRESS: '10.0.0.3:8080'\n"
    )
    assert find_cluster(environ, pci=pci) == Cluster("tpu-vm", "10.0.0.3:8482", 4, 3)
    metadata["agent-worker-number"] = "2"
    with pytest.raises(ClusterError, match="worker 2 of 2"):
        find_cluster(environ, pci=pci)
    metadata["worker-network-endpoints"] = "a:b"
    with pytest.raises(ClusterError, match="worker-network-endpoints"):
        find_cluster(environ, pci=pci)
    del metadata["agent-worker-number"]  # a TPU of another kind of machine
    assert find_cluster(environ, pci=pci).launcher == "single"


def test_tpu_vm_of_one_host(tmp_path, metadata):
    metadata |= {"agent-worker-number": "0", "worker-network-endpoints": "10.0.0.7"}
    environ = {"GCE_METADATA_HOST": metadata["host"]}
    found = find_cluster(environ, pci=chips(tmp_path))
    assert found == Cluster("tpu-vm", None, 1, 0)


@pytest.mark.parametrize(
    "vendor, kind",
    [("0x10de", "0x030200"), ("0x1ae0", "0x020000"), ("0x1ae0", "0x010802")],
)
def test_no_tpu_asks_nobody(tmp_path, vendor, kind):
    environ = {"GCE_METADATA_HOST": "127.0.0.1:9"}
    found = find_cluster(environ, pci=chips(tmp_path, vendor, kind))
    assert found.launcher == "single"


def test_silent_metadata_server_is_named(tmp_path):
    environ = {"GCE_METADATA_HOST": "127.0.0.1:9"}
    with pytest.raises(ClusterError) as error:
        find_cluster(environ, pci=chips(tmp_path))
    words = ["127.0.0.1:9", "VTSCALE_COORDINATOR", "TPU_SKIP_MDS_QUERY=1"]
    assert all(word in str(error.value) for word in words)
    environ["TPU_SKIP_MDS_QUERY"] = "1"
    assert find_cluster(environ, pci=tmp_path).launcher == "single"
