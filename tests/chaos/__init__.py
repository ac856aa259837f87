"""What no fault may do: lose an event that was accepted, change one, or bring a VM's events out of order."""
