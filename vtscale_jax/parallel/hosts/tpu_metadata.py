"""Workers of a Cloud TPU VM, as its metadata server tells them.

http://metadata.google.internal/computeMetadata/v1/instance/attributes/ has, on the
hosts of a TPU: `agent-worker-number` (which of them this is),
`worker-network-endpoints` (the addresses of all) and `tpu-env` (lines NAME: 'value',
with MEGASCALE_* when several slices belong together).
"""

import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

PCI = Path("/sys/bus/pci/devices")
GOOGLE = "0x1ae0"
# Google's network cards and disks have the same vendor: classes 01 and 02.
NOT_TPU = ("0x01", "0x02")
TIMEOUT_S, MAX_BYTES = 5.0, 1 << 20


class MetadataError(ValueError):
    """The metadata server did not answer, or not as expected."""


class Workers(NamedTuple):
    """`workers` are addresses in order; `index` is this one; `slices` MEGASCALE_*."""

    index: int
    workers: tuple[str, ...]
    slices: dict[str, str]


def has_tpu(pci: Path = PCI) -> bool:
    """Whether a TPU chip is among the PCI devices that Linux lists under `pci`."""
    for device in pci.glob("*"):
        vendor, kind = device / "vendor", device / "class"
        if not (vendor.is_file() and kind.is_file()):
            continue
        is_google = vendor.read_text().strip() == GOOGLE
        if is_google and not kind.read_text().startswith(NOT_TPU):
            return True
    return False


def read_workers(environ: Mapping[str, str]) -> Workers | None:
    """The workers of this host's TPU; None when it belongs to no TPU VM.

    `GCE_METADATA_HOST` names another server, as for Google's own libraries.
    """
    host = environ.get("GCE_METADATA_HOST") or "metadata.google.internal"
    number = _attribute(host, "agent-worker-number")
    if number is None:
        return None
    if not re.fullmatch(r"[0-9]{1,6}", number.strip()):
        raise MetadataError(f"agent-worker-number of {host} is {number!r}, no number.")
    endpoints = _attribute(host, "worker-network-endpoints")
    if not endpoints:
        raise MetadataError(f"worker-network-endpoints of {host} is empty.")
    workers = []
    for endpoint in endpoints.strip().split(","):
        # Newer servers list addresses, older ones name:id:address.
        parts = endpoint.strip().split(":")
        if len(parts) not in (1, 3) or not parts[-1]:
            raise MetadataError(
                f"worker-network-endpoints of {host} holds {endpoint!r}, expected an "
                "address or name:id:address."
            )
        workers.append(parts[-1])
    lines = (_attribute(host, "tpu-env") or "").splitlines()
    found = (re.match(r"\s*(MEGASCALE_\w+)\s*:\s*'?([^']*?)'?\s*$", x) for x in lines)
    slices = {line[1]: line[2] for line in found if line is not None}
    return Workers(int(number), tuple(workers), slices)


def _attribute(host: str, name: str) -> str | None:
    """One attribute of this instance; None when it does not have it."""
    url = f"http://{host}/computeMetadata/v1/instance/attributes/{name}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    # The server is on this machine: a proxy would not reach it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for last in (False, False, True):
        try:
            with opener.open(request, timeout=TIMEOUT_S) as answer:
                return answer.read(MAX_BYTES).decode()
        except (OSError, UnicodeDecodeError) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code == 404:
                return None
            if last:
                raise MetadataError(
                    f"the metadata server {host} did not tell {name} ({error})."
                ) from error
        time.sleep(0.5)
    raise AssertionError("the last try returns or raises")
