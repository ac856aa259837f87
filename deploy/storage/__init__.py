"""The program that reports LVM thin pools and ZFS pools as root, and its systemd timer."""
