"""How files are found, read and written: places and URLs, writes that are whole or absent, and checked readers."""
