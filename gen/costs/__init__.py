"""What each stage costs: measured on this machine, or published."""
