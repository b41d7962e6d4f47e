"""Images as files: what their headers claim, and their pixels."""
