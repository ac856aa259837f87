"""The latest samples of every VM, and the Prometheus text format made from them."""
