"""Flags of XLA for virtual CPU devices."""


def virtual_devices(count: int) -> str:
    """`count` devices that wait for each other.

    The devices take turns on the cores of a busy machine, and XLA would end the process
    when one has not come to a collective 40 s after the first.
    """
    return (
        f"--xla_force_host_platform_device_count={count} "
        "--xla_cpu_collective_call_terminate_timeout_seconds=600"
    )
