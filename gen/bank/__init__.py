"""Where the concepts of the bank come from: sources, files that users bring, block lists."""
