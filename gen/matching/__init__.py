"""Which concepts are in which caption, and which captions are kept."""
