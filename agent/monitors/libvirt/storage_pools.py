"""Lists the active storage pools of a libvirtd. A read-only connection is enough.

agent/host/pools/libvirt.py decides which images are in which pool.
"""

from typing import Any

from agent.common.safe_xml import parse_xml
from agent.host.pools.libvirt import LibvirtStoragePool
from agent.model.record import sanitize

MAX_LIBVIRT_POOLS = 1000
_ACTIVE = 2  # VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE


def list_storage_pools(api: Any, handle: Any) -> list[LibvirtStoragePool]:
    """Return the active storage pools, without pools that disappear during the call. The call blocks until libvirtd has answered.

    Args:
        api: the Python module `libvirt`.
        handle: the connection object of that module (`virConnect`).
    """
    pools = []
    for pool in handle.listAllStoragePools(_ACTIVE)[:MAX_LIBVIRT_POOLS]:
        try:
            text, info = pool.XMLDesc(0), pool.info()
        except api.libvirtError as error:
            if error.get_error_code() != api.VIR_ERR_NO_STORAGE_POOL:
                raise
        else:
            parsed = parse_storage_pool(text, info)
            if parsed is not None:
                pools.append(parsed)
    return pools


def parse_storage_pool(text: str, info: list[int]) -> LibvirtStoragePool | None:
    """Return a storage pool; None if the XML cannot be parsed.

    Args:
        text: XML description of the pool.
        info: the result of virStoragePoolGetInfo: state, capacity, allocation and available bytes.
    """
    try:
        root = parse_xml(text.encode())
    except ValueError:
        return None
    name, target = root.findtext("name") or "", root.findtext("target/path") or ""
    source = root.findtext("source/name") or ""
    _, capacity, _, available = info
    return LibvirtStoragePool(
        sanitize(name), sanitize(root.get("type", "")), target.strip(), source.strip(), capacity, available
    )
