"""The root-side report of LVM thin pools and ZFS pools, and its systemd timer."""
