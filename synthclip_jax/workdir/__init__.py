"""What lies where in a workdir."""
