"""Images: models behind a server, and their routes."""
