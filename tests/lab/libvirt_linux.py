"""A libvirt domain with a real Linux and a real guest agent."""

import asyncio
import shutil
import uuid
from typing import Final

from agent.cli.demo.images import linux_image
from tests.lab.guest_image import guest_agent_initramfs
from tests.lab.libvirt import Domain, Libvirtd
from tests.lab.waiting import until

_DOMAIN: Final = """\
<domain type='qemu'>
  <name>linux-1</name><uuid>{uuid}</uuid><memory unit='MiB'>192</memory><vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{folder}/vmlinuz</kernel><initrd>{folder}/initramfs</initrd>
    <cmdline>console=ttyS0 quiet GUEST_NAME=linux-1 PAUSE_SECONDS=5</cmdline>
  </os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file'><driver name='qemu' type='raw'/><source file='{folder}/disk'/><target dev='vda' bus='virtio'/></disk>
    <disk type='file'><driver name='qemu' type='raw'/><source file='{folder}/data'/><target dev='vdb' bus='virtio'/></disk>
    <interface type='user'><model type='virtio'/></interface>
    <controller type='usb' model='none'/>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
  </devices>
</domain>
"""


async def linux_domain(libvirtd: Libvirtd, *, guest_agent: str = "") -> Domain:
    """Start the domain `linux-1` and wait until its guest agent is connected.

    Args:
        libvirtd: the libvirtd.
        guest_agent: the Debian release whose guest agent runs; by default, the one that this machine has installed.
    """
    image, identity = await asyncio.to_thread(linux_image), str(uuid.uuid4())
    shutil.copy(image.kernel, libvirtd.folder / "vmlinuz")
    (libvirtd.folder / "initramfs").write_bytes(await asyncio.to_thread(guest_agent_initramfs, guest_agent))
    for name in ("disk", "data"):
        (libvirtd.folder / name).write_bytes(bytes(64 << 20))
    xml = libvirtd.folder / "linux-1.xml"
    xml.write_text(_DOMAIN.format(uuid=identity, folder=libvirtd.folder))
    await libvirtd.virsh("create", xml)

    async def is_connected() -> bool:
        return "state='connected'" in await libvirtd.virsh("dumpxml", "linux-1")

    await until(is_connected)
    return Domain("linux-1", identity, libvirtd.folder / "disk", xml)
