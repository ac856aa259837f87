"""Fields in the data of QEMU's events (2.6 to 11.1), and their types. Custom alerts in the config may use these fields. Pure."""

from collections.abc import Mapping
from typing import Final

_FIELDS: Final = {
    "ACPI_DEVICE_OST": "info.device:text info.slot:text info.slot-type:text info.source:number info.status:number",
    "BALLOON_CHANGE": "actual:number",
    "BLOCK_EXPORT_DELETED": "id:text",
    "BLOCK_IMAGE_CORRUPTED": "device:text fatal:flag msg:text node-name:text offset:number size:number",
    "BLOCK_IO_ERROR": ("action:text device:text node-name:text nospace:flag operation:text qom-path:text reason:text"),
    "BLOCK_JOB_CANCELLED": "device:text len:number offset:number speed:number type:text",
    "BLOCK_JOB_COMPLETED": "device:text error:text len:number offset:number speed:number type:text",
    "BLOCK_JOB_ERROR": "action:text device:text operation:text",
    "BLOCK_JOB_PENDING": "id:text type:text",
    "BLOCK_JOB_READY": "device:text len:number offset:number speed:number type:text",
    "BLOCK_WRITE_THRESHOLD": "amount-exceeded:number node-name:text write-threshold:number",
    "COLO_EXIT": "mode:text reason:text",
    "COMMAND_DROPPED": "id:text reason:text",
    "CPU_POLARIZATION_CHANGE": "polarization:text",
    "DEVICE_DELETED": "device:text path:text",
    "DEVICE_TRAY_MOVED": "device:text id:text tray-open:flag",
    "DEVICE_UNPLUG_GUEST_ERROR": "device:text path:text",
    "DUMP_COMPLETED": "error:text result.completed:number result.status:text result.total:number",
    "FAILOVER_NEGOTIATED": "device-id:text",
    "GUEST_CRASHLOADED": (
        "action:text info.arg1:number info.arg2:number info.arg3:number info.arg4:number info.arg5:number "
        "info.code:number info.core:number info.error-code:number info.gpa:number info.message:text "
        "info.psw-addr:number info.psw-mask:number info.reason:text info.set:number info.type:text"
    ),
    "GUEST_PANICKED": (
        "action:text info.arg1:number info.arg2:number info.arg3:number info.arg4:number info.arg5:number "
        "info.code:number info.core:number info.error-code:number info.gpa:number info.message:text "
        "info.psw-addr:number info.psw-mask:number info.reason:text info.set:number info.type:text"
    ),
    "GUEST_PVSHUTDOWN": "",
    "HV_BALLOON_STATUS_REPORT": "available:number committed:number",
    "JOB_STATUS_CHANGE": "id:text status:text",
    "MEMORY_DEVICE_SIZE_CHANGE": "id:text qom-path:text size:number",
    "MEMORY_FAILURE": "action:text flags.action-required:flag flags.recursive:flag recipient:text",
    "MEM_UNPLUG_ERROR": "device:text msg:text",
    "MIGRATION": "status:text",
    "MIGRATION_PASS": "pass:number",
    "NETDEV_STREAM_CONNECTED": (
        "addr.abstract:flag addr.cid:text addr.host:text addr.ipv4:flag addr.ipv6:flag addr.keep-alive:flag "
        "addr.keep-alive-count:number addr.keep-alive-idle:number addr.keep-alive-interval:number "
        "addr.mptcp:flag addr.numeric:flag addr.path:text addr.port:text addr.str:text addr.tight:flag "
        "addr.to:number addr.type:text netdev-id:text"
    ),
    "NETDEV_STREAM_DISCONNECTED": "netdev-id:text",
    "NETDEV_VHOST_USER_CONNECTED": "chardev-id:text netdev-id:text",
    "NETDEV_VHOST_USER_DISCONNECTED": "netdev-id:text",
    "NIC_RX_FILTER_CHANGED": "name:text path:text",
    "POWERDOWN": "",
    "PR_MANAGER_STATUS_CHANGED": "connected:flag id:text",
    "QUORUM_FAILURE": "reference:text sector-num:number sectors-count:number",
    "QUORUM_REPORT_BAD": "error:text node-name:text sector-num:number sectors-count:number type:text",
    "RDMA_GID_STATUS_CHANGED": "gid-status:flag interface-id:number netdev:text subnet-prefix:number",
    "RESET": "guest:flag reason:text",
    "RESUME": "",
    "RTC_CHANGE": "offset:number qom-path:text",
    "SCLP_CPI_INFO_AVAILABLE": "",
    "SHUTDOWN": "guest:flag reason:text",
    "SPICE_CONNECTED": (
        "client.family:text client.host:text client.port:text server.family:text server.host:text server.port:text"
    ),
    "SPICE_DISCONNECTED": (
        "client.family:text client.host:text client.port:text server.family:text server.host:text server.port:text"
    ),
    "SPICE_INITIALIZED": (
        "client.channel-id:number client.channel-type:number client.connection-id:number client.family:text "
        "client.host:text client.port:text client.tls:flag server.auth:text server.family:text "
        "server.host:text server.port:text"
    ),
    "SPICE_MIGRATE_COMPLETED": "",
    "STOP": "",
    "SUSPEND": "",
    "SUSPEND_DISK": "",
    "UNPLUG_PRIMARY": "device-id:text",
    "VFIO_MIGRATION": "device-id:text device-state:text qom-path:text",
    "VFU_CLIENT_HANGUP": "dev-id:text dev-qom-path:text vfu-id:text vfu-qom-path:text",
    "VNC_CONNECTED": (
        "client.family:text client.host:text client.service:text client.websocket:flag server.auth:text "
        "server.family:text server.host:text server.service:text server.websocket:flag"
    ),
    "VNC_DISCONNECTED": (
        "client.family:text client.host:text client.sasl_username:text client.service:text "
        "client.websocket:flag client.x509_dname:text server.auth:text server.family:text server.host:text "
        "server.service:text server.websocket:flag"
    ),
    "VNC_INITIALIZED": (
        "client.family:text client.host:text client.sasl_username:text client.service:text "
        "client.websocket:flag client.x509_dname:text server.auth:text server.family:text server.host:text "
        "server.service:text server.websocket:flag"
    ),
    "VSERPORT_CHANGE": "id:text open:flag",
    "WAKEUP": "",
    "WATCHDOG": "action:text",
}
"""Path and type of each field, by event. Fields inside lists are left out."""

EVENT_FIELDS: Final[Mapping[str, Mapping[str, str]]] = {
    event: dict(field.rsplit(":", 1) for field in fields.split()) for event, fields in _FIELDS.items()
}
"""Type of each field by event and path: `flag`, `number` or `text`."""
