"""What must be there of a workdir, what is wrong with it, and making it again."""
